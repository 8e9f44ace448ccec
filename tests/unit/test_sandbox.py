"""What a hostile program cannot do: each claim is tried from inside, by a program that would say so if it could."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from teachers import sandbox
from teachers.config import Sandbox
from teachers.sandbox import Outcome, SandboxError, run
from teachers.walls import PYTHON, missing_protection

ROOT = Path(__file__).parents[2]
LIMITS = Sandbox(seconds=5, memory_megabytes=256, processes=8, output_kilobytes=16)
QUICK = LIMITS.model_copy(update={"seconds": 1.0})  # and three on the clock
OPEN = LIMITS.model_copy(update={"required": False})

walled = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def ran(code: str, *words: str, limits: Sandbox = LIMITS, **rest: Any) -> Outcome:
    command = [PYTHON, "-I", "-S", "-c", dedent(code), *words]
    return asyncio.run(run(command, rest.pop("files", {}), limits, rest.pop("input", b""), **rest))


def said(code: str, *words: str, **rest: Any) -> str:
    """What a program that ends by itself prints."""
    outcome = ran(code, *words, **rest)
    assert (outcome.status, outcome.killed_by) == (0, None), outcome
    return outcome.output.decode()


def alive(marker: str) -> list[int]:
    """The processes of this machine that have a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def marker() -> str:
    return secrets.token_hex(16)


@pytest.fixture
def no_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing-here"))
    missing_protection.cache_clear()
    yield
    missing_protection.cache_clear()


@walled
def test_where_it_is_installed_it_works() -> None:
    assert missing_protection() is None


# ---- an ordinary program ----

READS = """
    import os, sys
    print(os.getcwd(), sorted(os.listdir()), open("data/words.txt").read(), sys.stdin.read())
    open("new.txt", "w").write("x")
    open("data/words.txt", "a").write("y")
"""


@walled
def test_it_has_its_files_and_its_input() -> None:
    told = said(READS, files={"data/words.txt": b"from a file", "a": b""}, input=b"from outside")
    assert told == "/tmp/scratch ['a', 'data'] from a file from outside\n"


def test_it_has_its_files_and_its_input_without_walls(no_bubblewrap: None, tmp_path: Path) -> None:
    told = said(
        READS, files={"data/words.txt": b"from a file", "a": b""}, input=b"from outside", limits=OPEN, room=tmp_path
    )
    assert told.startswith(f"{tmp_path}/")
    assert told.endswith(" ['a', 'data'] from a file from outside\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limits", [pytest.param(LIMITS, marks=walled), OPEN])
def test_how_it_ended(limits: Sandbox, request: pytest.FixtureRequest) -> None:
    if limits is OPEN:
        request.getfixturevalue("no_bubblewrap")
    assert ran("import sys; sys.exit(7)", limits=limits).status == 7
    plain = ran("print(1)", limits=limits)
    assert (plain.status, plain.output, plain.killed_by) == (0, b"1\n", None)
    killed = ran("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", limits=limits)
    assert (killed.status, killed.killed_by) == (128 + signal.SIGSEGV, "signal")
    failed = ran("import sys; print('out', flush=True); sys.stderr.write('error'); sys.exit(1)", limits=limits)
    assert (failed.status, failed.output) == (1, b"out\nerror")


def test_what_cannot_start_is_an_error_of_the_sandbox_and_no_outcome() -> None:
    with pytest.raises(SandboxError, match="no-such-command: No such file"):
        asyncio.run(run(["no-such-command"], {}, OPEN))
    for name in ("/etc/passwd", "../above", "a/../../above"):
        with pytest.raises(SandboxError, match="relative path"):
            asyncio.run(run(["true"], {name: b""}, OPEN))


def test_without_bubblewrap_it_refuses_unless_told_otherwise(no_bubblewrap: None) -> None:
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        ran("print(1)")
    assert said("print(1)", limits=OPEN) == "1\n"


def test_what_a_busy_machine_takes_to_start_it_is_none_of_its_time(
    no_bubblewrap: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "late.py"
    late.write_text(f"import runpy, time\ntime.sleep(1.2)\nrunpy.run_path({str(sandbox.LAUNCH)!r}, None, '__main__')\n")
    monkeypatch.setattr(sandbox, "LAUNCH", late)
    monkeypatch.setattr(sandbox, "WALL", 0.2)  # a second on the clock, which such a machine may take away again
    outcomes = [ran("print(1)", limits=OPEN)]
    while outcomes[-1].killed_by == "time" and len(outcomes) < 10:
        outcomes.append(ran("print(1)", limits=OPEN))
    assert (outcomes[-1].output, outcomes[-1].killed_by) == (b"1\n", None)


def test_no_more_at_once_than_there_are_cores() -> None:
    code = (
        "import time; start = time.monotonic()\nwhile time.process_time() < 0.1: pass\nprint(start, time.monotonic())"
    )

    async def many() -> list[Outcome]:
        return await asyncio.gather(*(run([PYTHON, "-I", "-S", "-c", code], {}, OPEN) for _ in range(6)))

    spans = [tuple(map(float, outcome.output.split())) for outcome in asyncio.run(many())]
    most = max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)
    assert most <= len(os.sched_getaffinity(0))


# ---- what it may not see ----


@walled
def test_no_key_of_the_environment_is_anywhere_inside(monkeypatch: pytest.MonkeyPatch, marker: str) -> None:
    monkeypatch.setenv("SOME_API_KEY", marker)
    told = said(
        """
        import glob, os
        print(sorted(os.environ))
        for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/task/*/environ"):
            try:
                print(open(path).read())
            except OSError as error:
                print(type(error).__name__)
        """
    )
    assert marker not in told
    assert "SOME_API_KEY" not in told
    assert "PATH" in told


def test_no_key_in_the_environment_without_walls(
    no_bubblewrap: None, monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    monkeypatch.setenv("SOME_API_KEY", marker)
    assert marker not in said("import os; print(os.environ, open('/proc/self/environ').read())", limits=OPEN)


@walled
def test_no_file_of_a_home_a_run_or_the_system_s_secrets(tmp_path: Path, marker: str) -> None:
    secret = tmp_path / marker
    secret.write_text("secret")
    link = tmp_path / "link"
    link.symlink_to(secret)
    told = said(
        """
        import os, sys
        for path in sys.argv[1:]:
            try:
                print("READ", os.listdir(path) if os.path.isdir(path) else open(path).read())
            except OSError as error:
                print(type(error).__name__)
        os.symlink(sys.argv[1], "way-out")
        os.symlink("../../../../../../.." + sys.argv[1], "another")
        for name in ("way-out", "another"):
            try:
                print("READ", open(name).read())
            except OSError as error:
                print(type(error).__name__)
        for folder, folders, names in os.walk("/"):
            if folder in ("/proc", "/usr"):
                folders.clear()
            print("FOUND" if os.path.basename(sys.argv[1]) in names else "", end="")
        """,
        *map(
            str, (secret, link, ROOT, tmp_path, "/etc/shadow", "/etc/passwd", "/proc/1/root/etc/shadow", "/sys/kernel")
        ),
    )
    assert "READ" not in told
    assert "FOUND" not in told
    assert told.count("Error") == 10


@walled
def test_of_a_home_only_the_way_to_python_is_there(tmp_path: Path) -> None:
    home = Path.home()
    told = said("import os, sys; print(os.listdir(sys.argv[1]) if os.path.isdir(sys.argv[1]) else [])", str(home))
    on_the_way = {
        path.relative_to(home).parts[0]
        for path in map(Path, (sys.prefix, sys.base_prefix))
        if path.is_relative_to(home)
    }
    assert set(eval(told)) <= on_the_way


@walled
def test_no_network_not_even_this_machine_s() -> None:
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as abstract:
        server.bind(("127.0.0.1", 0))
        server.listen()
        name = f"\0tutelage-{secrets.token_hex(4)}"
        abstract.bind(name)
        abstract.listen()
        told = said(
            """
            import socket, sys
            def tried(family, place):
                try:
                    with socket.socket(family) as s:
                        s.settimeout(2)
                        s.connect(place)
                    return "CONNECTED"
                except OSError as error:
                    return type(error).__name__
            print(tried(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))), tried(socket.AF_INET, ("1.1.1.1", 53)))
            print(tried(socket.AF_INET6, ("::1", int(sys.argv[1]))), tried(socket.AF_UNIX, "\\0" + sys.argv[2]))
            try:
                socket.getaddrinfo("localhost.example", 80)
                print("RESOLVED")
            except OSError:
                pass
            """,
            str(server.getsockname()[1]),
            name[1:],
        )
        with socket.create_connection(server.getsockname()):
            pass  # from outside it is there
    assert "CONNECTED" not in told
    assert "RESOLVED" not in told


@walled
def test_it_sees_no_process_but_its_own(marker: str) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()", marker], stdin=subprocess.PIPE)
    try:
        told = said("import os; print([n for n in os.listdir('/proc') if n.isdigit()], os.getppid())")
        assert len(eval(told.partition("]")[0] + "]")) <= 3
        assert alive(marker)
    finally:
        other.kill()
        other.communicate()


# ---- what it may not do ----


@walled
def test_it_writes_to_its_scratch_folder_alone() -> None:
    prefix = str(Path(sys.base_prefix) / "lib")
    told = said(
        """
        import os, sys
        for folder in ("/", "/usr", "/usr/lib", "/etc", "/root", "/home", "/var", "/dev", "/proc", *sys.argv[1:]):
            try:
                open(folder + "/new", "w")
                print("WROTE", folder)
            except OSError:
                pass
        kernel = ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger")
        for path in ("/launch.py", sys.executable, *kernel):
            try:
                open(path, "r+b")
                print("OPENED", path)
            except OSError:
                pass
        open("/tmp/new", "w"), open("new", "w"), open("/dev/shm/new", "w")
        print("done")
        """,
        prefix,
    )
    assert told == "done\n"


@walled
def test_it_has_no_rights_and_gets_none() -> None:
    told = said(
        """
        import os
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        print(*(status[name].strip("0") for name in ("CapEff", "CapPrm", "CapAmb", "NoNewPrivs")))
        for name in ("setuid", "setgid", "setgroups"):
            try:
                getattr(os, name)([0] if name == "setgroups" else 0)
                print("DID", name)
            except OSError:
                pass
        print(os.getuid() != 0, os.geteuid() != 0)
        """
    )
    assert told.split() == ["1", "True", "True"]


@walled
def test_a_fork_bomb_ends(marker: str) -> None:
    outcome = ran("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", marker)
    assert outcome.killed_by == "processes"
    assert not alive(marker)


@walled
def test_the_kernel_itself_holds_the_number_of_processes() -> None:
    """Root's are not counted by the kernel, so a program never runs as root."""
    outcome = ran(
        """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for n in range(1000):
            try:
                if os.fork() == 0:
                    signal.pause()
            except BlockingIOError:
                print(n, flush=True)
                signal.pause()
        """,
    )
    assert outcome.killed_by == "processes"
    said_so = outcome.output.split()
    assert not said_so or int(said_so[0]) <= LIMITS.processes + sandbox.SPARE_PROCESSES


@pytest.mark.parametrize("limits", [pytest.param(LIMITS, marks=walled), OPEN])
def test_a_memory_hog_ends(limits: Sandbox, request: pytest.FixtureRequest) -> None:
    if limits is OPEN:
        request.getfixturevalue("no_bubblewrap")
    outcome = ran("x = []\nwhile True: x.append(bytes(1 << 20))", limits=limits)
    assert outcome.status == 1
    assert b"MemoryError" in outcome.output


@walled
def test_hogs_that_share_the_work_end_too() -> None:
    """Each stays below the limit that the kernel holds it to."""
    outcome = ran("import os, signal\nfor _ in range(2): os.fork()\nx = b'x' * (180 << 20)\nsignal.pause()")
    assert outcome.killed_by == "memory"


@walled
def test_processes_that_share_their_memory_are_not_taken_for_hogs() -> None:
    told = said(
        """
        import os, time
        x = b"x" * (100 << 20)
        for _ in range(2):
            os.fork()
        time.sleep(0.3)  # long enough to be counted
        os.write(1, b"1 ")
        try:
            while True:  # the first one's end is the end of all
                os.wait()
        except ChildProcessError:
            pass
        """
    )
    assert told.split() == ["1"] * 4


@walled
def test_the_scratch_folder_has_a_bottom() -> None:
    outcome = ran("for n in range(200):\n    with open(f'{n}', 'wb') as f: f.write(bytes(1 << 23))")
    assert b"No space left" in outcome.output


@pytest.mark.parametrize("limits", [pytest.param(LIMITS, marks=walled), OPEN])
def test_endless_output_ends(limits: Sandbox, request: pytest.FixtureRequest, marker: str) -> None:
    if limits is OPEN:
        request.getfixturevalue("no_bubblewrap")
    outcome = ran("while True: print('y' * 1000)", marker, limits=limits)
    assert outcome.killed_by == "output"
    assert len(outcome.output) == LIMITS.output_kilobytes * 1024
    assert not alive(marker)


FOR_EVER = {
    "loop": "while True: pass",
    "loops": "import os\nfor _ in range(2): os.fork()\nwhile True: pass",
    "sleep": "import time; time.sleep(1000)",
    "deaf": "import signal\nfor n in (2, 15, signal.SIGXCPU): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "silent": "import os\nos.close(1); os.close(2)\nwhile True: pass",
}


@pytest.mark.parametrize("limits", [pytest.param(QUICK, marks=walled), QUICK.model_copy(update={"required": False})])
@pytest.mark.parametrize("code", FOR_EVER.values(), ids=FOR_EVER)
def test_endless_programs_end(code: str, limits: Sandbox, request: pytest.FixtureRequest, marker: str) -> None:
    if not limits.required:
        request.getfixturevalue("no_bubblewrap")
    outcome = ran(code, marker, limits=limits)
    assert outcome.killed_by == "time"
    assert not alive(marker)


# ---- what it may not leave behind ----

LEAVES = """
    import os, sys, time
    if os.fork() == 0:
        if "detached" in sys.argv:
            os.setsid()
            os.closerange(0, 100)
            if os.fork() > 0:
                os._exit(0)
        time.sleep(1000)
    print("gone")
"""


@walled
@pytest.mark.parametrize("how", ["detached", "attached"])
def test_a_child_that_would_survive_is_dead(how: str, marker: str) -> None:
    assert said(LEAVES, marker, how) == "gone\n"
    assert not alive(marker)


def test_a_child_that_would_survive_is_dead_without_walls(no_bubblewrap: None, marker: str) -> None:
    assert said(LEAVES, marker, limits=OPEN) == "gone\n"
    wait_until_gone(marker)


def wait_until_gone(marker: str) -> None:
    """Where nobody waits for what was killed. What was not killed stays for a thousand seconds."""
    end = time.monotonic() + 60
    while alive(marker) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(marker)


@pytest.mark.parametrize("limits", [pytest.param(LIMITS, marks=walled), OPEN])
def test_who_no_longer_waits_leaves_nothing(limits: Sandbox, request: pytest.FixtureRequest, marker: str) -> None:
    if limits is OPEN:
        request.getfixturevalue("no_bubblewrap")

    async def give_up() -> None:
        task = asyncio.create_task(run([PYTHON, "-I", "-S", "-c", "import time; time.sleep(1000)", marker], {}, limits))
        while not alive(marker):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    wait_until_gone(marker)


@walled
def test_when_the_whole_run_is_killed_the_programs_are_dead(marker: str) -> None:
    code = f"""
import asyncio, sys
from teachers.config import Sandbox
from teachers.sandbox import run
word = sys.stdin.readline().strip()
asyncio.run(run([{PYTHON!r}, "-I", "-S", "-c", "import time; time.sleep(1000)", word], {{}}, Sandbox(seconds=100)))
"""
    trainer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE)
    try:
        assert trainer.stdin is not None
        trainer.stdin.write(f"{marker}\n".encode())
        trainer.stdin.flush()
        while not alive(marker):
            assert trainer.poll() is None
            time.sleep(0.01)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.communicate()
    wait_until_gone(marker)


def test_closed_folders_and_links_in_the_scratch_folder(no_bubblewrap: None, tmp_path: Path) -> None:
    outside, room = tmp_path / "outside", tmp_path / "room"
    outside.mkdir(mode=0o755)
    room.mkdir()
    (outside / "kept.txt").write_text("kept")
    said(
        """
        import os, sys
        os.makedirs("closed/inner")
        open("closed/inner/file", "w")
        for place in ("link", "closed/link", "closed/inner/link"):
            os.symlink(sys.argv[1], place)
        os.chmod("closed/inner", 0)
        os.chmod("closed", 0)
        """,
        str(outside),
        limits=OPEN,
        room=room,
    )
    assert list(room.iterdir()) == []
    assert (outside / "kept.txt").read_text() == "kept"
    assert outside.stat().st_mode & 0o777 == 0o755
