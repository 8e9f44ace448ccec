"""The losses as pure functions over log-probabilities, each with its analytic gradient.

Legend: C positions, V vocabulary, K kept entries. p, lp: the student's probabilities and their logs; q, lq: the
teacher's. x = lq - lp. Every function works in the dtype it is given, which is float32 or wider.

A divergence over the whole vocabulary is described by its value and by u = (d value / d p) up to a constant per
position, because then d value / d logits = p (u - Σ p u), and the u of several teachers on one position add up before
the vocabulary is walked again. For reverse KL that sum is the exact aggregated target Σ w_i KL(p‖q_i) =
KL(p‖normalised geometric mean) + const, for forward KL the arithmetic mixture; for the others it is a weighted sum.

Log-probabilities below LOG_FLOOR count as LOG_FLOOR. So an entry that a teacher masks (-inf) costs 80 nats times the
student's mass on it, with a finite gradient; where both have nothing the term is 0; and no denormal slows a CPU down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.types import Divergence

LOG_FLOOR = -80.0  # e^-80 = 1.8e-35 is a normal float32; e^-88 is not


class Dense(NamedTuple):
    """One teacher over the whole vocabulary. value (C,), mean (C,) = Σ p u. `u` itself is left in a buffer."""

    value: Tensor
    mean: Tensor


class Sparse(NamedTuple):
    """A loss that touches few entries: d value / d logits is `kept` at `ids` and outside · p everywhere else.

    value (C,): what is weighted and summed. shown (C,): what is reported. ids, kept (C, K). outside (C,) or None for
    zero. mass (C,): the student's probability on the teacher's kept entries, NaN where that has no meaning.
    """

    value: Tensor
    shown: Tensor
    ids: Tensor
    kept: Tensor
    outside: Tensor | None
    mass: Tensor


# ---- over the whole vocabulary ----


def log_probabilities(logits: Tensor, out: Tensor) -> Tensor:
    """`out`, with the floored log-probabilities of logits (C, V) in it."""
    return torch.log_softmax(logits, -1, out=out).clamp_(min=LOG_FLOOR)


def _dot(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Σ_v a b -> (C,), by way of a buffer: a batched product of vectors is several times slower on a CPU."""
    return torch.mul(a, b, out=out).sum(-1)


def _reverse_kl_(divergence: Divergence, lp: Tensor, p: Tensor, lq: Tensor, q: Tensor, spare: Tensor) -> Dense:
    """Σ p (lp - lq), u = -x."""
    torch.sub(lp, lq, out=lq)
    value = _dot(p, lq, spare)
    return Dense(value, value)


def _forward_kl_(divergence: Divergence, lp: Tensor, p: Tensor, lq: Tensor, q: Tensor, spare: Tensor) -> Dense:
    """Σ q (lq - lp), u = 1 - q/p, whose mean is 1 - 1."""
    torch.exp(lq, out=q)
    value = _dot(q, lq.sub_(lp), spare)
    torch.div(q, p, out=lq).neg_().add_(1)
    return Dense(value, torch.zeros_like(value))


def _jsd_(divergence: Divergence, lp: Tensor, p: Tensor, lq: Tensor, q: Tensor, spare: Tensor) -> Dense:
    """β Σ q (lq - lm) + (1-β) Σ p (lp - lm), m = βq + (1-β)p; u = (1-β) r with r = lp - lm = -log(1 + β(q/p - 1))."""
    beta = divergence.beta
    torch.exp(lq, out=q)
    r = torch.div(q, p, out=spare).sub_(1).mul_(beta).log1p_().neg_()
    teacher = lq.sub_(lp).add_(r).mul_(q).sum(-1)  # lq - lm = x + r
    student = _dot(p, r, q)
    torch.mul(r, 1 - beta, out=lq)
    return Dense(beta * teacher + (1 - beta) * student, (1 - beta) * student)


def _skew_kl_(divergence: Divergence, lp: Tensor, p: Tensor, lq: Tensor, q: Tensor, spare: Tensor) -> Dense:
    """Σ q (lq - lm), m = αq + (1-α)p; u = (1-α) (1 - q/m), which with e = q/p - 1 is -(1-α)² e / (1 + αe)."""
    alpha = divergence.alpha
    torch.exp(lq, out=q)
    torch.div(q, p, out=spare).sub_(1).mul_(alpha).log1p_()
    value = lq.sub_(lp).sub_(spare).mul_(q).sum(-1)
    e = torch.div(q, p, out=spare).sub_(1)
    torch.mul(e, alpha, out=lq).add_(1)
    torch.div(e, lq, out=lq).mul_(-((1 - alpha) ** 2))
    return Dense(value, _dot(p, lq, spare))


def _skew_reverse_kl_(divergence: Divergence, lp: Tensor, p: Tensor, lq: Tensor, q: Tensor, spare: Tensor) -> Dense:
    """Σ p r, r = lp - lm, m = αp + (1-α)q; u = r - α (p/m - 1)."""
    alpha = divergence.alpha
    torch.exp(lq, out=q)
    r = torch.div(q, p, out=spare).sub_(1).mul_(1 - alpha).log1p_().neg_()
    value = _dot(p, r, lq)
    torch.expm1(r, out=lq).mul_(-alpha).add_(r)
    return Dense(value, _dot(p, lq, spare))


_DENSE: dict[str, Callable[[Divergence, Tensor, Tensor, Tensor, Tensor, Tensor], Dense]] = {
    "reverse_kl": _reverse_kl_,
    "forward_kl": _forward_kl_,
    "jsd": _jsd_,
    "skew_kl": _skew_kl_,
    "skew_reverse_kl": _skew_reverse_kl_,
}


def is_dense(divergence: Divergence) -> bool:
    """Whether it needs the teacher's whole distribution."""
    return divergence.kind in _DENSE


def dense_(divergence: Divergence, lp: Tensor, p: Tensor, lq: Tensor, q: Tensor, spare: Tensor) -> Dense:
    """Value and mean of a full-vocabulary divergence; u replaces `lq`. All (C, V). q, spare: buffers; those that need
    the teacher's probabilities write them to `q`.

    Sources: GKD 2306.13649 (jsd), DistiLLM 2402.03898 (skew).
    """
    assert is_dense(divergence), f"{divergence.kind} is not a divergence over the whole vocabulary"
    return _DENSE[divergence.kind](divergence, lp, p, lq, q, spare)


def value_and_logit_grad(divergence: Divergence, lp: Tensor, lq: Tensor) -> tuple[Tensor, Tensor]:
    """Student's and teacher's log-probabilities (C, V) -> value (C,), d value / d the student's logits (C, V)."""
    lp, lq = lp.clamp(min=LOG_FLOOR), lq.clamp(min=LOG_FLOOR)
    p = lp.exp()
    u = lq.clone()
    value, mean = dense_(divergence, lp, p, u, torch.empty_like(p), torch.empty_like(p))
    pulls, value = bounded(divergence, torch.ones_like(value), value)
    return value, pulls[:, None] * p * (u - mean[:, None])


def bounded(divergence: Divergence, weights: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and values (C,) under `divergence.clip`: min(value, clip) is a constant above it, which pulls nothing.

    Of whole positions, unlike the clip of single entries in OPSD 2601.18734, whose sum may point the other way.
    """
    if divergence.clip is None:
        return weights, value
    return weights.masked_fill(value > divergence.clip, 0.0), value.clamp(max=divergence.clip)


# ---- the teacher's top-k ----


def log_of_the_rest(probabilities: Tensor, ids: Tensor) -> Tensor:
    """log of what is left of (C, V) without the entries `ids` (C, K) -> (C,). 1 - Σ would lose a small rest."""
    kept = probabilities.gather(1, ids)
    rest = probabilities.scatter_(1, ids, 0.0).sum(-1).log()
    probabilities.scatter_(1, ids, kept)
    return rest


def top_k_term(
    divergence: Divergence, lp: Tensor, student_tail: Tensor, ids: Tensor, lq: Tensor, teacher_tail: Tensor
) -> Sparse:
    """KL over the teacher's K entries `ids`, distinct in each row; lp, lq (C, K) at those entries.

    student_tail, teacher_tail (C,): the log of what the K entries leave, -inf for nothing. Either both sides are
    renormalised, with `mass_penalty` · -log(the student's mass on the kept entries) added (Revisiting OPD 2603.25562),
    or the rest is one bucket (SDPO 2601.20802). A teacher's entries that rounding left above 1 are renormalised.
    """
    lp, lq = lp.clamp(min=LOG_FLOOR), lq.clamp(min=LOG_FLOOR)
    term = _with_tail if divergence.tail else _renormalised
    return term(divergence, lp, student_tail.clamp(min=LOG_FLOOR), ids, lq, teacher_tail.clamp(LOG_FLOOR, 0.0))


def _renormalised(
    divergence: Divergence, lp: Tensor, student_tail: Tensor, ids: Tensor, lq: Tensor, teacher_tail: Tensor
) -> Sparse:
    log_mass = lp.logsumexp(-1)
    ls, lt = lp - log_mass[:, None], lq.log_softmax(-1)
    value, kept = _kl_of_buckets(divergence, ls, lt)
    penalty = divergence.mass_penalty
    if penalty == 0.0:
        return Sparse(value, value, ids, kept, None, log_mass.exp())
    value = value - penalty * log_mass
    kept = kept + penalty * (lp.exp() - ls.exp())
    return Sparse(value, value, ids, kept, torch.full_like(value, penalty), log_mass.exp())


def _with_tail(
    divergence: Divergence, lp: Tensor, student_tail: Tensor, ids: Tensor, lq: Tensor, teacher_tail: Tensor
) -> Sparse:
    """K + 1 buckets. An entry in the tail moves with its share of the tail's gradient, p / tail."""
    ls = torch.cat([lp, student_tail[:, None]], -1)
    lt = torch.cat([lq, teacher_tail[:, None]], -1).log_softmax(-1).clamp_(min=LOG_FLOOR)
    value, gradient = _kl_of_buckets(divergence, ls, lt)
    difference = student_tail - lt[:, -1]
    reverse = divergence.kind == "top_k_reverse_kl"
    outside = difference - value if reverse else -torch.expm1(-difference)
    return Sparse(value, value, ids, gradient[:, :-1], outside, lp.exp().sum(-1))


def _kl_of_buckets(divergence: Divergence, ls: Tensor, lt: Tensor) -> tuple[Tensor, Tensor]:
    """Two distributions over a few buckets -> value (C,), gradient on the student's logits (C, buckets)."""
    s, t = ls.exp(), lt.exp()
    if divergence.kind == "top_k_reverse_kl":
        value = (s * (ls - lt)).sum(-1)
        return value, s * (ls - lt - value[:, None])
    assert divergence.kind == "top_k_forward_kl", f"{divergence.kind} is not a divergence over top-k entries"
    return (t * (lt - ls)).sum(-1), s - t


# ---- the label alone ----


def policy_gradient_term(
    divergence: Divergence, lp: Tensor, lq: Tensor, sampling_logprobs: Tensor, labels: Tensor
) -> Sparse:
    """-r · Â · log p(label), Â = clip(lq - lp), r = p/μ inside [ratio_low, ratio_high], else 0 (MOPD 2601.02780).

    lp, lq, sampling_logprobs, labels (C,). Â and r are constants to the gradient. A token that the student did not
    write (sampling log-probability NaN) has r = 0. What is reported is lp - lq, unclipped: over tokens that the student
    samples its mean is the reverse KL, while the surrogate's value means nothing.
    """
    lp, lq = lp.clamp(min=LOG_FLOOR), lq.clamp(LOG_FLOOR, 0.0)
    advantage = (lq - lp).clamp(-divergence.advantage_clip, divergence.advantage_clip)
    return _pulled(_ratio(divergence, lp, sampling_logprobs) * advantage, lp, lp - lq, labels)


def grade_term(
    divergence: Divergence, lp: Tensor, advantage: Tensor, sampling_logprobs: Tensor, labels: Tensor
) -> Sparse:
    """-r · A · log p(label), r as in `policy_gradient_term`: the outcome's part of MOPD 2601.02780.

    lp, advantage, sampling_logprobs, labels (C,). A belongs to the whole answer. What is reported is r.
    """
    lp = lp.clamp(min=LOG_FLOOR)
    ratio = _ratio(divergence, lp, sampling_logprobs)
    return _pulled(ratio * advantage, lp, ratio, labels)


def _ratio(divergence: Divergence, lp: Tensor, sampling_logprobs: Tensor) -> Tensor:
    """p/μ (C,) inside [ratio_low, ratio_high], else 0; 0 as well where μ is NaN."""
    ratio = (lp - sampling_logprobs).exp()
    inside = (ratio >= divergence.ratio_low) & (ratio <= divergence.ratio_high)
    return torch.where(inside, ratio, 0.0)


def _pulled(pull: Tensor, lp: Tensor, shown: Tensor, labels: Tensor) -> Sparse:
    """-pull · log p(label), `pull` a constant to the gradient."""
    kept = pull * torch.expm1(lp)  # -pull (1 - p)
    return Sparse(-pull * lp, shown, labels[:, None], kept[:, None], pull, torch.full_like(lp, torch.nan))


def nll_term(lp: Tensor, labels: Tensor) -> Sparse:
    """-log p(label); lp, labels (C,)."""
    one = torch.ones_like(lp)
    return Sparse(-lp, -lp, labels[:, None], torch.expm1(lp)[:, None], one, torch.full_like(lp, torch.nan))
