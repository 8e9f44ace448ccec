"""Runs first inside the sandbox: gives up what rights are left, sets the limits, writes the files, becomes the program.

    python -I -S launch.py STARTED

Standard input holds a line of JSON (`sandbox._order`), then the bytes of the files and of the program's own input. A 1
is written to the descriptor STARTED right before the program takes over, and behind it why it could not, so that what
goes wrong here is never taken for the program's doing. Standard library only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from typing import IO, Any


def main() -> None:
    started, order_file = int(sys.argv[1]), sys.stdin.buffer
    order: dict[str, Any] = json.loads(order_file.readline())
    if order["uid"] is not None:
        become(order["uid"])
    for name, size in order["files"]:
        write(name, order_file.read(size))
    feed(order_file.read(order["input"]))
    for kind, most in order["limits"].items():
        limit(getattr(resource, kind), most)
    os.set_inheritable(started, False)
    os.write(started, b"1")
    try:
        os.execvp(order["command"][0], order["command"])
    except OSError as error:
        os.write(started, f"{order['command'][0]}: {error.strerror}".encode())


def become(uid: int) -> None:
    """Another user for good: root's last capabilities go with it."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def write(name: str, content: bytes) -> None:
    """Executable, so that a script among the files can be run."""
    if folder := os.path.dirname(name):
        os.makedirs(folder, exist_ok=True)
    with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755), "wb") as file:
        file.write(content)


def feed(content: bytes) -> None:
    """The program's standard input: a file without a name, which it may leave unread."""
    file: IO[bytes]
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(content)
        file.seek(0)
        os.dup2(file.fileno(), 0)


def limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main()
