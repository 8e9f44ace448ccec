"""The teachers of a recipe: built, sharing what they can share, and asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch

from teachers import adapters, chat, crossing, local, plugins, privileged, programs, served
from teachers.alignment import compare_models, compare_vocabularies, fingerprint
from teachers.causal_lm import CausalLM, ModelKey
from teachers.config import TeacherConfig, TransformersTeacher
from teachers.errors import TeacherError
from teachers.groups import Elsewhere, Introduction, Peers, Question, Said, answers, introduced, placed
from teachers.models import Models, Resolve, base_key, where
from teachers.scoring import TOKENS_PER_FORWARD, HiddenStateTeacher, Running
from teachers.shards import shard_layers, whole
from teachers.types import Answer, Finding, Head, LocalTeacher, RemoteTeacher, ScoreRequest, TeacherFailure

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

    courier: who talks to the remote ones; None where there is none, and in all processes but the first. placement:
    teachers in groups, with the processes that hold them, which are some of `peers`.
    """

    teachers: Mapping[str, LocalTeacher | RemoteTeacher]
    courier: Courier | None = None
    notes: tuple[str, ...] = ()
    placement: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    peers: Peers | None = None

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

    def answers(self, questions: Sequence[Question]) -> Iterator[Said]:
        """What local teachers say, teacher by teacher; of several processes all call it, perhaps without questions."""
        if self.placement:
            assert self.peers is not None
            to_groups = [question for question in questions if question[0] in self.placement]
            yield from answers(to_groups, self.placement, self.score, self._head, self.peers)
        for name, teacher in self.teachers.items():
            if name in self.placement or isinstance(teacher, RemoteTeacher):
                continue
            own = [request for whom, request in questions if whom == name]
            with whole(teacher.lm.model) if _has_model(teacher) else nullcontext():
                for request_id, result in self.score(name, own) if own else ():
                    yield name, request_id, result

    def _head(self, name: str) -> Head | None:
        teacher = self.teachers[name]
        return teacher.head if isinstance(teacher, HiddenStateTeacher | Elsewhere) else None

    def holder(self, name: str) -> int:
        """The first process that has this local teacher."""
        return self.placement[name][0] if name in self.placement else 0

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Those in this process that teachers stand on, each once."""
        return _models_of(self.teachers.values())

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
            found = teacher.findings if isinstance(teacher, Elsewhere) else _findings(teacher, student)
            for finding in found:
                yield name, finding

    @contextmanager
    def writing(self, name: str) -> Iterator[CausalLM]:
        """The teacher as a model that writes: inside, forwards of `lm.model` are this teacher's."""
        teacher = self.teachers[name]
        if not isinstance(teacher, HiddenStateTeacher):
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


def writes(teacher: LocalTeacher | RemoteTeacher) -> bool:
    """Whether it can write answers itself, where it is."""
    if isinstance(teacher, Elsewhere):
        return teacher.head is not None
    return isinstance(teacher, HiddenStateTeacher)


def _findings(teacher: object, student: CausalLM) -> tuple[Finding, ...]:
    if not _has_model(teacher):
        return ()
    own = fingerprint(teacher.lm.tokenizer)
    same = own == fingerprint(student.tokenizer)
    said = "the student's" if same else "another one, which agrees with the student's as far as it is used"
    fits = True if teacher.lm.context >= student.context else None
    return (
        Finding("tokenizer", True, f"{said} ({own[:12]})"),
        Finding("context", fits, f"{teacher.lm.context:,} tokens"),
    )


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
    peers: Peers | None = None,
) -> Pool:
    """Loads the teachers of a recipe.

    Each base is loaded once; those in `shared`, by `model_key`, are the student's and not loaded at all. All
    tokenizers are compared with the student's before the first weight is read. selves: what teachers of the kind
    `self` are made of. tools: what remote teachers are built with. courier: makes the one who asks them, where there
    are any. in_shards: whether their models are spread over all processes, where they are not the student's. peers: the
    processes over which they are spread in groups instead.

    Raises:
        TeacherError: everything that is wrong, one line each.
    """
    models = Models(student, shared, device, resolve, progress, tokens_per_forward, temperature, in_shards)
    in_process = {name: config for name, config in configs.items() if isinstance(KINDS[config.kind], ModelKind)}
    notes, problems = _compared(in_process, models)
    if problems:
        raise TeacherError("\n".join(problems))
    placement = _placement(in_process, models, peers) if peers is not None else {}
    here = [name for name in configs if peers is None or peers.rank in placement.get(name, (peers.rank,))]
    built: dict[str, LocalTeacher | RemoteTeacher] = {}
    for name in sorted(here, key=lambda name: _order(configs[name])):
        try:
            built[name] = _build(name, configs[name], models, selves, tools)
        except TeacherError as error:
            problems.append(str(error))
    if peers is not None:  # what is wrong in one process ends them all
        problems = list(dict.fromkeys(problem for part in peers.gather(problems) for problem in part))
    if problems:
        raise TeacherError("\n".join(problems))
    own_notes = {name: _notes(teacher, student, own=name in in_process) for name, teacher in built.items()}
    if peers is not None:
        built.update(_introduced(placement, built, own_notes, student, peers, device))
    teachers = {name: built[name] for name in configs}
    for name, teacher in teachers.items():
        notes += teacher.notes if isinstance(teacher, Elsewhere) else own_notes[name]
    lent = {id(lm.model) for lm in shared.values()}
    for model in _models_of(teachers[name] for name in in_process) if in_shards else ():
        if id(model) not in lent:
            shard_layers(model)
    remote = {name: teacher for name, teacher in teachers.items() if isinstance(teacher, RemoteTeacher)}
    return Pool(teachers, courier(remote) if remote else None, tuple(notes), placement, peers)


def _placement(configs: Mapping[str, Any], models: Models, peers: Peers) -> dict[str, tuple[int, ...]]:
    """Of models in this process, but those that stand on the student's own, which is everywhere."""
    bases = {name: base_key(config, models.resolve) for name, config in configs.items()}
    return placed({name: base for name, base in bases.items() if base not in models.lent}, peers.size)


def _introduced(
    placement: Mapping[str, tuple[int, ...]],
    built: Mapping[str, object],
    notes: Mapping[str, tuple[str, ...]],
    student: CausalLM,
    peers: Peers,
    device: torch.device,
) -> dict[str, Elsewhere]:
    own: dict[str, Introduction] = {}
    heads: dict[str, Head] = {}
    for name in placement:
        teacher = built.get(name)
        if isinstance(teacher, HiddenStateTeacher | crossing.CrossingTeacher):
            own[name] = Introduction(teacher.signals, _findings(teacher, student), notes[name])
        if isinstance(teacher, HiddenStateTeacher):
            heads[name] = teacher.head
    return introduced(placement, own, heads, peers, device)


def _notes(teacher: object, student: CausalLM, *, own: bool) -> tuple[str, ...]:
    """own: whether it is a model of its own in this process."""
    found: tuple[str, ...] = tuple(getattr(teacher, "notes", ()))
    if own and isinstance(teacher, HiddenStateTeacher):
        found = (*compare_models(student, teacher.lm, name=where(teacher.name)).notes, *found)
    return found


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
