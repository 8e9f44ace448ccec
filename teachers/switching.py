"""Running a peft model with another adapter, or with none, and leaving it exactly as it was.

peft's own `set_adapter` makes what it activates trainable and freezes the rest, so a teacher's forward would end the
student's training; `disable_adapter` makes everything active trainable again when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from teachers.caching import eval_mode

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Inside, the peft model computes with the adapter `name` alone, in eval mode, with nothing trainable.

    For forwards without gradients. Afterwards the active adapter, whether adapters are on, every module's mode and
    every parameter's requires_grad are as before, also after an exception. May be nested.
    """
    with left_as_it_was(model):
        if _is_off(model):
            model.base_model.enable_adapter_layers()
        model.set_adapter(name, inference_mode=True)
        yield


@contextmanager
def adapters_disabled(model: Any) -> Iterator[None]:
    """Inside, the peft model computes as its base does, in eval mode, with nothing trainable; as `active_adapter`."""
    with left_as_it_was(model):
        if not _is_off(model):
            model.base_model.disable_adapter_layers()
        yield


def current_adapter(model: Any) -> str | None:
    """The adapter that the next forward computes with; None for a plain model and where adapters are off."""
    return None if not is_adapted(model) or _is_off(model) else str(model.active_adapter)


def is_adapted(model: Any) -> bool:
    """Whether peft has put adapters into this model."""
    return hasattr(model, "peft_config")


@contextmanager
def left_as_it_was(model: Any) -> Iterator[None]:
    """Eval mode inside. Afterwards all that adapters change is as before; what came in meanwhile is frozen."""
    trainable = {parameter for parameter in model.parameters() if parameter.requires_grad}
    active, off = model.active_adapter, _is_off(model)
    with eval_mode(model):
        try:
            yield
        finally:
            if not off and _is_off(model):
                model.base_model.enable_adapter_layers()
            model.set_adapter(active, inference_mode=True)
            if off:
                model.base_model.disable_adapter_layers()
            for parameter in model.parameters():
                parameter.requires_grad_(parameter in trainable)


def _is_off(model: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    return layer is not None and bool(layer.disable_adapters)
