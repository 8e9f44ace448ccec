"""The losses once more, written for reading: float64, whole logits, autograd. What the fused pass is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.types import Advantage, Divergence, Target, TargetSignal, TrainingBatch
from teachers.types import FullVocab, Head, HeadWeights, TopK

KINDS = {
    "reverse_kl": Divergence("reverse_kl"),
    "forward_kl": Divergence("forward_kl"),
    "jsd": Divergence("jsd", beta=0.3),
    "skew_kl": Divergence("skew_kl", alpha=0.1),
    "skew_reverse_kl": Divergence("skew_reverse_kl", alpha=0.2),
    "top_k_reverse_kl": Divergence("top_k_reverse_kl", k=5),
    "top_k_forward_kl": Divergence("top_k_forward_kl", k=5),
    "top_k_reverse_kl mass": Divergence("top_k_reverse_kl", k=5, mass_penalty=0.4),
    "top_k_forward_kl mass": Divergence("top_k_forward_kl", k=5, mass_penalty=0.4),
    "top_k_reverse_kl tail": Divergence("top_k_reverse_kl", k=5, tail=True),
    "top_k_forward_kl tail": Divergence("top_k_forward_kl", k=5, tail=True),
    "policy_gradient": Divergence("policy_gradient", ratio_low=0.5, ratio_high=2.0, advantage_clip=1.0),
    "forward_kl clip": Divergence("forward_kl", clip=1.5),
}
GRADE = Divergence("grade", ratio_low=0.5, ratio_high=2.0)
DENSE = ("reverse_kl", "forward_kl", "jsd", "skew_kl", "skew_reverse_kl", "forward_kl clip")
SPARSE = tuple(name for name in KINDS if name not in DENSE)


def divergence_of(kind: Divergence, lp: Tensor, lq: Tensor) -> Tensor:
    """Over the whole vocabulary; lp, lq (C, V) -> (C,)."""
    value = _whole_divergence_of(kind, lp, lq)
    return value if kind.clip is None else value.clamp(max=kind.clip)


def _whole_divergence_of(kind: Divergence, lp: Tensor, lq: Tensor) -> Tensor:
    p, q = lp.exp(), lq.exp()

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a.log() - b.log())).sum(-1)

    match kind.kind:
        case "reverse_kl":
            return kl(p, q)
        case "forward_kl":
            return kl(q, p)
        case "jsd":
            middle = kind.beta * q + (1 - kind.beta) * p
            return kind.beta * kl(q, middle) + (1 - kind.beta) * kl(p, middle)
        case "skew_kl":
            return kl(q, kind.alpha * q + (1 - kind.alpha) * p)
        case "skew_reverse_kl":
            return kl(p, kind.alpha * p + (1 - kind.alpha) * q)
    raise AssertionError(kind)


def top_k_of(kind: Divergence, lp: Tensor, ids: Tensor, lq: Tensor, log_tail: Tensor) -> Tensor:
    """lp (C, V) the student's; ids, lq (C, K), log_tail (C,) the teacher's -> (C,)."""
    kept = lp.gather(1, ids)
    mass = kept.exp().sum(-1)
    if kind.tail:
        a = torch.cat([kept, (1 - mass)[:, None].log()], -1)
        b = torch.cat([lq, log_tail[:, None]], -1).log_softmax(-1)
        extra = torch.zeros_like(mass)
    else:
        a, b = kept.log_softmax(-1), lq.log_softmax(-1)
        extra = -kind.mass_penalty * mass.log()
    reverse = kind.kind == "top_k_reverse_kl"
    value = (a.exp() * (a - b)).sum(-1) if reverse else (b.exp() * (b - a)).sum(-1)
    return value + extra


def surrogate_of(kind: Divergence, lp: Tensor, lq: Tensor, sampling: Tensor) -> Tensor:
    """Policy gradient on the label; all (C,)."""
    return graded_of(kind, lp, (lq - lp).detach().clamp(-kind.advantage_clip, kind.advantage_clip), sampling)


def graded_of(kind: Divergence, lp: Tensor, advantage: Tensor, sampling: Tensor) -> Tensor:
    """An advantage that is given; all (C,)."""
    ratio = (lp - sampling).exp().detach()
    ratio = torch.where((ratio >= kind.ratio_low) & (ratio <= kind.ratio_high), ratio, 0.0)
    return -ratio * advantage * lp


def signal_top_k(lq: Tensor, k: int, labels: Tensor) -> TopK:
    """What a teacher with log-probabilities lq (n, V) would send."""
    logprobs, ids = lq.topk(k)
    rest = lq.exp().scatter(1, ids, 0.0).sum(-1).log()
    everywhere = torch.ones(len(lq), dtype=torch.bool)
    return TopK(lq.gather(1, labels[:, None]).squeeze(1), ids, logprobs, rest, everywhere)


def values(target: Target, lp: Tensor, batch: TrainingBatch) -> Tensor:
    """(n,): the target's loss per position, before weights; lp (N, V) float64 with its graph."""
    kind, signal, own = target.divergence, target.signal, lp[target.positions]
    labels = batch.labels[target.positions]
    if isinstance(signal, FullVocab):
        head = signal.head.load()
        exact = HeadWeights(head.weight.double(), None if head.bias is None else head.bias.double())
        lq = (logits(signal.head, exact, signal.hidden.double()) / batch.temperature).log_softmax(-1)
        if kind.kind in DENSE:
            return divergence_of(kind, own, lq)
        signal = signal_top_k(lq, min(kind.k, lq.shape[-1]), labels)
    sampled = own.gather(1, labels[:, None]).squeeze(1)
    sampling = batch.sampling_logprobs[target.positions].double()
    if isinstance(signal, Advantage):
        return graded_of(kind, sampled, signal.values.double(), sampling)
    if kind.kind == "policy_gradient":
        return surrogate_of(kind, sampled, signal.token_logprobs.double(), sampling)
    return top_k_of(kind, own, signal.ids, signal.logprobs.double(), signal.log_tail.double())


def logits(head: Head, weights: HeadWeights, hidden: Tensor) -> Tensor:
    """`Head.logits` in float64."""
    result = hidden @ weights.weight.T
    if weights.bias is not None:
        result = result + weights.bias
    result = result * head.scale
    if head.softcap is not None:
        result = head.softcap * (result / head.softcap).tanh()
    return result[:, : head.size] if head.vocab_map is None else result[:, head.vocab_map]


@dataclass(frozen=True, eq=False)
class Result:
    loss: Tensor
    gradients: tuple[Tensor, ...]
    values: list[Tensor] = field(default_factory=list)


def naive(hidden: Tensor, head: Head, weights: HeadWeights, batch: TrainingBatch) -> Result:
    """Loss and gradients with respect to hidden, weight and bias, in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weights.weight, weights.bias) if x is not None]
    own = HeadWeights(leaves[1], leaves[2] if weights.bias is not None else None)
    lp = (logits(head, own, leaves[0]) / batch.temperature).log_softmax(-1)
    each = [values(target, lp, batch) for target in batch.targets]
    nll = -lp.gather(1, batch.labels[:, None]).squeeze(1)
    loss = (batch.nll_weights.double() * nll).sum()
    for target, value in zip(batch.targets, each, strict=True):
        loss = loss + (target.weights.double() * value).sum()
    return Result(loss.detach(), torch.autograd.grad(loss, leaves), [value.detach() for value in each])


# ---- problems ----

ROWS, WIDTH, SIZE = 23, 6, 37


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def make_head(
    seed: int, dtype: torch.dtype, *, size: int = SIZE, rows: int | None = None, bias: bool = False,
    scale: float = 1.0, softcap: float | None = None, mapped: bool = False, width: int = WIDTH,
) -> tuple[Head, HeadWeights]:  # fmt: skip
    rows = rows or size
    loaded = HeadWeights(draw(rows, width, seed=seed).to(dtype), draw(rows, seed=seed + 1).to(dtype) if bias else None)
    vocab_map = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:size] if mapped else None
    return Head(f"head {seed}", size, lambda: loaded, scale=scale, softcap=softcap, vocab_map=vocab_map), loaded


def full(seed: int, positions: Sequence[int], head: Head, dtype: torch.dtype, width: int = WIDTH) -> FullVocab:
    hidden = draw(len(positions), width, seed=seed).to(dtype)
    return FullVocab(hidden, head, torch.ones(len(positions), dtype=torch.bool))


def graded(seed: int, positions: Sequence[int], dtype: torch.dtype = torch.float64) -> Advantage:
    return Advantage(draw(len(positions), seed=seed).to(dtype), torch.ones(len(positions), dtype=torch.bool))


def make_batch(
    targets: Sequence[Target], *, rows: int = ROWS, size: int = SIZE, nll: bool = False, temperature: float = 1.0
) -> TrainingBatch:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(size, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator) * (torch.arange(rows) % 3 == 0) if nll else torch.zeros(rows)
    ids = torch.arange(rows)
    return TrainingBatch(
        ids, ids, torch.tensor([0, rows]), ids, labels, -4 * torch.rand(rows, generator=generator), weights,
        torch.zeros_like(ids), ("a",), torch.zeros_like(ids), ("student",), tuple(targets), temperature,
    )  # fmt: skip


def make_target(kind: Divergence, positions: Sequence[int], signal: TargetSignal, seed: int = 3) -> Target:
    weights = torch.rand(len(positions), generator=torch.Generator().manual_seed(seed))
    return Target(f"teacher {seed}", torch.tensor(positions), weights, kind, signal)
