"""A transformers causal LM with its tokenizer: what the student, the local teachers and the evaluations all start from.

Loading, rendering a conversation, and last hidden states of rows of different lengths, done the way the architecture
tolerates (`probe.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tolerance:
    """What an architecture computes right, found by comparing with single rows at load (`probe.py`).

    left_padding: rows padded on the left give the same logits, so prompts of different lengths may decode together.
    packing: rows laid end to end with their own positions do not see each other.
    row_removal: rows may be taken out of the cache between decoding steps.
    Right padding is safe for every causal model.
    """

    left_padding: bool
    packing: bool
    row_removal: bool


@dataclass(frozen=True, eq=False)
class CausalLM:
    """A loaded model. `model` is a transformers model, or the peft model around one.

    vocab_size: V, the tokenizer's real entries; the model's embedding may have padded rows past it, which are never
        sampled and never scored. end_ids: tokens that end an answer. context: the most tokens it takes.
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    end_ids: frozenset[int]
    context: int
    tolerance: Tolerance
