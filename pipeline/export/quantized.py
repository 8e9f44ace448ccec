"""A quantized student's weights in 4 bits, as vLLM and transformers load them: the numbers that it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.quantize.packing import compressed_config, packed_experts, packed_matrix
from pipeline.quantize.rounded import Rounded


@torch.no_grad()
def packed_state(plain: PreTrainedModel, rounded: tuple[Rounded, ...]) -> dict[str, Tensor]:
    """All tensors of the files by their names there, without those that are tied to others.

    plain: the student as one model of the dtype that its other weights are written in.
    """
    from transformers.core_model_loading import revert_weight_conversion

    names = {each.place.name for each in rounded}
    rest = {name: tensor for name, tensor in plain.state_dict().items() if name not in names and not tensor.is_meta}
    state: dict[str, Tensor] = revert_weight_conversion(plain, _once(rest))
    codes = {each.place.name: each.codes() for each in rounded}
    if any(each.place.transposed for each in rounded):
        packed = {name: packed_experts(code) for name, code in codes.items()}
        return state | {name + suffix: tensor for name, parts in packed.items() for suffix, tensor in parts.items()}
    # Taking a model's experts apart and renaming them does not touch inputs: it is the same for elements and scales.
    elements = revert_weight_conversion(plain, {name: code.elements for name, code in codes.items()})
    scales = revert_weight_conversion(plain, {name: code.scales for name, code in codes.items()})
    dtype: torch.dtype = plain.config.dtype
    for name, matrix in elements.items():
        parts = packed_matrix(matrix, scales[name], rounded[0].grid, dtype)
        state |= {f"{name.removesuffix('.weight')}.{key}": tensor for key, tensor in parts.items()}
    return state


def packed_config(plain: PreTrainedModel, rounded: tuple[Rounded, ...]) -> dict[str, Any]:
    """config.json's quantization_config."""
    names = {each.place.name for each in rounded}
    left = [
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" not in names
    ]
    if any(each.place.transposed for each in rounded):
        return {"quant_method": "mxfp4", "modules_to_not_convert": left}
    return compressed_config(rounded[0].grid, left)


def save_packed(
    plain: PreTrainedModel, state: dict[str, Tensor], rounded: tuple[Rounded, ...], to: Path, shard: str
) -> None:
    """Writes weights and config.json into `to`, which is there."""
    save_torch_state_dict({name: _whole(tensor) for name, tensor in state.items()}, to, max_shard_size=shard)
    plain.config.architectures = [type(plain).__name__]
    plain.config.quantization_config = packed_config(plain, rounded)
    plain.config.save_pretrained(to)


def _once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied tensors under their first name, the embedding's: vLLM does not look for it under the head's."""
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: state[name] for name in first.values()}


def _whole(tensor: Tensor) -> Tensor:
    """Itself, or a copy of what is a part of another: a file holds whole tensors."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor.contiguous()
