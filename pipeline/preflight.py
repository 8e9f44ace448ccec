"""Before a run: what its remote teachers can really do, and what all of it may take in time, memory and money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from pipeline.asking import request_of
from pipeline.errors import RunError
from pipeline.job import Job, Parts
from pipeline.loop import Loop
from pipeline.remote import tariffs
from pipeline.rollout.protocol import SamplingSettings
from pipeline.writers import student_writer
from teachers.plan import Plan
from teachers.prices import money
from teachers.types import ScoreRequest

SECONDS = 60.0  # that each teacher has to answer everything that is asked of it here
DOMAINS_TRIED = 4  # whose prompts stand for all, in the estimate


@dataclass(frozen=True)
class Estimate:
    """What one teacher may take over a whole run. questions: how often it is asked, if nobody else fails.

    tokens, dollars: at most. dollars: None where no price is known.
    """

    teacher: str
    questions: int
    tokens: int
    dollars: Decimal | None


def preflight(job: Job, parts: Parts, loop: Loop) -> None:
    """Asks every remote teacher, and prints what it found and what the run may take.

    Raises RunError where a teacher cannot do what the recipe asks of it.
    """
    courier = parts.pool.courier
    if courier is None:
        return
    rows: list[list[str | float | None]] = []
    problems: list[str] = []
    for name in parts.pool.remote:
        for finding in courier.examine(name, SECONDS):
            sign = {True: "good", False: "BAD", None: ""}[finding.good]
            rows.append([name, finding.what, sign, finding.text])
            if finding.good is False:
                problems.append(f"teachers.{name}: {finding.what}: {finding.text}")
    job.display.table("remote teachers", ["teacher", "what", "", "found"], rows)
    found = list(estimates(job, parts, loop))
    columns = ["teacher", "questions", "tokens at most", "dollars at most"]
    job.display.table("the whole run, at most", columns, [_cells(estimate) for estimate in found])
    known = [estimate.dollars for estimate in found if estimate.dollars is not None]
    if known:
        job.display.note(f"{money(sum(known, Decimal(0)))} at most; what is spent really is shown as it runs")
    if problems:
        raise RunError("\n".join(problems))


def estimates(job: Job, parts: Parts, loop: Loop) -> Iterator[Estimate]:
    """From the student's present answers to a few held-out prompts, and the most that a question about one can take."""
    recipe = job.recipe
    assert loop.asking is not None
    requests = _some_requests(job, parts, loop)
    prices = tariffs(recipe)
    rows = recipe.training.steps * recipe.training.prompts_per_step * recipe.rollout.samples_per_prompt
    asked = _asked(loop.asking.plan, [request.domain for request in requests])
    for name, teacher in parts.pool.remote.items():
        usages = [teacher.estimate(request) for request in requests]
        questions = round(rows * asked[name] / len(requests))
        tokens = sum(usage.input + usage.output for usage in usages) / len(usages)
        price = prices.get(name)
        dollars = None
        if price is not None:
            dollars = questions * sum((price.most(usage) for usage in usages), Decimal(0)) / len(usages)
        yield Estimate(name, questions, round(questions * tokens), dollars)


def _some_requests(job: Job, parts: Parts, loop: Loop) -> list[ScoreRequest]:
    """One for each of a few domains. Private prompts too: nothing is sent, only counted."""
    assert loop.asking is not None
    settings = replace(SamplingSettings.from_recipe(job.recipe.rollout), samples_per_prompt=1)
    prompts = [prompts[0] for _, prompts in sorted(parts.prompts.held_out.items())[:DOMAINS_TRIED] if prompts]
    rollouts = student_writer(parts.student.lm, settings, job.recipe.seed)(prompts, 0)
    return [request_of(loop.asking, rollout, 0) for rollout in rollouts]


def _asked(plan: Plan, domains: list[str]) -> Mapping[str, int]:
    """Teacher -> in how many of these domains it may be asked, feedback for others included."""
    counts: Counter[str] = Counter()
    for domain in domains:
        names = set(plan.routes.everyone(domain))
        counts.update(names | {plan.needs[name] for name in names if name in plan.needs})
    return counts


def _cells(estimate: Estimate) -> list[str | float | None]:
    dollars = "no price known" if estimate.dollars is None else money(estimate.dollars)
    return [estimate.teacher, f"{estimate.questions:,}", f"{estimate.tokens:,}", dollars]
