"""Rows that train while others are still waited for: their gradient is there when the last answer comes.

Which rows are taken together, and in what order, follows from the prompts and the recipe alone: first those about which
nobody outside of this process is asked, then the others, in forwards that are cut as always. The next of them is waited
for, whatever else has come: so a step is the same to the bit whenever its answers come. A row that a grader may judge
is none of them: its advantage hangs on other rows, and its correction is a row of its own.

Nobody knows yet who will answer, so early rows are weighted as if somebody answered about every rollout. A loss is a
plain weighted sum: when all is known, one factor puts the whole gradient right (`trainer.update`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.asking import Asked, Asking, rows_of
from pipeline.judgments import Baselines
from pipeline.metrics import Sums, collect
from pipeline.targets import Normaliser, Row, build_batch, group_rows, normaliser, presumed
from pipeline.types import Rollout, StepOutput, TrainingBatch
from teachers.exchange import Settled
from teachers.plan import may_be_asked, may_teach
from teachers.types import SignalKind

if TYPE_CHECKING:
    from pipeline.loop import Loop


@dataclass(eq=False)
class Early:
    """The early part of a step's gradient, as it grows in the parameters.

    parts: this process's rollouts, each part one forward; in all processes there are equally many. norm: of a step in
    which all rollouts are taught. asked: what came of each part, without its rows. counted: the rows that were taught.
    seconds: that the forwards took.
    """

    loop: Loop
    parts: Sequence[Sequence[Rollout]]
    norm: Normaliser
    baselines: Baselines
    asked: list[Asked] = field(default_factory=list)
    counted: list[Normaliser] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    seconds: float = 0.0

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(rollout.rollout_id for part in self.parts for rollout in part)

    @property
    def taught(self) -> bool:
        return any(norm.counts for norm in self.counted)

    def begin(self) -> None:
        """From nothing, also where a step is asked about again: what is added must not hang on how often it was."""
        self.asked, self.counted, self.sums = [], [], Sums()
        self.loop.optimizer.zero_grad(set_to_none=True)

    def add(self, part: Sequence[Rollout], settled: Mapping[str, Settled]) -> None:
        """One forward and backward, of nothing where nobody answered about any of them."""
        loop = self.loop
        assert loop.asking is not None
        found = rows_of(loop.asking, part, settled, self.baselines, loop.world.gather)
        start = time.perf_counter()
        (rows,) = group_rows(found.rows, loop.training.tokens_per_forward) or [[]]
        batch = build_batch(rows, self.norm, temperature=loop.temperature, device=loop.accelerator.device)
        accumulate(loop, batch, self.sums, last=False)
        self.seconds += time.perf_counter() - start
        self.counted.append(normaliser(found.rows, loop.average))
        self.asked.append(replace(found, rows=()))


def early_of(loop: Loop, rollouts: Sequence[Rollout], mine: Sequence[Rollout], baselines: Baselines) -> Early:
    """rollouts: of all processes; mine: this one's."""
    parts: list[Sequence[Rollout]] = []
    if loop.asking is not None and loop.asking.pool.remote:
        parts = early_parts(loop.asking, mine, loop.training.tokens_per_forward)
        most = max(loop.world.gather(len(parts)))
        parts += [()] * (most - len(parts))
    return Early(loop, parts, presumed(rollouts, loop.average), baselines)


def early_parts(asking: Asking, rollouts: Sequence[Rollout], tokens_per_forward: int) -> list[Sequence[Rollout]]:
    """Rollouts that nobody grades, a forward each: first those that only teachers in this process are asked about."""
    near: list[Row] = []
    far: list[Row] = []
    for rollout in rollouts:
        domain = rollout.prompt.domain
        teachers = [asking.pool.teachers[name] for name in may_teach(asking.plan, domain)]
        if any(SignalKind.JUDGMENT in teacher.signals for teacher in teachers):
            continue
        remote = not asking.pool.remote.keys().isdisjoint(may_be_asked(asking.plan, domain))
        (far if remote else near).append(Row(rollout, supervised=1.0))  # as if it were taught
    groups = [*group_rows(near, tokens_per_forward), *group_rows(far, tokens_per_forward)]
    return [[row.rollout for row in group] for group in groups]


def accumulate(loop: Loop, batch: TrainingBatch, sums: Sums, *, last: bool) -> None:
    """One forward and backward; the gradients of all processes are summed up after the last."""
    loop.model.train()
    with nullcontext() if last else loop.accelerator.no_sync(loop.model):
        output: StepOutput = loop.model(batch)
        # DDP averages over processes; the weights are normalised over all of them, so the sum is wanted.
        loop.accelerator.backward(output.loss * loop.world.size)
    loop.model.eval()
    collect(sums, batch, output)
