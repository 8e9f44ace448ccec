"""The tokens by which a student's own tokenizer marks a gap to be filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.codebase.types import FillInTheMiddle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A family's model card or code is where each is from. The first one is tried first.
FAMILIES: tuple[FillInTheMiddle, ...] = (
    FillInTheMiddle("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, Qwen3-Coder, CodeGemma
    FillInTheMiddle("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, StarCoder 2, Granite, Stable Code
    FillInTheMiddle("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    FillInTheMiddle("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder, DeepSeek-V3
    FillInTheMiddle("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama 7B and 13B
    FillInTheMiddle("[PREFIX]", "[SUFFIX]", "", "suffix_first"),  # Codestral: the gap is behind what comes before it
)


def fim_of(tokenizer: PreTrainedTokenizerBase) -> FillInTheMiddle | None:
    """None where it has no such tokens, or does not read them as one token each when they stand in a text."""
    return next((family for family in FAMILIES if _has(tokenizer, family)), None)


def _has(tokenizer: PreTrainedTokenizerBase, family: FillInTheMiddle) -> bool:
    vocabulary = tokenizer.get_vocab()
    return all(
        token in vocabulary and tokenizer.encode(f"a{token}b", add_special_tokens=False).count(vocabulary[token]) == 1
        for token in (family.prefix, family.suffix, family.middle)
        if token
    )
