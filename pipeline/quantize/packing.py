"""Rounded weights in the bytes that engines read, and what config.json says of them.

Two layouts. compressed-tensors: a linear layer, or one expert's matrix, is `weight_packed` with its scales; vLLM and
transformers read it. gpt-oss keeps all experts of a layer in `_blocks` and `_scales` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.quantize.grids import E2M1, Codes, Grid

_FORMATS = {"int4": "pack-quantized", "mxfp4": "mxfp4-pack-quantized", "nvfp4": "nvfp4-pack-quantized"}
_BIAS = 127  # of a power of two in E8M0


def packed_matrix(elements: Tensor, scales: Tensor, grid: Grid, dtype: torch.dtype) -> dict[str, Tensor]:
    """(out, in) elements and (out, groups) scales -> compressed-tensors' tensors, by what follows the module's name.
    dtype: of int4's scales, which is that of the weights that an engine makes of them."""
    if grid.kind == "int4":
        shape = torch.tensor(elements.shape)
        packed = _pairs((elements + 8).to(torch.uint8)).view(torch.int32)
        return {"weight_packed": packed, "weight_scale": scales.to(dtype, copy=True), "weight_shape": shape}
    packed = _pairs(_e2m1_codes(elements))
    if grid.kind == "mxfp4":
        return {"weight_packed": packed, "weight_scale": _e8m0(scales)}
    outer = torch.tensor([1 / grid.outer])  # engines divide by it
    return {"weight_packed": packed, "weight_scale": scales.to(torch.float8_e4m3fn), "weight_global_scale": outer}


def packed_experts(codes: Codes) -> dict[str, Tensor]:
    """gpt-oss's layout of (E, out, in) MXFP4: blocks (E, out, in / 32, 16) and scales (E, out, in / 32), by suffix."""
    blocks = _pairs(_e2m1_codes(codes.elements)).reshape(*codes.scales.shape, codes.grid.size // 2)
    return {"_blocks": blocks, "_scales": _e8m0(codes.scales)}


def compressed_config(grid: Grid, ignored: Sequence[str]) -> dict[str, Any]:
    """config.json's quantization_config for `packed_matrix`. ignored: linear layers that are as they were."""
    weights: dict[str, Any] = {"num_bits": 4, "symmetric": True, "dynamic": False, "group_size": grid.size}
    weights |= {"type": "int" if grid.kind == "int4" else "float"}
    weights |= {"strategy": "tensor_group" if grid.kind == "nvfp4" else "group"}
    if grid.kind != "int4":
        weights |= {"scale_dtype": "torch.uint8" if grid.kind == "mxfp4" else "torch.float8_e4m3fn"}
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[grid.kind],
        "quantization_status": "compressed",
        "ignore": list(ignored),
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": _FORMATS[grid.kind]}},
    }


def _pairs(codes: Tensor) -> Tensor:
    """(…, n) numbers of 4 bits -> (…, n / 2) bytes; the first of two is the lower half."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).contiguous()


def _e2m1_codes(elements: Tensor) -> Tensor:
    """Values of E2M1 -> their 4 bits: a sign, and the place in the table."""
    table = torch.tensor(E2M1, device=elements.device)
    return torch.searchsorted(table, elements.abs().contiguous()).to(torch.uint8) | (
        elements.signbit().to(torch.uint8) << 3
    )


def _e8m0(scales: Tensor) -> Tensor:
    return (torch.frexp(scales)[1] - 1 + _BIAS).to(torch.uint8)
