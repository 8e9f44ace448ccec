"""One attempt over the wire, against real sockets on loopback: what it came to, and where it may not go."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate

import httpx2
import openai
import pytest

from teachers.client import (
    Client,
    Endpoints,
    PrivateRefusedError,
    Reply,
    failure_of,
    guarded_http_client,
    place,
    read_key,
    redact,
    retry_after,
)
from teachers.errors import TeacherError
from teachers.guard import Guard
from teachers.types import TeacherFailure

KEY = "sk-a-key-that-nobody-may-read"
GOOD = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ok":true}'


def http(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: bytes | Handler, seen: list[bytes] | None = None) -> AsyncIterator[str]:
    """A server that reads one request and writes these bytes, then closes. Yields its URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.startswith(b"content-length")), 0)
            request = head + await reader.readexactly(length)
            if seen is not None:
                seen.append(request)
            if callable(answer):
                await answer(reader, writer)
            else:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client was the first to go
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def attempt(
    answer: bytes | Handler, *, private: bool = False, seconds: float = 20.0, guard: Guard | None = None
) -> Reply | TeacherFailure:
    """One POST to a server that answers so."""

    async def run() -> Reply | TeacherFailure:
        client = Client("ada", guard or Guard(), KEY)
        async with serving(answer) as url:
            deadline = asyncio.get_running_loop().time() + seconds
            try:
                return await client.post(url + "/v1/x", {"a": 1}, private=private, deadline=deadline)
            finally:
                await client.aclose()

    return asyncio.run(run())


def failing(answer: bytes | Handler, *, seconds: float = 20.0) -> TeacherFailure:
    result = attempt(answer, seconds=seconds)
    assert isinstance(result, TeacherFailure)
    assert result.teacher == "ada"
    assert "\n" not in result.detail
    assert KEY not in result.detail
    return result


# ---- what comes back ----


def test_a_good_answer_is_a_reply() -> None:
    result = attempt(GOOD)
    assert isinstance(result, Reply)
    assert result.body == {"ok": True}
    assert result.seconds > 0


LONG = b'{"error": {"message": "This model\'s maximum context length is 128 tokens"}}'
BROKE = b'{"error": {"code": "insufficient_quota", "message": "You exceeded your quota"}}'
# answer, reason, retryable, in doubt, words in the detail
ANSWERS: dict[str, tuple[bytes, str, bool, bool, str]] = {
    "429": (http("429 Slow", b'{"error": {"message": "too fast"}}'), "rate_limited", True, False, "too fast"),
    "quota": (http("429 Slow", BROKE), "out_of_credit", False, False, "quota"),
    "402": (http("402 Pay", b"no money"), "out_of_credit", False, False, "no money"),
    "500": (http("500 Oops"), "unavailable", True, False, "HTTP 500"),
    "502 page": (http("502 Bad", b"<html><title>Bad\n Gateway</title>"), "unavailable", True, False, "Bad Gateway"),
    "503": (http("503 Busy", b'{"message": "loading"}'), "unavailable", True, False, "loading"),
    "504": (http("504 Late"), "unavailable", True, True, "HTTP 504"),
    "529": (http("529 Overloaded"), "unavailable", True, False, "529"),
    "501": (http("501 Never"), "rejected", False, False, "501"),
    "400": (http("400 Bad", b'{"detail": "no such field"}'), "rejected", False, False, "no such field"),
    "too long": (http("400 Bad", LONG), "too_long", False, False, "128 tokens"),
    "401": (http("401 Who", f'{{"error": "key {KEY} is wrong"}}'.encode()), "unauthorised", False, False, "key ***"),
    "403": (http("403 No"), "unauthorised", False, False, "403"),
    "404": (http("404 None", b'{"error": "no such model"}'), "not_found", False, False, "no such model"),
    "408": (http("408 Slow"), "timeout", True, False, "408"),
    "page": (http("200 OK", b"<html><title>Log in</title>"), "not_json", True, True, "DecodeError"),
    "empty": (http("200 OK"), "not_json", True, True, "DecodeError"),
    "list": (http("200 OK", b"[1]"), "not_json", True, True, "[1]"),
    "half of an object": (http("200 OK", b'{"a": '), "not_json", True, True, "DecodeError"),
    "not text": (http("200 OK", b'{"a": "\xff\xfe"}'), "not_json", True, True, "Unicode"),
    "deep": (http("200 OK", b"[" * 200_000), "not_json", True, True, "Recursion"),
    "cut": (http("200 OK", b'{"a"', length=99), "broken", True, True, "RemoteProtocolError"),
    "no answer": (b"", "broken", True, True, "RemoteProtocolError"),
    "not HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "broken", True, True, "RemoteProtocolError"),
    "bad gzip": (http("200 OK", b"nonsense", "content-encoding: gzip"), "broken", True, True, "DecodingError"),
}


@pytest.mark.parametrize(("answer", "reason", "retryable", "in_doubt", "words"), ANSWERS.values(), ids=ANSWERS)
def test_what_an_answer_means(answer: bytes, reason: str, retryable: bool, in_doubt: bool, words: str) -> None:
    failure = failing(answer)
    assert (failure.reason, failure.retryable, failure.in_doubt) == (reason, retryable, in_doubt)
    assert words in failure.detail


def test_a_reset_in_the_middle_of_a_body_is_in_doubt() -> None:
    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http("200 OK", b'{"a": ', length=1000))
        await writer.drain()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    failure = failing(reset)
    assert (failure.reason, failure.retryable, failure.in_doubt) == ("broken", True, True)


def test_nobody_there_is_not_in_doubt() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = taken.getsockname()[1]

        async def run() -> Reply | TeacherFailure:
            client = Client("ada", Guard())
            return await client.get(f"http://127.0.0.1:{port}", deadline=asyncio.get_running_loop().time() + 20)

        result = asyncio.run(run())
    assert isinstance(result, TeacherFailure)
    assert (result.reason, result.retryable, result.in_doubt) == ("unavailable", True, False)
    assert f"127.0.0.1:{port}" in result.detail


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client goes


async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One byte now and then: every read comes in time, and the answer never."""
    writer.write(http("200 OK", b"", length=10_000))
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


def too_late(never: Handler, attempt: Callable[[Handler, float], TeacherFailure]) -> TeacherFailure:
    """What an attempt comes to that has reached a server which never answers: on a busy machine it may need longer."""
    asked: list[float] = []
    for seconds in (0.2, 2.0, 20.0):

        async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float = seconds) -> None:
            asked.append(seconds)
            await never(reader, writer)

        failure = attempt(noted, seconds)
        if asked:
            break
    assert asked == [seconds]
    return failure


@pytest.mark.parametrize("never", [hang, trickle])
def test_the_deadline_ends_an_attempt(never: Handler) -> None:
    failure = too_late(never, lambda handler, seconds: failing(handler, seconds=seconds))
    assert (failure.reason, failure.retryable, failure.in_doubt) == ("timeout", True, True)


# ---- where it may go ----


def test_a_redirect_is_not_followed() -> None:
    async def run() -> tuple[Reply | TeacherFailure, list[bytes]]:
        seen: list[bytes] = []
        client = Client("ada", Guard(), KEY)
        async with serving(GOOD, seen) as there, serving(http("307 Go", b"", f"location: {there}/v1/x")) as url:
            deadline = asyncio.get_running_loop().time() + 20
            return await client.post(url, {"prompt": "secret"}, private=True, deadline=deadline), seen

    failure, seen = asyncio.run(run())
    assert isinstance(failure, TeacherFailure)
    assert (failure.reason, failure.retryable) == ("redirected", False)
    assert seen == []


def test_the_environment_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> tuple[Reply | TeacherFailure, list[bytes], list[bytes]]:
        proxied: list[bytes] = []
        direct: list[bytes] = []
        async with serving(GOOD, proxied) as proxy, serving(GOOD, direct) as url:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy)
            client = Client("ada", Guard(), KEY)
            deadline = asyncio.get_running_loop().time() + 20
            return await client.post(url, {}, private=True, deadline=deadline), proxied, direct

    result, proxied, direct = asyncio.run(run())
    assert isinstance(result, Reply)
    assert proxied == []
    assert f"authorization: bearer {KEY}".encode() in direct[0].lower()


def test_a_private_prompt_stays_where_it_is_allowed() -> None:
    """By address at the moment of sending: nothing is resolved, nothing is connected."""

    async def run(url: str, guard: Guard) -> Reply | TeacherFailure:
        client = Client("ada", guard)
        return await client.post(url, {}, private=True, deadline=asyncio.get_running_loop().time() + 20)

    for url in ("https://api.example.com/v1", "http://10.0.0.1:8000", "http://localhost.example.com", "http://0x7f.1"):
        failure = asyncio.run(run(url, Guard(("other.example.com", "10.0.0.1:9000"))))
        assert isinstance(failure, TeacherFailure)
        assert (failure.reason, failure.retryable, failure.in_doubt) == ("private", False, False), url
        assert "privacy.allowed" in failure.detail
    assert isinstance(attempt(GOOD, private=True), Reply)


def test_openai_speaks_through_the_same_client() -> None:
    """What openai raises is read by the response it carries or by what caused it."""

    async def ask(url: str, *, private: bool = False, timeout: float = 20.0) -> TeacherFailure:
        http_client = guarded_http_client(Guard(), private=private)
        client = openai.AsyncOpenAI(base_url=url, api_key=KEY, http_client=http_client, max_retries=0, timeout=timeout)
        try:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        except openai.OpenAIError as error:
            return failure_of("ada", error, (KEY,))
        raise AssertionError("no failure")

    async def served(answer: bytes | Handler, timeout: float = 20.0) -> TeacherFailure:
        async with serving(answer) as url:
            return await ask(url, timeout=timeout)

    limited = asyncio.run(served(http("429 Slow", b"{}", "retry-after: 7")))
    assert (limited.reason, limited.retry_after) == ("rate_limited", 7.0)
    wrong_key = asyncio.run(served(http("401 No", f'{{"error": {{"message": "bad {KEY}"}}}}'.encode())))
    assert (wrong_key.reason, KEY in wrong_key.detail) == ("unauthorised", False)
    assert asyncio.run(served(http("302 Go", b"", "location: http://x.example.com/"))).reason == "redirected"
    assert asyncio.run(served(http("200 OK", b"{", length=50))).reason == "broken"
    slow = too_late(hang, lambda handler, seconds: asyncio.run(served(handler, timeout=seconds)))
    assert (slow.reason, slow.in_doubt) == ("timeout", True)
    assert asyncio.run(ask("https://api.example.com/v1", private=True)).reason == "private"


def test_a_programmers_error_is_not_the_servers() -> None:
    with pytest.raises(ZeroDivisionError):
        failure_of("ada", ZeroDivisionError())
    wrapped = openai.APIConnectionError(request=httpx2.Request("GET", "http://x"))
    wrapped.__cause__ = TypeError("mine")
    with pytest.raises(openai.APIConnectionError):
        failure_of("ada", wrapped)
    wrapped.__cause__ = PrivateRefusedError("no")
    assert failure_of("ada", wrapped).reason == "private"


# ---- small parts ----


def test_retry_after() -> None:
    now = time.time()
    assert retry_after({"retry-after": "2.5"}, now) == 2.5
    assert retry_after({"retry-after": "-3"}, now) == 0.0
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}, now) == 1.5
    assert retry_after({"retry-after": formatdate(now + 30, usegmt=True)}, now) == pytest.approx(30, abs=1)
    assert retry_after({"retry-after": formatdate(now - 30, usegmt=True)}, now) == 0.0
    for nonsense in ("", "soon", "nan", "inf", "Wed, 99 Foo"):
        assert retry_after({"retry-after": nonsense}, now) is None
    assert retry_after({}, now) is None


def test_keys_are_left_out() -> None:
    assert redact("it said plain-secret twice: plain-secret", ("plain-secret",)) == "it said *** twice: ***"
    assert redact("Authorization: Bearer abc.def") == "Authorization: Bearer ***"
    assert redact("Incorrect API key: sk-proj-123456") == "Incorrect API key: ***"
    assert redact("http://user:pass@host/v1") == "http://***@host/v1"
    assert redact("?api_key=abcdef&x=1") == "?api_key=***&x=1"
    assert place("http://user:pass@host:8000/v1?key=1") == "http://host:8000"


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    assert read_key("ada", None) is None
    with pytest.raises(TeacherError, match=r"teachers\.ada\.key: the environment variable A_KEY is not set"):
        read_key("ada", "A_KEY")
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    assert read_key("ada", "A_KEY") == KEY
    monkeypatch.setenv("A_KEY", "two\nlines")
    with pytest.raises(TeacherError, match="line break"):
        read_key("ada", "A_KEY")


# ---- several addresses ----

DOWN = TeacherFailure("ada", "unavailable", True)
REFUSED = TeacherFailure("ada", "rejected", False)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def endpoints(*urls: str, breaker: int = 2, rest: float = 10.0) -> tuple[Endpoints, Clock]:
    clock = Clock()
    return Endpoints(urls, breaker=breaker, rest=rest, clock=clock), clock


def said(
    results: dict[str, TeacherFailure | str], asked: list[str]
) -> Callable[[str], Awaitable[TeacherFailure | str]]:
    async def attempt(url: str) -> TeacherFailure | str:
        asked.append(url)
        return results[url]

    return attempt


def test_the_least_busy_address_is_asked() -> None:
    async def run() -> list[str]:
        both, _ = endpoints("a", "b")
        release = asyncio.Event()
        asked: list[str] = []

        async def slow(url: str) -> str:
            asked.append(url)
            await release.wait()
            return "answer"

        waiting = [asyncio.create_task(both.run("ada", slow)) for _ in range(6)]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*waiting)
        return asked

    assert sorted(asyncio.run(run())) == ["a"] * 3 + ["b"] * 3


def test_one_after_another_they_take_turns() -> None:
    async def run() -> list[str]:
        both, _ = endpoints("a", "b")
        asked: list[str] = []
        for _ in range(4):
            await both.run("ada", said({"a": "x", "b": "x"}, asked))
        return asked

    assert asyncio.run(run()) == ["a", "b", "a", "b"]


def test_an_address_that_fails_rests_and_is_tried_once() -> None:
    async def run() -> None:
        both, clock = endpoints("a", "b")
        results: dict[str, TeacherFailure | str] = {"a": DOWN, "b": "answer"}
        asked: list[str] = []
        for _ in range(10):
            await both.run("ada", said(results, asked))
        assert asked.count("a") == 2  # then it rests
        clock.now += 10
        asked.clear()
        for _ in range(4):
            await both.run("ada", said(results, asked))
        assert asked.count("a") == 1  # one question is let through, and it rests again
        clock.now += 10
        results["a"] = "answer"
        asked.clear()
        for _ in range(20):
            await both.run("ada", said(results, asked))
        assert asked.count("a") > 2  # it is back

    asyncio.run(run())


def test_where_all_rest_the_wait_is_told() -> None:
    async def run() -> None:
        one, clock = endpoints("http://k:e@host:1/v1", breaker=1)
        asked: list[str] = []
        attempt = said({"http://k:e@host:1/v1": DOWN}, asked)
        await one.run("ada", attempt)
        clock.now += 4
        failure = await one.run("ada", attempt)
        assert isinstance(failure, TeacherFailure)
        assert (failure.reason, failure.retryable, failure.retry_after) == ("unavailable", True, 6.0)
        assert "http://host:1" in failure.detail
        assert "k:e" not in failure.detail
        assert len(asked) == 1

    asyncio.run(run())


def test_only_one_question_tries_an_address_that_rested() -> None:
    async def run() -> None:
        one, clock = endpoints("a", breaker=1)
        await one.run("ada", said({"a": DOWN}, []))
        clock.now += 10
        release = asyncio.Event()

        async def slow(url: str) -> str:
            await release.wait()
            return "answer"

        trial = asyncio.create_task(one.run("ada", slow))
        await asyncio.sleep(0)
        second = await one.run("ada", slow)
        assert isinstance(second, TeacherFailure)
        assert second.retry_after is not None
        assert math.isfinite(second.retry_after)
        release.set()
        assert await trial == "answer"
        assert await one.run("ada", slow) == "answer"

    asyncio.run(run())


def test_a_trial_that_is_called_off_does_not_lock_the_address() -> None:
    async def run() -> None:
        one, clock = endpoints("a", breaker=1)
        await one.run("ada", said({"a": DOWN}, []))
        clock.now += 10
        trial = asyncio.create_task(one.run("ada", lambda _: asyncio.sleep(60, "late")))
        await asyncio.sleep(0)
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        assert await one.run("ada", said({"a": "answer"}, [])) == "answer"

    asyncio.run(run())


def test_a_refusal_shows_that_an_address_is_alive() -> None:
    async def run() -> int:
        one, _ = endpoints("a", breaker=2)
        asked: list[str] = []
        for result in (DOWN, REFUSED) * 5:
            await one.run("ada", said({"a": result}, asked))
        return len(asked)

    assert asyncio.run(run()) == 10
