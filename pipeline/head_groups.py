"""Which scored tokens are computed together, and whose head is in memory meanwhile: a part of the fused pass.

Legend: N scored tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.types import TrainingBatch
from teachers.types import FullVocab, Head, HeadWeights


@dataclass(frozen=True, eq=False)
class Group:
    """Positions covered by the same targets. rows: for each of those targets, where its signal has the positions."""

    positions: Tensor
    targets: tuple[int, ...]
    rows: tuple[Tensor, ...]
    supervised: bool


def groups_of(batch: TrainingBatch, device: torch.device) -> list[Group]:
    """In the order of the heads they need, so that neighbours share what is loaded."""
    n = batch.labels.shape[0]
    if n == 0:
        return []
    covered = torch.zeros(n, len(batch.targets) + 1, dtype=torch.bool, device=device)
    for column, target in enumerate(batch.targets):
        covered[target.positions, column] = True
    covered[:, -1] = batch.nll_weights != 0
    kinds, member = torch.unique(covered, dim=0, return_inverse=True)
    groups = []
    for index, kind in enumerate(kinds.tolist()):
        positions = (member == index).nonzero().squeeze(-1)
        targets = tuple(column for column, there in enumerate(kind[:-1]) if there)
        rows = tuple(torch.searchsorted(batch.targets[t].positions, positions) for t in targets)
        groups.append(Group(positions, targets, rows, kind[-1]))
    return sorted(groups, key=lambda group: (sorted(heads_of(batch, group)), group.targets, group.supervised))


def heads_of(batch: TrainingBatch, group: Group) -> dict[str, Head]:
    signals = (batch.targets[t].signal for t in group.targets)
    return {signal.head.key: signal.head for signal in signals if isinstance(signal, FullVocab)}


@contextmanager
def loaded_heads(device: torch.device) -> Iterator[Callable[[Mapping[str, Head]], dict[str, HeadWeights]]]:
    """Gives a function that loads the heads it is told and first releases those it is not told."""
    held: dict[str, tuple[Head, HeadWeights]] = {}

    def load(heads: Mapping[str, Head]) -> dict[str, HeadWeights]:
        for key in held.keys() - heads.keys():
            held.pop(key)[0].release()
        for key, head in heads.items():
            if key not in held:
                weights = head.load()
                bias = None if weights.bias is None else weights.bias.to(device)
                held[key] = head, HeadWeights(weights.weight.to(device), bias)
        return {key: held[key][1] for key in heads}

    try:
        yield load
    finally:
        load({})
