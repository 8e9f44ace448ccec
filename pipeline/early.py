"""Rows that train while others are still waited for: their gradient is there when the last answer comes.

Which rows are taken together, and in what order, follows from the prompts and the recipe alone: first those about which
nobody outside of this process is asked, then the others, in forwards that are cut as always, then those that may be
graded, all samples of a prompt together, since they are compared. The next of them is waited for, whatever else has
come: so a step is the same to the bit whenever its answers come. Grades wait for the whole step where they are compared
beyond a prompt, or its samples are in several processes; corrections and references always do.

Nobody knows yet who will answer, so early rows are weighted as if somebody answered about every rollout. A loss is a
plain weighted sum: when all is known, one factor puts the whole gradient right (`trainer.update`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from pipeline.asking import Asked, Asking, rows_of
from pipeline.judgments import Baselines
from pipeline.metrics import Sums, collect
from pipeline.targets import Normaliser, Row, build_batch, group_rows, normaliser, presumed, weighted
from pipeline.types import Rollout, Shown, StepOutput, TrainingBatch
from teachers.exchange import Settled
from teachers.plan import may_be_asked, may_teach
from teachers.types import SignalKind

if TYPE_CHECKING:
    from pipeline.flights import Flight
    from pipeline.loop import Loop


@dataclass(eq=False)
class Early:
    """The early part of a step's gradient, as it grows in the parameters. balance: weights of rows by domain.

    parts: this process's rollouts, each part one forward, or several where one process has them all; in all processes
    there are equally many. seed: of dropout. norm: of a step in which all rollouts are taught. asked: what came of each
    part, with those of its rows that have still to train. counted: those that have. seconds: that the forwards took.
    kept: the rollout that people are shown, and seen what came of it, once its row has trained.
    """

    loop: Loop
    parts: Sequence[Sequence[Rollout]]
    seed: int
    norm: Normaliser
    baselines: Baselines
    balance: Mapping[str, float] = field(default_factory=dict)
    kept: Rollout | None = None
    asked: list[Asked] = field(default_factory=list)
    counted: list[Normaliser] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    seen: Shown | None = None
    seconds: float = 0.0

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(rollout.rollout_id for part in self.parts for rollout in part)

    @property
    def taught(self) -> bool:
        return any(norm.counts for norm in self.counted)

    def begin(self) -> None:
        """From nothing, also where a step is asked about again: what is added must not hang on how often it was."""
        self.asked, self.counted, self.sums, self.seen = [], [], Sums(), None
        self.loop.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(self.seed)

    def add(self, part: Sequence[Rollout], settled: Mapping[str, Settled]) -> None:
        """Forwards and backwards, one of nothing where nobody answered about any of them."""
        loop = self.loop
        assert loop.asking is not None
        found = rows_of(loop.asking, part, settled, self.baselines, loop.world.gather)
        rows = weighted([row for row in found.rows if not row.rewrite], self.balance)
        start = time.perf_counter()
        for group in group_rows(rows, loop.training.tokens_per_forward) or [[]]:
            device = loop.accelerator.device
            batch = build_batch(group, self.norm, temperature=loop.temperature, device=device, shown=self.kept)
            self.seen = accumulate(loop, batch, self.sums, last=False) or self.seen
        self.seconds += time.perf_counter() - start
        self.counted.append(normaliser(rows, loop.average))
        self.asked.append(replace(found, rows=tuple(row for row in found.rows if row.rewrite)))


def early_of(
    loop: Loop,
    flight: Flight,
    baselines: Baselines,
    balance: Mapping[str, float] | None = None,
    kept: Rollout | None = None,
) -> Early:
    """What of a step trains early, nothing of it yet done. kept: one of its rollouts, which people are shown."""
    parts: list[Sequence[Rollout]] = []
    if loop.asking is not None and loop.asking.pool.remote:
        graded = loop.world.processes == 1 and loop.asking.judged.grades.baseline == "group"
        parts = early_parts(loop.asking, flight.mine, loop.training.tokens_per_forward, graded=graded)
        most = max(loop.world.gather(len(parts)))
        parts += [()] * (most - len(parts))
    seed = (loop.seed * 1_000_003 + flight.step) * 1_009 + loop.world.rank
    return Early(loop, parts, seed, presumed(flight.rollouts, loop.average), baselines, balance or {}, kept)


def early_parts(
    asking: Asking, rollouts: Sequence[Rollout], tokens_per_forward: int, *, graded: bool
) -> list[Sequence[Rollout]]:
    """The rollouts that train early, in order. graded: whether those that may be graded are among them."""
    near: list[Row] = []
    far: list[Row] = []
    judged: list[Rollout] = []
    for rollout in rollouts:
        domain = rollout.prompt.domain
        teachers = [asking.pool.teachers[name] for name in may_teach(asking.plan, domain)]
        remote = not asking.pool.remote.keys().isdisjoint(may_be_asked(asking.plan, domain))
        if any(SignalKind.JUDGMENT in teacher.signals for teacher in teachers):
            judged.append(rollout)
        else:
            (far if remote else near).append(Row(rollout, supervised=1.0))  # as if it were taught
    # Short ones were finished, and asked about, first; what is long may be too large for the machine, and fails at once
    # only among those that nobody is waited for.
    groups = [*group_rows(near, tokens_per_forward), *reversed(group_rows(far, tokens_per_forward))]
    parts: list[Sequence[Rollout]] = [[row.rollout for row in group] for group in groups]
    return [*parts, *(reversed(_whole_prompts(judged, tokens_per_forward)) if graded else ())]


def _whole_prompts(rollouts: Sequence[Rollout], tokens_per_forward: int) -> list[list[Rollout]]:
    """All samples of a prompt in one part, the longest parts first; several prompts only where they fit in one."""
    samples: dict[str, list[Rollout]] = {}
    for rollout in sorted(rollouts, key=lambda rollout: rollout.rollout_id):
        samples.setdefault(rollout.prompt.prompt_id, []).append(rollout)
    longest = {name: max(Row(rollout).length for rollout in group) for name, group in samples.items()}
    parts: list[list[Rollout]] = []
    width = 0
    for name in sorted(samples, key=lambda name: (-longest[name], name)):
        if parts and width * (len(parts[-1]) + len(samples[name])) <= tokens_per_forward:
            parts[-1] += samples[name]
        else:
            parts.append(samples[name])
            width = longest[name]
    return parts


def accumulate(loop: Loop, batch: TrainingBatch, sums: Sums, *, last: bool) -> Shown | None:
    """One forward and backward; the gradients of all processes are summed up after the last. Returns what people are
    shown of it."""
    batch = loop.student.part_of(batch, loop.world.stretch)
    loop.model.train()
    # In shards every backward gives its gradient away: whole until the last, it would need the room of the weights.
    with nullcontext() if last or loop.student.in_shards else loop.accelerator.no_sync(loop.model):
        output: StepOutput = loop.model(batch)
        # DDP and FSDP2 average over processes; the weights are normalised over all of them, so the sum is wanted.
        loop.accelerator.backward(output.loss * loop.world.processes)
    loop.model.eval()
    collect(sums, batch, output)
    return output.shown
