"""Teachers on servers as those who answer in a chat, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.chat.speakers import Said, Watch, until
from pipeline.privacy import guard_of
from pipeline.recorded import RecordedRun
from pipeline.remote import tariffs
from pipeline.rollout.protocol import SamplingSettings
from teachers.config import ChatTeacher, ServedTeacher
from teachers.errors import TeacherError
from teachers.prices import Tariff, money
from teachers.talking import Line, line_of, most, talk
from teachers.types import Chat, Conversation, Message, RawText, TeacherFailure

SECONDS = 300.0  # that a server may take for one answer


@dataclass(frozen=True, eq=False)
class RemoteSpeaker:
    """A teacher on a server. tariff: None where its price is not known. writes_raw: whether it continues
    raw text; one that does not is asked in a conversation."""

    line: Line
    tariff: Tariff | None
    writes_raw: bool
    system: str | None = None

    @property
    def name(self) -> str:
        return self.line.name

    @property
    def note(self) -> str:
        where = f"{self.name}: each prompt goes to {self.line.model} at {self.line.url}"
        if self.tariff is not None:
            rates = self.tariff.rates
            return f"{where}; {money(rates.input)} a million tokens in, {money(rates.output)} out"
        if self.line.here:
            return f"{where}; on this machine, nothing is charged that is known"
        return f"{where}; what that costs is not known: set teachers.{self.name}.price"

    def answer(
        self, conversation: Conversation, settings: SamplingSettings, turn: int, say: Callable[[str], None]
    ) -> Said:
        watch = Watch(say)
        asked = self._asked(conversation)
        result = talk(
            self.line,
            asked,
            tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seconds=SECONDS,
            say=watch,
        )
        if isinstance(result, TeacherFailure):
            raise TeacherError(f"{self.name}: {result.reason}: {result.detail}{self._perhaps(asked, settings)}")
        dollars = None if self.tariff is None else self.tariff.cost(result.usage)
        return watch.said(until(result.text, settings.stop), result.usage.output, result.finish_reason, dollars)

    def _asked(self, conversation: Conversation) -> Conversation:
        if isinstance(conversation, RawText):
            return conversation if self.writes_raw else Chat((Message("user", conversation.text),))
        if self.system is None:
            return conversation
        turns, told = conversation.messages, self.system
        if turns[0].role == "system":
            told, turns = f"{told}\n\n{turns[0].content}", turns[1:]
        return replace(conversation, messages=(Message("system", told), *turns))

    def _perhaps(self, conversation: Conversation, settings: SamplingSettings) -> str:
        if self.tariff is None:
            return ""
        dearest = self.tariff.most(most(conversation, settings.max_new_tokens))
        return f" (perhaps charged, {money(dearest)} at most)"


def remote_speaker(run: RecordedRun, name: str) -> RemoteSpeaker:
    """The teacher of that name, which is on a server. Nothing is sent. Raises TeacherError: a key that is not set."""
    config = run.recipe.teachers[name]
    assert isinstance(config, ServedTeacher | ChatTeacher)
    line = line_of(name, config, guard_of(run.recipe), private=run.private)
    return RemoteSpeaker(line, tariffs(run.recipe).get(name), isinstance(config, ServedTeacher), config.system)
