"""What a process keeps of the memory that it has let go of."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# How many blocks are mapped by themselves while one of 20 MiB is held, after one like it was let go of: glibc would
# have learned from that to take the next one out of its heap.
MAPPED = """
import ctypes
from pipeline.heap import keep_less

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
keep_less()
libc.free(libc.malloc(20 << 20))
before = libc.mallinfo2().hblks
held = libc.malloc(20 << 20)
print(libc.mallinfo2().hblks - before, __import__("os").environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""


def told(**environment: str) -> list[str]:
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("not glibc, or an old one")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "ONEDNN_", "GLIBC_"))}
    command = [sys.executable, "-c", MAPPED]
    return subprocess.check_output(command, cwd=ROOT, env=clean | environment, text=True).split()


def test_a_large_block_is_mapped_by_itself_and_few_compiled_products_are_kept() -> None:
    assert told() == ["1", "128"]


def test_what_the_user_has_set_stays() -> None:
    mine = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9"}
    assert told(**mine) == ["0", "9"]
    assert told(GLIBC_TUNABLES=f"glibc.malloc.mmap_threshold={32 << 20}")[0] == "0"
