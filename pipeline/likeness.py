"""How far the student is from a teacher that gives distributions, measured as training measures it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.asking import Asking, request_of
from pipeline.loop import Loop
from pipeline.metrics import Sums, collect, divergence_by
from pipeline.targets import Row, Score, build_batch, group_rows, normaliser
from pipeline.types import Rollout
from teachers.exchange import Exchange
from teachers.plan import Plan, Routes
from teachers.shards import whole
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


@dataclass(frozen=True)
class Compared:
    """What came of one teacher. seconds: that it took for all of the rollouts, where it is in this process, else 0."""

    teacher: str
    findings: tuple[Finding, ...]
    seconds: float = 0.0


def likeness(loop: Loop, asking: Asking, rollouts: Sequence[Rollout]) -> Iterator[Compared]:
    """Asks each teacher that gives distributions about these rollouts: a few questions, in the journal as any other.

    Those in this process twice: they have to say the same. One that is shown another's feedback is left out: that
    would be asked for too. Of several processes all call it, and one has rollouts.
    """
    distributions = {SignalKind.FULL_VOCAB, SignalKind.TOP_K}
    for name, teacher in asking.pool.teachers.items():
        if teacher.signals & distributions and name not in asking.plan.needs:
            yield _compared(loop, asking, name, rollouts)


def _compared(loop: Loop, asking: Asking, name: str, rollouts: Sequence[Rollout]) -> Compared:
    start = time.perf_counter()
    rows, failed = _rows(loop, asking, name, rollouts)
    seconds = time.perf_counter() - start
    remote = name in asking.pool.remote
    second = [] if remote else _rows(loop, asking, name, rollouts)[0]
    with whole(loop.student):
        nats, again = (divergences(loop, each).get(name) if each else None for each in (rows, second))
    without = f"; no answer to {failed.total()} of {len(rollouts)}: {', '.join(sorted(failed))}" if failed else ""
    found = [Finding("likeness", None, f"{_described(nats)}{without}")]
    if remote:
        return Compared(name, tuple(found))
    if nats is not None:
        apart = float("inf") if again is None else abs(again - nats)
        found.append(Finding("repeat", apart < ALIKE, f"the same questions twice differ by {apart:.2g} nats per token"))
    found.append(Finding("latency", None, f"{seconds:.2f} s for {len(rollouts)} answers together"))
    return Compared(name, tuple(found), seconds)


def _rows(loop: Loop, asking: Asking, name: str, rollouts: Sequence[Rollout]) -> tuple[list[Row], Counter[str]]:
    """(rows with what one teacher said of them, why it said nothing of others)."""
    gather = loop.world.gather if loop.world.processes > 1 else None
    exchange = Exchange(asking.pool, Plan(Routes({}, {name: 1.0})), {}, gather=gather, rank=loop.world.rank)
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
    return rows, failed


def _described(nats: float | None) -> str:
    if nats is None:
        return "not measured"
    if abs(nats) < ALIKE:
        return f"it answers as the student does ({nats:.1e} nats per token)"
    return f"{nats:.3g} nats per token from the student"
