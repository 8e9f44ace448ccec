"""One HTTP client for all teachers that are waited for: where requests may go, and what an attempt came to.

It makes one attempt and no more: retries, limits and budgets are the courier's. It never follows a redirect and reads
nothing from the environment but the key that a recipe names, so that neither leads a private prompt elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from teachers.errors import TeacherError
from teachers.types import TeacherFailure

if TYPE_CHECKING:
    import ssl

    from openai import AsyncOpenAI

    from teachers.guard import Guard

T = TypeVar("T")

CONNECT_SECONDS = 10.0  # an address that does not take a connection in this time is not there
_LONGEST_DETAIL = 300
# What an address is at fault for. A refusal, or a limit that was hit, shows that it is alive.
_ENDPOINT_FAULTS = frozenset({"unavailable", "timeout", "broken", "not_json"})


# ---- secrets ----


def read_key(name: str, variable: str | None) -> str | None:
    """The key in an environment variable, or None where a recipe names none.

    Raises:
        TeacherError: the variable is not set, or holds what cannot stand in a header.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise TeacherError(f"teachers.{name}.key: the environment variable {variable} is not set; export the key in it")
    if not (key.isascii() and key.isprintable()):
        raise TeacherError(f"teachers.{name}.key: {variable} holds a line break or a letter outside of ASCII; set it")
    return key


_SECRET = re.compile(r"(?i)(?<=bearer )\S+|\bsk-[\w-]{6,}|(?<=://)[^/\s@]+(?=@)|(?<=api[-_]key[=:])\s*[^\s&\"',}]+")


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """The text without these secrets, and without what looks like a key: servers repeat what they were sent."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _SECRET.sub("***", text)


def place(url: str | httpx2.URL) -> str:
    """scheme://host:port of a URL, for messages: what else stands in it may be secret."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


# ---- what an attempt came to ----


class PrivateRefusedError(httpx2.TransportError):
    """A private prompt was about to leave for an address that is not allowed. Nothing was sent.

    A transport's error, so that `openai` takes it for one and wraps it.
    """


def failure_of(name: str, what: httpx2.Response | Exception, secrets: Collection[str] = ()) -> TeacherFailure:
    """What a response or an exception means for the question that was asked of the teacher `name`.

    A response with a status of success is one whose body is not what was expected: not JSON. Exceptions of the
    `openai` package are read by the response they carry or by what caused them. secrets: left out of the detail.

    Raises:
        what: where it is neither the server's nor the network's fault.
    """
    response = what if isinstance(what, httpx2.Response) else getattr(what, "response", None)
    if isinstance(response, httpx2.Response):
        failure = _of_response(name, response)
    else:
        assert isinstance(what, Exception)
        failure = _of_exception(name, what)
    return replace(failure, detail=_one_line(redact(failure.detail, secrets)))


def _of_response(name: str, response: httpx2.Response) -> TeacherFailure:
    status, said = response.status_code, _said(response)
    detail = f"HTTP {status} from {place(response.request.url)}{': ' if said else ''}{said}"
    wait = retry_after(response.headers, time.time())
    if status < 300:
        return TeacherFailure(name, "not_json", True, detail, in_doubt=True)
    if status < 400:
        there = place(response.request.url.join(response.headers.get("location", "")))
        return TeacherFailure(name, "redirected", False, f"{detail}: to {there}; name the final address as its url")
    if status == 402 or (status == 429 and "insufficient_quota" in response.text):
        return TeacherFailure(name, "out_of_credit", False, detail)
    if status in (425, 429):
        return TeacherFailure(name, "rate_limited", True, detail, retry_after=wait)
    if status == 408:
        return TeacherFailure(name, "timeout", True, detail)
    if status in (401, 403):
        return TeacherFailure(name, "unauthorised", False, detail)
    if status == 404:
        return TeacherFailure(name, "not_found", False, detail)
    if status < 500 or status in (501, 505):
        reason = "too_long" if _TOO_LONG.search(response.text) else "rejected"
        return TeacherFailure(name, reason, False, detail)
    # A gateway that gave up waiting does not know what the server behind it did.
    return TeacherFailure(name, "unavailable", True, detail, retry_after=wait, in_doubt=status == 504)


_TOO_LONG = re.compile(r"(?i)context[ _]length|maximum context|context window|context size|longer than the model's")


def _of_exception(name: str, error: Exception) -> TeacherFailure:
    for cause in _causes(error):
        detail = _described(cause)
        match cause:
            case PrivateRefusedError():
                return TeacherFailure(name, "private", False, detail)
            case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
                return TeacherFailure(name, "timeout", True, detail)
            case httpx2.TimeoutException() | TimeoutError():
                return TeacherFailure(name, "timeout", True, detail, in_doubt=True)
            case httpx2.ConnectError() if "CERTIFICATE_VERIFY_FAILED" in str(cause):
                return TeacherFailure(name, "untrusted", False, detail)
            case httpx2.ConnectError():
                return TeacherFailure(name, "unavailable", True, detail)
            case httpx2.UnsupportedProtocol() | httpx2.LocalProtocolError() | httpx2.InvalidURL():
                return TeacherFailure(name, "rejected", False, detail)
            case httpx2.NetworkError() | httpx2.ProtocolError() | httpx2.DecodingError():
                return TeacherFailure(name, "broken", True, detail, in_doubt=True)
            case json.JSONDecodeError() | UnicodeDecodeError() | RecursionError():
                return TeacherFailure(name, "not_json", True, detail, in_doubt=True)
    raise error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _described(error: BaseException) -> str:
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    # httpx2's `request` is a property that raises where there is none.
    request = getattr(error, "_request", None)
    return f"{words} ({place(request.url)})" if isinstance(request, httpx2.Request) else words


def _said(response: httpx2.Response) -> str:
    """What the server says is wrong, if it says it in a known form, else how its body begins."""
    text = response.text
    if title := re.search(r"(?is)<title[^>]*>(.*?)</title", text):
        return f"an HTML page, {title[1].strip()}"
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message", "detail"):
        while isinstance(said, dict) and said.get(key):
            said = said[key]
    return said if isinstance(said, str) else text


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_DETAIL else line[: _LONGEST_DETAIL - 1] + "…"


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait, None where it does not say. now: seconds since 1970. RFC 9110, 10.2.3."""
    said = headers.get("retry-after", "").strip()
    try:
        milliseconds = headers.get("retry-after-ms")  # as OpenAI's servers say it
        seconds = float(milliseconds) / 1000 if milliseconds else float(said)
    except ValueError:
        try:
            date = parsedate_to_datetime(said)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    return max(0.0, seconds) if math.isfinite(seconds) else None


# ---- one attempt ----


def _refused(url: str | httpx2.URL) -> PrivateRefusedError:
    return PrivateRefusedError(f"a private prompt may not go to {place(url)}; add it to privacy.allowed if it may")


class _Guarded(httpx2.AsyncBaseTransport):
    """Looks at the address of each single request, the last moment before it leaves."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, guard: Guard) -> None:
        self._inner, self._guard = inner, guard

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self._guard.may_receive_private(str(request.url)):
            raise _refused(request.url)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def guarded_http_client(guard: Guard, *, private: bool) -> httpx2.AsyncClient:
    """A client for one event loop that follows no redirect and ignores proxies and all else in the environment.

    private: it is for private prompts, and refuses every request to an address that `guard` does not allow, with a
    PrivateRefusedError. Keep one for private prompts and one for all others. It has no timeout of its own.
    """
    plain = httpx2.Limits(max_connections=None, max_keepalive_connections=64)  # how many at once: the courier's
    transport = httpx2.AsyncHTTPTransport(verify=_certificates(), trust_env=False, limits=plain)
    return httpx2.AsyncClient(
        transport=_Guarded(transport, guard) if private else transport,
        trust_env=False,
        follow_redirects=False,
        timeout=None,
        headers={"user-agent": "tutelage"},
    )


def openai_client(url: str, key: str | None, http_client: httpx2.AsyncClient) -> AsyncOpenAI:
    """OpenAI's own client, that asks once and sends nothing but what it is told to."""
    from openai import AsyncOpenAI

    timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
    client = AsyncOpenAI(api_key=key or "none", base_url=url, max_retries=0, timeout=timeout, http_client=http_client)
    # The package adds an organisation, a project and headers from the environment, whoever the server is.
    client.organization = client.project = client.admin_api_key = None
    client._custom_headers = {}
    return client


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a request."""
    return httpx2.create_ssl_context(trust_env=False)


@dataclass(frozen=True)
class Reply:
    """A JSON object that a server answered with. seconds: from sending to the last byte."""

    body: Mapping[str, Any]
    seconds: float


class Client:
    """Sends and takes JSON objects. What goes wrong on the way comes back as a TeacherFailure.

    It belongs to the event loop on which it is first used.
    """

    def __init__(self, name: str, guard: Guard, key: str | None = None) -> None:
        self._name, self._guard = name, guard
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self.secrets = (key,) if key else ()
        self._open = guarded_http_client(guard, private=False)
        self._private = guarded_http_client(guard, private=True)

    async def post(
        self, url: str, body: Mapping[str, Any], *, private: bool, deadline: float
    ) -> Reply | TeacherFailure:
        """One POST. private: the body holds something private. deadline: seconds of the event loop's clock."""
        client = self._private if private else self._open
        request = client.build_request("POST", url, json=dict(body), headers=self._headers)
        return await self._send(client, request, deadline)

    async def get(self, url: str, *, deadline: float) -> Reply | TeacherFailure:
        """One GET, which says nothing about any prompt."""
        return await self._send(self._open, self._open.build_request("GET", url, headers=self._headers), deadline)

    def refusal(self, url: str, *, private: bool) -> TeacherFailure | None:
        """Why something private may not go to this URL: known before anything is asked there."""
        if private and not self._guard.may_receive_private(url):
            return failure_of(self._name, _refused(url))
        return None

    async def aclose(self) -> None:
        await self._open.aclose()
        await self._private.aclose()

    async def _send(
        self, client: httpx2.AsyncClient, request: httpx2.Request, deadline: float
    ) -> Reply | TeacherFailure:
        loop = asyncio.get_running_loop()
        start = loop.time()
        request.extensions["timeout"] = httpx2.Timeout(None, connect=CONNECT_SECONDS).as_dict()
        try:
            # A read timeout would begin again with each byte of a body that trickles.
            async with asyncio.timeout_at(deadline):
                response = await client.send(request)
            if not response.is_success:
                return failure_of(self._name, response, self.secrets)
            body = json.loads(response.content)
        except (httpx2.HTTPError, TimeoutError, ValueError, RecursionError) as error:
            return failure_of(self._name, error, self.secrets)
        if not isinstance(body, dict):
            return failure_of(self._name, response, self.secrets)
        return Reply(body, loop.time() - start)


# ---- several addresses ----


@dataclass
class _Endpoint:
    url: str
    under_way: int = 0
    asked: int = 0
    failures: int = 0  # in a row
    rests_until: float = 0.0
    on_trial: bool = False


class Endpoints:
    """Equal servers that share the load; one that fails too often in a row rests.

    breaker: failures in a row after which an address rests for `rest` seconds; then one question is let through, and
    it is back if that is answered. clock: seconds. To be used on one event loop.
    """

    def __init__(
        self, urls: Sequence[str], *, breaker: int, rest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._endpoints = [_Endpoint(url) for url in urls]
        self._breaker, self._rest, self._clock = breaker, rest, clock

    async def run(self, name: str, attempt: Callable[[str], Awaitable[T | TeacherFailure]]) -> T | TeacherFailure:
        """Makes one attempt at the address with the least under way, and remembers how that went.

        TeacherFailure(unavailable) where all of them rest, with the seconds until the first is tried again.
        """
        now = self._clock()
        ready = [endpoint for endpoint in self._endpoints if self._is_ready(endpoint, now)]
        if not ready:
            return self._all_rest(name, now)
        endpoint = min(ready, key=lambda endpoint: (endpoint.under_way, endpoint.asked))
        trial = endpoint.on_trial = endpoint.failures >= self._breaker
        endpoint.under_way += 1
        endpoint.asked += 1
        try:
            result = await attempt(endpoint.url)
        finally:
            endpoint.under_way -= 1
            if trial:
                endpoint.on_trial = False
        if isinstance(result, TeacherFailure) and result.reason in _ENDPOINT_FAULTS:
            endpoint.failures += 1
            endpoint.rests_until = self._clock() + self._rest
        else:
            endpoint.failures = 0
        return result

    def _is_ready(self, endpoint: _Endpoint, now: float) -> bool:
        return endpoint.failures < self._breaker or (now >= endpoint.rests_until and not endpoint.on_trial)

    def _all_rest(self, name: str, now: float) -> TeacherFailure:
        wait = max(0.0, min(endpoint.rests_until for endpoint in self._endpoints) - now)
        places = ", ".join(place(endpoint.url) for endpoint in self._endpoints)
        return TeacherFailure(
            name, "unavailable", True, f"failed {self._breaker} times in a row, and rests: {places}", retry_after=wait
        )
