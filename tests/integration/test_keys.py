"""Keys are in no byte of what a run writes or says, whatever the servers do with what they are sent."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.mixed import FAST, mixed_settings, scored_model
from tests.runs import changed, command, environment, write_recipe
from tests.servers.chat_server import ChatServer, Manners
from tests.servers.faults import Fault
from tests.servers.scorer import scorer_of

# One with a common form and one without: it is known by itself alone.
KEYS = {"HOSTED_KEY": "sk-proj-4242-hosted-secret", "PLAIN_KEY": "correcthorsebatterystaple"}


class _Parrot(BaseHTTPRequestHandler):
    """Refuses every question and repeats what it was sent, each time in another place."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        sent = self.headers["authorization"]
        key = sent.removeprefix("Bearer ")
        error = json.dumps({"error": {"message": f"Incorrect API key provided: {key}.", "code": key}})
        replies: list[tuple[int, dict[str, str], str]] = [
            (401, {}, error),
            (403, {"www-authenticate": sent}, f"<html><title>{key} is not known</title></html>"),
            (400, {}, json.dumps({"detail": [{"headers": dict(self.headers)}]})),
            (401, {}, f"denied: {sent}"),
            (302, {"location": f"http://{key}:{key}@127.0.0.1/{key}?api_key={key}"}, key),
            (500, {"retry-after": "0"}, f"Traceback: {dict(self.headers)}"),
            (200, {}, f"not JSON: {sent}"),
            (200, {}, json.dumps({"model": key, "choices": [{"message": {"content": key}, "finish_reason": key}]})),
        ]
        status, headers, body = replies[self._turn() % len(replies)]
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def _turn(self) -> int:
        server: Any = self.server
        with server.lock:
            server.turn += 1
            return int(server.turn - 1)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def parrot() -> Iterator[tuple[str, Any]]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Parrot)
    server.turn, server.lock = 0, threading.Lock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def leaks(text: bytes) -> list[str]:
    """Which keys are in it, as they are or as base64."""
    forms = {name: (key.encode(), base64.b64encode(key.encode()).rstrip(b"=")) for name, key in KEYS.items()}
    return [name for name, looks in forms.items() if any(look in text for look in looks)]


def test_no_key_is_written_or_said(tmp_path: Path) -> None:
    """Beside the teachers of a mixed run one whose server repeats the key in every way of refusing it."""
    scorer = scorer_of(scored_model(tmp_path))
    manners = Manners(key=KEYS["HOSTED_KEY"])
    with ChatServer(manners) as chat, ChatServer(scorer=scorer) as served, parrot() as (url, server):
        settings = mixed_settings(tmp_path, chat.url, served.url, served.manners.model)
        echo = {"kind": "chat", "url": url, "model": "echo", "limits": {**FAST, "retries": 1}, "fallback": "checker"}
        critic = {**settings["teachers"]["critic"], "key": "HOSTED_KEY"}
        keyed = {
            "critic": critic,
            "echo": {**echo, "key": "HOSTED_KEY"},
            "parrot": {**echo, "model": "parrot", "key": "PLAIN_KEY"},
        }
        teachers = {**settings["teachers"], **keyed}
        chat.misbehave(Fault.REDIRECT, Fault.HTML_502)
        path = write_recipe(tmp_path / "recipe.yaml", changed(settings, {"teachers": teachers}))
        done = subprocess.run(
            command("run", str(path)), capture_output=True, timeout=600, env=environment() | KEYS, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        assert server.turn >= 16, "every way was tried"
        assert any(KEYS["HOSTED_KEY"] in str(request.headers) for request in chat.requests), "it was sent"
    assert leaks(done.stdout + done.stderr) == []
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"journal.sqlite", "provenance.jsonl", "metrics.jsonl", "recipe.yaml"} <= {file.name for file in files}
    assert {str(file): leaks(file.read_bytes()) for file in files if leaks(file.read_bytes())} == {}


def test_check_says_no_key(tmp_path: Path) -> None:
    """What preflight makes of a server that refuses the key, and repeats it."""
    with ChatServer() as chat, parrot() as (url, server):
        settings = mixed_settings(tmp_path, chat.url, chat.url, "none")
        echo = {"kind": "chat", "url": url, "model": "grader", "key": "PLAIN_KEY", "limits": FAST}
        changes = {"teachers": {"local": settings["teachers"]["local"], "echo": echo}}
        path = write_recipe(tmp_path / "recipe.yaml", changed(settings, changes))
        words = command("check", str(path))
        for turn in (0, 3):
            server.turn = turn
            done = subprocess.run(words, capture_output=True, timeout=600, env=environment() | KEYS, check=False)
            assert done.returncode == 1, done.stdout.decode()
            assert b"echo" in done.stderr
            assert b"Traceback (most" not in done.stderr
            assert leaks(done.stdout + done.stderr) == []
