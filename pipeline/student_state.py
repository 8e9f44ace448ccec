"""What of a student training changes, out of it and back into it; whole, however many processes hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import RunError
from teachers.shards import gathered, in_shards_of, is_sharded

if TYPE_CHECKING:
    from pipeline.student import Student


def trainable_state(student: Student, *, keep: bool = True) -> dict[str, Tensor]:
    """Copies on the CPU of all that training changes, by name; tied weights once; of rounded weights their masters,
    from which the same come again.

    Of a student in shards every process calls it, and those that do not `keep` it get nothing.
    """
    found: dict[str, Tensor] = {}
    for name, value in _learning(student).items():
        full = gathered(value.detach(), keep=keep)
        if keep:
            found[name] = full.cpu() if is_sharded(value) else full.cpu().clone()
    return found


def _learning(student: Student) -> dict[str, Tensor]:
    masters = {id(each.place.parameter): each.master for each in student.rounded}
    return {name: masters.get(id(value), value) for name, value in student.trained_parameters().items()}


def optimizer_state(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """Its `state_dict`, whole; called and kept as `trainable_state`. The optimizers of `optim.py` take it back in any
    number of processes."""
    state: dict[str, Any] = gathered(optimizer.state_dict(), keep=keep)
    return state


@torch.no_grad()
def load_trainable_state(student: Student, state: Mapping[str, Tensor]) -> None:
    """Puts back what `trainable_state` gave, bit by bit.

    Raises:
        RunError: the names, shapes or dtypes are not this student's.
    """
    parameters = _learning(student)
    if odd := sorted(parameters.keys() ^ state.keys()):
        raise RunError(
            f"the saved weights are another student's: {odd[0]} is only in one of them ({len(odd)} such names)"
        )
    for name, parameter in parameters.items():
        saved = state[name]
        if saved.shape != parameter.shape or saved.dtype != parameter.dtype:
            raise RunError(
                f"the saved weights are another student's: {name} is {tuple(saved.shape)} {saved.dtype}, here "
                f"{tuple(parameter.shape)} {parameter.dtype}"
            )
    for name, parameter in parameters.items():
        parameter.copy_(in_shards_of(parameter, state[name]))
    for each in student.rounded:
        each.refresh()
