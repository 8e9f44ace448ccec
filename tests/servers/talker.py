"""A server that speaks OpenAI's protocol and streams an answer: the conversation that it was shown, in capitals.

with Talker() as server:
    ... server.url ... server.asked ...
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Talker:
    """status: of every answer. picky: refuses max_tokens, and to count what it streams, each in words of its own."""

    def __init__(self, *, status: int = 200, picky: bool = False, counts: bool = True) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status, self.picky, self.counts = status, picky, counts
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"talker": self}))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Talker:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    talker: Talker

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.talker.asked.append({"path": self.path, "key": self.headers.get("authorization"), **body})
        if self.talker.picky and "max_tokens" in body:
            self._refuse(400, "max_tokens is not supported: use max_completion_tokens")
        elif self.talker.status != 200:
            self._refuse(self.talker.status, "told to")
        else:
            self._stream(body)

    def _refuse(self, status: int, words: str) -> None:
        content = json.dumps({"error": {"message": words}}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, body: dict[str, Any]) -> None:
        chat = "messages" in body
        words = body["messages"][-1]["content"] if chat else body["prompt"]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        common = {"id": "1", "object": "chunk", "created": 0, "model": body["model"]}
        for piece in words.upper():
            said = {"delta": {"content": piece}} if chat else {"text": piece}
            self._send({**common, "choices": [{"index": 0, "finish_reason": None, **said}]})
        said = {"delta": {}} if chat else {"text": ""}
        self._send({**common, "choices": [{"index": 0, "finish_reason": "stop", **said}]})
        if self.talker.counts and body.get("stream_options"):
            usage = {"prompt_tokens": 1000, "completion_tokens": 2000, "total_tokens": 3000}
            self._send({**common, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, value: object) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()
