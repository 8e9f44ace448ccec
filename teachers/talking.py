"""A remote teacher as one that answers itself, its words as they come: for a person who tries it, not for training.

Through OpenAI's protocol, which the servers of both kinds speak. One attempt; what goes wrong is a TeacherFailure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from teachers.catalog import lookup
from teachers.chat_reply import usage_of
from teachers.client import failure_of, guarded_http_client, openai_client, read_key
from teachers.config import ChatTeacher, ServedTeacher
from teachers.errors import TeacherError
from teachers.guard import Guard, host_of, is_loopback
from teachers.types import Chat, Conversation, RawText, TeacherFailure, Usage

OVERHEAD = 256  # tokens that a server's template adds to a conversation, at most


@dataclass(frozen=True)
class Line:
    """Where a teacher is reached. model: as the server names it. key: the secret itself. options: sent along.

    private: what is said is private, and goes nowhere that `guard` does not allow.
    """

    name: str
    model: str
    url: str
    key: str | None
    guard: Guard
    private: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def here(self) -> bool:
        """Whether it is this machine."""
        return is_loopback(host_of(self.url))


def line_of(name: str, config: ServedTeacher | ChatTeacher, guard: Guard, *, private: bool) -> Line:
    """As a recipe says, else the catalog. Raises TeacherError: no address, a key that is not set."""
    known = lookup(config.model, config.url)
    url = config.url[0] if isinstance(config, ServedTeacher) else config.url or (known.url if known else None)
    if url is None:
        raise TeacherError(f"teachers.{name}.model: {config.model!r} is not in the catalog; name its server's url")
    key = read_key(name, config.key or (known.key if known else None))
    options = config.options if isinstance(config, ChatTeacher) else {}
    return Line(name, known.model if known else config.model, url, key, guard, private, options)


@dataclass(frozen=True)
class Spoken:
    """usage: what it was charged for; the most it can be where the server does not say."""

    text: str
    finish_reason: str
    usage: Usage


def most(conversation: Conversation, tokens: int) -> Usage:
    """The most that a question and its answer can be charged for: a token has at least one byte."""
    texts = (
        [conversation.text] if isinstance(conversation, RawText) else [turn.content for turn in conversation.messages]
    )
    return Usage(input=sum(len(text.encode()) for text in texts) + OVERHEAD, output=tokens)


def talk(
    line: Line,
    conversation: Conversation,
    *,
    tokens: int,
    temperature: float,
    seconds: float,
    say: Callable[[str], None],
) -> Spoken | TeacherFailure:
    """Asks, and calls `say` with each piece of the answer. tokens: of it, at most. seconds: for all of it."""

    async def ask() -> Spoken | TeacherFailure:
        from openai import OpenAIError

        client = openai_client(line.url, line.key, guarded_http_client(line.guard, private=line.private))
        try:
            async with asyncio.timeout(seconds):
                return await _tried(client, line, conversation, tokens, temperature, say)
        except (OpenAIError, httpx2.HTTPError, TimeoutError) as error:
            return failure_of(line.name, error, (line.key,) if line.key else ())
        finally:
            await client.close()

    return asyncio.run(ask())


# Servers differ in what they call the limit, and in whether they count what they stream; a refusal costs nothing.
_MANNERS: Sequence[tuple[str, bool]] = (("max_tokens", True), ("max_completion_tokens", True), ("max_tokens", False))


async def _tried(
    client: Any, line: Line, conversation: Conversation, tokens: int, temperature: float, say: Callable[[str], None]
) -> Spoken:
    from openai import BadRequestError, UnprocessableEntityError

    for number, (limit, counted) in enumerate(_MANNERS, start=1):
        body: dict[str, Any] = {"model": line.model, limit: tokens, "temperature": temperature, "stream": True}
        if counted:
            body["stream_options"] = {"include_usage": True}
        try:
            return await _heard(client, line, conversation, body, most(conversation, tokens), say)
        except (BadRequestError, UnprocessableEntityError):
            if number == len(_MANNERS):
                raise
    raise AssertionError("the last of them returns or raises")


async def _heard(
    client: Any, line: Line, conversation: Conversation, body: dict[str, Any], limit: Usage, say: Callable[[str], None]
) -> Spoken:
    """One request. `extra_body`, since options may hold what this version of the package does not know."""
    if isinstance(conversation, Chat):
        turns = [{"role": turn.role, "content": turn.content} for turn in conversation.messages]
        stream = await client.chat.completions.create(messages=turns, **body, extra_body=dict(line.options))
    else:
        stream = await client.completions.create(prompt=conversation.text, **body, extra_body=dict(line.options))
    pieces: list[str] = []
    reported: object = None
    finish = "length"
    async for chunk in stream:
        if getattr(chunk, "usage", None) is not None:
            reported = chunk.usage.model_dump()
        for choice in chunk.choices[:1]:
            text = choice.delta.content if isinstance(conversation, Chat) else choice.text
            finish = choice.finish_reason or finish
            if text:
                pieces.append(text)
                say(text)
    said = "".join(pieces)
    return Spoken(said, "end" if finish == "stop" else finish, usage_of(reported, limit, said)[0])
