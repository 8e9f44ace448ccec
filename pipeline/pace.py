"""How long a step of a run may take, and how much memory: from a few answers that are written and timed before it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from pipeline.loop import Loop
from pipeline.optim import state_bytes
from pipeline.recipe import DistillRecipe, SftRecipe, Training
from pipeline.rollout.protocol import SamplingSettings
from pipeline.targets import Row, build_batch, group_rows, normaliser
from pipeline.types import Prompt, Rollout
from pipeline.writers import products_of, student_writer
from teachers.config import ExactAnswer, Limits, ProgramTeacher, RemoteBase, TeacherConfig

DOMAINS_TRIED = 4  # whose prompts stand for all
SHORT = 64  # new tokens that are enough to compare a teacher with the student
BACKWARD = 2.0  # forwards that a backward pass takes


@dataclass(frozen=True, eq=False)
class Tried:
    """The student's present answers to a held-out prompt of each of a few domains.

    writing: seconds for all of them, decoded together, if they are as long as in the run. forward: seconds of the
    student's forward over them, head included.
    """

    rollouts: Sequence[Rollout]
    writing: float
    forward: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what they go to. waiting: for remote teachers, beyond all else."""

    writing: float
    scoring: float
    update: float
    waiting: float

    @property
    def total(self) -> float:
        return self.writing + self.scoring + self.update + self.waiting


def try_a_few(
    recipe: DistillRecipe | SftRecipe, loop: Loop, held_out: Mapping[str, Sequence[Prompt]], *, whole: bool
) -> Tried:
    """Writes and times them; private prompts too: they go nowhere but to teachers that may have them.

    whole: as long as in the run, where questions are paid by their length; else a few tokens stand for all.
    """
    settings = replace(SamplingSettings.from_recipe(recipe.rollout), samples_per_prompt=1)
    most = settings.max_new_tokens
    if not whole:
        settings = replace(settings, max_new_tokens=min(SHORT, most))
    prompts = [prompts[0] for _, prompts in sorted(held_out.items())[:DOMAINS_TRIED] if prompts]
    start = time.perf_counter()
    write = student_writer(loop.student.lm, settings, recipe.seed, products_of(recipe.training))
    rollouts = write(prompts, 0)
    writing = (time.perf_counter() - start) * most / settings.max_new_tokens
    return Tried(rollouts, writing, _forward_seconds(loop, rollouts))


@torch.no_grad()
def _forward_seconds(loop: Loop, rollouts: Sequence[Rollout]) -> float:
    rows = [Row(rollout, supervised=1.0) for rollout in rollouts]
    norm = normaliser(rows, loop.average)
    start = time.perf_counter()
    for group in group_rows(rows, loop.training.tokens_per_forward):
        batch = build_batch(group, norm, temperature=loop.temperature, device=loop.student.device)
        float(loop.student(batch).loss)  # on an accelerator it is done only when it is read
    return time.perf_counter() - start


def step_time(
    recipe: DistillRecipe | SftRecipe,
    tried: Tried,
    *,
    scoring: float,
    latencies: Mapping[str, float],
    questions: Mapping[str, float],
    processes: int = 1,
) -> StepTime:
    """A step from what a few answers took: decoding takes as long for a whole batch as for a few rows, everything else
    grows with the rows.

    scoring: seconds of all teachers in this process for the answers that were tried. latencies: remote teacher ->
    seconds for one answer. questions: remote teacher -> how often it is asked in a step.
    """
    rows = ceil(recipe.training.prompts_per_step * recipe.rollout.samples_per_prompt / processes)
    times = rows / len(tried.rollouts)
    writing = tried.writing * ceil(rows / recipe.rollout.rows)
    here, update = scoring * times, (1 + BACKWARD) * tried.forward * times
    asked = {
        name: questions.get(name, 0.0) * seconds / _at_once(recipe, name)
        for name, seconds in latencies.items()
        if not _starts_nothing(recipe.teachers[name])
    }
    waiting = max(asked.values(), default=0.0)
    beside = writing + here + update if recipe.pool.staleness else 0.0  # a step ahead, they answer meanwhile
    return StepTime(writing, here, update, max(0.0, waiting - beside))


def _at_once(recipe: DistillRecipe | SftRecipe, name: str) -> int:
    config = recipe.teachers[name]
    limits = config.limits if isinstance(config, RemoteBase) else Limits()
    cores = os.cpu_count() or 1
    return min(limits.concurrency, cores) if isinstance(config, ProgramTeacher) else limits.concurrency


def _starts_nothing(config: TeacherConfig) -> bool:
    """A checker of the recipe's answers at once: its latency is that of a program, and it starts none."""
    return isinstance(config, ProgramTeacher) and isinstance(config.check, ExactAnswer)


def training_bytes(student: torch.nn.Module, training: Training, processes: int = 1) -> int:
    """What training adds to a loaded student: of each trained weight its gradient and what the optimizer keeps; of one
    in half precision the gradient in fp32 as well. processes: that share them out."""
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    gradients = sum(p.numel() * (p.element_size() + (4 if p.element_size() < 4 else 0)) for p in trained)
    return (gradients + state_bytes(student, training)) // processes
