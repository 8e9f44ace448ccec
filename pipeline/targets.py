"""Rollouts and answers -> TrainingBatch: who may teach which token, with what weight, laid out for one forward.

The one shift between tokens and predictions is made in `_lay_out`: the state at token s predicts token s + 1.
All weights are normalised over the whole step before any forward, so the loss is a plain weighted sum: it does not
matter into how many forwards, or over how many processes, the rows are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.types import Advantage, Divergence, Rollout, Target, TargetSignal, TrainingBatch
from teachers.grouping import grouped
from teachers.types import FullVocab, TopK

ANCHOR = "initial-student"

Average = Literal["trajectory", "token"]
# What the student wrote; a text that is given as it is; a teacher's correction of what the student wrote.
RowKind = Literal["rollout", "reference", "rewrite"]


@dataclass(frozen=True, eq=False)
class Score:
    """One teacher's signal on one row. coefficient: its share of the prompt times its weight in the recipe.

    `signal` covers the row's T completion tokens.
    """

    teacher: str
    coefficient: float
    divergence: Divergence
    signal: TargetSignal


@dataclass(frozen=True, eq=False)
class Row:
    """A rollout and all that pulls on it. supervised: the weight of -log p on its tokens. rewrite: whether it is a
    teacher's correction of a rollout with the same id."""

    rollout: Rollout
    scores: tuple[Score, ...] = ()
    supervised: float = 0.0
    rewrite: bool = False

    @property
    def kind(self) -> RowKind:
        return "rewrite" if self.rewrite else "rollout" if self.scores else "reference"

    @property
    def part(self) -> str:
        """Whose text it is, for metrics: its writer, and whether it is that one's rewrite."""
        writer = self.rollout.writer
        return f"rewrite/{writer}" if self.rewrite else writer

    @property
    def length(self) -> int:
        return len(self.rollout.prompt_ids) + len(self.rollout.completion_ids)

    @property
    def scored(self) -> int:
        """Number of completion tokens that may carry a loss."""
        return sum(self.rollout.trainable)

    @property
    def taught(self) -> bool:
        return self.scored > 0 and (bool(self.scores) or self.supervised > 0)


def weighted(rows: Sequence[Row], balance: Mapping[str, float]) -> list[Row]:
    """The rows, all that pulls on them multiplied by their domain's weight, 1 where it has none."""
    return [_times(row, balance.get(row.rollout.prompt.domain, 1.0)) for row in rows] if balance else list(rows)


def _times(row: Row, weight: float) -> Row:
    scores = tuple(replace(score, coefficient=score.coefficient * weight) for score in row.scores)
    return replace(row, scores=scores, supervised=row.supervised * weight)


class Count(NamedTuple):
    """Exact, so that the order of summing does not matter."""

    rows: Fraction
    tokens: Fraction


@dataclass(frozen=True)
class Normaliser:
    """What a step's weights are divided by: the taught rows and tokens of each kind, over all processes.

    Each kind is averaged on its own, so that adding references or rewrites does not thin out the rest. Several rewrites
    of one rollout count as one row of their mean length: their shares sum to 1 as those of its teachers do.
    """

    average: Average
    counts: Mapping[RowKind, Count]

    def weight(self, row: Row) -> float:
        """The weight of each scored token of `row`."""
        rows, tokens = self.counts[row.kind]
        return float(1 / (rows * row.scored) if self.average == "trajectory" else 1 / tokens)

    def over(self, other: Normaliser) -> Fraction:
        """What the weights of rollouts by this one have to be multiplied by to be those by `other`, which has fewer."""
        mine, its = self.counts.get("rollout"), other.counts.get("rollout")
        if mine is None or its is None:
            return Fraction(1)
        return mine.rows / its.rows if self.average == "trajectory" else mine.tokens / its.tokens

    def divided_by(self, factor: Fraction) -> Normaliser:
        """One whose weights are this one's divided by `factor`."""
        counts = {kind: Count(count.rows * factor, count.tokens * factor) for kind, count in self.counts.items()}
        return Normaliser(self.average, counts)

    @staticmethod
    def merge(parts: Sequence[Normaliser]) -> Normaliser:
        """All processes' counts; each rollout's rows are on one process."""
        counts: dict[RowKind, Count] = {}
        for part in parts:
            for kind, more in part.counts.items():
                so_far = counts.get(kind, Count(Fraction(0), Fraction(0)))
                counts[kind] = Count(so_far.rows + more.rows, so_far.tokens + more.tokens)
        return Normaliser(parts[0].average, counts)


def normaliser(rows: Sequence[Row], average: Average) -> Normaliser:
    """Counts over all the rows of a step, or of one process: then to be merged with the others'."""
    lengths: dict[RowKind, dict[str, list[int]]] = {}
    for row in rows:
        if row.taught:
            lengths.setdefault(row.kind, {}).setdefault(row.rollout.rollout_id, []).append(row.scored)
    counts = {kind: Count(Fraction(len(each)), _tokens(each.values())) for kind, each in lengths.items()}
    return Normaliser(average, counts)


def _tokens(lengths: Iterable[Sequence[int]]) -> Fraction:
    """Of rollouts, by the lengths of each one's rows."""
    return sum((Fraction(sum(of_one), len(of_one)) for of_one in lengths), Fraction(0))


def presumed(rollouts: Sequence[Rollout], average: Average) -> Normaliser:
    """Of a step in which somebody answers about each of its rollouts."""
    scored = [count for rollout in rollouts if (count := sum(rollout.trainable))]
    return Normaliser(average, {"rollout": Count(Fraction(len(scored)), Fraction(sum(scored)))} if scored else {})


def group_rows(rows: Sequence[Row], tokens_per_forward: int) -> list[list[Row]]:
    """Cuts rows into forwards of at most `tokens_per_forward` padded tokens, longest first, so that what does not
    fit fails at once. A row longer than that is a forward of its own. The order is a function of the rows alone."""
    taught = (row for row in rows if row.taught)
    ordered = sorted(taught, key=lambda row: (-row.length, row.rollout.rollout_id, row.part))
    return [
        [ordered[index] for index in group] for group in grouped([row.length for row in ordered], tokens_per_forward)
    ]


def build_batch(
    rows: Sequence[Row], norm: Normaliser, *, temperature: float, device: torch.device, shown: Rollout | None = None
) -> TrainingBatch:
    """Lays `rows` end to end. Without rows the batch is empty, and its loss zero but attached to the graph.

    shown: a rollout whose tokens people are shown, if its row is among these.
    """
    domains = tuple(sorted({row.rollout.prompt.domain for row in rows}))
    parts = tuple(sorted({row.part for row in rows}))
    layout = _lay_out(rows, domains, parts)
    scored = torch.tensor([row.scored for row in rows], dtype=torch.int64)
    weights = torch.tensor([norm.weight(row) for row in rows], dtype=torch.float32).repeat_interleave(scored)
    supervised = torch.tensor([row.supervised for row in rows], dtype=torch.float32).repeat_interleave(scored)
    batch = TrainingBatch(
        **layout,
        nll_weights=weights * supervised,
        domains=domains,
        parts=parts,
        targets=_targets(rows, weights),
        temperature=temperature,
        shown=_shown(rows, shown),
    )
    return to_device(batch, device)


def _shown(rows: Sequence[Row], rollout: Rollout | None) -> Tensor | None:
    """The places of the row of this very rollout; what a teacher made of it is another one with the same id."""
    first = 0
    for row in rows:
        if row.rollout is rollout:
            return torch.arange(first, first + row.scored)
        first += row.scored
    return None


def _lay_out(rows: Sequence[Row], domains: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, Any]:
    input_ids: list[int] = []
    positions: list[int] = []
    cu_seqlens = [0]
    predictors: list[int] = []
    labels: list[int] = []
    sampling: list[float] = []
    group: list[int] = []
    part: list[int] = []
    for row in rows:
        rollout = row.rollout
        completion = rollout.completion_ids
        first = len(input_ids) + len(rollout.prompt_ids)
        logprobs = rollout.sampling_logprobs or (float("nan"),) * len(completion)
        for offset, (token, logprob, trainable) in enumerate(zip(completion, logprobs, rollout.trainable, strict=True)):
            if trainable:
                predictors.append(first + offset - 1)  # the shift
                labels.append(token)
                sampling.append(logprob)
        group += [domains.index(rollout.prompt.domain)] * row.scored
        part += [parts.index(row.part)] * row.scored
        input_ids += [*rollout.prompt_ids, *completion]
        positions += range(row.length)
        cu_seqlens.append(len(input_ids))
    long = torch.int64
    return {
        "input_ids": torch.tensor(input_ids, dtype=long),
        "positions": torch.tensor(positions, dtype=long),
        "cu_seqlens": torch.tensor(cu_seqlens, dtype=long),
        "predictors": torch.tensor(predictors, dtype=long),
        "labels": torch.tensor(labels, dtype=long),
        "sampling_logprobs": torch.tensor(sampling, dtype=torch.float32),
        "group": torch.tensor(group, dtype=long),
        "part": torch.tensor(part, dtype=long),
    }


def _targets(rows: Sequence[Row], weights: Tensor) -> tuple[Target, ...]:
    """One Target per teacher, divergence, and head or K: the rows' signals concatenated, unscored tokens left out."""
    pieces: dict[tuple[str, Divergence, str], list[tuple[Tensor, Tensor, TargetSignal]]] = {}
    start = 0
    for row in rows:
        trainable = torch.tensor(row.rollout.trainable, dtype=torch.bool)
        positions = torch.arange(start, start + row.scored)
        for score in row.scores:
            valid = score.signal.valid.cpu()
            keep = valid[trainable]
            chosen = positions[keep]
            signal = _select(score.signal, (trainable & valid).nonzero().squeeze(-1))
            pieces.setdefault((score.teacher, score.divergence, _form(signal)), []).append(
                (chosen, weights[chosen] * score.coefficient, signal)
            )
        start += row.scored
    return tuple(
        Target(
            teacher,
            torch.cat([positions for positions, _, _ in parts]),
            torch.cat([weight for _, weight, _ in parts]),
            divergence,
            _concatenate([signal for _, _, signal in parts]),
        )
        for (teacher, divergence, _), parts in pieces.items()
    )


def part_of_batch(batch: TrainingBatch, keep: Tensor) -> TrainingBatch:
    """The same rows, of their scored tokens those that `keep` (N,) says; nothing of it is shown."""
    place = keep.cumsum(0) - 1
    targets = []
    for target in batch.targets:
        there = keep[target.positions]
        signal = _select(target.signal, there.nonzero().squeeze(-1))
        positions, weights = place[target.positions[there]], target.weights[there]
        targets.append(replace(target, positions=positions, weights=weights, signal=signal))
    scored = ("predictors", "labels", "sampling_logprobs", "nll_weights", "group", "part")
    changes: dict[str, Any] = {name: getattr(batch, name)[keep] for name in scored}
    return replace(batch, **changes, targets=tuple(targets), shown=None)


_BATCH_FIELDS = (
    "input_ids", "positions", "cu_seqlens", "predictors", "labels", "sampling_logprobs", "nll_weights", "group", "part",
)  # fmt: skip
_SIGNAL_FIELDS: dict[type, tuple[str, ...]] = {
    FullVocab: ("hidden", "valid"),
    TopK: ("token_logprobs", "ids", "logprobs", "log_tail", "valid"),
    Advantage: ("values", "valid"),
}


def _form(signal: TargetSignal) -> str:
    """Signals of equal form can be joined."""
    if isinstance(signal, FullVocab):
        return signal.head.key
    return f"top {signal.ids.shape[-1]}" if isinstance(signal, TopK) else ""


def _select(signal: TargetSignal, index: Tensor) -> TargetSignal:
    where = index.to(signal.valid.device)
    return _with(signal, lambda name: getattr(signal, name)[where])


def _concatenate(signals: Sequence[TargetSignal]) -> TargetSignal:
    """Of one class, and those with a head of one head."""
    return _with(signals[0], lambda name: torch.cat([getattr(signal, name) for signal in signals]))


def _with(signal: TargetSignal, tensor: Callable[[str], Tensor]) -> TargetSignal:
    """The signal with other tensors, by name."""
    changes: dict[str, Any] = {name: tensor(name) for name in _SIGNAL_FIELDS[type(signal)]}
    return replace(signal, **changes)


def to_device(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    """The same batch with every tensor on `device`; teachers' heads stay where they are."""
    moved = {name: getattr(batch, name).to(device) for name in _BATCH_FIELDS}
    targets = tuple(
        replace(t, positions=t.positions.to(device), weights=t.weights.to(device), signal=_signal_to(t.signal, device))
        for t in batch.targets
    )
    return replace(batch, **moved, targets=targets, shown=None if batch.shown is None else batch.shown.to(device))


def _signal_to(signal: TargetSignal, device: torch.device) -> TargetSignal:
    return _with(signal, lambda name: getattr(signal, name).to(device))
