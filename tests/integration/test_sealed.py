"""privacy.mode: sealed, looked at from the kernel's side, from inside, and through the relay."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import RunError
from pipeline.recipe_file import load_recipe
from pipeline.sealed import Address, allowed_addresses, seal
from tests.runs import Settings, changed, command, distill_settings, environment, write_recipe
from tests.servers import closed_port
from tests.servers.chat_server import ChatServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")

ROOT = Path(__file__).parents[2]
SPY = ROOT / "tests" / "plugins" / "spy.py"
NOBODY = 65534
SECONDS = 600.0  # after which something is stuck


def until(found: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Waits for what another process does; not for longer than that process lives."""
    end = time.monotonic() + SECONDS
    while not found():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "stuck"
        select.select([], [], [], 0.02)


def namespace(process: int | str) -> str:
    return os.readlink(f"/proc/{process}/ns/net")


def namespaces(processes: Iterable[int]) -> list[str]:
    """Of those that still live."""
    found = []
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):
            found.append(namespace(process))
    return found


def with_mark(mark: str) -> list[int]:
    """All living processes that were started with it in their environment."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and mark.encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


# ---- a whole run ----


@dataclass(frozen=True)
class Sealed:
    process: subprocess.Popen[str]
    chat: ChatServer
    found: dict[str, Any]
    folder: Path
    mark: str

    def let_go(self) -> None:
        (self.folder / "go").write_text("")


@contextmanager
def sealed_run(folder: Path) -> Iterator[Sealed]:
    """`tutelage run` with a chat teacher on this machine, stopped where its spy has tried what it could."""
    mark = uuid.uuid4().hex
    os.mkfifo(folder / "go")
    with ChatServer() as chat, listening() as port, abstract(mark):
        path = write_recipe(folder / "recipe.yaml", settings(folder, chat, port, mark))
        process = subprocess.Popen(
            command("run", str(path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment() | {"SEALED_MARK": mark},
        )  # fmt: skip
        try:
            until((folder / "found.json").exists, process)
            found = json.loads((folder / "found.json").read_text())
            yield Sealed(process, chat, found, folder, mark)
        finally:
            process.kill()
            process.communicate()


def settings(folder: Path, chat: ChatServer, port: int, mark: str) -> Settings:
    spy = {"host": "127.0.0.1", "port": port, "allowed": int(chat.root.rpartition(":")[2]), "outward": outward()}
    spy |= {"abstract": mark, "parent": os.getpid(), "folder": str(folder)}
    teachers = {
        "critic": {"kind": "chat", "url": chat.url, "model": "grader"},
        "spy": {"kind": "plugin", "use": f"{SPY}:Spy", "options": spy, "provider": {"region": "local"}},
    }
    if shutil.which("bwrap"):
        pattern = {"kind": "command", "run": ["python3", "-c", "print(0.5)"]}
        teachers["program"] = {"kind": "program", "check": pattern}
    return changed(
        distill_settings(folder),
        {
            "teachers": teachers,
            "routing": "all",
            "rollout.samples_per_prompt": 2,
            "training.steps": 2,
            "data.sources.sorting.private": True,
            "privacy": {"mode": "sealed"},
        },
    )


def outward() -> str:
    """An address of this machine that is not its loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return "192.0.2.2"
        return str(probe.getsockname()[0])


@contextmanager
def listening() -> Iterator[int]:
    """A port on all of this machine's addresses, which the recipe does not name."""
    with socket.create_server(("", 0)) as server:
        yield int(server.getsockname()[1])


@contextmanager
def abstract(name: str) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("\0" + name)
        server.listen()
        yield


def test_a_sealed_run_has_no_network_but_its_teachers(tmp_path: Path) -> None:
    with sealed_run(tmp_path) as run:
        process, found = run.process.pid, run.found
        inside = namespace(process)
        assert inside != namespace("self")
        threads = [place.name for place in Path(f"/proc/{process}/task").iterdir()]
        assert len(threads) > 1
        assert {namespace(f"{process}/task/{thread}") for thread in threads} == {inside}
        devices = Path(f"/proc/{process}/net/dev").read_text().splitlines()[2:]
        assert [line.partition(":")[0].strip() for line in devices] == ["lo"]
        assert len(Path(f"/proc/{process}/net/route").read_text().splitlines()) == 1, "the line of headings alone"
        assert namespaces(with_mark(run.mark)).count(namespace("self")) == 1, "the relay"
        assert found.pop("child") == [inside, str(errno.ECONNREFUSED)]
        assert found == {
            "namespace": inside,
            "main thread": inside,
            "allowed": 0,
            "another port of the host": errno.ECONNREFUSED,
            "far": errno.ENETUNREACH,
            "far, version 6": errno.ENETUNREACH,
            "the host's own address": errno.ENETUNREACH,
            "datagram": errno.ENETUNREACH,
            "name": "no such name",
            "abstract": errno.ECONNREFUSED,
            "back by the relay": errno.EACCES,
            "back by the parent": errno.EACCES,
        }
        run.let_go()
        output, errors = run.process.communicate(timeout=SECONDS)
        assert run.process.returncode == 0, output + errors
        samples = [
            sample
            for line in (tmp_path / "run" / "provenance.jsonl").read_text().splitlines()
            for sample in json.loads(line)["samples"]
        ]
        assert len(samples) == 16
        assert {sample["teachers"]["critic"]["model"] for sample in samples} == {run.chat.manners.model}
        assert all("gave" in given for sample in samples for given in sample["teachers"].values()), samples
        assert {sample["private"] for sample in samples} == {True, False}
        assert len(run.chat.requests) >= 16
        assert json.loads((tmp_path / "run" / "model" / "tutelage.json").read_text())["private"]
        until(lambda: with_mark(run.mark) == [])


def test_nothing_is_left_of_a_sealed_run_that_is_killed(tmp_path: Path) -> None:
    with sealed_run(tmp_path) as run:
        assert len(with_mark(run.mark)) >= 2
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        until(lambda: with_mark(run.mark) == [])


# ---- what is refused ----


def refused(folder: Path, changes: dict[str, Any]) -> str:
    """The one line that `tutelage run` ends with."""
    chat = {"kind": "chat", "url": "http://127.0.0.1:9/v1", "model": "grader"}
    far = {"privacy.mode": "sealed", "teachers": {"critic": chat}, "rollout.samples_per_prompt": 2, "routing": "all"}
    path = write_recipe(folder / "recipe.yaml", changed(changed(distill_settings(folder), far), changes))
    result = CliRunner().invoke(app, ["run", str(path)])
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"teachers.critic.url": "http://teacher.example:8000/v1"},
            "teachers.critic: privacy.mode: sealed leaves teacher",
        ),
        ({"teachers.critic.url": "http://192.0.2.7:8000/v1"}, "allow it by privacy.allowed=[192.0.2.7]"),
        ({"teachers.critic.url": "http://[::1]:8000/v1"}, "addresses, not names: write ::1 as its IPv4 address"),
        ({"privacy.allowed": ["tracker.example:443"]}, "addresses, not names: write tracker.example as"),
        ({"privacy.allowed": ["tracker.example"]}, "addresses, not names: write tracker.example as"),
        ({"privacy.allowed": ["192.0.2.8"]}, "192.0.2.8 has no port"),
        (
            {"teachers.critic.url": "http://teacher.example:8000/v1", "privacy.allowed": ["teacher.example"]},
            "addresses, not names: write teacher.example as",
        ),
    ],
)
def test_what_cannot_be_reached_is_said_first(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, changes)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "sealed is for one process, and here are 2" in refused(tmp_path, {})
    with pytest.raises(RunError):
        seal(())


def test_what_a_recipe_may_reach(tmp_path: Path) -> None:
    chat = {"kind": "chat", "url": "http://localhost:8000/v1", "model": "grader"}
    served = {"kind": "served", "url": ["http://10.0.0.5:8001", "https://10.0.0.6", "http://127.0.0.2:7"], "model": "m"}
    changes = {
        "teachers": {"critic": chat, "scorer": served},
        "routing": "all",
        "rollout.samples_per_prompt": 2,
        "privacy.allowed": ["10.0.0.5", "10.0.0.6:443", "127.0.0.1:9000"],
    }
    loaded = load_recipe(write_recipe(tmp_path / "r.yaml", changed(distill_settings(tmp_path), changes)))
    assert allowed_addresses(loaded.recipe) == (
        Address("127.0.0.1", 8000),
        Address("10.0.0.5", 8001),
        Address("10.0.0.6", 443),
        Address("127.0.0.2", 7),
        Address("127.0.0.1", 9000),
    )


# ---- the relay ----

INSIDE = """
import os, socket, sys
sys.path.insert(0, {root!r})
from pipeline.sealed import Address, seal
before = os.readlink("/proc/self/ns/net")
seal([Address("127.0.0.1", port) for port in {ports!r}])
assert os.readlink("/proc/self/ns/net") != before
assert (os.getuid(), os.geteuid()) == ({user}, {user}), os.getuid()
"""


def inside(code: str, *ports: int, before: tuple[str, ...] = (), user: int | None = None) -> str:
    """What a sealed process prints. before: what starts it."""
    preamble = INSIDE.format(root=str(ROOT), ports=ports, user=os.getuid() if user is None else user)
    done = subprocess.run(
        [*before, sys.executable, "-c", preamble + code],
        capture_output=True, text=True, timeout=SECONDS, env=environment(), check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


class _Echo(socketserver.StreamRequestHandler):
    """Says back what it has read, once there is no more to read."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read())


class _Cut(socketserver.StreamRequestHandler):
    """Begins an answer, and resets the connection."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"half")
        self.rfile.readline()  # until the client has read that
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def serving(handler: type[socketserver.StreamRequestHandler]) -> Iterator[int]:
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


TALK = """
import hashlib, threading
def talk(text):
    with socket.create_connection(("127.0.0.1", {port}), 60) as connection:
        threading.Thread(target=lambda: (connection.sendall(text), connection.shutdown(socket.SHUT_WR))).start()
        heard = b"".join(iter(lambda: connection.recv(65536), b""))
    print(hashlib.sha256(heard).hexdigest() + "\\n", end="")
"""


def digests(*texts: bytes) -> list[str]:
    return sorted(hashlib.sha256(text).hexdigest() for text in texts)


def test_large_bodies_and_many_connections_that_close_by_halves() -> None:
    with serving(_Echo) as port:
        talk = TALK.format(port=port)
        large = inside(talk + "talk(bytes(range(256)) * 20480)", port)
        assert large.split() == digests(bytes(range(256)) * 20480)
        many = """
threads = [threading.Thread(target=talk, args=(bytes([n]) * 100_000,)) for n in range(50)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
        assert sorted(inside(talk + many, port).split()) == digests(*(bytes([n]) * 100_000 for n in range(50)))


def test_a_reset_is_not_taken_for_an_end() -> None:
    code = """
connection = socket.create_connection(("127.0.0.1", {port}), 60)
connection.sendall(b"hello\\n")
print(connection.recv(4))
connection.sendall(b"more\\n")
try:
    print("ended", connection.recv(4))
except ConnectionResetError:
    print("reset")
"""
    with serving(_Cut) as port:
        assert inside(code.format(port=port), port).split() == ["b'half'", "reset"]


def test_a_server_that_is_down_resets() -> None:
    code = """
try:
    with socket.create_connection(("127.0.0.1", {port}), 60) as connection:
        print("ended", connection.recv(4))
except ConnectionResetError:
    print("reset")
"""
    with closed_port() as port:
        assert inside(code.format(port=port), port).strip() == "reset"


def as_nobody() -> tuple[str, ...]:
    if os.getuid() != 0:
        return ()  # everything here is tried without rights already
    ids = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    words = ("setpriv", *ids)
    if shutil.which("setpriv") is None or subprocess.run([*words, sys.executable, "-c", ""], cwd="/").returncode:
        pytest.skip("nobody cannot start this Python")
    return words


def test_nobody_needs_no_rights_for_it() -> None:
    before = as_nobody()
    with serving(_Echo) as port:
        talk = TALK.format(port=port) + "talk(b'hello')"
        assert inside(talk, port, before=before, user=NOBODY if before else None).split() == digests(b"hello")


def limited(*names: str) -> tuple[str, ...]:
    """Starts something as root of a user namespace in which no more of these can be made."""
    zeroes = " && ".join(f"echo 0 > /proc/sys/user/max_{name}_namespaces" for name in names)
    return ("unshare", "--user", "--map-root-user", "sh", "-c", f'{zeroes} && exec "$@"', "sh")


def test_root_can_do_without_a_user_namespace() -> None:
    with serving(_Echo) as port:
        talk = TALK.format(port=port) + "talk(b'hello')"
        assert inside(talk, port, before=limited("user"), user=0).split() == digests(b"hello")


def test_where_no_namespace_can_be_made_the_run_does_not_begin(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", changed(distill_settings(tmp_path), {"privacy.mode": "sealed"}))
    words = [*limited("user", "net"), *command("run", str(path))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, env=environment(), check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "privacy.mode: sealed is not possible here" in line
    assert "privacy.mode=open" in line
    assert not (tmp_path / "run").exists()
