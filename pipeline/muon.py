"""Muon: a hidden matrix moves by its momentum with all singular values made one; everything else by AdamW.

As DeepSeek-V4 trains (arXiv 2606.19348, Algorithm 1), with Nesterov's momentum, weight decay apart from the gradient,
and updates of such a size that rates which suit AdamW suit it too. torch's own Muon takes no stacks of matrices, which
is what experts are, and iterates five times with one set of coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

Coefficients = tuple[float, float, float]

# Eight steps bring the singular values near one, at a slope of 3.4 where they are small; two more settle them there.
HYBRID: tuple[Coefficients, ...] = (*((3.4445, -4.7750, 2.0315),) * 8, *((2.0, -1.5, 0.5),) * 2)
SMALLEST = 1e-20  # of a norm that is divided by: its square is still a number in fp32


def orthogonalise(matrices: Tensor, coefficients: Iterable[Coefficients] = HYBRID) -> Tensor:
    """U Vᵀ of each matrix U S Vᵀ, about: (..., n, m) to the same shape and dtype, by Newton and Schulz.

    X ← aX + b(XXᵀ)X + c(XXᵀ)²X, from X = M / ‖M‖; it maps each singular value by s ← as + bs³ + cs⁵ and leaves the
    vectors. Those above 3e-5 of ‖M‖ come within 0.0021 of one (in bf16, 0.01); a matrix of zeros stays one. A sharded
    one is whole in every process meanwhile, unless the shards are of leading dimensions; all processes call this.
    """
    if isinstance(matrices, DTensor):
        return _sharded(matrices, lambda local: orthogonalise(local, coefficients))
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    norm: Tensor = torch.linalg.matrix_norm(x.float() if x.dtype == torch.bfloat16 else x, keepdim=True)
    x = x / norm.clamp(min=SMALLEST).to(x.dtype)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def _sharded(matrices: DTensor, local: Callable[[Tensor], Tensor]) -> DTensor:
    """The same placements as before: of whole matrices, each process's own; of pieces, after they were put together."""
    mesh, placements = matrices.device_mesh, matrices.placements
    if any(isinstance(each, Shard) and each.dim >= matrices.ndim - 2 for each in placements):
        # Every process computes the whole, so nobody has to send it.
        return distribute_tensor(local(matrices.full_tensor()), mesh, placements, src_data_rank=None)
    own = local(matrices.to_local())
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=matrices.shape, stride=matrices.stride())


class Muon(Optimizer):
    """groups: parameters with their `weight_decay`, and `hidden`: whether they are (stacks of) matrices that move by
    Muon. rms: of an update at rate 1. betas, eps, fused: AdamW's, for the others.

    On an accelerator the products are in bf16, as V4's; on a CPU in the parameters' own dtype.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float,
        rms: float,
        betas: tuple[float, float],
        eps: float,
        fused: bool,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "rms": rms, "betas": betas, "eps": eps, "fused": fused}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "this optimizer takes no closure"
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["hidden"]:
                for parameter in trained:
                    self._turn(parameter, group)
            elif trained:
                self._adamw(trained, group)

    def _turn(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        momentum: Tensor = state["momentum"]
        momentum.mul_(group["momentum"]).add_(parameter.grad)
        ahead = parameter.grad + group["momentum"] * momentum
        dtype = ahead.dtype if ahead.device.type == "cpu" else torch.bfloat16
        update = orthogonalise(ahead.to(dtype)).to(parameter.dtype)
        # A matrix with orthonormal rows or columns has a root mean square of one over the root of its longer side.
        size = group["rms"] * max(parameter.shape[-2:]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)

    def _adamw(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in trained:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        states = [self.state[parameter] for parameter in trained]
        adamw(
            trained,
            [parameter.grad for parameter in trained if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
