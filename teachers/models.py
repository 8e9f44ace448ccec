"""The models that a pool's teachers stand on, each loaded once, and what every builder needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from teachers.alignment import answer_end, compare_models
from teachers.causal_lm import CausalLM, ModelKey, load_causal_lm, load_tokenizer, model_key
from teachers.config import AdapterTeacher, ScoringBase, TransformersTeacher
from teachers.errors import TeacherError
from teachers.heads import with_ends_mapped
from teachers.mapped import forget, in_turn, pages_of
from teachers.scoring import Ends, HiddenStateTeacher, Running
from teachers.types import Head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# (what the recipe says, "model" or "adapter") -> a hub name or a folder: turns prepared:NAME into one.
Resolve = Callable[[str, str], str]


@dataclass(eq=False)
class Models:
    """What is loaded so far. `lent`: the student's, used without its tokenizer, whose template may be changed."""

    student: CausalLM
    lent: Mapping[ModelKey, CausalLM]
    device: torch.device
    resolve: Resolve
    progress: Callable[[str], None]
    tokens_per_forward: int
    temperature: float = 1.0
    in_shards: bool = False
    _loaded: dict[ModelKey, CausalLM] = field(default_factory=dict)
    _tokenizers: dict[tuple[str, str | None], PreTrainedTokenizerBase] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._loaded.update(self.lent)

    def get(self, key: ModelKey, name: str) -> CausalLM:
        """The model with its own tokenizer. `name` is whose it is, in messages. Raises TeacherError."""
        if key not in self._loaded:
            self.progress(f"loading {key.path} for {where(name)}")
            self._loaded[key] = load_causal_lm(
                key.path, name=where(name), revision=key.revision, dtype=key.dtype, device=self.device
            )
        return replace(self._loaded[key], name=name, tokenizer=self.tokenizer(key.path, name, key.revision))

    def put(self, key: ModelKey, lm: CausalLM) -> None:
        """From now on this is the model of that key: the same weights, wrapped by peft."""
        self._loaded[key] = lm

    def tokenizer(self, path: str, name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
        """The tokenizer of a hub name or a folder. Raises TeacherError."""
        if (path, revision) not in self._tokenizers:
            self._tokenizers[path, revision] = load_tokenizer(path, name=where(name), revision=revision)
        return self._tokenizers[path, revision]

    def between_turns(self, lm: CausalLM, head: Head, running: Running) -> tuple[Head, Running]:
        """The same, but that the model's weights leave memory whenever they have been used, where their file has them.

        The student's own model stays: it is used between any two turns. What will be in shards lies in no file.
        """
        if self.in_shards or any(own.model is lm.model for own in self.lent.values()):
            return head, running
        pages = pages_of(lm.model)
        forget(pages)
        return replace(head, release=partial(forget, pages)), in_turn(running, pages)

    def teacher(self, config: ScoringBase, lm: CausalLM, head: Head, running: Running) -> HiddenStateTeacher:
        """Joins the parts of a teacher. Raises TeacherError where model and student do not fit."""
        if problems := compare_models(self.student, lm, name=where(lm.name)).problems:
            raise TeacherError("\n".join(problems))
        ends = Ends(answer_end(self.student), answer_end(lm))
        head, running = self.between_turns(lm, head, running)
        return HiddenStateTeacher(
            name=lm.name,
            lm=lm,
            head=with_ends_mapped(head, ends.student, ends.teacher, self.device),
            ends=ends,
            spans=config.spans,
            system=config.system,
            tokens_per_forward=self.tokens_per_forward,
            running=running,
        )


def base_key(config: TransformersTeacher | AdapterTeacher, resolve: Resolve) -> ModelKey:
    """The model that a teacher stands on."""
    path = config.base if isinstance(config, AdapterTeacher) else config.model
    return model_key(resolve(path, "model"), config.revision, config.dtype)


def where(name: str) -> str:
    """The teacher's place in a recipe, for messages."""
    return f"teachers.{name}"
