"""A student's optimizer, and its learning rate as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import cos, pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pipeline import recipe_optimizer as recipe
from pipeline.muon import Muon
from pipeline.quantize.rounded import Rounded, by_parameter
from teachers.shards import in_shards_of

if TYPE_CHECKING:
    from pipeline.recipe import Training

EPS = 1e-8

Build = Callable[[list[dict[str, Any]]], Optimizer]


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
        if isinstance(group["lr"], Tensor):  # torchao's
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def build_optimizer(student: nn.Module, training: Training) -> Optimizer:
    """The recipe's optimizer over the student's trainable parameters, with fp32 copies of those in half precision or
    quantized."""
    chosen, rate = training.optimizer, training.learning_rate
    groups = parameter_groups(student, training.weight_decay)
    build: Build
    if isinstance(chosen, recipe.Muon):
        groups = hidden_apart(student, groups)
        build = partial(
            Muon,
            lr=rate,
            momentum=chosen.momentum,
            rms=chosen.rms,
            betas=chosen.betas,
            eps=EPS,
            fused=_has_fused(groups),
        )
    elif isinstance(chosen, recipe.AdamW8bit):
        build = partial(adamw_8bit, lr=rate, betas=chosen.betas)
    else:
        build = partial(AdamW, lr=rate, betas=chosen.betas, eps=EPS, fused=_has_fused(groups))
    rounded: tuple[Rounded, ...] = getattr(student, "rounded", ())
    plain = not rounded and all(parameter.dtype == torch.float32 for group in groups for parameter in group["params"])
    return _loading(build)(groups) if plain else Masters(groups, _loading(build), by_parameter(rounded))


def _loading(build: Build) -> Build:
    """Its optimizers load a state of whole tensors, whichever way their parameters are held."""

    def made(groups: list[dict[str, Any]]) -> Optimizer:
        optimizer = build(groups)
        optimizer.register_load_state_dict_pre_hook(spread)
        return optimizer

    return made


def adamw_8bit(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> Optimizer:
    """torchao's, for moments of 4096 entries or more; smaller ones stay in fp32. That it is there is seen to before a
    run (`packages.py`)."""
    from torchao.optim import AdamW8bit

    optimizer: Optimizer = AdamW8bit(groups, lr=lr, betas=betas, eps=EPS)
    if not torch.cuda.is_available():
        # It compiles its step, each shape anew, which takes a C++ compiler, and minutes, for nothing on a CPU.
        optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)  # type: ignore[method-assign]
    return optimizer


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
        plain = parameter.ndim < 2 or _is_bias(name) or id(parameter) in embeddings
        (kept if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def hidden_apart(module: nn.Module, groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same groups, with `hidden` matrices apart from all others.

    Hidden are matrices and stacks of matrices (experts), but not embeddings, the head, filters of convolutions, what
    is called a bias, and what has one row or column. LoRA's A and B are hidden.
    """
    others = {id(weight) for part in module.modules() for weight in _ends(part)}
    others |= {id(parameter) for name, parameter in module.named_parameters() if _is_bias(name)}

    def hidden(parameter: Tensor) -> bool:
        return parameter.ndim in (2, 3) and min(parameter.shape[-2:]) > 1 and id(parameter) not in others

    parts = [
        {**group, "params": [p for p in group["params"] if hidden(p) == wanted], "hidden": wanted}
        for group in groups
        for wanted in (True, False)
    ]
    return [part for part in parts if part["params"]]


def _ends(part: nn.Module) -> list[Tensor]:
    """The weights of a module that turns ids into states, states into logits, or is no product with a matrix."""
    if isinstance(part, nn.Embedding | nn.Conv1d | nn.Conv2d):
        return [part.weight]
    find: Any = getattr(part, "get_output_embeddings", None)
    head = None if find is None else find()
    return [] if head is None else [head.weight]


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].endswith("bias")


def state_bytes(student: nn.Module, training: Training) -> int:
    """What the optimizer keeps of the trained weights, without fp32 copies of those in half precision."""
    groups = hidden_apart(student, parameter_groups(student, training.weight_decay))
    kept = 0
    for group in groups:
        for parameter in group["params"]:
            match training.optimizer:
                case recipe.Muon() if group["hidden"]:
                    each = 4.0
                case recipe.AdamW8bit() if parameter.numel() >= 4096 and parameter.numel() % 256 == 0:
                    each = 2 * (1 + 4 / 256)
                case _:
                    each = 8.0
            kept += int(parameter.numel() * each)
    return kept


class Masters(Optimizer):
    """An optimizer on fp32 copies of the parameters, which are rounded from them after each update.

    bf16 keeps 8 bits: a weight of 0.02 does not move by less than 4e-5, so at a rate of 1e-5 plain AdamW on bf16
    weights would train next to nothing. The copies are part of the state: resuming is exact. fp32 parameters among
    them are their own copies.

    build: from groups of copies to the optimizer that moves them. rounded: by a parameter's id, what it is rounded to
    where its dtype is not all: a quantized student's weights.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        build: Build,
        rounded: Mapping[int, Rounded] | None = None,
    ) -> None:
        super().__init__(groups, {})
        self._rounded = rounded or {}
        masters = [{**group, "params": [self._master(p) for p in group["params"]]} for group in self.param_groups]
        self._inner = build(masters)
        for live, master in zip(self.param_groups, self._inner.param_groups, strict=True):
            live["lr"] = float(master["lr"])

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(parameter, master) in order, those that are one tensor left out."""
        groups = zip(self.param_groups, self._inner.param_groups, strict=True)
        pairs = [pair for live, master in groups for pair in zip(live["params"], master["params"], strict=True)]
        return [(live, master) for live, master in pairs if live is not master]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "this optimizer takes no closure"
        set_learning_rate(self._inner, self.param_groups[0]["lr"])
        pairs = self._pairs()
        for parameter, master in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self._inner.step()
        for parameter, master in pairs:
            self._refresh(parameter, master)
            master.grad = None

    def _own(self) -> list[tuple[Tensor, Tensor]]:
        """The pairs whose masters nobody else keeps; a rounded weight's belongs to the student's state."""
        return [pair for pair in self._pairs() if id(pair[0]) not in self._rounded]

    def state_dict(self) -> dict[str, Any]:
        return {
            "inner": self._inner.state_dict(),
            "masters": [master.detach() for _, master in self._own()],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._inner.load_state_dict(dict(state_dict["inner"]))
        for live, group in zip(self.param_groups, self._inner.param_groups, strict=True):
            live["lr"] = float(group["lr"])
        for (parameter, master), saved in zip(self._own(), state_dict["masters"], strict=True):
            master.copy_(in_shards_of(master, saved))
            parameter.copy_(master)

    def _master(self, parameter: Tensor) -> Tensor:
        if id(parameter) in self._rounded:
            return self._rounded[id(parameter)].master
        return parameter if parameter.dtype == torch.float32 else parameter.detach().float()

    def _refresh(self, parameter: Tensor, master: Tensor) -> None:
        """The master's values into the parameter, as it can hold them."""
        if id(parameter) in self._rounded:
            self._rounded[id(parameter)].refresh()
        else:
            parameter.copy_(master)


def _has_fused(groups: Iterable[Mapping[str, Any]]) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
