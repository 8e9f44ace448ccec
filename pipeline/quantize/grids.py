"""Weights of 4 bits: which numbers there are, and the nearest of them. Pure functions of tensors.

Legend: (…, I) a weight whose last dimension is what it multiplies its inputs with; a group is `size` inputs side by
side, which share a scale. A rounded weight is element · scale · outer.

The rounding is torchao's: symmetric int4 of IntxFakeQuantizeConfig (with scales as bf16 keeps them), MXFP4 of
MXFakeQuantizeConfig (scales rounded up, so that nothing is cut off), NVFP4 of nvfp4_quantize. Its own modules take
linear layers alone, and for FP4 need a GPU that multiplies it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["int4", "mxfp4", "nvfp4"]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # with a sign: OCP Microscaling Formats 1.0, table 5
_LARGEST = E2M1[-1]
_SMALLEST_BF16 = torch.finfo(torch.bfloat16).tiny
_E4M3 = torch.finfo(torch.float8_e4m3fn)


@dataclass(frozen=True)
class Grid:
    """What a student's weights are rounded to.

    size: inputs of a group. outer: nvfp4's second scale, a power of two; one for the whole model, since engines that
    join layers (queries, keys, values) read them with one.
    """

    kind: Kind
    size: int
    outer: float = 1.0


@dataclass(frozen=True, eq=False)
class Codes:
    """elements (…, I) on the grid's own numbers, scales (…, I / size), both fp32."""

    elements: Tensor
    scales: Tensor
    grid: Grid

    def values(self) -> Tensor:
        """(…, I) fp32: what an engine multiplies with."""
        groups = self.elements.reshape(*self.scales.shape, self.grid.size)
        return (groups * (self.scales * self.grid.outer).unsqueeze(-1)).flatten(-2)


def encoded(weight: Tensor, grid: Grid) -> Codes:
    """(…, I) -> the nearest numbers of the grid, under scales that the largest of each group sets."""
    groups = weight.float().reshape(*weight.shape[:-1], -1, grid.size)
    largest = groups.abs().amax(-1)
    scales = _scales(largest, grid)
    scaled = groups * (1 / grid.outer / scales).unsqueeze(-1)
    elements = scaled.round().clamp(-8, 7) if grid.kind == "int4" else nearest_e2m1(scaled)
    return Codes(elements.flatten(-2), scales, grid)


def _scales(largest: Tensor, grid: Grid) -> Tensor:
    """For the largest magnitudes of groups. A group of zeros has the smallest scale, and elements that are zero."""
    if grid.kind == "int4":
        return (largest / 7.5).bfloat16().float().clamp_min(_SMALLEST_BF16)
    if grid.kind == "nvfp4":
        wanted = largest / _LARGEST / grid.outer
        return wanted.clamp(_E4M3.tiny, _E4M3.max).to(torch.float8_e4m3fn).float()
    part, exponent = torch.frexp(largest / _LARGEST)  # part in [½, 1): ½ is a power of two itself
    raised = torch.where(part > 0.5, exponent, exponent - 1)
    return torch.ldexp(torch.ones_like(largest), raised.clamp(-126, 127))


def nearest_e2m1(x: Tensor) -> Tensor:
    """The nearest of E2M1's numbers; halfway between two the one whose last bit is 0; ±6 beyond."""
    size = x.abs()
    low = (size * 2).round() / 2  # torch rounds halves to the even one, which is the one with that bit
    middle = size.round()
    high = ((size / 2).round() * 2).clamp_max(_LARGEST)
    return torch.where(size < 2, low, torch.where(size < 4, middle, high)).copysign(x)


def grid_of(kind: Kind, group_size: int, weights: Iterable[Tensor]) -> Grid:
    """The grid for a model with these weights, before they are trained.

    nvfp4's scales are numbers of 8 bits up to 448, and `outer` makes the largest of them half of that: training may
    double the largest weight before it is cut off.
    """
    if kind != "nvfp4":
        return Grid(kind, 32 if kind == "mxfp4" else group_size)
    largest = max((float(weight.abs().max()) for weight in weights if weight.numel()), default=0.0)
    wanted = 2 * largest / (_LARGEST * _E4M3.max)
    return Grid(kind, 16, 2.0 ** math.ceil(math.log2(wanted)) if wanted > 0 else 1.0)
