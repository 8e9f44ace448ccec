"""What decodes: prompts that have been read, then one token per row and turn, with the logits of the next.

Two ways to it: `cached.py` runs any architecture through transformers, `lean.py` computes plain ones itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Batch(Protocol):
    """Rows that decode together. logits (b, V) fp32: of each row's next token, only over real entries."""

    logits: Tensor

    def advance(self, ids: Tensor) -> None:
        """Runs one token of every row, ids (b,), which makes the logits of the next."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Leaves these rows (b',) alone, in this order. The logits stay: the next `advance` makes others."""
        ...


class Engine(Protocol):
    """mixes_lengths: prompts of different lengths may be one batch. drops_rows: rows may leave it."""

    @property
    def mixes_lengths(self) -> bool: ...

    @property
    def drops_rows(self) -> bool: ...

    def read(self, prompts: Sequence[tuple[int, ...]], order: Sequence[int], new: int) -> Batch:
        """Runs the prompts. Row i of the batch is a copy of prompt order[i], and has room for `new` tokens.

        Inside inference mode, the model in eval mode; the weights are those of this moment.
        """
        ...
