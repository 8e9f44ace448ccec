"""A vLLM server as a process of this run: started, started again where it died, ended with the run."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import RunError

HOST = "127.0.0.1"
_MODULE = "vllm.entrypoints.openai.api_server"
_SETTINGS = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
_LAST_WORDS = 60_000  # characters of the log that are searched for why it ended
_GOES_WITHIN = 20.0  # seconds, when asked to
_PR_SET_PDEATHSIG = 1


@dataclass(eq=False)
class ServerProcess:
    """python: that has vLLM. flags: all but model, host and port. log: what it says. started: how often it was."""

    python: str
    flags: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    started: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, model: str) -> None:
        """Serves `model`, a folder or a hub name; what ran before is ended. Ready is who answers at /health.

        Raises RunError where there is no such python.
        """
        self.stop()
        self.port = self.port or _free_port()
        command = [self.python, "-m", _MODULE, "--model", model, "--host", HOST, "--port", str(self.port), *self.flags]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.log.open("ab") as out:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **_SETTINGS, **self.environment},
                    start_new_session=True,  # its workers are ended with it
                    preexec_fn=_end_with_parent,
                )
        except OSError as error:
            raise RunError(
                f"rollout.server.python: {self.python} cannot be started ({error.strerror}); name one that has vLLM"
            ) from error
        self.started += 1

    def stop(self) -> None:
        """Ends it and its workers."""
        if self._process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            try:
                self._process.wait(_GOES_WITHIN)
            except subprocess.TimeoutExpired:
                continue
            if sign == signal.SIGTERM:  # it may have gone without its workers
                continue
        self._process = None

    def last_words(self) -> str:
        """Why it ended, as far as its log says: the last line that names an error."""
        if not self.log.exists():
            return "it said nothing"
        lines = self.log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].splitlines()
        told = [line for line in lines if "Error" in line] or [line for line in lines if line.strip()]
        return " ".join((told or ["it said nothing"])[-1].split())[-300:]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
    return port


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """A run that is killed takes its server with it: nobody else would end it. Linux only."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
