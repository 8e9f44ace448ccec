"""The processes that read files, and the most that a file may ask of one.

What nobody writes but a test of compilers, `a<a<a<…` or a million open comments, keeps a parser busy for hours, takes
all memory, or overflows its stack. None of it can be stopped from within: it ends its process, and no other.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SECONDS, SECONDS_PER_MEGABYTE = 10.0, 40.0  # of a processor, for one file; 8 for a megabyte are usual
MEMORY, MEMORY_PER_BYTE = 1 << 30, 500


def pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes: a fork of one that runs torch's threads may hang."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    """Ctrl-C is the parent's to handle. What a parser says while it dies is nothing that a user can use."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Ends this process where a file of `size` bytes takes too much time, and lets no more memory be had than is usual
    for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _memory() + MEMORY + MEMORY_PER_BYTE * size
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS + SECONDS_PER_MEGABYTE * size / 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)


def _memory() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


@contextmanager
def without_collection() -> Iterator[None]:
    """Trees and outlines hold no circles: to look for them costs a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
