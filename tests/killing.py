"""Runs that are killed: each a process of its own, which asks so many questions and then dies of SIGKILL.

How far one comes is counted in its questions and not in seconds, so it is the same on any machine: who has none left
waits at the turnstile, however late the killer is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.runs import run_here
from tests.servers.chat_server import Turnstile

_IMPORTED = ("pipeline.run", "openai", "peft", "transformers.models.qwen3.modeling_qwen3")


def nursery() -> ForkServerContext:
    """Where processes come from that have everything imported, and none of this one's threads, locks and sockets."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_IMPORTED])
    return context


def start_and_kill(born: ForkServerContext, recipe: Path, turnstile: Turnstile, questions: int, words: Path) -> None:
    """Resumes the run, and kills it where it has asked `questions` and would ask more. words: what it said last.

    Raises AssertionError where it ends before, with what it said.
    """
    turnstile.let(questions)
    child = born.Process(target=_run, args=(recipe, words))
    child.start()
    while child.is_alive() and not turnstile.somebody_waits(0.05):
        pass
    assert child.exitcode is None, f"it ended by itself ({child.exitcode}) and said: {words.read_text()}"
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, words.read_text()


def _run(recipe: Path, words: Path) -> None:
    with words.open("w") as file:  # what ends it too: the traceback goes to standard error
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run_here(recipe, resume=True)
