"""How much a process keeps of what it has let go of: set before torch is imported.

Left alone, glibc takes tensors of up to 32 MiB out of one heap, between small things that stay, and keeps the holes;
oneDNN keeps a thousand compiled products, a third of a megabyte each, where a step needs about ninety.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PRODUCTS = "128"
_LARGE = 16 << 20  # bytes; from here on a tensor is mapped by itself, and its memory goes back when it does
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_SET_BY_USER = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}


def keep_less() -> None:
    """What the user has set in the environment stays."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PRODUCTS)
    if sys.platform != "linux" or not _SET_BY_USER.isdisjoint(os.environ):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; another libc has none
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGE)
        set_option(_TRIM_THRESHOLD, 2 * _LARGE)  # as glibc would: less, and the heap's end comes and goes
