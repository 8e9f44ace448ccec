"""What is done with the logits of a few positions: the student's measurements, each target's loss, the gradient.

Works in place on buffers that are kept from block to block. Legend: B positions of the block, V vocabulary, R rows of a
head's matrix, K a signal's entries. lp, p: the student's log-probabilities and probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.expectations import expected, listed
from pipeline.objectives import (
    Sparse,
    bounded,
    dense_,
    grade_term,
    is_dense,
    log_of_the_rest,
    log_probabilities,
    policy_gradient_term,
    top_k_term,
)
from pipeline.types import Advantage, Expected, Target
from teachers.types import Head, TopK

OVERLAP_K = 16  # the overlap is the share of the student's 16 most probable entries among the teacher's 16


class Space:
    """Named buffers that are kept from one use to the next: fresh ones of this size cost a page fault per 4 KiB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape, contents undefined, valid until this name and dtype are taken again."""
        size = math.prod(shape)
        flat = self.buffers.get((name, dtype))
        if flat is None or flat.numel() < size:
            flat = self.buffers[name, dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return flat[:size].view(*shape)


def buffers_at_once(sides: Sequence[tuple[Head, torch.dtype]], dtype: torch.dtype) -> int:
    """How many (B, V) buffers of `dtype` a block keeps for these heads, the student's first, and their products."""
    converted = {"own" if index == 0 else "teacher" for index, (_, raw) in enumerate(sides) if raw != dtype}
    capped = {"own" if index == 0 else "teacher" for index, (head, _) in enumerate(sides) if head.softcap is not None}
    mapped = any(head.vocab_map is not None for head, _ in sides)
    return len(("own", "teacher", "u", "spare")) + len(converted) + len(capped) + mapped


class Finished(NamedTuple):
    """logits (B, V). tanh (B, R): of the capped logits, for the chain rule; None without a cap."""

    logits: Tensor
    tanh: Tensor | None


def finish_logits(
    raw: Tensor, head: Head, bias: Tensor | None, temperature: float, space: Space, name: str, dtype: torch.dtype
) -> Finished:
    """What `Head.logits` does after the product raw (B, R), in `dtype`, then the temperature. May overwrite `raw`."""
    logits = raw if raw.dtype == dtype else space.take(name, raw.shape, dtype).copy_(raw)
    if bias is not None:
        logits.add_(bias[: logits.shape[-1]])
    if head.scale != 1.0:
        logits.mul_(head.scale)
    tanh = None
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_()
        tanh = space.take(f"{name} tanh", logits.shape, dtype).copy_(logits)
        logits.mul_(head.softcap)
    if head.vocab_map is not None:
        mapped = space.take(f"{name} mapped", (len(raw), len(head.vocab_map)), dtype)
        logits = torch.index_select(logits, -1, head.vocab_map.to(raw.device), out=mapped)
    if temperature != 1.0:
        logits.div_(temperature)
    return Finished(logits, tanh)


@dataclass(frozen=True, eq=False)
class StudentBlock:
    """lp, p (B, V); labels, label_logprobs, entropy, sampling_logprobs (B,).

    compared: which of the block's rows have their overlap measured. top (its length, OVERLAP_K): their best entries.
    shown (M,): which of them people are shown, None where none is; M stands for their number in what follows.
    """

    lp: Tensor
    p: Tensor
    tanh: Tensor | None
    labels: Tensor
    sampling_logprobs: Tensor
    label_logprobs: Tensor
    entropy: Tensor
    compared: Tensor
    top: Tensor
    shown: Tensor | None


def student_block(
    finished: Finished,
    labels: Tensor,
    sampling_logprobs: Tensor,
    compared: Tensor,
    shown: Tensor | None,
    space: Space,
) -> StudentBlock:
    """Overwrites the logits with probabilities."""
    logits = finished.logits
    lp, spare = (space.take(name, logits.shape, logits.dtype) for name in ("own", "spare"))
    log_probabilities(logits, lp)
    p = torch.exp(lp, out=logits)
    return StudentBlock(
        lp,
        p,
        finished.tanh,
        labels,
        sampling_logprobs,
        lp.gather(1, labels[:, None]).squeeze(1),
        torch.mul(p, lp, out=spare).sum(-1).neg_(),
        compared,
        _top(lp[compared]),
        shown,
    )


def _top(scores: Tensor) -> Tensor:
    return scores.topk(min(OVERLAP_K, scores.shape[-1]), sorted=False).indices


def _overlap(student: StudentBlock, teacher_top: Tensor) -> Tensor:
    """(B,), NaN where it is not measured. teacher_top (rows compared, at most OVERLAP_K)."""
    overlap = torch.full_like(student.entropy, torch.nan)
    if teacher_top.shape[-1] == 0:
        return overlap
    mine = student.top
    if teacher_top.shape[-1] < mine.shape[-1]:  # a teacher that gives fewer is compared with as many of the student's
        mine = _top_of(student, teacher_top.shape[-1])
    shared = (mine[:, :, None] == teacher_top[:, None, :]).any(-1)
    overlap[student.compared] = shared.to(overlap.dtype).mean(-1)
    return overlap


def _top_of(student: StudentBlock, k: int) -> Tensor:
    scores = student.lp[student.compared].gather(1, student.top)
    return student.top.gather(1, scores.topk(k, sorted=False).indices)


# ---- one target ----


class Measured(NamedTuple):
    """All (B,). loss: weighted; the rest as in `TargetOutput`. expected: at the rows that are shown."""

    loss: Tensor
    divergence: Tensor
    overlap: Tensor
    mass: Tensor
    sharpness: Tensor
    best: Tensor
    expected: Expected | None


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """weights (B,) · values (B, …), exactly 0 where the weight is, whatever the value."""
    weights = weights.view(-1, *(1 for _ in values.shape[1:]))
    return torch.where(weights != 0, weights * values, 0.0)


class Gradient:
    """d loss / d logits of a block, collected over its losses: p (U - Σ p U) and what touches few entries.

    wanted: False where nothing needs a gradient; then nothing is collected.
    """

    def __init__(self, student: StudentBlock, space: Space, wanted: bool) -> None:
        self.student, self.space, self.wanted = student, space, wanted
        self.u: Tensor | None = None
        self.mean = torch.zeros_like(student.entropy)
        self.sparse: list[tuple[Tensor, Sparse]] = []

    def add_dense(self, weights: Tensor, u: Tensor, mean: Tensor) -> None:
        if not self.wanted:
            return
        if self.u is None:
            self.u = torch.mul(u, weights[:, None], out=self.space.take("u", u.shape, u.dtype))
        else:
            self.u.addcmul_(u, weights[:, None])
        self.mean += weights * mean

    def add_sparse(self, weights: Tensor, term: Sparse) -> None:
        if self.wanted:
            self.sparse.append((weights, term))

    def collect(self) -> Tensor:
        """(B, V), with respect to the logits before the cap. Uses up the block's buffers."""
        p = self.student.p
        if self.u is None:
            total = self.space.take("u", p.shape, p.dtype).zero_()
        else:
            total = self.u.sub_(self.mean[:, None]).mul_(p)
        for weights, term in self.sparse:
            # Written, not added, at the kept entries: with a tail, outside · p may be far larger there than their
            # gradient, and would leave its rounding behind.
            before = total.gather(1, term.ids)
            if term.outside is not None:
                total.addcmul_(p, weighted(weights, term.outside)[:, None])
            total.scatter_(1, term.ids, before + weighted(weights, term.kept))
        if self.student.tanh is not None:
            total.mul_(self.student.tanh.square_().neg_().add_(1.0))
        return total


def dense_target(
    student: StudentBlock, target: Target, weights: Tensor, logits: Tensor, gradient: Gradient, space: Space
) -> Measured:
    """A teacher that gives its logits (B, V), which are overwritten; any divergence."""
    divergence, q = target.divergence, logits
    lq, spare = (space.take(name, logits.shape, logits.dtype) for name in ("teacher", "spare"))
    log_probabilities(logits, lq)
    overlap, best = _overlap(student, _top(lq[student.compared])), _best(student, lq)
    shown = expected(lq, student.labels, student.shown)
    if is_dense(divergence):
        value, mean = dense_(divergence, student.lp, student.p, lq, q, spare)
        pulls, counted = bounded(divergence, weights, value)
        gradient.add_dense(pulls, lq, mean)
        unknown = torch.full_like(value, torch.nan)
        return Measured(weighted(weights, counted), value, overlap, unknown, *best, shown)
    if divergence.kind == "policy_gradient":
        label_lq = lq.gather(1, student.labels[:, None]).squeeze(1)
        term = policy_gradient_term(
            divergence, student.label_logprobs, label_lq, student.sampling_logprobs, student.labels
        )
    else:
        kept_lq, ids = lq.topk(min(divergence.k, lq.shape[-1]))
        rest = log_of_the_rest(torch.exp(lq, out=q), ids)
        term = _top_k(student, target, ids, kept_lq, rest)
    return _sparse(weights, term, overlap, best, shown, gradient)


def sparse_target(
    student: StudentBlock, target: Target, weights: Tensor, signal: TopK, rows: Tensor, gradient: Gradient
) -> Measured:
    """A teacher that gives its top-k or the sampled token alone; rows (B,): where the signal has the block."""
    dtype = student.lp.dtype
    ids, logprobs = signal.ids[rows], signal.logprobs[rows].to(dtype)
    top = logprobs[student.compared].topk(min(OVERLAP_K, ids.shape[-1], student.lp.shape[-1]), sorted=False).indices
    overlap = _overlap(student, ids[student.compared].gather(1, top))
    if target.divergence.kind == "policy_gradient":
        label_lq = signal.token_logprobs[rows].to(dtype)
        term = policy_gradient_term(
            target.divergence, student.label_logprobs, label_lq, student.sampling_logprobs, student.labels
        )
    else:
        term = _top_k(student, target, ids, logprobs, signal.log_tail[rows].to(dtype))
    shown = listed(signal, rows, student.shown)
    return _sparse(weights, term, overlap, _best(student, logprobs, ids), shown, gradient)


def graded_target(
    student: StudentBlock, target: Target, weights: Tensor, signal: Advantage, rows: Tensor, gradient: Gradient
) -> Measured:
    """A teacher that said how good the whole answer is; rows (B,): where the signal has the block."""
    advantage = signal.values[rows].to(student.lp.dtype)
    term = grade_term(
        target.divergence, student.label_logprobs, advantage, student.sampling_logprobs, student.labels
    )  # fmt: skip
    unknown = torch.full_like(advantage, torch.nan)
    return _sparse(weights, term, unknown, Best(unknown, unknown), None, gradient)


def _top_k(student: StudentBlock, target: Target, ids: Tensor, lq: Tensor, log_tail: Tensor) -> Sparse:
    student_tail = log_of_the_rest(student.p, ids)
    return top_k_term(target.divergence, student.lp.gather(1, ids), student_tail, ids, lq, log_tail)


class Best(NamedTuple):
    """A teacher's most probable entry (B,): how far it is above an equal share of the vocabulary, and which it is."""

    sharpness: Tensor
    token: Tensor


def _best(student: StudentBlock, logprobs: Tensor, ids: Tensor | None = None) -> Best:
    """Of logprobs (B, K), where overlaps are measured too. ids (B, K): whose they are; None: K is the vocabulary."""
    found = Best(*(torch.full_like(student.entropy, torch.nan) for _ in Best._fields))
    if logprobs.shape[-1]:
        values, places = logprobs[student.compared].max(-1)
        tokens = places if ids is None else ids[student.compared].gather(1, places[:, None]).squeeze(1)
        found.sharpness[student.compared] = values + math.log(student.lp.shape[-1])
        found.token[student.compared] = tokens.to(found.token.dtype)
    return found


def _sparse(
    weights: Tensor, term: Sparse, overlap: Tensor, best: Best, shown: Expected | None, gradient: Gradient
) -> Measured:
    gradient.add_sparse(weights, term)
    return Measured(weighted(weights, term.value), term.shown, overlap, term.mass, *best, shown)
