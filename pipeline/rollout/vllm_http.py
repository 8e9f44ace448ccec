"""What this process says to a vLLM server over HTTP, and what went wrong on the way as one kind of exception."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx2

from pipeline.errors import RunError
from teachers.client import CONNECT_SECONDS, failure_of, guarded_http_client
from teachers.guard import Guard
from teachers.types import TeacherFailure

NAME = "rollout.server"


@dataclass(frozen=True)
class Access:
    """guard: where private prompts may go. key: of the server's API."""

    guard: Guard
    key: str | None = None


@dataclass(frozen=True)
class Waiting:
    """silence: seconds without a token after which a request is sent again. patience: after which the run stops."""

    silence: float
    patience: float


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable; None where a recipe names none. Raises RunError where it is not set."""
    key = os.environ.get(variable, "").strip() if variable else None
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise RunError(f"rollout.server.key: the environment variable {variable} holds no key; export it")
    return key


class EngineError(Exception):
    """A request that came to nothing. failure: of what kind, whether it may go better next time."""

    def __init__(self, failure: TeacherFailure) -> None:
        super().__init__(failure.detail)
        self.failure = failure

    @property
    def passes(self) -> bool:
        """Whether the server may answer once it is there again."""
        return self.failure.retryable

    @property
    def unknown(self) -> bool:
        """Whether it knows nothing of what it was asked for: an address, or a model."""
        return self.failure.reason == "not_found"


def error_of(reason: str, detail: str, *, passes: bool) -> EngineError:
    return EngineError(TeacherFailure(NAME, reason, passes, detail))


class Wire:
    """Belongs to the event loop on which it is used. An async context manager. root: without /v1."""

    def __init__(self, root: str, access: Access) -> None:
        self.root = root
        self._headers = {"authorization": f"Bearer {access.key}"} if access.key else {}
        self._secrets = (access.key,) if access.key else ()
        self._open = guarded_http_client(access.guard, private=False)
        self._private = guarded_http_client(access.guard, private=True)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.aclose()
        await self._private.aclose()

    async def command(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float) -> httpx2.Response:
        """A POST of `body`, or a GET without one, that says nothing of any prompt. Raises EngineError."""
        request = self._request(self._open, path, body)
        try:
            async with asyncio.timeout(seconds):
                response = await self._open.send(request)
        except (httpx2.HTTPError, TimeoutError) as error:
            raise EngineError(failure_of(NAME, error, self._secrets)) from error
        if not response.is_success:
            raise EngineError(failure_of(NAME, response, self._secrets))
        return response

    async def lines(
        self, path: str, body: Mapping[str, Any], *, private: bool, silence: float
    ) -> AsyncGenerator[str, None]:
        """The lines of the answer to a POST as they come. silence: seconds between two. Raises EngineError."""
        client = self._private if private else self._open
        response: httpx2.Response | None = None
        try:
            async with asyncio.timeout(silence):
                response = await client.send(self._request(client, path, body), stream=True)
                if not response.is_success:
                    await response.aread()
                    raise EngineError(failure_of(NAME, response, self._secrets))
            lines = response.aiter_lines()
            while True:
                async with asyncio.timeout(silence):
                    line = await anext(lines, None)
                if line is None:
                    return
                yield line
        except (httpx2.HTTPError, TimeoutError) as error:
            raise EngineError(failure_of(NAME, error, self._secrets)) from error
        finally:
            if response is not None:
                await response.aclose()

    def _request(self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any] | None) -> httpx2.Request:
        url, headers = self.root + path, self._headers
        if body is None:
            request = client.build_request("GET", url, headers=headers)
        else:
            request = client.build_request("POST", url, headers=headers, json=dict(body))
        request.extensions["timeout"] = httpx2.Timeout(None, connect=CONNECT_SECONDS).as_dict()
        return request
