"""The page of a run while it runs: on this machine alone, made again when the run's files have changed."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
SHARE = 10  # a page that took a second to make is made again after ten at the soonest: the run needs the machine
WATCHED = ("*.json", "*.jsonl", "*.yaml", "journal.sqlite*", "evaluations/*", "checkpoints/*")


class Page:
    """The newest page of a run, and its tag. Made when it is asked for, and only if something has changed."""

    def __init__(self, folder: Path, make: Callable[[], str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._make, self._clock = folder, make, clock
        self._lock = threading.Lock()
        self._seen: object = None
        self._not_before = 0.0
        self._body, self._tag = b"", ""

    def newest(self) -> tuple[bytes, str]:
        """(page, tag): another tag for another page."""
        with self._lock:
            seen, start = self._state(), self._clock()
            if not self._body or (seen != self._seen and start >= self._not_before):
                self._body = self._make().encode()
                self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:20]}"'
                self._seen = seen
                self._not_before = self._clock() + SHARE * (self._clock() - start)
            return self._body, self._tag

    def _state(self) -> list[tuple[str, int, int]]:
        found = []
        for path in sorted(path for pattern in WATCHED for path in self._folder.glob(pattern)):
            try:
                stat = path.stat()
            except FileNotFoundError:  # a run replaces its files
                continue
            found.append((path.name, stat.st_size, stat.st_mtime_ns))
        return found


def server_of(page: Page, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address; port 0 is a free one. Close it with `server_close`.

    Raises OSError where the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            # A page of another site may make a browser ask here under a name of its own; it must not read the answer.
            name = self.headers.get("Host", "").rpartition(":")[0]
            if name not in (HOST, "localhost"):
                self._send(HTTPStatus.FORBIDDEN, b"ask for 127.0.0.1", "text/plain", "", body)
            elif self.path.partition("?")[0] != "/":
                self._send(HTTPStatus.NOT_FOUND, b"the report is at /", "text/plain", "", body)
            else:
                text, tag = page.newest()
                if self.headers.get("If-None-Match") == tag:
                    self._send(HTTPStatus.NOT_MODIFIED, b"", "text/html; charset=utf-8", tag, False)
                else:
                    self._send(HTTPStatus.OK, text, "text/html; charset=utf-8", tag, body)

        def _send(self, status: HTTPStatus, text: bytes, kind: str, tag: str, body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if tag:
                self.send_header("ETag", tag)
            self.end_headers()
            if body:
                self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Nobody wants a line for every question of an open page."""

    server = ThreadingHTTPServer((HOST, port), Handler)
    server.daemon_threads = True
    return server


def serve(page: Page, port: int, say: Callable[[str], None]) -> None:
    """Answers until Ctrl-C. Raises OSError where the port is taken."""
    page.newest()  # what is wrong with the run is said before anybody asks
    with server_of(page, port) as server:
        say(f"http://{HOST}:{server.server_port}/ shows the run as it is; Ctrl-C ends this")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("stopped")
