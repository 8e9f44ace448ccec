"""Chat teachers for tests: a request, a recipe's part, a teacher of a server and one question to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from teachers.chat import ChatGrader, build
from teachers.config import ChatTeacher
from teachers.guard import Guard
from teachers.tools import Tools
from teachers.types import Answer, Chat, Finding, Message, ScoreRequest, Segment, TeacherFailure
from tests.models import tiny_tokenizer
from tests.servers.chat_server import ChatServer

T = TypeVar("T")


def a_request(completion: str = "5", *, question: str = "2+2?", sample: int = 0, **fields: Any) -> ScoreRequest:
    request = ScoreRequest(
        request_id=f"p/{sample}",
        group_id="p",
        sample_index=sample,
        step=1,
        domain="d",
        conversation=Chat((Message("system", "Be brief."), Message("user", question))),
        segments=(Segment("assistant", "answer", (1, 2), True),),
        finish_reason="end",
        reference="4",
        completion=completion,
    )
    return replace(request, **fields)


def a_config(**fields: Any) -> ChatTeacher:
    return ChatTeacher.model_validate({"kind": "chat", "model": "m", "url": "http://127.0.0.1:9/v1", **fields})


def some_tools(folder: Path) -> Tools:
    return Tools(tiny_tokenizer(), lambda conversation, system: (), Guard(), folder, lambda *_: None, str)


def run(server: ChatServer, use: Callable[[ChatGrader], Awaitable[T]], tools: Any = None, **fields: Any) -> T:
    """Builds a teacher of the server, uses it on a loop of its own, closes it."""
    config = a_config(**{"model": server.manners.model, "url": server.url, **fields})

    async def main() -> T:
        teacher = build("judge", config, tools or some_tools(Path()))
        try:
            return await use(teacher)
        finally:
            await teacher.aclose()

    return asyncio.run(main())


async def ask(teacher: ChatGrader, request: ScoreRequest, seconds: float = 20.0) -> Answer | TeacherFailure:
    return await teacher.score(request, asyncio.get_running_loop().time() + seconds)


def one(server: ChatServer, request: ScoreRequest, seconds: float = 20.0, **fields: Any) -> Answer | TeacherFailure:
    return run(server, lambda teacher: ask(teacher, request, seconds), **fields)


def examined(server: ChatServer, **fields: Any) -> dict[str, Finding]:
    async def look(teacher: ChatGrader) -> tuple[Finding, ...]:
        return await teacher.examine(asyncio.get_running_loop().time() + 20)

    return {finding.what: finding for finding in run(server, look, **fields)}
