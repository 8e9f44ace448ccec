"""The kind `served`: a server that scores a given text by prompt log-probabilities."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from teachers.client import Client, Endpoints, read_key
from teachers.errors import TeacherError
from teachers.served_examine import examine
from teachers.served_reading import reader_of
from teachers.served_rows import Rows, top_k
from teachers.served_server import Asker, Server, root_of
from teachers.types import Answer, Finding, ScoreRequest, SignalKind, TeacherFailure, TopK, Usage

if TYPE_CHECKING:
    from teachers.config import ServedTeacher
    from teachers.tools import Tools


class ScoringServer:
    """A RemoteTeacher whose answers are TopK: the student's ids, after the student's rendering, scored elsewhere.

    Nothing is asked before the first question: then each address is asked once what it is.
    """

    signals: frozenset[SignalKind] = frozenset({SignalKind.TOP_K})

    def __init__(self, name: str, config: ServedTeacher, tools: Tools) -> None:
        self.name = name
        self._config = config
        self._reader = reader_of(name, config, tools)
        self.notes = self._reader.notes
        client = Client(name, tools.guard, read_key(name, config.key))
        kind = None if config.server == "auto" else config.server
        self._asker = Asker(name, client, config.model, config.top_k, kind, self._reader.tokenizer)
        limits = config.limits
        self._endpoints = Endpoints(config.url, breaker=limits.breaker, rest=limits.rest)
        self._servers: dict[str, Server] = {}
        self._finding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        decides = ["served", name, config.model, config.top_k, config.spans, config.system, config.tokenizer]
        decides += [config.align.model_dump()] if config.align else []
        self.identity = hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def key(self, request: ScoreRequest) -> str:
        """What is sent, and which tokens of it are scored. Raises TeacherError as the student's rendering."""
        read = self._reader.read(request)
        if isinstance(read, TeacherFailure):
            sent: list[object] = [read.reason, request.token_ids, request.sample_index]
        else:
            question = read.question
            sent = [question.prompt_ids, question.completion_ids, read.wanted.tolist(), request.sample_index]
        return hashlib.sha256(json.dumps(sent).encode()).hexdigest()

    def estimate(self, request: ScoreRequest) -> Usage:
        """The whole text, and the one token that most servers have to write after it."""
        read = self._reader.read(request)
        return Usage() if isinstance(read, TeacherFailure) else Usage(input=len(read.question.token_ids), output=1)

    async def score(self, request: ScoreRequest, deadline: float) -> Answer | TeacherFailure:
        """One attempt at the address with the least under way. Answer: TopK with K = top_k, or as the server fails.

        Failures of its own: empty_prompt, too_long (never cut), misaligned, missing_logprobs, missing_top_k,
        not_finite, uniform, malformed; all others as `client.failure_of`. Raises TeacherError as `key`.
        """
        read = self._reader.read(request)
        if isinstance(read, TeacherFailure):
            return read
        question, wanted = read.question, read.wanted
        if not question.prompt_ids:
            return TeacherFailure(self.name, "empty_prompt", False, "its rendering of the prompt has no tokens")
        if not bool(wanted.any()):
            count = len(question.completion_ids)
            nothing = top_k(Rows([0.0] * count, [()] * count), question, wanted, self._asker.vocab_size)
            return Answer(read.back(nothing))

        async def attempt(url: str) -> Answer | TeacherFailure:
            if refused := self._asker.client.refusal(url, private=request.private):
                return refused
            server = await self._server(url, deadline)
            if isinstance(server, TeacherFailure):
                return server
            length = len(question.token_ids)
            if server.context is not None and length >= server.context:
                detail = f"{length} tokens and one to write, and the server takes {server.context}"
                return TeacherFailure(self.name, "too_long", False, detail)
            answer = await self._asker.ask(
                root_of(url), server.format, question, wanted, private=request.private, deadline=deadline
            )
            if isinstance(answer, TeacherFailure):
                return answer
            assert isinstance(answer.signal, TopK)
            model = answer.model_returned or server.served_as
            return replace(answer, signal=read.back(answer.signal), model_returned=model)

        return await self._endpoints.run(self.name, attempt)

    async def examine(self, deadline: float) -> tuple[Finding, ...]:
        return await examine(self._asker, self._config, deadline)

    async def aclose(self) -> None:
        await self._asker.client.aclose()

    async def _server(self, url: str, deadline: float) -> Server | TeacherFailure:
        """What stands behind an address, asked once however many questions wait for it."""
        async with self._finding[url]:
            if url in self._servers:
                return self._servers[url]
            found = await self._asker.find(url, deadline)
            if isinstance(found, Server):
                self._servers[url] = found
            return found


def build(name: str, config: ServedTeacher, tools: Tools) -> ScoringServer:
    """Nothing is sent yet.

    Raises:
        TeacherError: its key is missing; its tokenizer is, or is too far from the student's.
    """
    if config.align is not None and config.tokenizer is None:
        raise TeacherError(f"teachers.{name}.align is for another tokenizer: name that one too, or leave align out")
    return ScoringServer(name, config, tools)
