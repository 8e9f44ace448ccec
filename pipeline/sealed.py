"""A run in a network namespace of its own: only its loopback is there, and on it only the addresses that are allowed.

One process stays outside and carries bytes (`relay.py`): the listening sockets are made inside, handed to it, and each
connection that arrives on one is joined to the real address. What is not handed over cannot be reached, whatever a
library, a plugin or a tracker tries: the kernel has no route. Threads and programs that the run starts are inside too.

The namespace belongs to a user namespace of its own where the system allows one, so that root too cannot go back out
of it, nor get at the relay. Abstract unix sockets belong to a network namespace, and those outside are gone; unix
sockets with a path (a docker.sock, an ssh agent's) are files, and remain as reachable as files are.

Linux only. Imports no torch: it is done before anything starts a thread, since a namespace belongs to a thread and is
inherited by those that it starts.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import RunError
from pipeline.privacy import addresses, guard_of, writer_addresses
from pipeline.recipe import RecipeBase
from pipeline.relay import DONE, LISTENER, MAP, stay_outside
from teachers.config import ProvidedBase
from teachers.guard import Guard, host_of, is_loopback, parsed, port_of

if TYPE_CHECKING:
    from pipeline.recipe_file import LoadedRecipe

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _SIOCGIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8913, 0x8916, 0x891C
_IFF_UP = 1
_ADVICE = "set privacy.mode=open, or run where Linux lets a process make a network namespace"

_held: list[socket.socket] = []  # open as long as this process lives: the relay ends with it


@dataclass(frozen=True)
class Address:
    """An IPv4 address, as text, and a port."""

    host: str
    port: int


# ---- what may be reached ----


def seal_if_asked(loaded: LoadedRecipe) -> None:
    """Seals this process where the recipe, or one that it prepares, says privacy.mode: sealed: they share it.

    Raises RunError as `allowed_addresses` and `seal` do.
    """
    recipes = list(_recipes(loaded))
    if any(recipe.privacy.mode == "sealed" for recipe in recipes):
        found = [address for recipe in recipes for address in allowed_addresses(recipe)]
        seal(tuple(dict.fromkeys(found)))


def _recipes(loaded: LoadedRecipe) -> Iterator[RecipeBase]:
    yield loaded.recipe
    for inner in loaded.prepared.values():
        yield from _recipes(inner)


def allowed_addresses(recipe: RecipeBase) -> tuple[Address, ...]:
    """Where this recipe's teachers are, and the server that writes, and what it allows by host:port.

    Raises RunError for a teacher that would be out of reach, for an address without a port that no teacher is at, and
    for a name: there is nobody inside to ask what it means, and it may come to mean something else.
    """
    guard = guard_of(recipe)
    found: list[Address] = []
    for name, config in recipe.teachers.items():
        urls = addresses(config) if isinstance(config, ProvidedBase) else ()
        found += [_within_reach(guard, url, f"teachers.{name}", "leave this teacher out") for url in urls]
    writers = writer_addresses(recipe)
    found += [_within_reach(guard, url, "rollout.server", "start a server on this machine") for url in writers]
    for entry in recipe.privacy.allowed:
        host, entry_port = parsed(entry)
        if entry_port is not None:
            found.append(_address(host, entry_port))
        elif _address(host, 0).host not in {address.host for address in found}:
            raise RunError(
                f"privacy.allowed: {entry} has no port, and no teacher is there; write {entry}:PORT, which is all that "
                "privacy.mode: sealed lets through"
            )
    return tuple(dict.fromkeys(found))


def _within_reach(guard: Guard, url: str, key: str, remedy: str) -> Address:
    """Raises RunError for an address that a sealed run would not reach. key: of the recipe, where it stands."""
    host, port = host_of(url), port_of(url)
    if port is None or not guard.may_receive_private(url):
        raise RunError(
            f"{key}: privacy.mode: sealed leaves {host or url} out of reach; allow it by "
            f"privacy.allowed=[{host or url}], or {remedy}"
        )
    return _address(host, port)


def _address(host: str, port: int) -> Address:
    if host == "localhost":
        return Address("127.0.0.1", port)
    try:
        return Address(str(ipaddress.IPv4Address(host)), port)
    except ValueError as error:
        raise RunError(
            f"privacy.mode: sealed reaches addresses, not names: write {host} as its IPv4 address, in the teacher's "
            "url and in privacy.allowed"
        ) from error


# ---- inside ----


def seal(allowed: Sequence[Address]) -> None:
    """Moves this process, which must have one thread, into a namespace where only `allowed` can be reached.

    Raises RunError for several processes, and where the system does not let it.
    """
    _require_one_process()
    ours, relays = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    parent = os.getpid()
    if os.fork() == 0:
        ours.close()
        stay_outside(relays, [(address.host, address.port) for address in allowed], parent)
    relays.close()
    try:
        _enter_namespace(ours)
        _bring_up(sorted({address.host for address in allowed if not is_loopback(address.host)}))
        for address in allowed:
            with socket.create_server((address.host, address.port)) as listener:
                socket.send_fds(ours, [LISTENER], [listener.fileno()])
        _ask(ours, DONE)  # they are served from here on; the relay goes when this process does
    except OSError as error:
        raise RunError(f"privacy.mode: sealed is not possible here: {error.strerror or error}; {_ADVICE}") from error
    _held.append(ours)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # else they try for minutes what cannot be
        os.environ[name] = "1"


def _require_one_process() -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise RunError(
            f"privacy.mode: sealed is for one process, and here are {size}, which could not reach each other; start "
            "`tutelage run` by itself, or set privacy.mode=open"
        )
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("sealed too late: a thread that runs already would stay outside")


def _enter_namespace(mailbox: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        _ask(mailbox, MAP)
    elif libc.unshare(_CLONE_NEWNET) != 0:  # where user namespaces are switched off root can still do without
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _ask(mailbox: socket.socket, what: bytes) -> None:
    """Has the relay do something, and waits until it is done."""
    mailbox.sendall(what)
    if mailbox.recv(1) != what:
        raise OSError(errno.EPIPE, "the process that was to stay outside has ended")


def _bring_up(hosts: Iterable[str]) -> None:
    """The loopback, and further addresses on it, each by itself: its neighbours stay out of reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for number, host in enumerate(hosts):
            name = f"lo:{number + 1}".encode()
            for request, value in ((_SIOCSIFADDR, host), (_SIOCSIFNETMASK, "255.255.255.255")):
                packed = struct.pack("16sHH4s8s", name, socket.AF_INET, 0, socket.inet_aton(value), b"")
                fcntl.ioctl(control, request, packed)
        asked = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(control, _SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | _IFF_UP, b""))
