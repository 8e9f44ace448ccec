"""A server that speaks OpenAI's protocol, grades without mistakes, and misbehaves on command.

It also plays a vLLM server that scores a text, where it is given a model. In a test:

    with ChatServer(plan=Plan(rate=0.3, seed=1)) as server:
        ... server.url ... server.answered ...

As a process, which prints its address: python -m tests.servers.chat_server --port 0 --faults 0.3 --seed 1
GET /log tells what it was asked; POST /script takes the names of faults for the next requests.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.servers import faults
from tests.servers.faults import Fault, Plan, asked_for, spoiled
from tests.servers.grader import ALL_KNOWING, Weakness, in_prose, reply_to, text_of

_BLOCK = 64  # bytes of a prompt that are cached together


@dataclass(frozen=True)
class Manners:
    """How the server is when it does not misbehave.

    formats: what an answer can be held to. limit: the field for the most tokens of an answer; the other is refused.
    temperatures: those it takes, None: any. thinks: reasoning beside the answer. key: what has to be sent as the
    bearer's, None: anything. partial: whether an answer with a right beginning scores more than 0. weakness: what it
    does not know.
    """

    model: str = "grader"
    key: str | None = None
    formats: tuple[str, ...] = ("json_schema", "json_object")
    limit: str = "max_tokens"
    temperatures: tuple[float, ...] | None = None
    thinks: bool = False
    retry_after: float = 0.05
    slow_seconds: float = 0.2
    partial: bool = False
    weakness: Weakness = ALL_KNOWING


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: str
    content: str  # what is asked, as a digest
    attempt: int  # how often that was asked before
    fault: Fault | None


@dataclass
class _Log:
    requests: list[Request] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    cached: set[str] = field(default_factory=set)
    script: deque[Fault | None] = field(default_factory=deque)


class Turnstile:
    """Lets so many questions through to the servers that share it; who comes then waits, and is never answered."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left = self._waiting = self._round = 0

    def let(self, count: int) -> None:
        """So many from now on. Whoever waits is sent away."""
        with self._changed:
            self._left, self._waiting, self._round = count, 0, self._round + 1
            self._changed.notify_all()

    def somebody_waits(self, seconds: float) -> bool:
        """Whether, within so many seconds, more come than were let through."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting > 0, seconds)

    def passed(self, stopping: threading.Event) -> bool:
        """Whether a question was let through; one that was not has waited for the next round, or the server's end."""
        with self._changed:
            if self._left > 0:
                self._left -= 1
                return True
            self._waiting += 1
            self._changed.notify_all()
            mine = self._round
            while mine == self._round and not stopping.is_set():
                self._changed.wait(0.1)
            return False


class ChatServer:
    """Serves from threads of this process while it is open. scorer: plays a vLLM server of that model as well.

    turnstile: what questions pass before they are looked at.
    """

    def __init__(
        self,
        manners: Manners | None = None,
        *,
        plan: Plan | None = None,
        scorer: Any = None,
        turnstile: Turnstile | None = None,
        port: int = 0,
    ) -> None:
        self.manners, self.plan, self.scorer, self.turnstile = manners or Manners(), plan or Plan(), scorer, turnstile
        self.stopping = threading.Event()
        self._log, self._lock = _Log(), threading.Lock()
        self._http = _Server(("127.0.0.1", port), partial(_Handler, self))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def requests(self) -> tuple[Request, ...]:
        """All that were received, in order."""
        with self._lock:
            return tuple(self._log.requests)

    @property
    def asked(self) -> Counter[str]:
        """By content, every POST that was received."""
        with self._lock:
            return Counter(self._log.asked)

    @property
    def answered(self) -> Counter[str]:
        """By content, what left this server whole and with status 200: what a provider charges for."""
        with self._lock:
            return Counter(self._log.answered)

    @property
    def faults(self) -> Counter[str]:
        return Counter(str(request.fault) for request in self.requests if request.fault)

    def misbehave(self, *script: Fault | None) -> None:
        """The next requests meet these faults, in order; None: none. Then the plan is followed again."""
        with self._lock:
            self._log.script.extend(script)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # ---- for the handler ----

    def receive(self, path: str, headers: Mapping[str, str], body: str) -> Request:
        label = headers.get("x-client-request-id", "")
        content = sha256(f"{path}\n{label}\n{body}".encode()).hexdigest()
        role = faults.SCORES if path.endswith("/v1/completions") else faults.CHAT
        with self._lock:
            attempt = self._log.asked[content]
            scripted = bool(self._log.script)
            fault = self._log.script.popleft() if scripted else None
            fault = fault if scripted else asked_for(body, attempt) or self.plan.fault(content, attempt, role)
            request = Request(path, headers, body, content, attempt, fault)
            self._log.asked[content] += 1
            self._log.requests.append(request)
        return request

    def delivered(self, request: Request) -> None:
        with self._lock:
            self._log.answered[request.content] += 1

    def cached(self, prompt: bytes) -> int:
        """Bytes at the beginning of a prompt that were seen before, in whole blocks; from now on all of it was."""
        known = 0
        digest = sha256()
        with self._lock:
            for start in range(0, len(prompt) - _BLOCK + 1, _BLOCK):
                digest.update(prompt[start : start + _BLOCK])
                if digest.hexdigest() in self._log.cached:
                    known = start + _BLOCK
                self._log.cached.add(digest.hexdigest())
        return known

    def answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        """(status, body) of a server that behaves."""
        said = json.loads(request.body)
        if self.manners.key and request.headers.get("authorization") != f"Bearer {self.manners.key}":
            return 401, _error("Incorrect API key provided", "invalid_api_key")
        if said.get("model") != self.manners.model:
            return 404, _error(f"The model {said.get('model')!r} does not exist", "model_not_found")
        if request.path == "/v1/chat/completions":
            return self._chat(said)
        if request.path == "/v1/completions" and self.scorer is not None:
            from tests.servers.scorer import completion

            return completion(self.scorer, said)
        return 404, _error(f"no such path: {request.path}", "not_found")

    def _chat(self, said: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        wanted = said.get("response_format") or {"type": "text"}
        if wanted["type"] != "text" and wanted["type"] not in self.manners.formats:
            return 400, _error(f"response_format: type {wanted['type']} is unavailable now", "invalid_request_error")
        other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[self.manners.limit]
        if other in said:
            complaint = f"Unsupported parameter: {other!r} is not supported here. Use {self.manners.limit!r} instead."
            return 400, _error(complaint, "unsupported_parameter")
        allowed = self.manners.temperatures
        if allowed and said.get("temperature", allowed[0]) not in allowed:
            return 400, _error("Unsupported value: 'temperature' does not support this value", "unsupported_value")
        texts = {turn["role"]: text_of(turn["content"]) for turn in said["messages"]}
        system, material = texts.get("system", ""), texts.get("user", "")
        schema = wanted["json_schema"]["schema"] if wanted["type"] == "json_schema" else None
        keys = schema and schema["required"]
        reply = reply_to(system, material, keys, partial=self.manners.partial, weakness=self.manners.weakness)
        message = {"role": "assistant", "content": in_prose(reply) if wanted["type"] == "text" else reply}
        thinking = 'It may be {"score": 0.5, "feedback": "a draft", "rewrite": null}.' if self.manners.thinks else ""
        message |= {"reasoning_content": thinking} if thinking else {}
        prompt = f"{system}\n{material}".encode()
        usage = _usage(prompt, self.cached(prompt), str(message["content"]), thinking)
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {"object": "chat.completion", "model": said["model"], "choices": [choice], "usage": usage}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many of these tests are about; a mistake in the server is shown."""
        import sys

        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, chat: ChatServer, *arguments: Any) -> None:
        self.chat = chat
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the terminal: what was asked is in the log."""

    def do_GET(self) -> None:
        chat = self.chat
        bodies: dict[str, Any] = {
            "/v1/models": {"object": "list", "data": [_model(chat)]},
            "/version": {"version": "0.32.0"} if chat.scorer is not None else None,
            "/log": {"asked": chat.asked, "answered": chat.answered, "faults": chat.faults},
        }
        body = bodies.get(self.path)
        self._send(404 if body is None else 200, body or _error(f"no such path: {self.path}", "not_found"))

    def do_POST(self) -> None:
        announced = int(self.headers.get("content-length", 0))
        whole = self.rfile.read(announced)
        if len(whole) < announced:  # the client went away while it was asking: that is no question
            self.close_connection = True
            return
        body = whole.decode()
        if self.path == "/script":
            self.chat.misbehave(*(Fault(name) if name else None for name in json.loads(body)))
            self._send(200, {})
            return
        if self.chat.turnstile is not None and not self.chat.turnstile.passed(self.chat.stopping):
            self.close_connection = True
            return
        request = self.chat.receive(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        match request.fault:
            case Fault.RATE_LIMITED:
                wait = {"Retry-After": f"{self.chat.manners.retry_after:g}"}
                self._send(429, _error("Rate limit reached", "rate_limit_exceeded"), wait)
            case Fault.RATE_LIMITED_BARE:
                self._send(429, _error("Too many requests", "rate_limit_exceeded"))
            case Fault.ERROR_500 | Fault.ERROR_503:
                status = int(request.fault.rpartition("_")[2])
                self._send(status, _error("The server had an error", "server_error"))
            case Fault.HTML_502 | Fault.HTML_200:
                page = b"<html><head><title>Bad Gateway</title></head><body>nginx</body></html>"
                self._send_bytes(502 if request.fault == Fault.HTML_502 else 200, page, {"Content-Type": "text/html"})
            case Fault.REDIRECT:
                self._send(307, {}, {"Location": f"{self.chat.root}/elsewhere{self.path}"})
            case Fault.HANG:
                self.chat.stopping.wait()
                self.close_connection = True
            case _:
                self._answer(request)

    def _answer(self, request: Request) -> None:
        status, body = self.chat.answer(request)
        if status != 200:
            self._send(status, body)
            return
        whole = json.dumps(spoiled(body, request.fault)).encode()
        match request.fault:
            case Fault.RESET | Fault.CUT:
                self._break_off(whole, reset=request.fault == Fault.RESET)
                return
            case Fault.TRUNCATED_JSON:
                whole = whole[: len(whole) // 2]
            case Fault.SLOW:
                self.chat.stopping.wait(self.chat.manners.slow_seconds)
        # Before the last byte: a client may look as soon as it has that.
        self.chat.delivered(request)
        self._send_bytes(200, whole, {"Content-Type": "application/json"})

    def _break_off(self, whole: bytes, *, reset: bool) -> None:
        """Announces the whole body, sends half of it, and ends the connection."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[: len(whole) // 2])
        if reset:
            # Closed with time to linger 0, a connection ends with RST; rfile holds it open, and goes first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

    def _send(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send_bytes(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _usage(prompt: bytes, cached: int, content: str, thinking: str) -> dict[str, Any]:
    """Four bytes to a token."""
    read, written, thought = -(-len(prompt) // 4), -(-len(content.encode()) // 4), -(-len(thinking.encode()) // 4)
    return {
        "prompt_tokens": read,
        "completion_tokens": written + thought,
        "total_tokens": read + written + thought,
        "prompt_tokens_details": {"cached_tokens": cached // 4},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def _model(chat: ChatServer) -> dict[str, Any]:
    context = {} if chat.scorer is None else {"max_model_len": chat.scorer.context}
    return {"id": chat.manners.model, "object": "model", **context}


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": code, "code": code}}


def main(arguments: Iterable[str] | None = None) -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description="a chat server that grades, and misbehaves on command")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.0, help="the share of requests that go wrong")
    parser.add_argument("--only", nargs="*", type=Fault, default=list(Plan().faults), help="the faults drawn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="grader")
    parser.add_argument("--scorer", help="the folder of a model that scores texts as vLLM does")
    parser.add_argument("--partial", action="store_true", help="credit for a right beginning")
    parser.add_argument("--errs", type=float, default=0.0, help="the share of questions that it does not know")
    parser.add_argument("--among", default="", metavar="PATTERN", help="of those in which this is found")
    parser.add_argument("--formats", nargs="*", default=list(Manners().formats))
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    scorer = None
    if chosen.scorer:
        from tests.servers.scorer import scorer_of

        scorer = scorer_of(chosen.scorer)
    weakness = Weakness(chosen.errs, chosen.among)
    manners = Manners(model=chosen.model, formats=tuple(chosen.formats), partial=chosen.partial, weakness=weakness)
    plan = Plan(chosen.faults, chosen.seed, tuple(chosen.only))
    with ChatServer(manners, plan=plan, scorer=scorer, port=chosen.port) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
