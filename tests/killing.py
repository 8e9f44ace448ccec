"""Runs that are killed: each a process of its own that dies of SIGKILL.

Where it asks others, how far it comes is counted in its questions and not in seconds, so it is the same on any machine:
who has none left waits at the turnstile, however late the killer is. Else it is killed by what is on the disk, and if
the killer was too late the run begins once more from what was there before; or by itself, where a step would update.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from tests.runs import environment, run_here
from tests.servers.chat_server import Turnstile

TRIES = 10
PATIENCE = 100.0  # seconds
_IMPORTED = ("pipeline.run", "openai", "peft", "transformers.models.qwen3.modeling_qwen3")


# The step's rollouts are on disk then, and not its update.
_KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import trainer
from tests.runs import run_here

update = trainer.update

def killed(loop, rows, step, rate, early):
    if step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return update(loop, rows, step, rate, early)

trainer.update = killed
run_here(Path(sys.argv[1]), f"output={sys.argv[2]}")
"""


def run_until_killed(recipe: Path, folder: Path, step: int) -> None:
    """Runs it into `folder`, as a process that gets SIGKILL where `step` would update. Raises AssertionError where it
    ends before, with what it said."""
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(recipe), str(folder), str(step)],
        env=environment(), cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def nursery() -> ForkServerContext:
    """Where processes come from that have everything imported, and none of this one's threads, locks and sockets."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_IMPORTED])
    return context


def start_and_kill(
    born: ForkServerContext,
    recipe: Path,
    turnstile: Turnstile,
    questions: int,
    words: Path,
    ready: Callable[[], bool] = lambda: True,
) -> None:
    """Resumes the run, and kills it where it has asked `questions` and would ask more. words: what it said last.
    ready: what has to be seen as well, since others may be late who know what the one that waits knows.

    Raises AssertionError where it ends before, with what it said.
    """
    turnstile.let(questions)
    child = born.Process(target=_run, args=(recipe, words))
    child.start()
    while child.is_alive() and not turnstile.somebody_waits(0.05):
        pass
    end = time.monotonic() + PATIENCE
    while child.is_alive() and not ready() and time.monotonic() < end:
        time.sleep(0.01)
    assert child.exitcode is None, f"it ended by itself ({child.exitcode}) and said: {words.read_text()}"
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, words.read_text()


def kill_when(
    born: ForkServerContext,
    recipe: Path,
    output: Path,
    reached: Callable[[], bool],
    delay: Callable[[], float] = lambda: 0.0,
) -> None:
    """Resumes the run, or starts it, and kills it so many seconds after what is on the disk has `reached` a state.

    On a busy machine it may have come to its end before this process gets to look: then the output is put back as it
    was before, and it is tried again. Raises AssertionError where it was never killed.
    """
    before, words = (output.with_name(f"{output.name}-{name}") for name in ("before", "words"))
    if output.exists():
        shutil.copytree(output, before)
    for _ in range(TRIES):
        child = born.Process(target=_run, args=(recipe, words, f"output={output}"))
        child.start()
        if _killed(child, reached, delay()):
            shutil.rmtree(before, ignore_errors=True)
            return
        assert child.exitcode == 0, words.read_text()
        shutil.rmtree(output)
        if before.exists():
            shutil.copytree(before, output)
    raise AssertionError(f"it ended by itself before it could be killed, {TRIES} times")


def _killed(child: ForkServerProcess, reached: Callable[[], bool], delay: float) -> bool:
    """Whether it was: else it has ended by itself."""
    seen: float | None = None
    while child.is_alive():
        if seen is None and reached():
            seen = time.monotonic()
        if seen is not None and time.monotonic() - seen >= delay:
            child.kill()
            break
        time.sleep(0.001)
    child.join()
    return child.exitcode == -signal.SIGKILL


def _run(recipe: Path, words: Path, *overrides: str) -> None:
    with words.open("w") as file:  # what ends it too: the traceback goes to standard error
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run_here(recipe, *overrides, resume=True)
