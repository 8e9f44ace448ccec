"""Where a private prompt may go, by how its address is written, and where it then really goes."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from teachers.client import Client, Reply
from teachers.guard import Guard, host_of, is_loopback, parsed, port_of
from teachers.types import TeacherFailure

HERE = (
    "http://127.0.0.1:8000/v1",
    "http://127.0.0.2",
    "http://127.255.255.254:1",
    "http://localhost:8000",
    "HTTP://LOCALHOST",
    "http://localhost.:8000",
    "https://[::1]:8000/v1",
    "http://[0:0:0:0:0:0:0:1]",
    "http://[::ffff:127.0.0.1]:8000",
    "http://user:word@127.0.0.1:8000",
)
ELSEWHERE = (
    "https://api.example.com/v1",
    "http://10.0.0.1:8000",
    "http://0.0.0.0:8000",
    "http://[::]:8000",
    "http://[::ffff:10.0.0.1]:8000",
    "http://127.1:8000",
    "http://2130706433:8000",
    "http://0x7f000001",
    "http://0x7f.1",
    "http://0177.0.0.1",
    "http://127.0.0.1@evil.example:80",
    "http://127.0.0.1:80@evil.example",
    "http://127.0.0.1\\@evil.example",
    "http://localhost.example.com",
    "http://notlocalhost",
    "http://my.localhost",
    "http://127.0.0.1.example.com",
    "http://127.0.0.1.nip.io",
    "http://evil.example#@127.0.0.1",
    "http://evil.example?@127.0.0.1",
    "http://\u2460\u2461\u2466.0.0.1",
    "http://loc\u00adalhost",
    "http://[::1",
    "http://",
    "",
)


@pytest.mark.parametrize("url", HERE)
def test_this_machine(url: str) -> None:
    assert Guard().may_receive_private(url)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_not_this_machine(url: str) -> None:
    assert not Guard().may_receive_private(url)


@pytest.mark.parametrize("url", [*HERE, *ELSEWHERE])
def test_the_client_goes_where_the_guard_looked(url: str) -> None:
    """Two readings of one address must not differ: what the guard takes for this machine is what is connected to."""
    try:
        target = httpx2.URL(url)
    except httpx2.InvalidURL:
        return
    if Guard().may_receive_private(str(target)):
        assert is_loopback(target.raw_host.decode().rstrip("."))


def test_what_is_allowed_is_one_host_or_one_port_of_it() -> None:
    guard = Guard(
        ("Teachers.Example.com.", "10.0.0.1:9000", "[2001:DB8::5]:8000", "2001:db8:0::6", "api.example.org:443")
    )
    allowed = (
        "http://teachers.example.com:1234",
        "https://TEACHERS.example.COM./v1",
        "http://10.0.0.1:9000",
        "http://[2001:db8:0:0::5]:8000",
        "http://[2001:db8::6]:99",
        "https://api.example.org/v1",
    )
    refused = (
        "http://a.teachers.example.com",
        "http://example.com",
        "http://10.0.0.1:9001",
        "http://10.0.0.1",
        "http://[2001:db8::5]:8001",
        "http://[2001:db8::5:8000]",
        "http://api.example.org/v1",
        "http://api.example.org:99999",
        "http://10.0.0.1@evil.example:9000",
    )
    assert [url for url in allowed if not guard.may_receive_private(url)] == []
    assert [url for url in refused if guard.may_receive_private(url)] == []
    assert not any(guard.names(url) for url in HERE), "this machine is allowed without being named"


@pytest.mark.parametrize("entry", ["http://evil.example", "evil.example/v1", "", "*", "*.example", "0.0.0.0/0", "."])
def test_what_is_no_host_allows_nothing(entry: str) -> None:
    guard = Guard((entry,))
    assert not any(guard.may_receive_private(url) for url in ELSEWHERE)


def test_hosts_and_ports_as_they_are_written() -> None:
    assert (host_of("https://A.example./x"), port_of("https://A.example./x")) == ("a.example", 443)
    assert (host_of("http://[::0:1]:5"), port_of("http://[::0:1]:5")) == ("::1", 5)
    assert port_of("http://a:70000") is port_of("ftp://a") is None
    assert [parsed(entry) for entry in ("a:1", "a", "::1", "[::1]:1", "[::1]")] == [
        ("a", 1),
        ("a", None),
        ("::1", None),
        ("::1", 1),
        ("::1", None),
    ]


# ---- with a server ----


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A server on all of this machine's addresses: (its port, the bodies it has read)."""
    bodies: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])).decode())
            if self.path.startswith("/to/"):
                self.send_response(307)
                self.send_header("location", self.path.removeprefix("/to/"))
                self.send_header("content-length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def post(url: str, guard: Guard, *, private: bool = True) -> Reply | TeacherFailure:
    async def ask() -> Reply | TeacherFailure:
        client = Client("ada", guard)
        try:
            deadline = asyncio.get_running_loop().time() + 20
            return await client.post(url, {"text": "a secret"}, private=private, deadline=deadline)
        finally:
            await client.aclose()

    return asyncio.run(ask())


def reason(result: Reply | TeacherFailure) -> str:
    return result.reason if isinstance(result, TeacherFailure) else "answered"


@pytest.fixture
def outward() -> str:
    """An address of this machine that is not its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has its loopback alone")
        return str(probe.getsockname()[0])


def test_another_address_of_this_machine_is_refused_unless_it_is_allowed(outward: str) -> None:
    with listening() as (port, bodies):
        url = f"http://{outward}:{port}/v1"
        assert reason(post(url, Guard())) == "private"
        assert reason(post(url, Guard((f"{outward}:{port + 1}",)))) == "private"
        assert bodies == []
        assert reason(post(url, Guard(), private=False)) == "answered"
        assert reason(post(url, Guard((outward,)))) == reason(post(url, Guard((f"{outward}:{port}",)))) == "answered"
        assert [json.loads(body)["text"] for body in bodies] == ["a secret"] * 3


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0.0.0.0"])
def test_a_number_that_a_resolver_would_read_as_loopback_is_refused(host: str) -> None:
    """The connection would stand: only the guard is in its way."""
    with listening() as (port, bodies):
        socket.create_connection((host, port), 5).close()
        assert reason(post(f"http://{host}:{port}/v1", Guard())) == "private"
        assert bodies == []


def test_a_redirect_does_not_take_a_private_prompt_along(outward: str) -> None:
    with listening() as (port, bodies), listening() as (other, elsewhere):
        for there in (f"http://{outward}:{other}/x", f"http://127.0.0.1:{other}/x"):
            assert reason(post(f"http://127.0.0.1:{port}/to/{there}", Guard())) == "redirected"
        assert (len(bodies), elsewhere) == (2, [])


def test_proxies_in_the_environment_see_nothing(outward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (port, bodies), listening() as (other, proxied):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{outward}:{other}")
        for exceptions in (None, "", "example.com", "127.0.0.1"):
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False) if exceptions is None else monkeypatch.setenv(name, exceptions)
            assert reason(post(f"http://127.0.0.1:{port}/v1", Guard())) == "answered"
            assert reason(post(f"http://{outward}:{port}/v1", Guard())) == "private"
        assert (len(bodies), proxied) == (4, [])
