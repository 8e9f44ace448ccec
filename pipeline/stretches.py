"""Context parallelism: several processes share each row, and every one of them has a stretch of its tokens.

All but attention treats tokens one by one. In attention each process needs the keys and values of the tokens before
its own, so they are put together, one layer's at a time; their gradients go back and are summed up. Plain collectives,
which run over gloo on CPUs and over NCCL on GPUs: accelerate's own (`ParallelismConfig(cp_size=…)`) is torch's ring
attention, which knows CUDA's attention kernels alone.

Legend: T tokens of a padded row, t of one stretch, H and G heads of queries and of keys, d channels of a head, D hidden
size, N scored tokens.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pipeline.errors import ModelError
from pipeline.targets import part_of_batch
from pipeline.types import Stretch
from teachers.causal_lm import CausalLM, decoder, padded_width, unwrapped

if TYPE_CHECKING:
    from torch import nn

    from pipeline.types import TrainingBatch

_NAME = "sdpa_in_stretches"
_TRIED = 4  # tokens of each process, of the row that is tried
_NOISE = 1e-4  # of the largest state; in half precision its own rounding


def share_rows(lm: CausalLM, stretch: Stretch) -> None:
    """From now on forwards of this model may be given a stretch; without one they are what they were.

    Every process of a run calls it, while the model is whole. Raises ModelError, in all of them, for a model whose
    tokens know each other by more than plain causal attention by `sdpa`: it is tried.
    """
    config: Any = unwrapped(lm.model).config.get_text_config()
    fits = str(getattr(config, "_attn_implementation", "")) == "sdpa" and _sees_all(config)
    if fits:
        _register()
        config._attn_implementation = _NAME
    if not fits or not _same(lm, stretch):
        raise ModelError(
            f"sharding.context: rows of {type(unwrapped(lm.model)).__name__} cannot be shared out: that takes layers "
            "of plain causal attention (sdpa); write 1"
        )


def _sees_all(config: Any) -> bool:
    """Whether every token sees all tokens before it, as far as the configuration says; windows are longer than the row
    that is tried."""
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)


@torch.no_grad()
def _same(lm: CausalLM, stretch: Stretch) -> bool:
    """Whether hidden states of stretches are those of the whole row, in all processes of the group."""
    width = _TRIED * stretch.size
    device = next(lm.model.parameters()).device
    ids = (torch.arange(width, device=device) * 7919 % lm.vocab_size)[None]
    body: Any = decoder(lm.model)
    expected = body(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
    try:
        found = _hidden(lm, ids, stretch)
    except (TypeError, ValueError, RuntimeError):
        found = torch.full_like(expected[:, :_TRIED], torch.nan)  # the same in every process
    noise = max(_NOISE, 4 * torch.finfo(expected.dtype).eps)
    apart = (found - expected[:, _columns(width, stretch)]).abs().max()
    good = torch.tensor(float(apart <= noise * expected.abs().max()), device=device)
    dist.all_reduce(good, dist.ReduceOp.MIN, group=stretch.group)
    return bool(good)


def _columns(width: int, stretch: Stretch) -> slice:
    length = width // stretch.size
    return slice(stretch.rank * length, (stretch.rank + 1) * length)


def stretch_of(lm: CausalLM, batch: TrainingBatch, stretch: Stretch) -> TrainingBatch:
    """The batch as this process trains on it: the same rows, and those scored tokens whose states it will have."""
    if not len(batch.cu_seqlens.diff()):
        return batch
    width = _width(lm, batch, stretch)
    place = batch.positions[batch.predictors]
    mine = _columns(width, stretch)
    return replace(part_of_batch(batch, (place >= mine.start) & (place < mine.stop)), stretch=stretch)


def _width(lm: CausalLM, batch: TrainingBatch, stretch: Stretch) -> int:
    longest = padded_width(int(batch.cu_seqlens.diff().max()), lm)
    return -(-longest // stretch.size) * stretch.size


def stretch_hidden(lm: CausalLM, batch: TrainingBatch) -> Tensor:
    """(N, D) as `student.padded_hidden`, of a batch that `stretch_of` gave."""
    stretch = batch.stretch
    assert stretch is not None
    lengths, width = batch.cu_seqlens.diff(), _width(lm, batch, stretch)
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    ids = batch.input_ids.new_zeros(len(lengths) * width)
    ids = ids.index_copy(0, rows * width + batch.positions, batch.input_ids).view(len(lengths), width)
    hidden = _hidden(lm, ids, stretch)
    mine = _columns(width, stretch)
    place = rows * (mine.stop - mine.start) + batch.positions - mine.start
    return hidden.flatten(0, 1)[place[batch.predictors]]


def _hidden(lm: CausalLM, ids: Tensor, stretch: Stretch) -> Tensor:
    """ids (B, T) -> (B, t, D). Padding may lie beyond the context."""
    mine = _columns(ids.shape[1], stretch)
    positions = torch.arange(mine.start, mine.stop, device=ids.device).clamp(max=lm.context - 1)
    body: nn.Module = decoder(lm.model)
    output = body(
        input_ids=ids[:, mine],
        position_ids=positions.expand(len(ids), -1),
        use_cache=False,
        return_dict=True,
        stretch=stretch,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


# ---- attention ----


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    stretch: Stretch | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' interface of attention: query (B, H, t, d), key and value (B, G, t, d) -> (B, t, H, d)."""
    if stretch is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return plain
    end = (stretch.rank + 1) * query.shape[2]
    times = query.shape[1] // key.shape[1]
    keys, values = (_Together.apply(x, stretch)[:, :, :end].repeat_interleave(times, 1) for x in (key, value))  # type: ignore[no-untyped-call]
    output = scaled_dot_product_attention(query, keys, values, _causal(query, end), dropout, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _causal(query: Tensor, end: int) -> Any:
    """The last of `end` tokens are the queries'. CUDA's kernels know that; a CPU is given a mask (t, end)."""
    length = query.shape[2]
    if query.device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(length, end)
    return torch.ones(length, end, dtype=torch.bool, device=query.device).tril(end - length)


class _Together(torch.autograd.Function):
    """x (B, G, t, d) of each process -> (B, G, T, d) in all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stretch: Stretch) -> Tensor:
        ctx.stretch = stretch
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(stretch.size)]
        dist.all_gather(parts, x.contiguous(), group=stretch.group)
        return torch.cat(parts, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        parts = [part.contiguous() for part in gradient.chunk(ctx.stretch.size, 2)]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts, group=ctx.stretch.group)
        return own, None
