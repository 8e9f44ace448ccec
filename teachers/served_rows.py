"""What a server said about a text's tokens, checked and made one TopK, whichever server it was.

Legend: P prompt tokens, N completion tokens, K entries per token, V the student's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from teachers.types import TopK

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-2  # what a server's last digits may add to a log-probability, or to a sum of probabilities
_FLAT = 1e-5  # log-probabilities of different tokens that differ by no more than this come from no model
_FLAT_TOKENS = 8  # entries, or different tokens, that have to be equal before that is said


class BadAnswerError(Exception):
    """A server answered, and not what it was asked. reason: as a TeacherFailure's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Question:
    """P prompt ids and N completion ids, both at least one; `k` entries are wanted for each completion token.

    temperature: of what the server has to write after the text. Its scores may follow it too.
    """

    model: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    k: int
    temperature: float = 1.0

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.completion_ids


Entry = tuple[int, float]  # token id, log-probability


@dataclass(frozen=True)
class Rows:
    """What was said about the N completion tokens.

    realised: the log-probability of each. entries: the most probable ones of each, the realised one perhaps among
    them or beside them; None where they cannot be read as token ids without doubt.
    """

    realised: Sequence[float]
    entries: Sequence[Sequence[Entry] | None]


# ---- to one TopK ----


def top_k(rows: Rows, question: Question, wanted: Tensor, vocab_size: int) -> TopK:
    """Rows of any server -> TopK with K = question.k entries per token, most probable first, equal ones by id.

    wanted (N,) bool: the tokens that the teacher scores; others are not looked at. vocab_size: V; ids past it are
    no student's. Where a row's entries could not be read, the token is not valid.

    Raises:
        BadAnswerError: misaligned, missing_top_k, not_finite or uniform.
    """
    k, count = question.k, len(question.completion_ids)
    if len(rows.realised) != count or len(rows.entries) != count:
        raise BadAnswerError("misaligned", f"{len(rows.realised)} rows for {count} tokens")
    valid = wanted & torch.tensor([entries is not None for entries in rows.entries], dtype=torch.bool)
    if bool(wanted.any()) and not bool(valid.any()):
        raise BadAnswerError("misaligned", "its entries are texts that stand for several tokens or none")
    nothing = [(token, 0.0) for token in range(k)]
    scored = valid.tolist()
    kept = [
        _kept(entries, token, k) if ok and entries is not None else nothing
        for ok, entries, token in zip(scored, rows.entries, question.completion_ids, strict=True)
    ]
    ids = torch.tensor([[token for token, _ in row] for row in kept], dtype=torch.int64).reshape(count, k)
    logprobs = torch.tensor([[value for _, value in row] for row in kept], dtype=torch.float64).reshape(count, k)
    realised = torch.tensor([v if ok else 0.0 for ok, v in zip(scored, rows.realised, strict=True)]).double()
    _check(realised[valid], ids[valid], logprobs[valid], vocab_size)
    tokens = {token for ok, token in zip(scored, question.completion_ids, strict=True) if ok}
    _refuse_uniform(realised[valid], logprobs[valid], len(tokens))
    # No probability is above 1: a server's rounding may make it so.
    realised, logprobs = realised.clamp(max=0.0), logprobs.clamp(max=0.0)
    ids, logprobs = _in_order(ids, logprobs)
    return TopK(realised.float(), ids, logprobs.float(), log_tail(logprobs).float(), valid)


def log_tail(logprobs: Tensor) -> Tensor:
    """(N, K) log-probabilities -> (N,) log(1 - their sum), never above 0, -inf where nothing is left."""
    if logprobs.shape[1] == 0:
        return torch.zeros(logprobs.shape[0], dtype=logprobs.dtype)
    total = logprobs.double().logsumexp(dim=1).clamp(max=0.0)
    return torch.log(-torch.expm1(total)).to(logprobs.dtype)


def _kept(entries: Sequence[Entry], realised: int, k: int) -> list[Entry]:
    """The K most probable entries of a row: the realised token, outside of them, is an entry too many."""
    if len(entries) == k + 1:
        entries = [entry for entry in entries if entry[0] != realised]
    if len(entries) != k or len({token for token, _ in entries}) != k:
        raise BadAnswerError("missing_top_k", f"{len(entries)} entries for a token, and {k} were asked for")
    return list(entries)


def _check(realised: Tensor, ids: Tensor, logprobs: Tensor, vocab_size: int) -> None:
    values = torch.cat([realised, logprobs.flatten()])
    if not bool(values.isfinite().all()):
        raise BadAnswerError("not_finite", "a log-probability is not a finite number")
    if values.numel() and float(values.max()) > _ROUNDING:
        raise BadAnswerError("not_finite", f"a log-probability of {float(values.max()):.4g} is above 0")
    if logprobs.numel() and float(logprobs.exp().sum(dim=1).max()) > 1 + _ROUNDING:
        raise BadAnswerError("not_finite", f"probabilities that sum to {float(logprobs.exp().sum(dim=1).max()):.4g}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise BadAnswerError("misaligned", f"token {int(ids.max())} is none of the student's {vocab_size}")


def _refuse_uniform(realised: Tensor, logprobs: Tensor, different_tokens: int) -> None:
    """A server that woke from sleep without its weights gives every token the same probability."""
    if logprobs.shape[1] > 1:
        enough, spread = logprobs.numel(), logprobs.amax(dim=1) - logprobs.amin(dim=1)
    else:
        enough, spread = different_tokens, (realised - realised.mean()).abs()
    if enough >= _FLAT_TOKENS and bool((spread <= _FLAT).all()):
        raise BadAnswerError("uniform", "it gives all tokens the same probability; load its weights again")


def _in_order(ids: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    by_id = ids.argsort(dim=1)
    ids, logprobs = ids.gather(1, by_id), logprobs.gather(1, by_id)
    order = logprobs.argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), logprobs.gather(1, order)
