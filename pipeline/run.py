"""A whole run: what it needs first, the evaluations before, the loop, the evaluations after, the result.

Each stage leaves something complete on disk, so that a resumed run begins again with the first that is missing.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pipeline import assess, bill
from pipeline import checkpoint as checkpoints
from pipeline.comparisons import sft_recipes
from pipeline.display import Display
from pipeline.errors import RunError
from pipeline.export.card import describe_result
from pipeline.export.folders import write_result
from pipeline.files import read_lines
from pipeline.job import Job, Parts, build_loop, load_parts, whole_student
from pipeline.keeping import restore_state
from pipeline.loop import Loop, State
from pipeline.mixing import MixState
from pipeline.packages import missing_packages
from pipeline.preflight import preflight
from pipeline.privacy import TERMS, examine_all, mark_run, terms
from pipeline.ranks import world_of
from pipeline.recipe import DistillRecipe
from pipeline.recipe_checks import model_keys
from pipeline.recipe_file import LoadedRecipe, prepared_name
from pipeline.recipe_rollouts import VllmRollouts
from pipeline.report.page import write_report
from pipeline.rollout.protocol import SamplingSettings
from pipeline.run_directory import clean_up, locked, open_run, status, write_status
from pipeline.sharding import make_accelerator
from pipeline.tracking import leaks, open_tracking
from pipeline.trainer import advance, peak_bytes, train
from teachers.shards import whole


def run(loaded: LoadedRecipe, *, resume: bool, extend: bool, display: Display) -> Path:
    """Runs a recipe to its end and returns its directory. Raises TutelageError for everything a user can mend."""
    require_lawful(loaded, display)
    if missing := missing_packages(loaded):
        raise RunError("\n".join(missing))
    display.title(loaded.output.name)
    return _run(loaded, loaded.output, {}, resume=resume, extend=extend, display=display)


def _run(
    loaded: LoadedRecipe, folder: Path, names: Mapping[str, Path], *, resume: bool, extend: bool, display: Display
) -> Path:
    accelerator = make_accelerator(loaded.recipe)
    world = world_of(accelerator, loaded.recipe.sharding.context)
    with ExitStack() as stack:
        if world.is_main:
            stack.enter_context(locked(folder))
            if resume and status(folder) is None:
                display.note(f"there is no run in {folder} yet: starting one")
            open_run(folder, loaded.recipe, resume=resume, extend=extend)
        world.wait()
        if status(folder) == "finished":
            more = "the recipe asks for nothing more: raise training.steps, or add a teacher or a domain"
            display.note(f"{folder} is finished; {more if extend else '--extend adds to it'}")
            return folder
        if world.is_main:
            clean_up(folder)
        world.wait()
        job = Job(loaded, folder, {**names, **_prepare(loaded, folder, names, display)}, accelerator, world, display)
        _finish(job)
    return folder


def _prepare(loaded: LoadedRecipe, folder: Path, names: Mapping[str, Path], display: Display) -> dict[str, Path]:
    """Runs the recipes that this one needs, in order; each may use the results of those before it."""
    results: dict[str, Path] = {}
    for number, (name, inner) in enumerate(loaded.prepared.items(), start=1):
        place = output(inner, folder, name)
        going_on = status(place) is not None
        with display.nested(name, number, len(loaded.prepared)):
            results[name] = _run(inner, place, {**names, **results}, resume=going_on, extend=False, display=display)
        gc.collect()
    return results


def output(inner: LoadedRecipe, folder: Path, name: str) -> Path:
    """Where a prepared recipe's run is: its own output, or inside the run that needs it."""
    return inner.recipe.output or folder / "prepared" / name


def _finish(job: Job) -> None:
    """Evaluates, trains, evaluates again, compares, exports. What is on disk already is not done again."""
    if job.world.is_main:
        mark_run(job.recipe, job.folder, job.prepared)
    parts = load_parts(job)
    with ExitStack() as stack:  # however it ends: what it cost is said after the last question is closed
        stack.callback(parts.desk.close)
        stack.callback(bill.conclude, parts.desk, job.display)
        stack.callback(parts.pool.close)
        if parts.engine is not None:
            stack.callback(parts.engine.close)
        _train_and_judge(job, parts)
    if job.world.is_main:
        write_status(job.folder, "finished")
        write_report(job.folder)
    job.world.wait()


def _train_and_judge(job: Job, parts: Parts) -> None:
    loop = build_loop(job, parts)
    if job.world.is_main:
        write_status(job.folder, "running")
    scores = assess.before(job, parts)
    state = _restored(job, loop)
    job.display.phase(f"training to step {job.recipe.training.steps}")
    with ExitStack() as stack:
        if job.world.is_main and job.recipe.tracking:
            tracking = open_tracking(job.recipe.tracking, job.folder, state.step)
            stack.callback(tracking.close)
            loop = replace(loop, log=tracking.log)
        state = train(loop, state, lambda reached: assess.during(job, parts, reached.step))
    scores["student"] = assess.student(job, parts, state.step)
    distilled = isinstance(job.recipe, DistillRecipe)
    refusals = assess.refused(job, parts, state.step) if distilled else {}
    left = assess.divergence_left(job, parts, loop, state.step) if loop.asking else {}
    if job.world.is_main:
        job.display.phase("exporting the model")
        write_result(whole_student(job, parts), job.recipe, job.folder, job.prepared)
    job.world.wait()
    scores |= _compared(job, parts, state)
    if job.world.is_main:
        assess.conclude(job, scores, left, refusals)
        describe_result(job.folder)
    job.world.wait()


def _restored(job: Job, loop: Loop) -> State:
    found = checkpoints.list_checkpoints(job.folder / "checkpoints")
    if not found:
        return State(0, MixState())
    state = restore_state(loop, checkpoints.load(found[-1], mapped=job.in_shards))
    if state.step:
        job.display.note(f"resuming after step {state.step}")
    return state


def _compared(job: Job, parts: Parts, state: State) -> dict[str, assess.Scores]:
    """Runs the supervised baselines that the recipe asks for, at as many training tokens as the student had."""
    recipe = job.recipe
    if not isinstance(recipe, DistillRecipe):
        return {}
    scores = {}
    compared = sft_recipes(recipe, state.tokens, state.mix.drawn)
    for number, (name, inner) in enumerate(compared.items(), start=1):
        folder = job.folder / "compare" / name
        loaded = replace(job.loaded, recipe=inner, data=inner.model_dump(mode="json"), prepared={})
        if job.world.is_main:
            assess.hand_on(job.folder, folder)
        with job.display.nested(name, number, len(compared)):
            going_on = status(folder) is not None
            _run(loaded, folder, job.prepared, resume=going_on, extend=False, display=job.display)
        reached = checkpoints.newest_step(folder / "checkpoints")
        scores[name] = assess.read(folder, f"student-{reached:06d}")
    return scores


def require_lawful(loaded: LoadedRecipe, display: Display) -> None:
    """Raises RunError for private text that would leave the machine, and for terms that forbid training."""
    found = examine_all(loaded)
    for warning in found.warnings:
        display.warn(warning)
    if problems := (*found.problems, *leaks(loaded)):
        raise RunError("\n".join(problems))


# ---- check ----


def check(loaded: LoadedRecipe, *, offline: bool, step: bool, display: Display) -> None:
    """Resolves everything that a recipe names; with `step`, runs one real step in a scratch folder and reports it.

    Raises TutelageError or TeacherError for what would stop a run.
    """
    require_lawful(loaded, display)
    if missing := missing_packages(loaded):
        if not offline:
            raise RunError("\n".join(missing))
        for line in missing:  # a recipe is looked at where it will not run, too
            display.warn(line)
    _check(loaded, loaded.output, {}, offline=offline, step=step, display=display)


def _check(
    loaded: LoadedRecipe, folder: Path, names: Mapping[str, Path], *, offline: bool, step: bool, display: Display
) -> None:
    """folder: where its run is, or would be. names: those of what enclosing recipes prepare before it."""
    _describe(loaded, folder, display)
    if offline:
        return
    made = {**names}
    for name, inner in loaded.prepared.items():
        place = output(inner, folder, name)
        if status(place) != "finished":
            with display.nested(name):
                _check(inner, place, made, offline=False, step=False, display=display)
        made[name] = place
    needed = {prepared_name(model) for _, model in model_keys(loaded.data)}
    missing = [name for name, place in made.items() if name in needed and status(place) != "finished"]
    if missing:
        display.note(f"not made yet: {', '.join(missing)}; so this recipe's own models and prompts are not tried")
        if step:
            raise RunError(
                f"--step needs models that are not made yet: {', '.join(missing)}; start `tutelage run {loaded.path}`, "
                "which makes them first"
            )
        return
    with tempfile.TemporaryDirectory() as scratch:
        accelerator = make_accelerator(loaded.recipe)
        world = world_of(accelerator, loaded.recipe.sharding.context)
        job = Job(loaded, Path(world.gather(scratch)[0]), made, accelerator, world, display)
        parts = load_parts(job)
        try:
            _describe_parts(job, parts)
            loop = build_loop(job, parts)
            with whole(parts.student):
                _try_engine(job, parts)
            preflight(job, parts, loop, peak_bytes)
            if step:
                _try_step(job, loop)
        finally:
            if parts.engine is not None:
                parts.engine.close()
            parts.pool.close()
            parts.desk.close()
        world.wait()  # the main process's folder is everybody's


def _describe(loaded: LoadedRecipe, folder: Path, display: Display) -> None:
    recipe = loaded.recipe
    rows: list[list[str | float | None]] = [["method", recipe.method], ["output", str(folder)]]
    rows += [[f"prepare {name}", str(inner.path)] for name, inner in loaded.prepared.items()]
    rows += [["student", str(recipe.student.model)], ["tune", recipe.student.tune.kind]]
    by = f", {recipe.rollout.server.kind}" if isinstance(recipe.rollout, VllmRollouts) else ""
    rows += [["rollouts", recipe.rollout.kind + by]]
    rows += [[f"source {name}", source.kind] for name, source in recipe.data.sources.items()]
    rows += [[f"teacher {name}", config.kind] for name, config in recipe.teachers.items()]
    rows += [["steps", str(recipe.training.steps)], ["prompts per step", str(recipe.training.prompts_per_step)]]
    display.table(str(loaded.path), ["what", "value"], rows)
    if said := terms(recipe):
        display.table("who runs the teachers", list(TERMS), said)


def _describe_parts(job: Job, parts: Parts) -> None:
    display = job.display
    tolerance = parts.student.lm.tolerance
    trained = sum(parameter.numel() for parameter in parts.student.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parts.student.parameters())
    display.note(f"student: {trained:,} of {total:,} parameters are trained; context {parts.student.lm.context:,}")
    for name, holds in vars(tolerance).items():
        if not holds:
            display.note(f"student: no {name.replace('_', ' ')} with this architecture; equal lengths decode together")
    for source, prompts in parts.prompts.train.items():
        display.note(f"source {source}: {len(prompts):,} prompts, {parts.prompts.dropped[source]:,} dropped")
    for source in job.recipe.data.sources:
        if source not in parts.prompts.weights:
            display.note(f"source {source}: left out, its codebase is read without history (source.commits is 0)")
    for domain, held_out in parts.prompts.held_out.items():
        display.note(f"domain {domain}: {len(held_out):,} held-out prompts")
    for note in parts.pool.notes:
        display.note(note)


def _try_engine(job: Job, parts: Parts) -> None:
    """Has what is to write take the student's weights. Raises RunError where it cannot."""
    if parts.engine is not None:
        parts.engine.follow(SamplingSettings.from_recipe(job.recipe.rollout), job.recipe.seed, 0)
        apart = f"{parts.engine.apart:.2g} nats per token from the student's own"
        job.display.note(f"rollouts: {parts.engine.where} follows the student; its log-probabilities are {apart}")


def _try_step(job: Job, loop: Loop) -> None:
    """One real step, thrown away afterwards."""
    start = time.perf_counter()
    advance(loop, State(0, MixState()), {})
    seconds = time.perf_counter() - start
    if not job.world.is_main:
        return
    phases = next(iter(read_lines(job.folder / "timings.jsonl")))["seconds"]
    job.display.table("one step", ["phase", "seconds"], [[name, value] for name, value in phases.items()])
    steps = job.recipe.training.steps
    job.display.note(
        f"{seconds:.2f} s a step, {peak_bytes() / 1e9:.2f} GB at most; about {seconds * steps / 60:.1f} minutes for "
        f"{steps} steps, evaluations not counted"
    )
