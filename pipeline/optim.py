"""AdamW for a student, and its learning rate as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import cos, pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from teachers.shards import in_shards_of

if TYPE_CHECKING:
    from pipeline.recipe import Training

EPS = 1e-8


def learning_rate(step: int, training: Training, spent: float = 0.0) -> float:
    """The rate of the update that follows `step` finished ones: a linear warm-up, then the schedule down to zero.

    The first update already moves (rate / warmup_steps), and the last one still does: zero lies at `training.steps`.
    spent: the share of a limit in tokens that is used up, where a run has one; the schedule follows what ends first.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return training.learning_rate
    done = min(1.0, max(spent, (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)))
    left = 1 - done if training.schedule == "linear" else (1 + cos(pi * done)) / 2
    return training.learning_rate * left


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def build_optimizer(student: nn.Module, training: Training) -> Optimizer:
    """AdamW over the student's trainable parameters, with fp32 copies of those in half precision."""
    groups = parameter_groups(student, training.weight_decay)
    trained = [parameter for group in groups for parameter in group["params"]]
    build = _adamw if all(parameter.dtype == torch.float32 for parameter in trained) else MasterAdamW
    return build(groups, lr=training.learning_rate, betas=training.betas, eps=EPS, fused=_has_fused(trained))


def _adamw(
    groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float = EPS, *, fused: bool = False
) -> AdamW:
    """AdamW that loads a state of whole tensors whichever way its parameters are held."""
    made = AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
    made.register_load_state_dict_pre_hook(spread)
    return made


def spread(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A saved state with the moments of each parameter in shards where that is, before any of them leaves the CPU."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = [number for group in state_dict["param_groups"] for number in group["params"]]
    state = dict(state_dict["state"])
    for number, parameter in zip(saved, parameters, strict=False):  # torch says what is wrong with other lengths
        of_one = state.get(number, {})
        state[number] = {
            key: in_shards_of(parameter, value) if getattr(value, "shape", None) == parameter.shape else value
            for key, value in of_one.items()
        }
    return {**state_dict, "state": {number: value for number, value in state.items() if value}}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay, each once, in the module's order.

    Matrices decay. Norms, biases and embeddings (a tied head with them) do not: decay would pull the rows of tokens
    that a batch does not contain towards zero for no reason.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = name.rpartition(".")[2].endswith("bias")
        plain = parameter.ndim < 2 or is_bias or id(parameter) in embeddings
        (kept if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class MasterAdamW(Optimizer):
    """AdamW on fp32 copies of the parameters, which are rounded from them after each update.

    bf16 keeps 8 bits: a weight of 0.02 does not move by less than 4e-5, so at a rate of 1e-5 plain AdamW on bf16
    weights would train next to nothing. The copies are part of the state: resuming is exact. fp32 parameters among
    them are their own copies.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float = EPS,
        *,
        fused: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        masters = [{**group, "params": [_master(p) for p in group["params"]]} for group in self.param_groups]
        self._adamw = _adamw(masters, lr, betas, eps, fused=fused)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(parameter, master) in order, those that are one tensor left out."""
        groups = zip(self.param_groups, self._adamw.param_groups, strict=True)
        pairs = [pair for live, master in groups for pair in zip(live["params"], master["params"], strict=True)]
        return [(live, master) for live, master in pairs if live is not master]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "this optimizer takes no closure"
        for live, group in zip(self.param_groups, self._adamw.param_groups, strict=True):
            group["lr"] = live["lr"]
        pairs = self._pairs()
        for parameter, master in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self._adamw.step()
        for parameter, master in pairs:
            parameter.copy_(master)
            master.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "adamw": self._adamw.state_dict(),
            "masters": [master.detach() for _, master in self._pairs()],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._adamw.load_state_dict(dict(state_dict["adamw"]))
        for live, group in zip(self.param_groups, self._adamw.param_groups, strict=True):
            live.update({key: value for key, value in group.items() if key in ("lr", "betas", "eps", "weight_decay")})
        for (parameter, master), saved in zip(self._pairs(), state_dict["masters"], strict=True):
            master.copy_(in_shards_of(master, saved))
            parameter.copy_(master)


def _master(parameter: Tensor) -> Tensor:
    return parameter if parameter.dtype == torch.float32 else parameter.detach().float()


def _has_fused(parameters: list[Tensor]) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
