"""Decoding through transformers: any architecture, on the cache that its own forward keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ModelError
from teachers.caching import select_rows
from teachers.causal_lm import CausalLM


@dataclass(eq=False)
class CachedBatch:
    """See `decoding.Batch`. lengths (b,): tokens of each row so far. mask (b, longest prompt + new), or None where no
    row is padded. width: tokens in the cache."""

    lm: CausalLM
    cache: Any
    lengths: Tensor
    mask: Tensor | None
    width: int
    logits: Tensor

    def advance(self, ids: Tensor) -> None:
        self.width += 1
        output: Any = self.lm.model(
            input_ids=ids[:, None],
            attention_mask=None if self.mask is None else self.mask[:, : self.width],
            position_ids=self.lengths[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.lengths = self.lengths + 1
        self.logits = _real(self.lm, output.logits)

    def keep(self, rows: Tensor) -> None:
        self.lengths = self.lengths[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        select_rows(self.cache, rows)


class CachedEngine:
    """See `decoding.Engine`. What it may do is what the architecture was found to tolerate: now, not at the first
    prompt, before which a run that goes on has other weights than one that begins."""

    def __init__(self, lm: CausalLM) -> None:
        self.lm = lm
        self.mixes_lengths = lm.tolerance.left_padding
        self.drops_rows = lm.tolerance.row_removal

    def read(self, prompts: Sequence[tuple[int, ...]], order: Sequence[int], new: int) -> CachedBatch:
        """As in the protocol: prompts padded on the left; one run for all copies where rows of the cache may repeat.

        Raises ModelError: the model has no cache to decode with.
        """
        device = next(self.lm.model.parameters()).device
        repeats = self.drops_rows and list(order) != list(range(len(prompts)))
        read = prompts if self.drops_rows else [prompts[place] for place in order]
        longest = max(map(len, read))
        pads = torch.tensor([longest - len(ids) for ids in read], device=device)
        # Any token will do for padding: the mask hides it.
        padded = [ids[:1] * (longest - len(ids)) + ids for ids in read]
        places = torch.arange(longest + new, device=device)
        mask = (places >= pads[:, None]).long() if pads.any() else None
        output: Any = self.lm.model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=None if mask is None else mask[:, :longest],
            position_ids=(places[:longest] - pads[:, None]).clamp_min(0),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise ModelError(
                f"{self.lm.name}: the model keeps no past_key_values, which rollouts in process decode with"
            )
        batch = CachedBatch(self.lm, cache, longest - pads, mask, longest, _real(self.lm, output.logits))
        if repeats:
            rows = torch.tensor(order, device=device)
            batch.keep(rows)
            batch.logits = batch.logits[rows]
        return batch


def _real(lm: CausalLM, logits: Tensor) -> Tensor:
    """(b, 1, rows of the embedding) -> (b, V) fp32, without the embedding's padded rows."""
    return logits[:, -1, : lm.vocab_size].float()
