"""For tests of a sealed run: it tries every way out that it knows, writes down what came of it, and waits."""

import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from teachers.types import Answer, Judgment, SignalKind

CHILD = (
    "import os, socket, sys; print(os.readlink('/proc/self/ns/net')); print(socket.socket().connect_ex({address!r}))"
)


def came_of(attempt):
    """The error's number, 0 where there is none."""
    try:
        attempt()
    except socket.gaierror:
        return "no such name"
    except OSError as error:
        return error.errno
    return 0


def connected(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.settimeout(20)
        tried.connect(address)


def said(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tried:
        tried.sendto(b"hello", address)


def gone_back(process):
    """Into another process's network namespace."""
    descriptor = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def by_a_child(address):
    words = [sys.executable, "-c", CHILD.format(address=address)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def tried(options):
    inside, refused = "127.0.0.1", (options["host"], options["port"])
    relay = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()[0]
    return {
        "namespace": os.readlink("/proc/thread-self/ns/net"),
        "main thread": os.readlink("/proc/self/ns/net"),
        "child": by_a_child((inside, options["port"])),
        "allowed": came_of(lambda: connected(socket.AF_INET, (inside, options["allowed"]))),
        "another port of the host": came_of(lambda: connected(socket.AF_INET, refused)),
        "far": came_of(lambda: connected(socket.AF_INET, ("192.0.2.1", 80))),
        "far, version 6": came_of(lambda: connected(socket.AF_INET6, ("2001:db8::1", 80))),
        "the host's own address": came_of(lambda: connected(socket.AF_INET, (options["outward"], options["port"]))),
        "datagram": came_of(lambda: said(("192.0.2.1", 53))),
        "name": came_of(lambda: socket.getaddrinfo("example.com", 80)),
        "abstract": came_of(lambda: connected(socket.AF_UNIX, "\0" + options["abstract"])),
        "back by the relay": came_of(lambda: gone_back(relay)),
        "back by the parent": came_of(lambda: gone_back(options["parent"])),
    }


class Spy:
    signals = frozenset({SignalKind.JUDGMENT})

    def __init__(self, name, options, tools):
        self.options = options

    async def score(self, request, deadline):
        found = Path(self.options["folder"], "found.json")
        if not found.exists():
            result = tried(self.options)
            found.with_suffix(".partial").write_text(json.dumps(result))
            found.with_suffix(".partial").rename(found)
            Path(self.options["folder"], "go").read_text()  # a pipe: until the test has looked as well
        return Answer(Judgment(0.5))
