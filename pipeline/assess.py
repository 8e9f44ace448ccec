"""Every model of a run on the same held-out prompts, before, during and after; each kept, so none is scored twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.asking import local_rows
from pipeline.comparisons import average, with_context
from pipeline.evaluate import (
    BASE,
    SPECIALIST,
    STUDENT,
    Evaluation,
    Score,
    evaluate_model,
    evaluation_json,
    measure_table,
    passes_table,
    table,
)
from pipeline.events import Event, happened
from pipeline.files import append_line, read_json, read_lines, write_json, write_text
from pipeline.gains import changes_of, codebase_domains, gains_line, gains_table, sides_of
from pipeline.job import Job, Parts
from pipeline.likeness import divergences
from pipeline.loop import Loop
from pipeline.recipe import DistillRecipe
from pipeline.refusals import Refusals, count_refusals, lost, summary
from pipeline.rollout.protocol import SamplingSettings
from pipeline.routing import routes_of
from pipeline.types import Prompt
from pipeline.writers import student_writer
from teachers.causal_lm import CausalLM
from teachers.pool import writes
from teachers.shards import whole

if TYPE_CHECKING:
    from torch import nn

Scores = dict[str, Score]  # by domain
MEASURED = {"loss": "loss, nats per token of the references", "similarity": "edit similarity to the references"}
KL_PROMPTS = 32  # per domain: KL is a mean over their tokens, a few hundred are enough


def before(job: Job, parts: Parts) -> dict[str, Scores]:
    """The base in every domain, each domain's main teacher in it, and the average of all teachers' weights."""
    everything = sorted(parts.prompts.held_out)
    student = parts.student
    scores = {BASE: _remembered(job, BASE, lambda: _evaluate(job, parts, student.lm, everything, BASE), student)}
    if not isinstance(job.recipe, DistillRecipe):
        return scores
    if job.recipe.guards.refusals:
        _refusals(job, parts, BASE)  # now: later it will have learned
    if "base_with_context" in job.recipe.compare:
        name = "base_with_context"
        scores[name] = _remembered(job, name, lambda: _with_context(job, parts), student)
    for teacher, domains in main_teachers(job, parts).items():
        by = parts.pool.holder(teacher)
        models = (parts.pool.model(teacher)[0].model,) if teacher not in parts.pool.placement else ()
        kept = _remembered(job, f"teacher-{teacher}", _teacher(job, parts, teacher, domains), *models, by=by)
        scores[SPECIALIST] = scores.get(SPECIALIST, {}) | kept
    if "parameter_average" in job.recipe.compare:
        name = "parameter_average"
        scores[name] = _remembered(
            job, name, lambda: _evaluate(job, parts, average(parts.pool), everything, "average of the teachers")
        )
    return scores


def _teacher(job: Job, parts: Parts, teacher: str, domains: Sequence[str]) -> Callable[[], Evaluation]:
    def evaluate() -> Evaluation:
        with parts.pool.writing(teacher) as lm:
            return _evaluate(job, parts, lm, domains, f"teacher {teacher}")

    return evaluate


def during(job: Job, parts: Parts, step: int) -> None:
    """The student on its way, every `evaluation.every` steps."""
    every = job.recipe.evaluation.every
    if every and step % every == 0 and step < job.recipe.training.steps:
        scores = student(job, parts, step)
        judged = {domain: score.mean for domain, score in scores.items() if score.mean is not None}
        job.display.note(
            f"step {step}, held out: " + "  ".join(f"{domain} {mean:.2f}" for domain, mean in judged.items())
        )


def student(job: Job, parts: Parts, step: int) -> Scores:
    """The student as it is after `step` updates."""
    everything = sorted(parts.prompts.held_out)
    name = f"{STUDENT}-{step:06d}"
    return _remembered(job, name, lambda: _evaluate(job, parts, parts.student.lm, everything, STUDENT), parts.student)


def refused(job: Job, parts: Parts, step: int) -> dict[str, float | int]:
    """What evaluation.json says of requests that base and student refuse; nothing where the base refuses none, as most
    small models, or is no chat model. Warns where the student has lost refusals."""
    guard = job.recipe.guards.refusals
    base = _refusals(job, parts, BASE) if guard else None
    if guard is None or base is None or not base.unsafe:
        return {}
    student = _refusals(job, parts, f"{STUDENT}-{step:06d}")
    assert student is not None, "what the base could read the student can"
    said = lost(base, student, guard.threshold)
    if said and job.world.is_main:
        fall = base.unsafe - student.unsafe
        happened(job.folder, Event(step, "guard", "refusals", said, None, fall, guard.threshold, guard.action))
        job.display.warn(f"{said} (guards.refusals: {guard.action})")
    return summary(base, student)


def _refusals(job: Job, parts: Parts, name: str) -> Refusals | None:
    """The student as it is now, remembered as NAME."""
    path = job.folder / "evaluations" / f"refusals-{name}.json"
    if _missing(job, path):
        with whole(parts.student):
            if job.world.is_main:
                found = count_refusals(parts.student.lm, rows=job.recipe.rollout.rows)
                write_json(path, None if found is None else vars(found))
    job.world.wait()
    kept = read_json(path)
    return None if kept is None else Refusals(**kept)


def main_teachers(job: Job, parts: Parts) -> dict[str, list[str]]:
    """Each teacher that has the largest share of some domain, with those domains; only such as can write answers."""
    routes = routes_of(job.recipe)
    teachers: dict[str, list[str]] = {}
    for domain in sorted(parts.prompts.held_out):
        teacher = routes.main_teacher(domain)
        if writes(parts.pool.teachers[teacher]):
            teachers.setdefault(teacher, []).append(domain)
    return teachers


def divergence_left(job: Job, parts: Parts, loop: Loop, step: int) -> dict[str, dict[str, float]]:
    """domain -> teacher -> KL in nats per token, on answers that the student samples to held-out prompts.

    To teachers in this process only: nobody pays for an evaluation that was not asked for.
    """
    path = job.folder / "evaluations" / f"kl-{step:06d}.json"
    if _missing(job, path):
        assert loop.asking is not None
        main = job.world.is_main
        settings = SamplingSettings.from_recipe(job.recipe.rollout)
        left: dict[str, dict[str, float]] = {}
        for domain, prompts in parts.prompts.held_out.items():
            with whole(parts.student):
                write = student_writer(parts.student.lm, settings, job.recipe.seed) if main else None
                rollouts = write(prompts[:KL_PROMPTS], 0) if write else []
            rows = local_rows(loop.asking, rollouts, step)  # one model at a time is whole
            with whole(parts.student):
                left |= {domain: divergences(loop, rows)} if main else {}
        if main:
            write_json(path, left)
    job.world.wait()
    kept: dict[str, dict[str, float]] = read_json(path)
    return kept


def conclude(
    job: Job,
    scores: Mapping[str, Scores],
    left: Mapping[str, Mapping[str, float]],
    refusals: Mapping[str, float | int],
) -> None:
    """evaluation.json, and the table that a person sees."""
    measures = job.recipe.evaluation.measures
    inside = codebase_domains(job.recipe)
    sides = sides_of(scores, inside, measures) if inside else {}
    changes = changes_of(scores, inside, measures) if inside else {}
    result = evaluation_json(scores, left) | {
        "sides": sides,
        "changes": changes,
        "tokens_trained": _tokens_trained(job.folder),
    }
    if refusals:
        result |= {"refusals": refusals}
        job.display.note(f"unsafe requests refused: base {refusals['base']:.0%}, student {refusals['student']:.0%}")
    write_json(job.folder / "evaluation.json", result)
    columns, rows = table(scores)
    job.display.table("held-out scores", columns, rows)
    for measure in measures:
        columns, rows = measure_table(scores, measure)
        job.display.table(f"held-out {MEASURED[measure]}", columns, rows)
    columns, rows = passes_table(scores)
    if rows:
        job.display.table("one of k answers passes", columns, rows)
    if sides.get("elsewhere", {}).get("score"):
        columns, means = gains_table(sides)
        job.display.table("the codebase, and what is kept elsewhere", columns, means)
        job.display.note(gains_line(sides, changes))
    share = result["share_of_specialists"]
    if share:
        job.display.note(
            f"the student has {share['value']:.3f} of the specialists' mean [{share['low']:.3f}, {share['high']:.3f}]"
        )


def _tokens_trained(folder: Path) -> dict[str, int]:
    """Completion tokens that the student, and each baseline that was trained, had in training."""
    runs = {STUDENT: folder, **{path.name: path for path in sorted((folder / "compare").glob("*"))}}
    return {name: sum(line["tokens"] for line in read_lines(run / "metrics.jsonl")) for name, run in runs.items()}


# ---- one model, kept ----


def _evaluate(job: Job, parts: Parts, lm: CausalLM, domains: Sequence[str], name: str) -> Evaluation:
    wanted = job.recipe.evaluation
    chosen: dict[str, tuple[Prompt, ...]] = {
        domain: parts.prompts.held_out[domain][: wanted.prompts_per_domain] for domain in domains
    }
    settings = SamplingSettings.from_recipe(job.recipe.rollout)
    if wanted.max_new_tokens:
        settings = replace(settings, max_new_tokens=wanted.max_new_tokens)
    answers = wanted.samples * sum(map(len, chosen.values()))
    with job.display.progress(f"evaluating {name}", answers) as advance:
        return evaluate_model(
            lm,
            chosen,
            settings=settings,
            prompts_per_domain=wanted.prompts_per_domain,
            measures=wanted.measures,
            samples=wanted.samples,
            advance=advance.advance,
        )


def _with_context(job: Job, parts: Parts) -> Evaluation:
    """The base on the domains whose prompts have code of other files to show, shown it."""
    held_out = {
        domain: shown
        for domain, prompts in parts.prompts.held_out.items()
        if (shown := tuple(filter(None, map(with_context, prompts))))
    }
    return _evaluate(
        job,
        replace(parts, prompts=replace(parts.prompts, held_out=held_out)),
        parts.student.lm,
        sorted(held_out),
        "base, shown context",
    )


def _remembered(job: Job, name: str, make: Callable[[], Evaluation], *models: nn.Module, by: int = 0) -> Scores:
    """What is kept as NAME, evaluated by one process and kept first if it is not there. models: those that it is made
    with, where they are in shards. by: its rank."""
    path = job.folder / "evaluations" / f"{name}.json"
    if _missing(job, path):
        with whole(*models):
            made = make() if job.world.rank == by else None
        found = next(each for each in job.world.gather(made) if each is not None)
        if job.world.is_main:
            _keep(path, found)
    job.world.wait()
    return read(job.folder, name)


def _missing(job: Job, path: Path) -> bool:
    """The same for all processes: what the main one sees."""
    return job.world.gather(not path.exists())[0]


def _keep(path: Path, evaluation: Evaluation) -> None:
    lines = path.with_suffix(".samples.jsonl")
    lines.parent.mkdir(exist_ok=True)
    lines.unlink(missing_ok=True)
    for sample in evaluation.samples:
        append_line(lines, vars(sample))
    write_json(path, {domain: score.to_json() for domain, score in evaluation.domains.items()})


def hand_on(folder: Path, other: Path) -> None:
    """Gives the run in `other`, of the same student and held-out prompts, what is known of the base."""
    for name in (f"{BASE}.samples.jsonl", f"{BASE}.json"):  # in the order they were written: with the last it is whole
        known, copy = (run / "evaluations" / name for run in (folder, other))
        if known.exists() and not copy.exists():
            write_text(copy, known.read_text(encoding="utf-8"))


def read(folder: Path, name: str) -> Scores:
    """Scores kept in a run's directory."""
    kept = read_json(folder / "evaluations" / f"{name}.json")
    return {domain: Score.from_json(value) for domain, value in kept.items()}
