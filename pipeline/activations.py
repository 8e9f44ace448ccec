"""What a forward leaves behind for its backward, and how to leave less: three ways that go together.

Per token, without any: about a dozen tensors of the model's width in every layer. With layers computed again
(`checkpoint_layers`): one in every layer, and while a layer is computed again its own dozen. With MLPs in parts
(`split_mlps`): of those of the MLP, which are the widest, no more than a part's. With `moved_to_memory`: what is left
waits in the machine's memory instead of the accelerator's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ModelError
from teachers.causal_lm import decoder, unwrapped


def checkpoint_layers(model: Any) -> None:
    """Layers are computed again in the backward, in training mode."""
    with warnings.catch_warnings():
        # transformers renames this in version 6; the new name is not in the oldest version supported.
        warnings.simplefilter("ignore", FutureWarning)
        unwrapped(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


# ---- MLPs in parts ----


def split_mlps(model: Any, tokens: int) -> None:
    """Every layer's MLP, or mixture of experts, takes at most `tokens` tokens of each row at once, and computes them
    again in the backward. Each token passes it by itself, so this is the same sum in another order.

    Raises ModelError where the layers have no `mlp`.
    """
    layers = getattr(decoder(model), "layers", None) or ()
    found = [layer.mlp for layer in layers if isinstance(getattr(layer, "mlp", None), nn.Module)]
    if not found or len(found) < len(layers):
        raise ModelError(
            f"student.mlp_tokens: the layers of {type(unwrapped(model)).__name__} have no `mlp` that can be taken in "
            "parts; leave it out"
        )
    for mlp in found:
        mlp.tokens_at_once = tokens
        mlp.forward = MethodType(_in_parts, mlp)  # a method, so that a copy of the model calls its own


def _in_parts(mlp: Any, x: Tensor, **others: Any) -> Any:
    """x (b, t, D), beside tensors (b, t, …) that are cut like it."""
    tokens: int = mlp.tokens_at_once
    if x.shape[1] <= tokens:
        return type(mlp).forward(mlp, x, **others)
    outputs = []
    for start in range(0, x.shape[1], tokens):
        part = slice(start, start + tokens)
        outputs.append(_again(mlp, x[:, part].contiguous(), _cut(others, x.shape[:2], part)))
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs, 1)
    # Beside its output a mixture of experts may give scores, which only a loss for routers would read.
    return torch.cat([output[0] for output in outputs], 1), None


def _cut(others: Mapping[str, Any], shape: torch.Size, part: slice) -> dict[str, Any]:
    return {
        name: value[:, part].contiguous() if isinstance(value, Tensor) and value.shape[:2] == shape else value
        for name, value in others.items()
    }


def _again(mlp: Any, x: Tensor, others: Mapping[str, Any]) -> Any:
    if not torch.is_grad_enabled():
        return type(mlp).forward(mlp, x, **others)
    return checkpoint(type(mlp).forward, mlp, x, use_reentrant=False, **others)


# ---- what is left, elsewhere ----


@contextmanager
def moved_to_memory(model: nn.Module) -> Iterator[None]:
    """What is saved for the backward inside waits in the machine's memory, and comes back when it is needed.

    Weights stay where they are: a product saves them too, and torch's own `save_on_cpu` would copy them all. The copies
    are pinned where there is an accelerator. On a CPU each is a copy beside the tensor, which then goes: no gain.
    """
    kept = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    pinned = torch.cuda.is_available()

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor] | Tensor:
        if isinstance(tensor, nn.Parameter) or tensor.untyped_storage().data_ptr() in kept:
            return tensor
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        copy.copy_(tensor)
        return tensor.device, copy

    def unpack(packed: tuple[torch.device, Tensor] | Tensor) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, copy = packed
        return copy.to(device, non_blocking=pinned)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
