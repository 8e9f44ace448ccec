"""Who answers in a chat, and one who does so in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from typing import Protocol

from pipeline.rollout.decoding import Engine
from pipeline.rollout.lean import engine_for
from pipeline.rollout.protocol import SamplingSettings
from pipeline.rollout.streaming import write_answer
from teachers.causal_lm import CausalLM, render
from teachers.errors import TeacherError
from teachers.scoring import Running
from teachers.types import Chat, Conversation


@dataclass(frozen=True)
class Said:
    """An answer. text: as it is remembered. first: seconds until something could be read. dollars: what it cost, None
    where nobody counts. finish: end, stop or length."""

    text: str
    tokens: int
    seconds: float
    first: float
    finish: str
    dollars: Decimal | None = None


class Speaker(Protocol):
    """note: what a person should know before it is asked, such as what that costs; nothing where there is nothing."""

    @property
    def name(self) -> str: ...

    @property
    def note(self) -> str: ...

    def answer(
        self, conversation: Conversation, settings: SamplingSettings, turn: int, say: Callable[[str], None]
    ) -> Said:
        """Answers, and calls `say` with each piece of text as it comes. turn: prompts before this one.

        Raises TeacherError, one line, where it cannot.
        """
        ...


@dataclass(eq=False)
class Watch:
    """Passes text on, and remembers when the first of it came."""

    say: Callable[[str], None]
    start: float = field(default_factory=time.perf_counter)
    first: float | None = None

    def __call__(self, text: str) -> None:
        if self.first is None:
            self.first = time.perf_counter() - self.start
        self.say(text)

    def said(self, text: str, tokens: int, finish: str, dollars: Decimal | None = None) -> Said:
        seconds = time.perf_counter() - self.start
        return Said(text, tokens, seconds, seconds if self.first is None else self.first, finish, dollars)


@dataclass(frozen=True, eq=False)
class LocalSpeaker:
    """A model in this process. running: entered around it (an adapter on or off). system: what a teacher is told
    before anything else, as in training. seed: of its random numbers."""

    name: str
    lm: CausalLM
    running: Running
    system: str | None = None
    seed: int = 0
    note: str = ""

    @cached_property
    def engine(self) -> Engine:
        return engine_for(self.lm)

    def answer(
        self, conversation: Conversation, settings: SamplingSettings, turn: int, say: Callable[[str], None]
    ) -> Said:
        watch = Watch(say)
        system = self.system if isinstance(conversation, Chat) else None
        ids = render(conversation, self.lm.tokenizer, system)
        room = self.lm.context - len(ids)
        if not ids or room < 1:
            length = f"{len(ids):,} tokens, and its context has {self.lm.context:,}" if ids else "no tokens"
            raise TeacherError(f"{self.name}: the conversation has {length}; /reset begins a new one")
        fitting = replace(settings, max_new_tokens=min(settings.max_new_tokens, room))
        with self.running():
            written = write_answer(
                self.lm, self.engine, ids, fitting, seed=self.seed, step=turn, name=self.name, on_text=watch
            )
        return watch.said(until(written.text, settings.stop), len(written.token_ids), written.finish_reason)


def until(text: str, stops: tuple[str, ...]) -> str:
    """Without whatever begins with a stop string."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
