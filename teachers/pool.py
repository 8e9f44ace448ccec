"""The teachers of a recipe: built, sharing what they can share, and asked in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from teachers import adapters, local
from teachers.alignment import compare_models, compare_vocabularies
from teachers.causal_lm import CausalLM, ModelKey
from teachers.config import TeacherConfig
from teachers.errors import TeacherError
from teachers.models import Models, Resolve, where
from teachers.plan import Assignment
from teachers.scoring import TOKENS_PER_FORWARD, HiddenStateTeacher
from teachers.types import Answer, ScoreRequest, TeacherFailure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Kind(NamedTuple):
    """How a kind of teacher is made from its configuration. Kinds with a smaller `order` are built first."""

    tokenizer_of: Callable[[str, Any, Models], PreTrainedTokenizerBase]
    build: Callable[[str, Any, Models], HiddenStateTeacher]
    order: int


# Adapters first: they change the base in place, and whoever uses it as it is has to know.
KINDS = {
    "adapter": Kind(adapters.tokenizer_of, adapters.build, order=0),
    "transformers": Kind(local.tokenizer_of, local.build, order=1),
}


@dataclass(frozen=True, eq=False)
class Pool:
    """Up to ten teachers, in the recipe's order. notes: what a user may want to know about them, one line each."""

    teachers: Mapping[str, HiddenStateTeacher]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.teachers)

    def score(
        self, stage: Sequence[Assignment], requests: Mapping[str, ScoreRequest]
    ) -> Iterator[tuple[str, str, Answer | TeacherFailure]]:
        """Yields (teacher, request_id, what it said), teacher by teacher, once for every assignment.

        `requests`: by request_id. What a teacher cannot answer is a TeacherFailure; an exception is a mistake in the
        program or an exhausted machine, and is passed on.
        """
        for name, teacher in self.teachers.items():
            asked = [assignment.request_id for assignment in stage if assignment.teacher == name]
            open_requests = set(asked)
            if len(open_requests) < len(asked):
                raise ValueError(f"{name} is asked about the same request twice")
            for request_id, result in teacher.score([requests[request_id] for request_id in asked]) if asked else ():
                if request_id not in open_requests:
                    raise RuntimeError(f"{name} answered {request_id}, which was not asked or is answered already")
                open_requests.remove(request_id)
                yield name, request_id, result
            if open_requests:
                raise RuntimeError(f"{name} left {len(open_requests)} requests unanswered, {min(open_requests)} first")
        if strangers := {assignment.teacher for assignment in stage} - self.teachers.keys():
            raise ValueError(f"the pool has no teacher {min(strangers)}")

    @contextmanager
    def writing(self, name: str) -> Iterator[CausalLM]:
        """The teacher as a model that writes: inside, forwards of `lm.model` are this teacher's."""
        teacher = self.teachers[name]
        with teacher.running():
            yield teacher.lm

    def close(self) -> None:
        for teacher in self.teachers.values():
            teacher.close()


def build_pool(
    configs: Mapping[str, TeacherConfig],
    student: CausalLM,
    *,
    shared: Mapping[ModelKey, CausalLM],
    device: torch.device,
    resolve: Resolve,
    progress: Callable[[str], None] = lambda _: None,
    tokens_per_forward: int = TOKENS_PER_FORWARD,
) -> Pool:
    """Loads the teachers of a recipe.

    Each base is loaded once; those in `shared`, by `model_key`, are the student's and not loaded at all. All
    tokenizers are compared with the student's before the first weight is read.

    Raises:
        TeacherError: everything that is wrong, one line each.
    """
    models = Models(student, shared, device, resolve, progress, tokens_per_forward)
    notes, problems = _compared(configs, models)
    if problems:
        raise TeacherError("\n".join(problems))
    built: dict[str, HiddenStateTeacher] = {}
    for name, config in sorted(configs.items(), key=lambda item: KINDS[item[1].kind].order):
        try:
            built[name] = KINDS[config.kind].build(name, config, models)
        except TeacherError as error:
            problems.append(str(error))
    if problems:
        raise TeacherError("\n".join(problems))
    teachers = {name: built[name] for name in configs}
    for name, teacher in teachers.items():
        notes += compare_models(student, teacher.lm, name=where(name)).notes
    return Pool(teachers, tuple(notes))


def _compared(configs: Mapping[str, TeacherConfig], models: Models) -> tuple[list[str], list[str]]:
    """(notes, problems) of the teachers' tokenizers."""
    notes: list[str] = []
    problems: list[str] = []
    for name, config in configs.items():
        try:
            tokenizer = KINDS[config.kind].tokenizer_of(name, config, models)
        except TeacherError as error:
            problems.append(str(error))
            continue
        found = compare_vocabularies(models.student.tokenizer, tokenizer, name=where(name))
        notes += found.notes
        problems += found.problems
    return notes, problems
