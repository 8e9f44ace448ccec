"""The teachers of a recipe: built, sharing what they can share, and asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch

from teachers import adapters, chat, crossing, local, plugins, privileged, programs, served
from teachers.alignment import compare_models, compare_vocabularies, fingerprint
from teachers.causal_lm import CausalLM, ModelKey
from teachers.config import TeacherConfig, TransformersTeacher
from teachers.errors import TeacherError
from teachers.models import Models, Resolve, where
from teachers.scoring import TOKENS_PER_FORWARD, HiddenStateTeacher, Running
from teachers.shards import shard_layers, whole
from teachers.types import Answer, Finding, LocalTeacher, RemoteTeacher, ScoreRequest, TeacherFailure

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from teachers.courier import Courier
    from teachers.privileged import Selves
    from teachers.tools import Tools


class ModelKind(NamedTuple):
    """How a kind that is a model in this process is made. Kinds with a smaller `order` are built first."""

    tokenizer_of: Callable[[str, Any, Models], PreTrainedTokenizerBase]
    build: Callable[[str, Any, Models], LocalTeacher]
    order: int


class OwnKind(NamedTuple):
    """How a kind that is made of the student itself is made."""

    build: Callable[[str, Any, Selves, int], LocalTeacher]


class RemoteKind(NamedTuple):
    """How a kind that is waited for is made."""

    build: Callable[[str, Any, Tools], RemoteTeacher | LocalTeacher]


def _build_model(name: str, config: TransformersTeacher, models: Models) -> LocalTeacher:
    """With the student's tokenizer, or with another one on purpose."""
    if config.align is None:
        return local.build(name, config, models)
    return crossing.build(name, config, models, models.temperature)


# Adapters first: they change the base in place, and whoever uses it as it is has to know.
KINDS: Mapping[str, ModelKind | OwnKind | RemoteKind] = {
    "adapter": ModelKind(adapters.tokenizer_of, adapters.build, order=0),
    "transformers": ModelKind(local.tokenizer_of, _build_model, order=1),
    "self": OwnKind(privileged.build),
    "served": RemoteKind(served.build),
    "chat": RemoteKind(chat.build),
    "program": RemoteKind(programs.build),
    "plugin": RemoteKind(plugins.build),
}


@dataclass(frozen=True, eq=False)
class Pool:
    """Up to ten teachers, in the recipe's order. notes: what a user may want to know about them, one line each.

    courier: who talks to the remote ones; None where there is none, and in all processes but the first.
    """

    teachers: Mapping[str, LocalTeacher | RemoteTeacher]
    courier: Courier | None = None
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.teachers)

    @property
    def remote(self) -> dict[str, RemoteTeacher]:
        return {name: teacher for name, teacher in self.teachers.items() if isinstance(teacher, RemoteTeacher)}

    def score(self, name: str, questions: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]:
        """What a local teacher says, once for every request, in any order.

        What it cannot answer is a TeacherFailure; an exception is a mistake in the program or an exhausted machine, and
        is passed on.
        """
        teacher = self.teachers[name]
        assert not isinstance(teacher, RemoteTeacher), f"{name} is remote: it is asked by the courier"
        left = {request.request_id for request in questions}
        for request_id, result in teacher.score(questions):
            if request_id not in left:
                raise RuntimeError(f"{name} answered {request_id}, which was not asked or is answered already")
            left.remove(request_id)
            yield request_id, result
        if left:
            raise RuntimeError(f"{name} left {len(left)} requests unanswered, {min(left)} first")

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Those in this process that teachers stand on, each once."""
        return _models_of(self.teachers.values())

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Entered by all processes around what a local teacher does in any of them: inside its weights are whole."""
        teacher = self.teachers[name]
        with whole(teacher.lm.model) if _has_model(teacher) else nullcontext():
            yield

    def ask(self, name: str, question: ScoreRequest, done: Callable[[Answer | TeacherFailure], None]) -> None:
        """Asks a remote teacher; `done` is called once, on another thread."""
        assert self.courier is not None, "only the first process asks remote teachers"
        self.courier.ask(name, question, done)

    def check(self) -> None:
        """Raises what went wrong while a remote teacher was asked, if it was the program's fault."""
        if self.courier is not None:
            self.courier.check()

    def loaded(self, student: CausalLM) -> Iterator[tuple[str, Finding]]:
        """What is known of the teachers in this process that are models of their own; were it wrong they would not be
        here."""
        for name, teacher in self.teachers.items():
            if not isinstance(teacher, HiddenStateTeacher | crossing.CrossingTeacher):
                continue
            own = fingerprint(teacher.lm.tokenizer)
            same = own == fingerprint(student.tokenizer)
            said = "the student's" if same else "another one, which agrees with the student's as far as it is used"
            yield name, Finding("tokenizer", True, f"{said} ({own[:12]})")
            fits = True if teacher.lm.context >= student.context else None
            yield name, Finding("context", fits, f"{teacher.lm.context:,} tokens")

    @contextmanager
    def writing(self, name: str) -> Iterator[CausalLM]:
        """The teacher as a model that writes: inside, forwards of `lm.model` are this teacher's."""
        teacher = self.teachers[name]
        if not writes(teacher):
            raise TeacherError(f"{where(name)}: it has no model in this process that could write answers")
        with teacher.running():
            yield teacher.lm

    def model(self, name: str) -> tuple[CausalLM, Running, str | None]:
        """A teacher that is a model in this process: the model, what is entered around it, and what it is told. Its
        tokenizer may be another than the student's."""
        teacher = self.teachers[name]
        if not isinstance(teacher, HiddenStateTeacher | crossing.CrossingTeacher):
            raise TeacherError(f"{where(name)}: it is no model in this process")
        return teacher.lm, teacher.running, teacher.system

    def close(self) -> None:
        if self.courier is not None:
            self.courier.close()
        for teacher in self.teachers.values():
            if not isinstance(teacher, RemoteTeacher):
                teacher.close()


def _models_of(teachers: Iterable[object]) -> tuple[nn.Module, ...]:
    return tuple(dict.fromkeys(teacher.lm.model for teacher in teachers if _has_model(teacher)))


def _has_model(teacher: object) -> TypeGuard[HiddenStateTeacher | crossing.CrossingTeacher]:
    return isinstance(teacher, HiddenStateTeacher | crossing.CrossingTeacher)


def writes(teacher: LocalTeacher | RemoteTeacher) -> TypeGuard[HiddenStateTeacher]:
    """Whether it can write answers itself."""
    return isinstance(teacher, HiddenStateTeacher)


def build_pool(
    configs: Mapping[str, TeacherConfig],
    student: CausalLM,
    *,
    shared: Mapping[ModelKey, CausalLM],
    device: torch.device,
    resolve: Resolve,
    selves: Selves | None = None,
    tools: Tools | None = None,
    courier: Callable[[Mapping[str, RemoteTeacher]], Courier | None] = lambda _: None,
    progress: Callable[[str], None] = lambda _: None,
    tokens_per_forward: int = TOKENS_PER_FORWARD,
    temperature: float = 1.0,
    in_shards: bool = False,
) -> Pool:
    """Loads the teachers of a recipe.

    Each base is loaded once; those in `shared`, by `model_key`, are the student's and not loaded at all. All
    tokenizers are compared with the student's before the first weight is read. selves: what teachers of the kind
    `self` are made of. tools: what remote teachers are built with. courier: makes the one who asks them, where there
    are any. in_shards: whether their models are spread over all processes, where they are not the student's.

    Raises:
        TeacherError: everything that is wrong, one line each.
    """
    models = Models(student, shared, device, resolve, progress, tokens_per_forward, temperature, in_shards)
    in_process = {name: config for name, config in configs.items() if isinstance(KINDS[config.kind], ModelKind)}
    notes, problems = _compared(in_process, models)
    if problems:
        raise TeacherError("\n".join(problems))
    built: dict[str, LocalTeacher | RemoteTeacher] = {}
    for name in sorted(configs, key=lambda name: _order(configs[name])):
        try:
            built[name] = _build(name, configs[name], models, selves, tools)
        except TeacherError as error:
            problems.append(str(error))
    if problems:
        raise TeacherError("\n".join(problems))
    teachers = {name: built[name] for name in configs}
    for name in in_process:
        teacher = teachers[name]
        if isinstance(teacher, HiddenStateTeacher):
            notes += compare_models(student, teacher.lm, name=where(name)).notes
    notes += [note for teacher in teachers.values() for note in getattr(teacher, "notes", ())]
    lent = {id(lm.model) for lm in shared.values()}
    for model in _models_of(teachers[name] for name in in_process) if in_shards else ():
        if id(model) not in lent:
            shard_layers(model)
    remote = {name: teacher for name, teacher in teachers.items() if isinstance(teacher, RemoteTeacher)}
    return Pool(teachers, courier(remote) if remote else None, tuple(notes))


def _order(config: TeacherConfig) -> int:
    kind = KINDS[config.kind]
    return kind.order if isinstance(kind, ModelKind) else len(KINDS)


def _build(
    name: str, config: TeacherConfig, models: Models, selves: Selves | None, tools: Tools | None
) -> LocalTeacher | RemoteTeacher:
    kind = KINDS[config.kind]
    if isinstance(kind, RemoteKind):
        assert tools is not None, f"{name} is remote and needs tools"
        return kind.build(name, config, tools)
    if isinstance(kind, OwnKind):
        assert selves is not None, f"{name} is made of the student"
        return kind.build(name, config, selves, models.tokens_per_forward)
    return kind.build(name, config, models)


def _compared(configs: Mapping[str, TeacherConfig], models: Models) -> tuple[list[str], list[str]]:
    """(notes, problems) of the teachers' tokenizers."""
    notes: list[str] = []
    problems: list[str] = []
    for name, config in configs.items():
        if isinstance(config, TransformersTeacher) and config.align is not None:
            continue  # another tokenizer, on purpose
        try:
            kind = KINDS[config.kind]
            assert isinstance(kind, ModelKind)
            tokenizer = kind.tokenizer_of(name, config, models)
        except TeacherError as error:
            problems.append(str(error))
            continue
        found = compare_vocabularies(models.student.tokenizer, tokenizer, name=where(name))
        notes += found.notes
        problems += found.problems
    return notes, problems
