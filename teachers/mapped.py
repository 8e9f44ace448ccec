"""Weights that stay in their file: in memory while a teacher's turn lasts, and forgotten between its turns.

transformers does not read a .safetensors file into memory where the dtype is the file's own: parameters lie in a
mapping of it, and the kernel brings pages in when they are touched. It can be told that they are not needed any more;
the next turn finds them in its cache of the file. So ten teachers need the memory of one. The file must stay as it is:
one that is written over while a run uses it would be read anew. Linux only; elsewhere nothing is forgotten.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from teachers.scoring import Running

_MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class Pages:
    """A stretch of addresses at which a file of weights is mapped."""

    start: int
    end: int


def pages_of(model: nn.Module) -> tuple[Pages, ...]:
    """The mappings of .safetensors files that parameters of `model` lie in.

    None of a model that learns: what was written to such a page exists nowhere else, and would be lost.
    """
    parameters = list(model.parameters())
    if not _MAPS.exists() or any(parameter.requires_grad for parameter in parameters):
        return ()
    addresses = [parameter.data_ptr() for parameter in parameters if parameter.device.type == "cpu"]
    return tuple(pages for pages in _files() if any(pages.start <= address < pages.end for address in addresses))


def _files() -> Iterator[Pages]:
    """As /proc/PID/maps has them: `start-end permissions offset device inode path`, a private mapping with a p."""
    for line in _MAPS.read_text(errors="replace").splitlines():
        where, permissions, *_, path = line.split(None, 5)
        if path.endswith(".safetensors") and permissions.endswith("p"):
            start, end = (int(number, 16) for number in where.split("-"))
            yield Pages(start, end)


def forget(pages: tuple[Pages, ...]) -> None:
    """Takes them out of this process's memory. What is there is read from the file when it is next touched."""
    for each in pages:
        _madvise()(each.start, each.end - each.start, mmap.MADV_DONTNEED)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def in_turn(running: Running, pages: tuple[Pages, ...]) -> Running:
    """`running`, after which the pages are forgotten."""

    @contextmanager
    def turn() -> Iterator[None]:
        try:
            with running():
                yield
        finally:
            forget(pages)

    return turn if pages else running
