"""A run's student as it was at one of its steps, loaded from what the run's directory keeps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline.checkpoint import list_checkpoints, load_weights
from pipeline.errors import RunError
from pipeline.recipe import FullTuning, NewModel
from pipeline.recorded import RecordedRun
from pipeline.student import Student, load_student
from pipeline.student_state import load_trainable_state
from teachers.causal_lm import CausalLM, load_causal_lm
from teachers.scoring import Running
from teachers.switching import adapters_disabled, is_adapted

CHUNK_BYTES = 64 << 20  # of a loss, which nobody computes here


@dataclass(frozen=True)
class Moment:
    """A step of a run whose weights are kept. checkpoint: None where the run's own `model` folder is all there is."""

    step: int
    checkpoint: Path | None


def moment_of(run: RecordedRun, step: int | None) -> Moment:
    """The step asked for; without one the last that is kept.

    Raises RunError: a step that is not kept, a run without any.
    """
    kept = {_step(path): path for path in list_checkpoints(run.folder / "checkpoints")}
    if step is not None and step not in kept:
        steps = ", ".join(map(str, sorted(kept))) or "none"
        raise RunError(
            f"{run.folder}: step {step} is not kept; kept: {steps} (training.checkpoint_every and "
            "training.keep_checkpoints say which)"
        )
    if kept:
        chosen = max(kept) if step is None else step
        return Moment(chosen, kept[chosen])
    if run.status == "finished" and (run.folder / "model" / "config.json").exists():
        return Moment(run.recipe.training.steps, None)
    every = run.recipe.training.checkpoint_every
    raise RunError(
        f"{run.folder}: no checkpoint yet, the first comes after step {every} (training.checkpoint_every); wait for "
        "it, or go on with `tutelage run … --resume`"
    )


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def base_path(run: RecordedRun) -> str:
    """What the student was before training: a hub name or a folder. Raises RunError where it is gone."""
    model = run.recipe.student.model
    if not isinstance(model, NewModel):
        return run.resolve(model)
    path = run.folder / "initial"
    if not path.is_dir():
        raise RunError(f"{path}: the student before training is not there any more; put it back")
    return str(path)


def open_student(run: RecordedRun, moment: Moment, device: torch.device) -> Student:
    """The student with the weights of that moment.

    Raises ModelError and RunError as `load_student` and `checkpoint.load` do.
    """
    config = run.recipe.student
    if moment.checkpoint is None:
        config = config.model_copy(
            update={"tune": FullTuning(), "revision": None, "chat_template": None, "quantize": None}
        )
        return load_student(
            config, model_path=str(run.folder / "model"), seed=0, chunk_bytes=CHUNK_BYTES, device=device
        )
    weights = load_weights(moment.checkpoint)
    student = load_student(
        config, model_path=base_path(run), seed=run.recipe.seed, chunk_bytes=CHUNK_BYTES, device=device
    )
    load_trainable_state(student, weights)
    return student


def open_base(run: RecordedRun, student: Student) -> tuple[CausalLM, Running]:
    """What the student was before training, and what is entered around it: a LoRA student with its adapter off, else
    the model that it was, loaded beside it. Raises TeacherError for a model that cannot be loaded."""
    model = student.lm.model
    if is_adapted(model):
        return student.lm, partial(adapters_disabled, model)
    config = run.recipe.student
    lm = load_causal_lm(
        base_path(run),
        name="the base",
        dtype=config.dtype,
        revision=config.revision,
        device=student.device,
        chat_template=student.lm.tokenizer.chat_template,
    )
    return lm, nullcontext


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
