"""How far the student is from a teacher that gives distributions, measured as training measures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from pipeline.asking import Asking, request_of
from pipeline.loop import Loop
from pipeline.metrics import Sums, collect, divergence_by
from pipeline.targets import Row, Score, build_batch, group_rows, normaliser
from pipeline.types import Rollout
from teachers.exchange import Exchange
from teachers.plan import Plan, Routes
from teachers.types import Answer, Finding, FullVocab, SignalKind, TeacherFailure, TopK

ALIKE = 1e-3  # nats per token: less than two roundings of the same weights differ by in bfloat16


@torch.no_grad()
def divergences(loop: Loop, rows: Sequence[Row]) -> dict[str, float]:
    """Teacher -> nats per token between the present student and what it said in `rows`."""
    sums = Sums()
    norm = normaliser(rows, loop.average)
    for group in group_rows(rows, loop.training.tokens_per_forward):
        batch = build_batch(group, norm, temperature=loop.temperature, device=loop.student.device)
        collect(sums, batch, loop.student(batch))
    return divergence_by(sums, "teacher")


def likeness(loop: Loop, asking: Asking, rollouts: Sequence[Rollout]) -> Iterator[tuple[str, Finding]]:
    """Asks each teacher that gives distributions about these rollouts: a few questions, in the journal as any other.

    One that is shown another's feedback is left out: that would be asked for too.
    """
    distributions = {SignalKind.FULL_VOCAB, SignalKind.TOP_K}
    for name, teacher in asking.pool.teachers.items():
        if teacher.signals & distributions and name not in asking.plan.needs:
            yield name, _finding(loop, asking, name, rollouts)


def _finding(loop: Loop, asking: Asking, name: str, rollouts: Sequence[Rollout]) -> Finding:
    exchange = Exchange(asking.pool, Plan(Routes({}, {name: 1.0})), {})
    for rollout in rollouts:
        exchange.submit(request_of(asking, rollout, 0))
    settled = exchange.settle()
    rows: list[Row] = []
    failed: Counter[str] = Counter()
    for rollout in rollouts:
        result = settled[rollout.rollout_id].results[name]
        if isinstance(result, TeacherFailure):
            failed[result.reason] += 1
        elif isinstance(result, Answer) and isinstance(result.signal, FullVocab | TopK):
            rows.append(Row(rollout, (Score(name, 1.0, asking.losses.of(result.signal), result.signal),)))
    without = f"; no answer to {failed.total()} of {len(rollouts)}: {', '.join(sorted(failed))}" if failed else ""
    nats = divergences(loop, rows).get(name) if rows else None
    if nats is None:
        return Finding("likeness", None, f"not measured{without}")
    if abs(nats) < ALIKE:
        return Finding("likeness", None, f"it answers as the student does ({nats:.1e} nats per token){without}")
    return Finding("likeness", None, f"{nats:.3g} nats per token from the student{without}")
