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

from pipeline import assess
from pipeline import checkpoint as checkpoints
from pipeline.comparisons import sft_recipe
from pipeline.display import Display
from pipeline.files import read_lines, write_json
from pipeline.job import Job, Parts, build_loop, load_parts, make_accelerator
from pipeline.mixing import MixState
from pipeline.ranks import world_of
from pipeline.recipe import DistillRecipe
from pipeline.recipe_file import LoadedRecipe
from pipeline.run_directory import clean_up, locked, open_run, status, write_status
from pipeline.student import export
from pipeline.trainer import Loop, State, advance, peak_bytes, restore_state, train


def run(loaded: LoadedRecipe, *, resume: bool, extend: bool, display: Display) -> Path:
    """Runs a recipe to its end and returns its directory. Raises TutelageError for everything a user can mend."""
    return _run(loaded, loaded.output, {}, resume=resume, extend=extend, display=display)


def _run(
    loaded: LoadedRecipe, folder: Path, names: Mapping[str, Path], *, resume: bool, extend: bool, display: Display
) -> Path:
    accelerator = make_accelerator(loaded.recipe)
    world = world_of(accelerator)
    with ExitStack() as stack:
        if world.is_main:
            stack.enter_context(locked(folder))
            open_run(folder, loaded.recipe, resume=resume, extend=extend)
        world.wait()
        if status(folder) == "finished":
            display.note(f"{folder} is finished; --extend adds to it")
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
    for name, inner in loaded.prepared.items():
        output = inner.recipe.output or folder / "prepared" / name
        going_on = status(output) is not None
        with display.nested(name):
            results[name] = _run(
                inner, output, {**names, **results}, resume=going_on, extend=False, display=display
            )  # fmt: skip
        gc.collect()
    return results


def _finish(job: Job) -> None:
    """Evaluates, trains, evaluates again, compares, exports. What is on disk already is not done again."""
    parts = load_parts(job)
    loop = build_loop(job, parts)
    scores = assess.before(job, parts)
    state = _restored(job, loop)
    job.display.phase(f"training to step {job.recipe.training.steps}")
    state = train(loop, state, lambda reached: assess.during(job, parts, reached.step))
    scores["student"] = assess.student(job, parts, state.step)
    left = assess.divergence_left(job, parts, loop, state.step) if loop.asking else {}
    if job.world.is_main:
        job.display.phase("exporting the model")
        export(parts.student, job.folder)
    job.world.wait()
    scores |= _compared(job, state)
    if job.world.is_main:
        assess.conclude(job, parts, scores, left)
        write_status(job.folder, "finished")
    job.world.wait()


def _restored(job: Job, loop: Loop) -> State:
    found = checkpoints.list_checkpoints(job.folder / "checkpoints")
    if not found:
        return State(0, MixState())
    state = restore_state(loop, checkpoints.load(found[-1]))
    job.display.note(f"resuming after step {state.step}")
    return state


def _compared(job: Job, state: State) -> dict[str, assess.Scores]:
    """Runs the supervised baseline that the recipe asks for, at as many training tokens as the student had."""
    recipe = job.recipe
    if not isinstance(recipe, DistillRecipe) or "sft_on_teacher_samples" not in recipe.compare:
        return {}
    name = "sft_on_teacher_samples"
    folder = job.folder / "compare" / name
    inner = sft_recipe(recipe, state.tokens, assess.mean_teacher_length(job))
    loaded = replace(job.loaded, recipe=inner, data=inner.model_dump(mode="json"), prepared={})
    with job.display.nested(name):
        going_on = status(folder) is not None
        _run(loaded, folder, job.prepared, resume=going_on, extend=False, display=job.display)
    return {name: assess.read(folder / "evaluations" / f"student-{inner.training.steps:06d}.json")}
