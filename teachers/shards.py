"""Weights in shards: every process holds its part of each, and all of them put one together where it is needed.

torch's own `fully_shard` (FSDP2), which runs over gloo on CPUs and over NCCL on GPUs. What is in shards belongs to all
processes: whoever gathers it does so in every one of them, at the same place of the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from teachers.causal_lm import decoder
from teachers.mapped import forget, pages_of

if TYPE_CHECKING:
    from torch import Tensor


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The blocks that a causal LM repeats, peft's layers in them: the longest list of modules in its body."""
    lists = [list(child) for child in decoder(model).children() if isinstance(child, nn.ModuleList)]
    return max(lists, key=len, default=[])


def shard_layers(model: nn.Module) -> None:
    """Spreads the layers of a model over all processes. Embeddings, the last norm and the head stay whole in each: a
    teacher's head is wanted long after its forward. In place, and for good; twice is once."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    pages = pages_of(model)
    for layer in layers_of(model):
        if not isinstance(layer, FSDPModule):
            fully_shard(layer, reshard_after_forward=True)
    forget(pages)  # the layers' parts are copies; of the file only what stays whole is read again


@contextmanager
def whole(*models: nn.Module) -> Iterator[None]:
    """Inside, the weights of these models are plain tensors, whole in every process, whose forwards talk to nobody.

    Every process enters it together with the others, whatever it then does. For forwards without gradients: nothing
    that is written to a weight would stay. Costs nothing where nothing is in shards.
    """
    parts = {model: _sharded(model) for model in dict.fromkeys(models)}
    for model, found in parts.items():
        for part in found:
            if part is not model:  # a root keeps its weights after a forward anyway
                part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    try:
        yield
    finally:
        for model, found in parts.items():
            for part in found:
                part.reshard()
                if part is not model:
                    part.set_reshard_after_forward(True, recurse=False)
            # FSDP2 prefetches in the order of all forwards since the last backward. Here each process had its own, and
            # would wait for a layer that the others do not send. What has no root has no backward either.
            if model in found:
                root: Any = model
                root.reset_iter_state()


def _sharded(model: nn.Module) -> list[Any]:
    if not dist.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_sharded(tensor: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return dist.is_initialized() and isinstance(tensor, DTensor)


def held(tensor: Tensor) -> int:
    """How many of a tensor's numbers this process has."""
    local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return local.numel()


def gathered(value: Any, *, keep: bool = True) -> Any:
    """The same value, tensors at any depth of lists and dicts put together and on the CPU.

    Every process calls it with the same structure. keep: whether this one wants the result; else each tensor is let go
    as soon as it is whole, so that only one process needs the room of all, and None stands in its place.
    """
    if isinstance(value, dict):
        return {key: gathered(each, keep=keep) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(each, keep=keep) for each in value)
    if hasattr(value, "detach") and is_sharded(value):
        full = value.detach().full_tensor()
        return full.cpu() if keep else None
    return value


def in_shards_of(like: Tensor, value: Tensor) -> Tensor:
    """A whole `value`, which every process has, laid out as `like` is; itself where that is not in shards."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    part = distribute_tensor(value.to(like.device), mesh, placements, src_data_rank=None)
    return part.clone()  # a view would keep the whole alive
