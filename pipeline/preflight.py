"""Before a run: what its teachers can really do, and what all of it may take in time, memory and money."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal

from pipeline.asking import request_of
from pipeline.errors import RunError
from pipeline.estimate import Estimate, estimates
from pipeline.job import Job, Parts
from pipeline.likeness import likeness
from pipeline.loop import Loop
from pipeline.pace import Tried, step_time, training_bytes, try_a_few
from teachers.prices import money
from teachers.shards import whole
from teachers.types import Finding

SECONDS = 60.0  # that each teacher has to answer everything that is asked of it here

Found = list[tuple[str, Finding]]


def preflight(job: Job, parts: Parts, loop: Loop, peak_bytes: Callable[[], int]) -> None:
    """Asks every teacher what it can do, compares all that give distributions with the student, and prints what was
    found and what the run may take. All processes call it: the first one writes and reports, teachers
    are asked by all. peak_bytes: the most memory held so far.

    Raises RunError where a teacher cannot do what the recipe asks of it.
    """
    asking, main = loop.asking, job.world.is_main
    if asking is None:
        return
    with whole(parts.student):
        tried = try_a_few(job.recipe, loop, parts.prompts.held_out, whole=bool(parts.pool.remote)) if main else None
    rollouts = tried.rollouts if tried is not None else ()
    found = [*_examined(parts), *parts.pool.loaded(parts.student.lm)] if main else []
    scoring = 0.0
    if not any(job.world.gather(bool(_wrong(found)))):  # else it would only be told again
        for compared in likeness(loop, asking, rollouts):
            found += [(compared.teacher, finding) for finding in compared.findings]
            scoring += compared.seconds
    if tried is None:
        return
    signs = {True: "good", False: "BAD", None: ""}
    found.sort(key=lambda each: parts.pool.names.index(each[0]))
    rows = [[name, finding.what, signs[finding.good], finding.text] for name, finding in found]
    job.display.table("teachers", ["teacher", "what", "", "found"], rows)
    requests = [request_of(asking, rollout, 0) for rollout in rollouts]
    taken = list(estimates(job.recipe, asking, requests)) if parts.pool.remote else []
    if taken:
        _show(job, taken)
    if wrong := _wrong(found):
        raise RunError("\n".join(_complaint(name, finding) for name, finding in wrong))
    latencies = {name: finding.seconds for name, finding in found if finding.seconds is not None}
    _show_machine(job, parts, tried, scoring, latencies, taken, peak_bytes())


def _wrong(found: Found) -> Found:
    return [(name, finding) for name, finding in found if finding.good is False]


def _examined(parts: Parts) -> Iterator[tuple[str, Finding]]:
    courier = parts.pool.courier
    for name in parts.pool.remote if courier is not None else ():
        assert courier is not None
        for finding in courier.examine(name, SECONDS):
            yield name, finding


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


def _show_machine(
    job: Job,
    parts: Parts,
    tried: Tried,
    scoring: float,
    latencies: Mapping[str, float],
    taken: Sequence[Estimate],
    peak: int,
) -> None:
    steps = job.recipe.training.steps
    step = step_time(
        job.recipe,
        tried,
        scoring=scoring,
        latencies=latencies,
        questions={estimate.teacher: estimate.questions / steps for estimate in taken},
        processes=job.world.size,
    )
    job.display.note(
        f"about {step.total:.2f} s a step (writing {step.writing:.2f}, teachers here {step.scoring:.2f}, waiting for "
        f"others {step.waiting:.2f}, update {step.update:.2f}) and {step.total * steps / 60:.1f} minutes for {steps} "
        f"steps, evaluations not counted, from {len(tried.rollouts)} answers; --step measures a whole one"
    )
    more = training_bytes(parts.student, job.recipe.training, job.world.processes if job.in_shards else 1)
    job.display.note(
        f"about {(peak + more) / 1e9:.2f} GB: {peak / 1e9:.2f} with everything loaded, {more / 1e9:.2f} for gradients "
        f"and the optimizer; a whole step's forwards may take more"
    )
