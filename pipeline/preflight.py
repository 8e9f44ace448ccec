"""Before a run: what its teachers can really do, and what all of it may take in time, memory and money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from pipeline.asking import request_of
from pipeline.errors import RunError
from pipeline.estimate import Estimate, estimates
from pipeline.job import Job, Parts
from pipeline.likeness import likeness
from pipeline.loop import Loop
from pipeline.rollout.protocol import SamplingSettings
from pipeline.types import Rollout
from pipeline.writers import student_writer
from teachers.prices import money
from teachers.types import Finding

SECONDS = 60.0  # that each teacher has to answer everything that is asked of it here
DOMAINS_TRIED = 4  # whose prompts stand for all
SHORT = 64  # new tokens that are enough to compare a teacher with the student


def preflight(job: Job, parts: Parts, loop: Loop) -> None:
    """Asks every remote teacher what it can do, compares all that give distributions with the student, and prints what
    was found and what the run may take. The first process does it for all.

    Raises RunError where a teacher cannot do what the recipe asks of it.
    """
    asking = loop.asking
    if asking is None or not job.world.is_main:
        return
    rollouts = _a_few(job, parts)
    found = list(_examined(parts))
    wrong = {name for name, finding in found if finding.good is False}
    if not wrong:  # else it would only be told again
        found += likeness(loop, asking, rollouts)
    signs = {True: "good", False: "BAD", None: ""}
    rows = [[name, finding.what, signs[finding.good], finding.text] for name, finding in found]
    job.display.table("teachers", ["teacher", "what", "", "found"], rows)
    if parts.pool.remote:
        requests = [request_of(asking, rollout, 0) for rollout in rollouts]
        _show(job, list(estimates(job.recipe, asking, requests)))
    if wrong:
        raise RunError("\n".join(_complaint(name, one) for name, one in found if one.good is False))


def _examined(parts: Parts) -> Iterator[tuple[str, Finding]]:
    courier = parts.pool.courier
    for name in parts.pool.remote if courier is not None else ():
        assert courier is not None
        for finding in courier.examine(name, SECONDS):
            yield name, finding


def _a_few(job: Job, parts: Parts) -> list[Rollout]:
    """The student's present answers to a held-out prompt of each of a few domains, private ones too: those go nowhere
    but to teachers that may have them. As long as in the run where questions are paid by their length."""
    settings = replace(SamplingSettings.from_recipe(job.recipe.rollout), samples_per_prompt=1)
    if not parts.pool.remote:
        settings = replace(settings, max_new_tokens=min(SHORT, settings.max_new_tokens))
    prompts = [prompts[0] for _, prompts in sorted(parts.prompts.held_out.items())[:DOMAINS_TRIED] if prompts]
    return student_writer(parts.student.lm, settings, job.recipe.seed)(prompts, 0)


def _complaint(name: str, finding: Finding) -> str:
    return f"teachers.{name}: {finding.what}: {finding.text.removeprefix(f'{finding.what}: ')}"


def _show(job: Job, found: list[Estimate]) -> None:
    columns = ["teacher", "questions", "tokens at most", "dollars at most"]
    job.display.table("the whole run, at most", columns, [_cells(estimate) for estimate in found])
    known = [estimate.dollars for estimate in found if estimate.dollars is not None]
    if known:
        job.display.note(f"{money(sum(known, Decimal(0)))} at most; what is spent really is shown as it runs")


def _cells(estimate: Estimate) -> list[str | float | None]:
    dollars = "no price known" if estimate.dollars is None else money(estimate.dollars)
    return [estimate.teacher, f"{estimate.questions:,}", f"{estimate.tokens:,}", dollars]
