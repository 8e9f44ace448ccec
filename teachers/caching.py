"""Decoding with a transformers cache: the rows of a cache, and a model in eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside; afterwards each is as it was, frozen parts included."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def select_rows(cache: Any, rows: Tensor) -> None:
    """Makes the cache's batch the given rows, in place: rows (b,) int64 may drop, reorder and repeat.

    `reorder_cache` is meant for beams and so reaches every state a layer keeps. `batch_select_indices` does not: it
    leaves recurrent states and DeepSeek V4's compressed entries with the old rows.
    """
    cache.reorder_cache(rows)
