"""Rollouts and answers -> TrainingBatch: who may teach which token, with what weight, laid out for one forward.

The one shift between tokens and predictions is made in `_lay_out`: the state at token s predicts token s + 1.
All weights are normalised over the whole step before any forward, so the loss is a plain weighted sum: it does not
matter into how many forwards, or over how many processes, the rows are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pipeline.types import Divergence, Rollout, Target, TrainingBatch
from teachers.types import FullVocab, TopK

ANCHOR = "initial-student"


@dataclass(frozen=True, eq=False)
class Score:
    """One teacher's signal on one row. coefficient: its share of the prompt times its weight in the recipe.

    `signal` covers the row's T completion tokens.
    """

    teacher: str
    coefficient: float
    divergence: Divergence
    signal: FullVocab | TopK


@dataclass(frozen=True, eq=False)
class Row:
    """A rollout and all that pulls on it. supervised: the weight of -log p on its tokens."""

    rollout: Rollout
    scores: tuple[Score, ...] = ()
    supervised: float = 0.0

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


@dataclass(frozen=True)
class Normaliser:
    """What a step's weights are divided by: rows and tokens that are taught, per kind of row, over all processes.

    On-policy rows and supervised rows are averaged apart, so that adding references does not thin out the rest.
    """

    average: Literal["trajectory", "token"]
    rows: int
    tokens: int
    supervised_rows: int
    supervised_tokens: int

    def weight(self, row: Row) -> float:
        """The weight of each scored token of `row`."""
        rows, tokens = (
            (self.rows, self.tokens) if row.scores else (self.supervised_rows, self.supervised_tokens)
        )  # fmt: skip
        return 1.0 / (rows * row.scored) if self.average == "trajectory" else 1.0 / tokens


def normaliser(rows: Sequence[Row], average: Literal["trajectory", "token"]) -> Normaliser:
    """Counts over all of a step's rows, those of other processes included."""
    taught = [row for row in rows if row.taught]
    on_policy = [row.scored for row in taught if row.scores]
    supervised = [row.scored for row in taught if not row.scores]
    return Normaliser(average, len(on_policy), sum(on_policy), len(supervised), sum(supervised))


def group_rows(rows: Sequence[Row], tokens_per_forward: int) -> list[list[Row]]:
    """Cuts rows into forwards of at most `tokens_per_forward` padded tokens, longest first, so that what does not
    fit fails at once. A row longer than that is a forward of its own. The order is a function of the rows alone."""
    ordered = sorted((row for row in rows if row.taught), key=lambda row: (-row.length, row.rollout.rollout_id))
    groups: list[list[Row]] = []
    for row in ordered:
        if groups and groups[-1][0].length * (len(groups[-1]) + 1) <= tokens_per_forward:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def build_batch(rows: Sequence[Row], norm: Normaliser, *, temperature: float, device: torch.device) -> TrainingBatch:
    """Lays `rows` end to end. Without rows the batch is empty, and its loss zero but attached to the graph."""
    domains = tuple(sorted({row.rollout.prompt.domain for row in rows}))
    layout = _lay_out(rows, domains)
    weights = torch.tensor([norm.weight(row) for row in rows for _ in range(row.scored)], dtype=torch.float32)
    supervised = torch.tensor([row.supervised for row in rows for _ in range(row.scored)], dtype=torch.float32)
    batch = TrainingBatch(
        **layout,
        nll_weights=weights * supervised,
        domains=domains,
        targets=_targets(rows, weights),
        temperature=temperature,
    )
    return to_device(batch, device)


def _lay_out(rows: Sequence[Row], domains: tuple[str, ...]) -> dict[str, Tensor]:
    input_ids: list[int] = []
    positions: list[int] = []
    cu_seqlens = [0]
    predictors: list[int] = []
    labels: list[int] = []
    sampling: list[float] = []
    group: list[int] = []
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
                group.append(domains.index(rollout.prompt.domain))
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
    }


def _targets(rows: Sequence[Row], weights: Tensor) -> tuple[Target, ...]:
    """One Target per teacher, divergence and head: the rows' signals concatenated, unscored tokens left out."""
    pieces: dict[tuple[str, Divergence, str], list[tuple[Tensor, Tensor, FullVocab | TopK]]] = {}
    start = 0
    for row in rows:
        trainable = torch.tensor(row.rollout.trainable, dtype=torch.bool)
        positions = torch.arange(start, start + row.scored)
        for score in row.scores:
            valid = score.signal.valid.cpu()
            keep = valid[trainable]
            chosen = positions[keep]
            signal = _select(score.signal, (trainable & valid).nonzero().squeeze(-1))
            head = score.signal.head.key if isinstance(score.signal, FullVocab) else ""
            pieces.setdefault((score.teacher, score.divergence, head), []).append(
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


def _select(signal: FullVocab | TopK, index: Tensor) -> FullVocab | TopK:
    where = index.to(signal.valid.device)
    if isinstance(signal, FullVocab):
        return replace(signal, hidden=signal.hidden[where], valid=signal.valid[where])
    return TopK(*(getattr(signal, name)[where] for name in _TOP_K_FIELDS))


def _concatenate(signals: Sequence[FullVocab | TopK]) -> FullVocab | TopK:
    first = signals[0]
    if isinstance(first, FullVocab):
        whole = [signal for signal in signals if isinstance(signal, FullVocab)]
        return replace(
            first, hidden=torch.cat([s.hidden for s in whole]), valid=torch.cat([s.valid for s in whole])
        )  # fmt: skip
    return TopK(*(torch.cat([getattr(signal, name) for signal in signals]) for name in _TOP_K_FIELDS))


_BATCH_FIELDS = (
    "input_ids", "positions", "cu_seqlens", "predictors", "labels", "sampling_logprobs", "nll_weights", "group",
)  # fmt: skip
_TOP_K_FIELDS = ("token_logprobs", "ids", "logprobs", "log_tail", "valid")


def to_device(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    """The same batch with every tensor on `device`; teachers' heads stay where they are."""
    moved = {name: getattr(batch, name).to(device) for name in _BATCH_FIELDS}
    targets = tuple(
        replace(t, positions=t.positions.to(device), weights=t.weights.to(device), signal=_signal_to(t.signal, device))
        for t in batch.targets
    )
    return replace(batch, **moved, targets=targets)


def _signal_to(signal: FullVocab | TopK, device: torch.device) -> FullVocab | TopK:
    if isinstance(signal, FullVocab):
        return replace(signal, hidden=signal.hidden.to(device), valid=signal.valid.to(device))
    return TopK(*(getattr(signal, name).to(device) for name in _TOP_K_FIELDS))
