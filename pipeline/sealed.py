"""A run in a network namespace of its own: only its loopback is there, and on it only the addresses that are allowed.

One process stays outside and carries bytes: the listening sockets are made inside, handed to it, and each connection
that arrives on one is joined to the real address. What is not handed over cannot be reached, whatever a library, a
plugin or a tracker tries: the kernel has no route. Linux only. Imports no torch: it is done before anything starts a
thread, since a namespace belongs to a thread and is inherited by those that it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import ipaddress
import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.errors import RunError
from pipeline.privacy import addresses, guard_of
from pipeline.recipe import RecipeBase
from teachers.config import ProvidedBase
from teachers.guard import is_loopback

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _SIOCGIFFLAGS, _SIOCSIFADDR = 0x8914, 0x8913, 0x8916
_IFF_UP = 1
_PR_SET_PDEATHSIG = 1
_PORTS = {"http": 80, "https": 443}
_PIECE = 1 << 16
_ADVICE = "set privacy.mode=open, or run where Linux lets a process make a network namespace"


_held: list[socket.socket] = []  # open as long as this process lives: the relay ends with it


@dataclass(frozen=True)
class Address:
    """An IPv4 address, as text, and a port."""

    host: str
    port: int


def allowed_addresses(recipe: RecipeBase) -> tuple[Address, ...]:
    """Where this recipe's teachers are, as far as they may be reached, and what it allows by host:port.

    Raises RunError for a name: there is nobody inside to ask what it means, and it may come to mean something else.
    """
    guard = guard_of(recipe)
    urls = [url for c in recipe.teachers.values() if isinstance(c, ProvidedBase) for url in addresses(c)]
    hosts = [urlsplit(url) for url in urls if guard.may_receive_private(url)]
    found = [_address(url.hostname or "", url.port or _PORTS[url.scheme]) for url in hosts]
    for entry in recipe.privacy.allowed:
        host, _, port = entry.rpartition(":")
        if host and port.isdigit():
            found.append(_address(host, int(port)))
    return tuple(dict.fromkeys(found))


def _address(host: str, port: int) -> Address:
    if host == "localhost":
        return Address("127.0.0.1", port)
    try:
        return Address(str(ipaddress.IPv4Address(host)), port)
    except ValueError as error:
        raise RunError(
            f"privacy.mode: sealed reaches addresses, not names: write {host} as its IPv4 address, in the teacher's url "
            "and in privacy.allowed"
        ) from error


def seal(allowed: Sequence[Address]) -> None:
    """Moves this process, which must have one thread, into a namespace where only `allowed` can be reached.

    Raises RunError where the system does not let it.
    """
    ours, relays = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    parent = os.getpid()
    if os.fork() == 0:
        ours.close()
        _stay_outside(relays, allowed, parent)
    relays.close()
    try:
        _enter_namespace()
        _bring_up(sorted({address.host for address in allowed if not is_loopback(address.host)}))
        listeners = [socket.create_server((address.host, address.port)) for address in allowed]
    except OSError as error:
        raise RunError(f"privacy.mode: sealed is not possible here: {error.strerror or error}; {_ADVICE}") from error
    for listener in listeners:
        socket.send_fds(ours, [b"+"], [listener.fileno()])
        listener.close()
    ours.sendall(b".")
    ours.recv(1)  # they are served from here on; it goes when this process does
    _held.append(ours)


# ---- inside ----


def _enter_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _bring_up(hosts: Iterable[str]) -> None:
    """The loopback, and further addresses on it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for number, host in enumerate(hosts):
            name = f"lo:{number + 1}".encode()
            wanted = struct.pack("16sHH4s8s", name, socket.AF_INET, 0, socket.inet_aton(host), b"")
            fcntl.ioctl(control, _SIOCSIFADDR, wanted)
        request = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | _IFF_UP, b""))


# ---- outside ----


def _stay_outside(mailbox: socket.socket, allowed: Sequence[Address], parent: int) -> None:
    """The relay's whole life; it never returns, and it does not outlive the run."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which may still have answers to fetch
        if os.getppid() == parent:
            listeners = []
            while True:
                message, descriptors, _, _ = socket.recv_fds(mailbox, 1, 1)
                if message != b"+":
                    break
                listeners += [socket.socket(fileno=descriptor) for descriptor in descriptors]
            if message == b".":
                asyncio.run(_relay(mailbox, list(zip(listeners, allowed, strict=True))))
        code = 0
    finally:
        os._exit(code)


async def _relay(mailbox: socket.socket, pairs: Sequence[tuple[socket.socket, Address]]) -> None:
    for listener, address in pairs:
        await asyncio.start_server(_joiner(address), sock=listener)
    mailbox.sendall(b"!")
    mailbox.setblocking(False)
    await asyncio.get_running_loop().sock_recv(mailbox, 1)  # until the run's end closes it


def _joiner(address: Address) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(address.host, address.port)
        except OSError:
            writer.close()  # as a refused connection: the client sees it end
            return
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))

    return join


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
