"""The student's moving averages: the weights of those teachers that are the student itself, a little behind.

After each update a ← a + decay · (w − a), in fp32 whatever the weights are in: bf16 keeps 8 bits, and an average in it
would stand still where a step moves a weight by less than a hundredth or so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from pipeline.errors import RunError
from pipeline.student import Student
from teachers.config import SelfTeacher, TeacherConfig
from teachers.heads import find_head
from teachers.privileged import Own, Selves
from teachers.scoring import Ends, HiddenStateTeacher, Running
from teachers.switching import adapters_disabled, is_adapted
from teachers.types import Head, HeadWeights


class MovingAverage:
    """The average of what a student trains (all weights, or a LoRA adapter), begun at its present weights.

    decay: the new weights' share at each update. weights: by name, fp32, on the student's device.
    """

    def __init__(self, student: Student, decay: float) -> None:
        self.decay = decay
        self.weights = _copies(student)
        self._student = student
        self._version = 0

    @torch.no_grad()
    def update(self) -> None:
        """After each of the optimizer's steps."""
        for name, parameter in self._student.trained_parameters().items():
            # A new tensor: the heads of answers that were given before go on with the weights they were given with.
            self.weights[name] = torch.lerp(self.weights[name], parameter.detach().float(), self.decay)
        self._version += 1

    def restart(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Goes on from saved weights, or begins again at the student's present ones. Raises RunError as `load`."""
        if weights is None:
            self.weights = _copies(self._student)
        else:
            _require_same(self.weights, weights)
            self.weights = {name: weights[name].to(old.device) for name, old in self.weights.items()}
        self._version += 1

    def teacher(self) -> HiddenStateTeacher:
        """The student with the average as it is now. It runs the student's own model: not while that trains."""
        lm = self._student.lm
        name = f"average {self.decay:g}"
        end = min(lm.end_ids)
        return HiddenStateTeacher(name, replace(lm, name=name), self._head(name), Ends(end, end), running=self.in_place)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the student's model computes with the average. Afterwards its weights are the same tensors again.

        For forwards without gradients. An exception leaves nothing changed either.
        """
        parameters = self._student.trained_parameters()
        live = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.weights[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = live[name]

    def _head(self, name: str) -> Head:
        """The student's head with the average's matrix, where it is trained; of this version for good."""
        names = {id(parameter): name for name, parameter in self._student.trained_parameters().items()}

        def averaged(tensor: Tensor) -> Tensor:
            trained = names.get(id(tensor))
            return tensor if trained is None else self.weights[trained].to(tensor.dtype)

        live = self._student.head.load()
        weights = HeadWeights(averaged(live.weight), None if live.bias is None else averaged(live.bias))
        return replace(self._student.head, key=f"{name}, version {self._version}", load=lambda: weights)


class Averages:
    """All the moving averages of a run: one for each decay that a teacher names, perhaps none."""

    def __init__(self, student: Student, decays: Iterable[float]) -> None:
        self._averages = {decay: MovingAverage(student, decay) for decay in sorted(set(decays))}

    def update(self) -> None:
        """After each of the optimizer's steps."""
        for average in self._averages.values():
            average.update()

    def of(self, decay: float) -> MovingAverage:
        return self._averages[decay]

    def state(self) -> dict[str, Tensor]:
        """By "decay/name", on the CPU; none of these tensors ever changes."""
        return {
            f"{decay!r}/{name}": tensor.cpu()
            for decay, average in self._averages.items()
            for name, tensor in average.weights.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave, bit by bit; call it after the student's own weights are back.

        An average that it does not hold (the run was extended by a teacher) begins at the student's present weights.

        Raises:
            RunError: the names or shapes are not this student's.
        """
        for decay, average in self._averages.items():
            prefix = f"{decay!r}/"
            saved = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            average.restart(saved or None)


def frozen_initial(student: Student, *, name: str) -> HiddenStateTeacher:
    """The student as it is now, as a teacher; call it before the first update, and before a checkpoint is loaded.

    Full tuning: a copy, as large as the student. LoRA: the same model with its adapters off, at no cost; but a copy too
    of one that will be in shards, which this process could not use alone.
    """
    lm = student.lm
    if is_adapted(lm.model) and not student.in_shards:
        frozen = replace(lm, name=name)
        running: Running = partial(adapters_disabled, lm.model)
    else:
        frozen = replace(lm, name=name, model=copy.deepcopy(lm.model).requires_grad_(False).eval())
        running = nullcontext
    head = find_head(frozen.model, lm.vocab_size, key=name)
    end = min(lm.end_ids)
    return HiddenStateTeacher(name, frozen, head, Ends(end, end), running=running)


def averages_of(student: Student, teachers: Iterable[TeacherConfig]) -> Averages:
    """Those that a recipe's teachers need, begun at the student's present weights."""
    asked = (config for config in teachers if isinstance(config, SelfTeacher) and config.weights == "average")
    return Averages(student, (config.decay for config in asked))


def selves_of(student: Student, averages: Averages) -> Selves:
    """What teachers of the kind `self` are built from. The initial weights are copied once, when first asked for."""
    initial = cache(partial(frozen_initial, student, name="initial"))

    def averaged(decay: float) -> Own:
        return averages.of(decay).teacher

    return Selves(student.lm, initial, averaged)


def _copies(student: Student) -> dict[str, Tensor]:
    trained = student.trained_parameters()
    return {name: parameter.detach().to(torch.float32, copy=True) for name, parameter in trained.items()}


def _require_same(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    ours, theirs = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (own, saved))
    if odd := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        raise RunError(
            f"the saved average is another student's: {odd[0]} is {theirs.get(odd[0])} there and {ours.get(odd[0])} "
            f"here ({len(odd)} such weights)"
        )
