"""The real command on a pseudo-terminal, and its screen as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable

import pyte

from tests.runs import command, environment


class Terminal:
    """A process on a terminal of so many columns and rows. `raw` is all that it wrote."""

    def __init__(self, *arguments: str, columns: int = 100, rows: int = 30, **variables: str) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            command(*arguments), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**environment(), "TERM": "xterm-256color", "PYTHONUTF8": "1", **variables},
        )  # fmt: skip
        os.close(slave)

    def resize(self, columns: int, rows: int) -> None:
        """The window has another size, and who runs in it is told."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGWINCH)

    def read_until(self, seen: Callable[[str], bool], seconds: float = 200) -> str:
        """Reads until the screen's text is as wanted. Fails where the process ends or time is up before."""
        end = time.monotonic() + seconds
        while not seen(self.text):
            assert time.monotonic() < end, self.text
            assert self._read(1.0), self.text
        return self.text

    def read_to_end(self) -> int:
        """Reads all that comes. Returns the exit status."""
        while self._read(60.0):
            pass
        return self.process.wait(60)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def _read(self, seconds: float) -> bool:
        """False at the end."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)
