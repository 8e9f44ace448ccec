"""How sure a teacher that gives distributions is of an answer, and how much the answer surprises it: what decides
whether a cascade goes on to a dearer one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from teachers.types import FullVocab, TopK

if TYPE_CHECKING:
    from torch import Tensor

_LOGITS_AT_ONCE = 1 << 24  # 64 MB in fp32, whatever the vocabulary


class Doubt(NamedTuple):
    """Means over the tokens that were scored, in nats per token.

    surprise: -log p of the student's token. entropy: the teacher's own. Of top-k all that is not among the entries
    counts as one, and of the sampled token alone all other tokens do: the least that the entropy can be.
    """

    surprise: float
    entropy: float


@torch.no_grad()
def doubt_of(signal: FullVocab | TopK, token_ids: Sequence[int], temperature: float = 1.0) -> Doubt | None:
    """None where no token was scored. token_ids (N,): the student's. temperature: of a whole distribution's logits;
    entries of a top-k are at the recipe's temperature already."""
    if not bool(signal.valid.any()):
        return None
    if isinstance(signal, TopK):
        return _of_entries(signal)
    labels = torch.tensor(token_ids, dtype=torch.int64, device=signal.hidden.device)[signal.valid]
    states = signal.hidden[signal.valid]
    weights = signal.head.load()
    rows = max(_LOGITS_AT_ONCE // signal.head.size, 1)
    surprise, entropy = 0.0, 0.0
    for start in range(0, len(labels), rows):
        logits = signal.head.logits(weights, states[start : start + rows]) / temperature
        logprobs = logits.log_softmax(-1)
        surprise -= float(logprobs.gather(1, labels[start : start + rows, None]).double().sum())
        entropy += float(_entropies(logprobs).double().sum())
    signal.head.release()
    return Doubt(surprise / len(labels), entropy / len(labels))


def _of_entries(top: TopK) -> Doubt:
    token = top.token_logprobs[top.valid].double()
    if top.ids.shape[-1]:
        parts = torch.cat([top.logprobs[top.valid], top.log_tail[top.valid, None]], dim=-1).double()
    else:
        parts = torch.stack([token, torch.log1p(-token.exp().clamp(max=1.0))], dim=-1)
    return Doubt(float(-token.mean()), float(_entropies(parts).mean()))


def _entropies(logprobs: Tensor) -> Tensor:
    """(n, parts) -> (n,); what has probability 0 adds nothing."""
    entropies: Tensor = torch.special.entr(logprobs.exp()).sum(-1)
    return entropies
