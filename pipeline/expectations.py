"""What was expected at the tokens that people are shown: a part of the fused pass, which it leaves as it was.

Legend: N scored tokens of the batch, M those that are shown, m those of them in a block of B rows, n a target's
positions, V vocabulary, K a signal's entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.types import Advantage, Expected, Shown, Target, TargetOutput, TrainingBatch
from teachers.types import TopK

SHOWN_K = 5  # entries that people are shown of what somebody expected
_STRETCH = 64  # neighbours in the vocabulary that are compared by their best


def expected(logprobs: Tensor, labels: Tensor, rows: Tensor | None) -> Expected | None:
    """By log-probabilities (B, V), at these m rows of the block. labels (B,)."""
    if rows is None:
        return None
    ids = best_entries(logprobs[rows], min(SHOWN_K, logprobs.shape[-1]))
    return Expected(logprobs[rows, labels[rows]], ids, logprobs[rows[:, None], ids])


def best_entries(values: Tensor, k: int) -> Tensor:
    """(m, k) of values (m, V), the best first: `topk`, which is slow over a vocabulary, among the stretches that have
    the best maxima and what is left over behind the last. What is outside of these k has k others above it."""
    size = values.shape[-1]
    stretches = size // _STRETCH
    if stretches <= k:
        return values.topk(k).indices
    maxima = torch.unflatten(values[:, : stretches * _STRETCH], -1, (stretches, _STRETCH)).amax(-1)
    within = torch.arange(_STRETCH, device=values.device)
    inside = (maxima.topk(k, sorted=False).indices[:, :, None] * _STRETCH + within).flatten(1)
    behind = torch.arange(stretches * _STRETCH, size, device=values.device).expand(len(values), -1)
    candidates = torch.cat([inside, behind], 1)
    return candidates.gather(1, values.gather(1, candidates).topk(k).indices)


def listed(signal: TopK, rows: Tensor, shown: Tensor | None) -> Expected | None:
    """The same by a teacher that gives no more than its top-k. rows (B,): where the signal has the block."""
    if shown is None:
        return None
    rows = rows[shown]
    best = signal.logprobs[rows].topk(min(SHOWN_K, signal.ids.shape[-1]))
    return Expected(signal.token_logprobs[rows], signal.ids[rows].gather(1, best.indices), best.values)


@dataclass(frozen=True, eq=False)
class View:
    """What a pass records at a batch's shown tokens, every entry once at most; NaN until then.

    places (N,): which of the M a scored token is, -1 for none of them; None where the batch shows nothing. teachers: by
    target, None for an advantage, which expects no token.
    """

    places: Tensor | None
    student: Expected
    teachers: tuple[Expected | None, ...]

    @staticmethod
    def of(batch: TrainingBatch, size: int, dtype: torch.dtype) -> View:
        """size: V."""
        shown = batch.labels[:0] if batch.shown is None else batch.shown
        places = torch.full_like(batch.labels, -1)
        places[shown] = torch.arange(len(shown), device=shown.device)

        def blank(entries: int) -> Expected:
            values = torch.full((len(shown), 1 + min(SHOWN_K, entries)), torch.nan, dtype=dtype, device=shown.device)
            return Expected(values[:, 0], torch.full_like(values[:, 1:], -1, dtype=torch.int64), values[:, 1:])

        entries = [_entries(target, size) for target in batch.targets]
        return View(
            None if batch.shown is None else places,
            blank(size),
            tuple(None if count is None else blank(count) for count in entries),
        )

    def rows(self, positions: Tensor) -> Tensor | None:
        """Which rows of a block are shown, None where none is. positions (B,): its scored tokens."""
        if self.places is None:
            return None
        found = (self.places[positions] >= 0).nonzero().squeeze(-1)
        return found if len(found) else None

    def write(self, target: int | None, found: Expected | None, positions: Tensor, finite: Tensor | None) -> None:
        """What a target, or the student, expected at the shown rows of a block. positions (m,): of these rows.
        finite (m,): whether it means something there, if it may not."""
        into = self.student if target is None else self.teachers[target]
        if found is None or into is None or self.places is None:
            return
        places, dtype = self.places[positions], into.logprobs.dtype
        token, entries = found.label_logprobs.to(dtype), found.logprobs.to(dtype)
        into.label_logprobs[places] = token if finite is None else token.where(finite, torch.nan)
        into.logprobs[places] = entries if finite is None else entries.where(finite[:, None], torch.nan)
        into.ids[places] = found.ids

    def result(self, outputs: Sequence[TargetOutput]) -> Shown | None:
        """outputs: of all targets. Left out are those that have none of the shown tokens."""
        if self.places is None:
            return None
        teachers: dict[str, Expected] = {}
        divergences: dict[str, Tensor] = {}
        for output, found in zip(outputs, self.teachers, strict=True):
            places = self.places[output.positions]
            mine = places >= 0
            if found is not None and bool(mine.any()):
                # One answer of a teacher to one question is one signal, and so in one target.
                assert output.teacher not in teachers, f"{output.teacher} answers twice"
                teachers[output.teacher] = found
                divergences[output.teacher] = torch.full_like(self.student.label_logprobs, torch.nan)
                divergences[output.teacher][places[mine]] = output.divergence[mine]
        return Shown(self.student, teachers, divergences)


def _entries(target: Target, size: int) -> int | None:
    signal = target.signal
    if isinstance(signal, Advantage):
        return None
    return signal.ids.shape[-1] if isinstance(signal, TopK) else size
