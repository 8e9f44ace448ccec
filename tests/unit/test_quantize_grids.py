"""Numbers of 4 bits, held against the formats' own tables, and against torchao's rounding."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Literal

import pytest
import torch
from torch import Tensor

from pipeline.quantize.grids import E2M1, Grid, encoded, grid_of, nearest_e2m1
from pipeline.quantize.packing import packed_matrix

KINDS: tuple[Literal["int4", "mxfp4", "nvfp4"], ...] = ("int4", "mxfp4", "nvfp4")


def weights(rows: int = 64, columns: int = 128, seed: int = 0) -> Tensor:
    """Rows of very different sizes, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(2 * torch.randn(rows, 1, generator=generator))
    sizes[0] = 0
    return torch.randn(rows, columns, generator=generator) * sizes


def e2m1_of_bits(bits: int) -> float:
    """A sign, two bits of exponent with a bias of 1, one of mantissa; the smallest exponent has no leading 1."""
    exponent, mantissa = bits >> 1 & 3, bits & 1
    size = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return -size if bits >> 3 else size


def test_the_table_of_e2m1_is_what_its_bits_mean() -> None:
    assert tuple(e2m1_of_bits(bits) for bits in range(8)) == E2M1


def test_every_float_between_two_of_e2m1_goes_to_the_nearer_and_halves_to_the_even_one() -> None:
    for sign, (place, (low, high)) in product((1, -1), enumerate(pairwise(E2M1))):
        half = (low + high) / 2
        even = low if place % 2 == 0 else high
        below, above = math.nextafter(half, 0), math.nextafter(half, 10)
        asked = torch.tensor([low, below, half, above, high], dtype=torch.float64) * sign
        expected = torch.tensor([low, low, even, high, high], dtype=torch.float64) * sign
        assert torch.equal(nearest_e2m1(asked), expected)
    assert nearest_e2m1(torch.tensor([6.1, 1e9, -7.0])).tolist() == [6, 6, -6]


def test_e2m1_rounds_every_bf16_as_torchao() -> None:
    kernels = pytest.importorskip("torchao.prototype.mx_formats.kernels")
    patterns = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).float()
    numbers = patterns[patterns.isfinite()]
    theirs = kernels.f4_unpacked_to_f32(kernels.f32_to_f4_unpacked(numbers))
    assert torch.equal(nearest_e2m1(numbers), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_nearest_under_its_scale(kind: Literal["int4", "mxfp4", "nvfp4"]) -> None:
    """Naively: of all the numbers that a group's scale allows, the one with the smallest distance."""
    weight = weights()
    grid = grid_of(kind, 32, [weight])
    codes = encoded(weight, grid)
    numbers = range(-8, 8) if kind == "int4" else [sign * number for sign in (1, -1) for number in E2M1]
    scales = (codes.scales.double() * grid.outer).repeat_interleave(grid.size, dim=-1)
    allowed = torch.tensor(list(numbers), dtype=torch.float64) * scales.unsqueeze(-1)
    distance = (allowed - weight.double().unsqueeze(-1)).abs().amin(-1)
    found = (codes.values().double() - weight.double()).abs()
    torch.testing.assert_close(found, distance, rtol=1e-5, atol=0)
    assert codes.values()[0].eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_is_one_that_the_format_can_write(kind: Literal["int4", "mxfp4", "nvfp4"]) -> None:
    codes = encoded(weights(), grid_of(kind, 32, [weights()]))
    if kind == "mxfp4":
        assert torch.equal(torch.frexp(codes.scales)[0], torch.full_like(codes.scales, 0.5))
    else:
        dtype = torch.bfloat16 if kind == "int4" else torch.float8_e4m3fn
        assert torch.equal(codes.scales.to(dtype).float(), codes.scales)


def test_mxfp4_and_nvfp4_are_torchaos() -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    modes = pytest.importorskip("torchao.prototype.mx_formats.config").ScaleCalculationMode
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    weight = weights()[1:]
    theirs = mx.MXTensor.to_mx(weight, torch.float4_e2m1fn_x2, 32, scaling_mode=modes.RCEIL).dequantize(torch.float32)
    assert torch.equal(encoded(weight, Grid("mxfp4", 32)).values(), theirs)
    grid = grid_of("nvfp4", 0, [weight])
    theirs = nv.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=torch.tensor(grid.outer)).dequantize(torch.float32)
    assert torch.equal(encoded(weight, grid).values(), theirs)


def test_int4_is_torchaos_symmetric_one_under_scales_that_bf16_holds() -> None:
    ao = pytest.importorskip("torchao.quantization.quant_primitives")
    weight = weights()[1:]
    block = (1, 32)
    scales, _ = ao.choose_qparams_affine(
        weight, ao.MappingType.SYMMETRIC, block, torch.int8, -8, 7, scale_dtype=torch.float32
    )
    codes = encoded(weight, Grid("int4", 32))
    torch.testing.assert_close(codes.scales, scales.bfloat16().float(), rtol=0, atol=0)
    zero = torch.zeros_like(scales, dtype=torch.int32)
    theirs = ao.quantize_affine(weight, block, codes.scales, zero, torch.int8, -8, 7)
    assert torch.equal(codes.elements, theirs.float())


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_rounded_one_by_one(kind: Literal["int4", "mxfp4", "nvfp4"]) -> None:
    stacked = torch.stack([weights(seed=1), weights(seed=2)])
    grid = grid_of(kind, 64, [stacked])
    alone = torch.stack([encoded(weight, grid).values() for weight in stacked])
    assert torch.equal(encoded(stacked, grid).values(), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_bytes_unpack_to_the_rounded_weights(kind: Literal["int4", "mxfp4", "nvfp4"]) -> None:
    """By the layouts' own description, number by number: the lower half of a byte is the first of two."""
    weight = weights(rows=6)
    codes = encoded(weight, grid_of(kind, 32, [weight]))
    parts = packed_matrix(codes.elements, codes.scales, codes.grid, torch.float32)
    halves = [
        half for byte in parts["weight_packed"].view(torch.uint8).flatten().tolist() for half in (byte & 15, byte >> 4)
    ]
    numbers = torch.tensor([half - 8 if kind == "int4" else e2m1_of_bits(half) for half in halves]).view(weight.shape)
    scales = parts["weight_scale"].float()
    if kind == "mxfp4":
        scales = 2.0 ** (scales - 127)
    if kind == "nvfp4":
        scales = scales / parts["weight_global_scale"]
    assert torch.equal(numbers * scales.repeat_interleave(codes.grid.size, dim=-1), codes.values())


def test_nvfp4_has_room_for_weights_that_grow() -> None:
    """One outer scale for the whole model is chosen before training: twice the largest weight still fits."""
    weight = weights()
    grid = grid_of("nvfp4", 0, [weight])
    largest = weight.abs().max()
    grown = encoded(2 * weight, grid).values().abs().max()
    assert abs(float(grown / (2 * largest)) - 1) < 0.1
    assert grid_of("nvfp4", 0, [torch.zeros(2, 32)]).outer == 1
