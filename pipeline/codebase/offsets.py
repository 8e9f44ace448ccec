"""Parsers count bytes of UTF-8; everything after them counts characters."""

from __future__ import annotations

from collections.abc import Sequence


def characters_before(data: bytes) -> Sequence[int]:
    """For each byte offset of UTF-8 that is a character's boundary, from 0 to len(data): the characters before it."""
    if data.isascii():
        return range(len(data) + 1)

    import numpy as np

    begins = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80  # all bytes but those that continue a character
    table = np.zeros(len(data) + 1, np.int32)
    np.cumsum(begins, out=table[1:])
    return table.data  # unlike an array, it gives plain ints, and quickly
