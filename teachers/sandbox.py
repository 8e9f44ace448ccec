"""The one place where programs run that nobody has read: no network, no secrets, limits that hold, nothing left behind.

With bubblewrap a program sees a read-only system, the Python of this environment and a scratch folder in memory; it
has network, processes and mounts of its own, no environment but PATH and the like, and no rights. Without bubblewrap,
and only where `sandbox.required` is false, it runs with the limits, a scratch folder and a clean environment and no
more: it sees the files and the network of whoever runs it, and a process that detaches itself may survive.

A program's time is processor time, so that a score does not depend on what else the machine does; on the clock it may
take `WALL` times as much, from the moment when it begins. Memory is counted over all its processes by what they really
hold, beside the kernel's limit on each one's addresses. Not covered: faults of the kernel itself, and kernel memory
that belongs to no process's addresses (pipes, files in memory that are not mapped); where that matters, run the whole
job in a container of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import IO, Literal
from weakref import WeakKeyDictionary

from teachers.config import Sandbox
from teachers.walls import INSIDE, LAUNCH, PYTHON, TELL, Mount, bwrap, environment, is_root, missing_protection

KilledBy = Literal["time", "memory", "output", "processes", "signal"]

WALL = 3.0  # seconds on the clock for each second of processor time
START = 60.0  # seconds on the clock in which a program has begun, however busy the machine is
PATIENCE = 10.0  # seconds for which a killed process may go on dying
BWRAP_SAYS = re.compile(rb"\{[^}]*-[^}]*\}\s*")  # among what the launcher tells
LOOK_EVERY = 0.05  # seconds between two looks at what the processes use
SPARE_PROCESSES = 8  # between the recipe's limit, at which all are killed, and the kernel's, at which forks fail
OPEN_FILES = 256
UIDS = range(1_000_000_000, 2_000_000_000)  # nobody's: one drawn for each run where root starts it
MEGABYTE = 1 << 20


class SandboxError(Exception):
    """The sandbox itself did not work: one line that says why. What a program does is never one."""


@dataclass(frozen=True)
class Outcome:
    """What a program came to.

    status: its exit status, 128 + n where signal n ended it. output: standard output and error, cut at the limit.
    seconds: on the clock. killed_by: the limit that it met; signal where it died of one that was not ours; else None.
    """

    status: int
    output: bytes
    seconds: float
    killed_by: KilledBy | None


async def run(
    command: Sequence[str],
    files: Mapping[str, bytes],
    limits: Sandbox,
    input: bytes = b"",
    *,
    room: Path | None = None,
    mounts: Sequence[Mount] = (),
) -> Outcome:
    """Runs `command` in a scratch folder of its own that holds `files`, by relative path, and waits for its end.

    As many run at once as there are cores; the rest wait for their turn. When this returns, or is cancelled, no process
    of the program is left. room: where scratch folders are made without bubblewrap; default: the system's own place.
    mounts: what else it sees, or no longer sees.

    Raises SandboxError: no bubblewrap though it, or a mount, is required; no such command, no room.
    """
    for name in files:
        if name.startswith("/") or ".." in Path(name).parts:
            raise SandboxError(f"the file {name} would lie outside the scratch folder: give a relative path")
    missing = missing_protection()
    if missing is not None and (limits.required or mounts):
        raise SandboxError(missing)
    order = _order(command, files, limits, input, protected=missing is None)
    async with _turns():
        if missing is None:
            launcher = [*bwrap(limits.memory_megabytes * MEGABYTE // 4, mounts), PYTHON, "-I", "-S", INSIDE]
            return await _run(launcher, "/", order, limits, own_processes=2)
        with _scratch(room) as folder:
            return await _run([PYTHON, "-I", "-S", str(LAUNCH)], folder, order, limits, own_processes=0)


# ---- one run ----


def _order(
    command: Sequence[str], files: Mapping[str, bytes], limits: Sandbox, input: bytes, *, protected: bool
) -> bytes:
    """What goes to `launch.py`: a line of JSON, then the contents that it announces."""
    memory = limits.memory_megabytes * MEGABYTE
    kernel = {
        "RLIMIT_AS": memory, "RLIMIT_FSIZE": memory, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CPU": ceil(limits.seconds) + 1,
    }  # fmt: skip
    if protected:  # outside, it would count whatever else this user runs
        kernel["RLIMIT_NPROC"] = limits.processes + SPARE_PROCESSES
    head = {
        "command": list(command),
        "files": [[name, len(content)] for name, content in files.items()],
        "input": len(input),
        "limits": kernel,
        "uid": UIDS.start + secrets.randbelow(len(UIDS)) if protected and is_root() else None,
    }
    return b"".join([json.dumps(head).encode(), b"\n", *files.values(), input])


async def _run(launcher: Sequence[str], folder: str, order: bytes, limits: Sandbox, *, own_processes: int) -> Outcome:
    """own_processes: of the sandbox itself, which do not count as the program's."""
    start = time.perf_counter()
    output, heard = bytearray(), bytearray()
    (said, say), (told, tell) = os.pipe(), os.pipe()
    os.set_blocking(told, False)
    with os.fdopen(said, "rb", buffering=0) as pipe, os.fdopen(told, "rb", buffering=0) as ears:
        try:
            # An empty environment for bwrap too: a program may read that of its process 1.
            process = await _start(launcher, folder, {} if own_processes else environment(folder), say, tell)
        finally:
            os.close(say)
            os.close(tell)
        try:
            begun = partial(_begun, ears, heard)
            killed_by = await _until_end(process, order, pipe, output, begun, limits, own_processes)
        finally:
            _begun(ears, heard)
            first = re.search(rb'"child-pid": *(\d+)', heard)
            await _vanished([int(first[1])] if first else [])
    mark = bytes(BWRAP_SAYS.sub(b"", heard))
    if mark != b"1":
        raise SandboxError(_why(mark, bytes(output)))
    seconds = time.perf_counter() - start
    code = process.returncode or 0
    status = code if code >= 0 else 128 - code
    if killed_by is None and status > 128:
        out_of_time = status == 128 + signal.SIGKILL and seconds >= limits.seconds  # the kernel was first
        killed_by = "time" if out_of_time else "signal"
    return Outcome(status, bytes(output), seconds, killed_by)


def _begun(ears: IO[bytes], heard: bytearray) -> bool:
    """Whether the program has taken over from the launcher. heard: what was told so far; what is new is added."""
    heard += ears.read(1_000) or b""
    return BWRAP_SAYS.sub(b"", heard).startswith(b"1")


async def _start(launcher: Sequence[str], folder: str, variables: dict[str, str], say: int, tell: int) -> Process:
    """say: where the program's output goes. tell: where the launcher and bwrap, which closes its own, tell of it."""
    tell_too = os.dup(tell)
    words = [word.replace(TELL, str(tell_too)) for word in launcher]
    try:
        return await asyncio.create_subprocess_exec(
            *words, str(tell), stdin=PIPE, stdout=say, stderr=STDOUT, cwd=folder, env=variables,
            pass_fds=(tell, tell_too), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise SandboxError(f"{launcher[0]} does not start: {error.strerror}") from error
    finally:
        os.close(tell_too)


async def _until_end(
    process: Process,
    order: bytes,
    pipe: IO[bytes],
    output: bytearray,
    begun: Callable[[], bool],
    limits: Sandbox,
    own_processes: int,
) -> KilledBy | None:
    """Waits for the end of the program or for a limit; then none of its processes is left."""
    tasks = [
        asyncio.create_task(_flow(process, pipe, output, limits.output_kilobytes * 1024)),
        asyncio.create_task(_watch(process, begun, limits, own_processes)),
    ]
    feeding = asyncio.create_task(_feed(process, order))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        killed = _kill(process, with_group=own_processes == 0)
        for task in (*tasks, feeding):
            task.cancel()
        await asyncio.gather(*tasks, feeding, return_exceptions=True)
        await process.wait()
        await _vanished(killed)


async def _feed(process: Process, order: bytes) -> None:
    assert process.stdin is not None
    with suppress(ConnectionError):  # it is dead already, and what it told says why
        process.stdin.write(order)
        await process.stdin.drain()
    process.stdin.close()


async def _flow(process: Process, pipe: IO[bytes], output: bytearray, most: int) -> KilledBy | None:
    """Reads until nobody can write any more, and waits for the program's end."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        while chunk := await reader.read(1 << 16):
            room = most - len(output)
            output += chunk[:room]
            if len(chunk) > room:
                return "output"
    finally:
        transport.close()
    await process.wait()
    return None


def _why(heard: bytes, output: bytes) -> str:
    """Why the program did not start, from what the launcher told, or else printed last."""
    lines = (heard[1:] or output).decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")
    return f"the program did not start: {said[:200]}"


# ---- what its processes use ----

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


async def _watch(process: Process, begun: Callable[[], bool], limits: Sandbox, own_processes: int) -> KilledBy:
    """Returns when a limit is passed that the kernel does not hold for a tree of processes."""
    most = limits.memory_megabytes * MEGABYTE
    end, runs = time.monotonic() + START, False
    while True:
        await asyncio.sleep(LOOK_EVERY)
        if not runs and begun():
            end, runs = time.monotonic() + limits.seconds * WALL, True
        elif time.monotonic() > end:
            return "time"
        if process.returncode is not None:  # without bubblewrap it may leave others behind, who keep the pipe open
            _kill(process, with_group=own_processes == 0)
        seconds, tasks, resident = 0.0, -own_processes, 0
        pids = _tree(process.pid)
        for pid in pids:
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                seconds += sum(map(int, fields[11:15])) / TICKS  # its own and its dead children's, user and system
                tasks += int(fields[17])
                resident += int(fields[21]) * PAGE
        # First: many processes soon use up their time too, where this one has not looked for a while.
        if tasks > limits.processes:
            return "processes"
        if seconds > limits.seconds:
            return "time"
        # Pages that processes share are counted once for each of them; the exact sum costs more to find out.
        if resident > most and sum(map(_share, pids)) > most:
            return "memory"


def _tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    pids = [root]
    for pid in pids:  # grows on the way
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                pids += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
    return pids


def _share(pid: int) -> int:
    """Bytes of memory, where what n processes share counts 1/n for each."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _kill(process: Process, *, with_group: bool) -> list[int]:
    """The whole tree; whom it found. Under bubblewrap the kernel ends all that live in its process namespace."""
    pids = _tree(process.pid) if process.returncode is None else []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if with_group:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return pids


async def _vanished(pids: Sequence[int]) -> None:
    """Waits until killed processes are dead. The first one of a process namespace dies after all others."""
    end = time.monotonic() + PATIENCE
    while any(map(_runs, pids)) and time.monotonic() < end:
        await asyncio.sleep(0.001)
    for pid in pids:  # in a container whose first process is this one, orphans come to it
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


# ---- room ----


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def _turns() -> asyncio.Semaphore:
    """One for all sandboxes of this event loop: more programs than cores only lengthen each other's time."""
    return _TURNS.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(len(os.sched_getaffinity(0))))


@contextmanager
def _scratch(room: Path | None) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="tutelage-", dir=room)
    try:
        yield folder
    finally:
        for place, names, _ in os.walk(folder):  # folders that a program has closed; links are not followed
            for path in (os.path.join(place, name) for name in names):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
        shutil.rmtree(folder)
