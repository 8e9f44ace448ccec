"""The process that stays outside of a sealed run, and carries bytes to the addresses that it may reach.

It does what it is asked over a socket: takes listening sockets that were made inside, and maps the users of the run's
user namespace. It dies with the run. A server that is down looks, from inside, like one that resets: the connection
to the relay stands already when the one to the server fails.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import socket
import struct
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NoReturn

LISTENER, MAP, DONE = b"+", b"m", b"."  # what it is asked; the last two are answered by the same

_PR_SET_PDEATHSIG = 1
_PIECE = 1 << 16

Pair = tuple[socket.socket, tuple[str, int]]


def stay_outside(mailbox: socket.socket, allowed: Sequence[tuple[str, int]], parent: int) -> NoReturn:
    """The relay's whole life; it never returns, and it does not outlive the run.

    allowed: where the connections go that arrive on the listening sockets, in the order in which those are handed over.
    """
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which may still have answers to fetch
        if os.getppid() == parent:
            listeners = _listeners(mailbox, parent)
            if listeners is not None:
                asyncio.run(_serve(mailbox, list(zip(listeners, allowed, strict=True))))
        code = 0
    except Exception:
        traceback.print_exc()  # the run hears only that it is alone
    finally:
        os._exit(code)


def _listeners(mailbox: socket.socket, parent: int) -> list[socket.socket] | None:
    """What is handed over; None where the run gave up."""
    listeners: list[socket.socket] = []
    while True:
        message, descriptors, _, _ = socket.recv_fds(mailbox, 1, 1)
        listeners += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if message == MAP:
            _map_users(parent)
            mailbox.sendall(MAP)
        elif message == DONE:
            return listeners
        elif message != LISTENER:
            return None


def _map_users(process: int) -> None:
    """Everybody inside is who he is outside: for root all users, since files belong to any of them; else one."""
    folder = Path(f"/proc/{process}")
    try:
        for name in ("uid_map", "gid_map"):
            ranges = [line.split() for line in Path("/proc/self", name).read_text().splitlines()]
            (folder / name).write_text("".join(f"{first} {first} {count}\n" for first, _, count in ranges))
    except PermissionError:
        (folder / "setgroups").write_text("deny")
        for name, number in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
            (folder / name).write_text(f"{number} {number} 1\n")


# ---- carrying ----


async def _serve(mailbox: socket.socket, pairs: Sequence[Pair]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each connection
    servers = [await asyncio.start_server(_joiner(*address), sock=listener) for listener, address in pairs]
    mailbox.sendall(DONE)
    mailbox.setblocking(False)
    await asyncio.get_running_loop().sock_recv(mailbox, 1)  # until the run's end closes it
    for server in servers:
        server.close()


def _joiner(host: str, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    under_way: set[asyncio.Task[None] | None] = set()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        under_way.add(task)  # nothing else holds a task that waits for bytes, and it would be collected with its cycle
        try:
            await joined(reader, writer)
        finally:
            under_way.discard(task)

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            _reset(writer)
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_carry(reader, far_writer))
                both.create_task(_carry(far_reader, writer))
        except* OSError:  # broken on one side is broken on the other; an end there would make a cut body look whole
            _reset(writer)
            _reset(far_writer)
        finally:
            writer.close()
            far_writer.close()

    return join


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the reader's end, which is passed on; the other direction may have more to say."""
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection.fileno() >= 0:
        # Closed with time to linger 0, a connection ends with RST.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
