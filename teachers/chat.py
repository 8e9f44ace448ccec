"""The kind `chat`: a chat model behind an API that speaks OpenAI's protocol grades, explains and rewrites answers.

One question, one request. How a server wants to be asked (whether it can be held to a schema, what it calls the limit
of an answer) is learnt from its refusals, which cost nothing: `examine` does so before a run.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import httpx2

from teachers.catalog import lookup
from teachers.chat_prompt import Messages, instructions_of, messages_of, reply_schema
from teachers.chat_reply import Unreadable, read_reply, said_in, usage_of
from teachers.client import (
    Endpoints,
    PrivateRefusedError,
    Reply,
    failure_of,
    guarded_http_client,
    openai_client,
    place,
    read_key,
    redact,
)
from teachers.config import ChatTeacher, Gift
from teachers.errors import TeacherError
from teachers.guard import is_loopback
from teachers.prices import price_finding
from teachers.types import (
    Answer,
    Chat,
    Finding,
    Judgment,
    Message,
    ScoreRequest,
    Segment,
    SignalKind,
    TeacherFailure,
    Usage,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI, RequestOptions

    from teachers.guard import Guard
    from teachers.tools import Tools

OVERHEAD = 1024  # tokens, at most, that a server's template and its form of the schema add to the messages
_TRIES = 4  # of a question of preflight
_MOMENT = 0.25  # seconds
# What the teacher says itself: in `options` it would contradict the recipe, or make one question several.
_OWN_FIELDS = frozenset(
    {"model", "messages", "stream", "n", "temperature", "max_tokens", "max_completion_tokens", "response_format"}
)
Format = Literal["json_schema", "json_object", "text"]
_LESS: dict[Format, Format] = {"json_schema": "json_object", "json_object": "text"}
_FORMAT_COMPLAINTS = ("response_format", "response format", "json_schema", "json_object", "structured", "grammar")


# ---- how a server wants to be asked ----


@dataclass(frozen=True)
class Dialect:
    """format: what an answer is held to. limit: the name of the field with the most tokens of an answer."""

    format: Format = "json_schema"
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


def simpler(dialect: Dialect, complaint: str) -> Dialect | None:
    """How to ask a server that refused a request with these words; None where they are about something else."""
    words = complaint.lower()
    if dialect.limit == "max_tokens" and "max_completion_tokens" in words:
        return replace(dialect, limit="max_completion_tokens")
    if dialect.format in _LESS and any(said in words for said in _FORMAT_COMPLAINTS):
        return replace(dialect, format=_LESS[dialect.format])
    return None


def body_of(config: ChatTeacher, model: str, messages: Messages, dialect: Dialect) -> dict[str, Any]:
    """The request, as JSON. `model`: as the server names it."""
    body: dict[str, Any] = {"model": model, "messages": messages.as_sent(), dialect.limit: config.max_tokens}
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if dialect.format == "json_schema":
        schema = {"name": "judgment", "strict": True, "schema": reply_schema(config.gives)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif dialect.format == "json_object":
        body["response_format"] = {"type": "json_object"}
    return {**body, **config.options}


# ---- the teacher ----


@dataclass(frozen=True)
class Server:
    """Where a model is asked. key: the secret itself, or None. priced: whether it is known what an answer costs."""

    model: str
    url: str
    key: str | None
    priced: bool


class ChatGrader:
    """A RemoteTeacher that answers with a Judgment.

    dialect: how the server is asked; it changes when the server refuses to be asked so. noted: what was odd in answers
    that were taken all the same, and how often.
    """

    signals: frozenset[SignalKind] = frozenset({SignalKind.JUDGMENT})

    def __init__(self, name: str, config: ChatTeacher, server: Server, instructions: str, guard: Guard) -> None:
        self.name = name
        self.identity = _identity(name, config, server.model, instructions)
        self.dialect = Dialect()
        self.noted: Counter[str] = Counter()
        self._config, self._server, self._instructions = config, server, instructions
        self._secrets = (server.key,) if server.key else ()
        self._open = openai_client(server.url, server.key, guarded_http_client(guard, private=False))
        self._private = openai_client(server.url, server.key, guarded_http_client(guard, private=True))
        self._endpoints = Endpoints((server.url,), breaker=config.limits.breaker, rest=config.limits.rest)

    def key(self, request: ScoreRequest) -> str:
        """Of the messages and the sample alone: how the server is asked decides the form of an answer only."""
        messages = messages_of(request, self._instructions)
        return _digest([messages.instructions, messages.material, request.sample_index])

    def estimate(self, request: ScoreRequest) -> Usage:
        """An upper bound: a token has at least one byte."""
        return self._most(messages_of(request, self._instructions))

    async def score(self, request: ScoreRequest, deadline: float) -> Answer | TeacherFailure:
        """A Judgment with exactly what the recipe asks for, or a TeacherFailure.

        Failures beside those of `client.failure_of`: refused, truncated, unparsable (all charged), and format_refused,
        after which the next attempt is made in a simpler way. `rewrite` is None where the teacher changes nothing.
        """
        messages = messages_of(request, self._instructions)

        async def attempt(_: str) -> Reply | TeacherFailure:
            return await self._post(messages, request, deadline)

        reply = await self._endpoints.run(self.name, attempt)
        return reply if isinstance(reply, TeacherFailure) else self._judged(reply, messages, request)

    async def examine(self, deadline: float) -> tuple[Finding, ...]:
        """Asks for the grade of a right and of a wrong answer, and learns on the way how to ask.

        Findings: reachable, model, format, judgment, latency, price; only what is wrong where no answer came.
        """
        right = await self._tried(_probe("4"), deadline)
        if isinstance(right, TeacherFailure):
            return await self._why_not(right, deadline)
        wrong = await self._tried(_probe("5"), deadline)
        if isinstance(wrong, TeacherFailure):
            return await self._why_not(wrong, deadline)
        returned, slower = right.model_returned, max(right.latency, wrong.latency)
        return (
            Finding("reachable", True, place(self._server.url)),
            Finding("model", None if returned != self._server.model else True, f"answers as {returned}"),
            Finding("format", None if self.dialect.format == "text" else True, _format_found(self.dialect)),
            _discernment(right, wrong),
            Finding("latency", None, f"{slower:.1f} s", slower),
            self._price(),
        )

    async def aclose(self) -> None:
        await self._open.close()
        await self._private.close()

    # ---- asking ----

    async def _post(self, messages: Messages, request: ScoreRequest, deadline: float) -> Reply | TeacherFailure:
        dialect, loop = self.dialect, asyncio.get_running_loop()
        body = body_of(self._config, self._server.model, messages, dialect)
        # A name for the question that providers keep in their logs: the same for the same question.
        options: RequestOptions = {"headers": {"X-Client-Request-Id": self.key(request)}}
        start = loop.time()
        response = await self._send(
            lambda client: client.post("/chat/completions", cast_to=httpx2.Response, body=body, options=options),
            request.private,
            deadline,
        )
        if isinstance(response, TeacherFailure):
            return response
        if response.is_success:
            said = _object(response)
            return failure_of(self.name, response, self._secrets) if said is None else Reply(said, loop.time() - start)
        failure = failure_of(self.name, response, self._secrets)
        if response.status_code not in (400, 422):
            return failure
        easier = simpler(dialect, response.text)
        if easier is None:
            return replace(failure, detail=failure.detail + self._advice(response.text))
        if self.dialect == dialect:  # else another question has learnt it already
            self.dialect = easier
        return replace(failure, reason="format_refused", retryable=True)

    async def _send(
        self, ask: Callable[[AsyncOpenAI], Awaitable[httpx2.Response]], private: bool, deadline: float
    ) -> httpx2.Response | TeacherFailure:
        """One attempt; a response of any status. private: what is asked is private."""
        from openai import APIStatusError, OpenAIError

        try:
            async with asyncio.timeout_at(deadline):
                return await ask(self._private if private else self._open)
        except APIStatusError as error:
            return error.response
        except (OpenAIError, httpx2.HTTPError, PrivateRefusedError, TimeoutError) as error:
            return failure_of(self.name, error, self._secrets)

    def _advice(self, complaint: str) -> str:
        """Some models take no temperature but their own: that changes answers, so the recipe has to say it."""
        if "temperature" in complaint and self._config.temperature is not None:
            return f"; set teachers.{self.name}.temperature to null, or to what the model takes"
        return ""

    # ---- what came back ----

    def _judged(self, reply: Reply, messages: Messages, request: ScoreRequest) -> Answer | TeacherFailure:
        said = said_in(reply.body)
        if said.error is not None:
            return TeacherFailure(self.name, "unavailable", True, redact(said.error, self._secrets))
        usage, trusted = usage_of(reply.body.get("usage"), self._most(messages), said.all_text)
        if not trusted:
            self.noted["token counts missing or absurd: the most they can be was charged"] += 1
        if said.refusal is not None:
            # A refusal may repeat what it refuses, and failures are shown and kept.
            detail = "" if request.private else redact(said.refusal, self._secrets)
            return TeacherFailure(self.name, "refused", False, detail, usage=usage)
        if said.finish_reason in ("length", "max_tokens"):
            detail = f"it ended after {usage.output} tokens; raise teachers.{self.name}.max_tokens"
            return TeacherFailure(self.name, "truncated", True, detail, usage=usage)
        judgment = read_reply(said.text, self._config.gives, request.completion)
        if isinstance(judgment, Unreadable):
            return TeacherFailure(self.name, "unparsable", True, judgment.why, usage=usage)
        return Answer(judgment, usage, model_returned=said.model, latency=reply.seconds)

    def _most(self, messages: Messages) -> Usage:
        return Usage(input=messages.size + OVERHEAD, output=self._config.max_tokens)

    # ---- preflight ----

    async def _tried(self, request: ScoreRequest, deadline: float) -> Answer | TeacherFailure:
        """Asks a few times: one bad moment of a server is no finding, and each refused format teaches something."""
        loop, failed = asyncio.get_running_loop(), 0
        while True:
            result = await self.score(request, min(deadline, loop.time() + self._config.limits.timeout))
            if isinstance(result, Answer) or not result.retryable:
                return result
            failed += result.reason != "format_refused"
            wait = result.retry_after or _MOMENT * failed
            if failed == _TRIES or loop.time() + wait >= deadline:
                return result
            await asyncio.sleep(wait)

    async def _why_not(self, failure: TeacherFailure, deadline: float) -> tuple[Finding, ...]:
        if failure.reason in ("unavailable", "timeout", "broken", "not_json", "redirected", "untrusted"):
            return (Finding("reachable", False, f"{failure.reason}: {failure.detail}"),)
        reachable = Finding("reachable", True, place(self._server.url))
        if failure.reason not in ("not_found", "rejected"):
            return reachable, Finding("judgment", False, f"{failure.reason}: {failure.detail}")
        models = await self._models(deadline)
        others = f"; the server has {', '.join(models)}" if models and self._server.model not in models else ""
        return reachable, Finding("model", False, f"{failure.detail}{others}")

    async def _models(self, deadline: float) -> list[str]:
        """The first names that the server lists; none where it does not."""
        response = await self._send(lambda client: client.get("/models", cast_to=httpx2.Response), False, deadline)
        said = None if isinstance(response, TeacherFailure) else _object(response)
        listed = said.get("data") if said else None
        rows = listed if isinstance(listed, list) else []
        return [str(row["id"]) for row in rows[:20] if isinstance(row, dict) and "id" in row]

    def _price(self) -> Finding:
        here = is_loopback(httpx2.URL(self._server.url).host)
        return price_finding(self.name, known=self._server.priced, here=here)


def build(name: str, config: ChatTeacher, tools: Tools) -> ChatGrader:
    """A chat teacher as a recipe says. Nothing is sent.

    Raises:
        TeacherError: an unknown model without a url, a key that is not set, a file that cannot be read, an option
            that has a key of its own.
    """
    known = lookup(config.model, config.url)
    if config.url is None and known is None:
        raise TeacherError(f"teachers.{name}.model: {config.model!r} is not in the catalog; name its server's url")
    if own := sorted(_OWN_FIELDS & config.options.keys()):
        raise TeacherError(f"teachers.{name}.options.{own[0]}: the teacher sets this itself; leave it out")
    try:
        json.dumps(config.options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TeacherError(f"teachers.{name}.options: cannot be sent as JSON: {error}") from error
    url = config.url or (known.url if known else "")
    key = read_key(name, config.key or (known.key if known else None))
    priced = config.price is not None or known is not None
    server = Server(known.model if known else config.model, url, key, priced)
    return ChatGrader(name, config, server, instructions_of(name, config, tools.folder), tools.guard)


def _identity(name: str, config: ChatTeacher, model: str, instructions: str) -> str:
    """With the teacher's name: two providers may call their models alike, and one's answers are not the other's."""
    gives: list[Gift] = sorted(set(config.gives))
    return _digest(["chat", name, model, instructions, gives, config.temperature, config.max_tokens, config.options])


def _digest(parts: list[Any]) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _object(response: httpx2.Response) -> dict[str, Any] | None:
    """The JSON object of a body, None where it is something else."""
    try:
        said = json.loads(response.content)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _probe(answer: str) -> ScoreRequest:
    """A question that every model can grade."""
    return ScoreRequest(
        request_id=f"preflight/{answer}",
        group_id="preflight",
        sample_index=0,
        step=0,
        domain="preflight",
        conversation=Chat((Message("user", "What is 2 + 2? Answer with the number alone."),)),
        segments=(Segment("assistant", "answer", (), True),),
        finish_reason="end",
        reference="4",
        completion=answer,
    )


def _format_found(dialect: Dialect) -> str:
    if dialect.format == "text":
        return "the server holds answers to no format: they are read as they come, and some may be unreadable"
    return f"answers in {dialect.format}"


def _discernment(right: Answer, wrong: Answer) -> Finding:
    assert isinstance(right.signal, Judgment)
    assert isinstance(wrong.signal, Judgment)
    high, low = right.signal.score, wrong.signal.score
    if high is None or low is None:
        return Finding("judgment", True, "readable")
    if high > low:
        return Finding("judgment", True, f"a right answer scored {high:g}, a wrong one {low:g}")
    return Finding("judgment", None, f"a right answer scored {high:g}, and a wrong one {low:g}: look at the rubric")
