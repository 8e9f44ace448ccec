"""Which texts are too alike to stand on both sides of a split: nearly the same tokens, or code equal but for names.

Tokens are compared as sets of shingles. MinHash with banding (Broder 1997; Leskovec et al., Mining of Massive Datasets,
chapter 3) finds the candidates, and each is verified by its exact Jaccard similarity, so that what is found is right;
at the threshold a pair is missed with probability (1 - 0.8**ROWS)**BANDS = 3e-6. The arithmetic is numpy's over a whole
file at once, wrapping at 2**64.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.codebase.normal_form import normal_forms
from pipeline.codebase.types import Language

Hashes = npt.NDArray[np.uint64]

NEAR: Final = 0.8  # the Jaccard similarity from which on two texts are one
WIDTH: Final = 5  # tokens of a shingle
LEAST: Final = 30  # shingles: below, a text is a formality that many files share, such as an `__init__.py` of imports
BANDS: Final = 32
ROWS: Final = 5
_CERTAINLY_FAR: Final = 0.2  # below the threshold: six standard deviations of what BANDS x ROWS hashes estimate

_STRING = r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
_HASH_COMMENT = re.compile(rf'("""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|{_STRING})|\#[^\n]*', re.DOTALL)
_SLASH_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_SPACE, _WORD, _MARK = 0, 1, 2


@dataclass(frozen=True)
class Profile:
    """What of a text is compared. shingles: sorted, without repetition; empty for a text that is too short to tell.
    forms: of its functions and of the whole, equal where the code is equal but for names, constants and comments."""

    shingles: Hashes
    forms: frozenset[bytes]


def profile(text: str, language: Language | None, forms: frozenset[bytes] | None = None) -> Profile:
    """forms: where they are known already."""
    if forms is None:
        forms = normal_forms(text) if language == "python" else frozenset()
    return Profile(shingles(text, language), forms)


# ---- shingles ----


def shingles(text: str, language: Language | None) -> Hashes:
    """(S,) the hashes of WIDTH tokens in a row, without comments: a licence put on top makes no other file.

    A token is a word or a single mark. A language that is not read as code keeps everything.
    """
    if language is not None:
        text = (_HASH_COMMENT if language == "python" else _SLASH_COMMENT).sub(r"\1", text)
    tokens = _tokens(text)
    if len(tokens) - WIDTH + 1 < LEAST:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, WIDTH)
    return np.unique(_mixed((windows * _powers(_MULTIPLIER, WIDTH)).sum(axis=1, dtype=np.uint64)))


def _tokens(text: str) -> Hashes:
    """(T,) one hash per token: the sum of byte x M**position, times M**-(the position of its first byte)."""
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    kinds = _kinds()[data]
    begins = kinds == _MARK
    begins[1:] |= (kinds[1:] == _WORD) & (kinds[:-1] != _WORD)
    begins[:1] |= kinds[:1] == _WORD
    first = np.flatnonzero(begins)
    if not len(first):
        return np.empty(0, np.uint64)
    weighted = np.where(kinds == _SPACE, np.uint64(0), data.astype(np.uint64) * _powers(_MULTIPLIER, len(data)))
    return _mixed(np.add.reduceat(weighted, first) * _powers(_INVERSE, len(data))[first])


@lru_cache(maxsize=1)
def _kinds() -> npt.NDArray[np.uint8]:
    """(256,) bytes of other scripts count as letters."""
    kinds = np.full(256, _MARK, np.uint8)
    kinds[[*b" \t\n\r\f\v"]] = _SPACE
    kinds[[byte for byte in range(256) if byte >= 128 or chr(byte).isalnum() or byte == ord("_")]] = _WORD
    return kinds


def _powers(base: np.uint64, count: int) -> Hashes:
    """(count,) base**0, base**1, ..."""
    return _table(base, max(16, (count - 1).bit_length()))[:count]


@lru_cache(maxsize=32)
def _table(base: np.uint64, bits: int) -> Hashes:
    table = np.full(1 << bits, base, np.uint64)
    table[0] = 1
    return np.multiply.accumulate(table)


def _mixed(values: Hashes) -> Hashes:
    """The finalizer of splitmix64: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def similarity(left: Hashes, right: Hashes) -> float:
    """Jaccard, of sorted sets; 0 where one is empty."""
    if not len(left) or not len(right):
        return 0.0
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)


# ---- candidates ----


def signature(values: Hashes) -> npt.NDArray[np.uint32]:
    """(BANDS * ROWS,) the least of each permutation of the shingles, S > 0."""
    count = BANDS * ROWS
    odd = (_mixed(np.arange(1, count + 1, dtype=np.uint64)) | np.uint64(1)).astype(np.uint32)
    least = np.full(count, np.iinfo(np.uint32).max, np.uint32)
    high = (values >> np.uint64(32)).astype(np.uint32)
    for begin in range(0, len(high), 4096):  # a part that stays in the cache
        np.minimum(least, (odd[:, None] * high[None, begin : begin + 4096]).min(axis=1), out=least)
    return least


@dataclass(frozen=True)
class _Buckets:
    """numbers: of the texts that have shingles. signatures: a row for each. members: band and its values -> rows."""

    numbers: list[int]
    signatures: npt.NDArray[np.uint32]
    members: Mapping[tuple[int, bytes], list[int]]


def _buckets(profiles: Sequence[Profile]) -> _Buckets:
    numbers = [number for number, one in enumerate(profiles) if len(one.shingles)]
    signatures = np.empty((len(numbers), BANDS * ROWS), np.uint32)
    members: dict[tuple[int, bytes], list[int]] = {}
    for row, number in enumerate(numbers):
        signatures[row] = signature(profiles[number].shingles)
        data, width = signatures[row].tobytes(), ROWS * 4
        for band in range(BANDS):
            members.setdefault((band, data[band * width : (band + 1) * width]), []).append(row)
    return _Buckets(numbers, signatures, members)


def _alike(signatures: npt.NDArray[np.uint32], row: int, others: list[int], threshold: float) -> Iterator[int]:
    """Those of `others` that may be near by their estimated similarity: the exact one costs more."""
    agreement = (signatures[others] == signatures[row]).mean(axis=1)
    yield from (other for other, share in zip(others, agreement, strict=True) if share >= threshold - _CERTAINLY_FAR)


# ---- what is too near ----


def groups(
    profiles: Sequence[Profile], joined: Iterable[tuple[int, int]] = (), threshold: float = NEAR
) -> tuple[int, ...]:
    """For each text the least number in its group: those that are near, or near to one that is. joined: pairs that
    belong together for another reason."""
    sets = _Sets(len(profiles))
    for left, right in joined:
        sets.join(left, right)
    first: dict[bytes, int] = {}
    for number, one in enumerate(profiles):
        for form in one.forms:
            sets.join(first.setdefault(form, number), number)
    buckets = _buckets(profiles)
    refused: set[tuple[int, int]] = set()
    for rows in buckets.members.values():
        for place, row in enumerate(rows[:-1]):
            left = buckets.numbers[row]
            later = [r for r in rows[place + 1 :] if sets.find(buckets.numbers[r]) != sets.find(left)]
            later = [r for r in later if (row, r) not in refused]
            for other in _alike(buckets.signatures, row, later, threshold) if later else ():
                right = buckets.numbers[other]
                if similarity(profiles[left].shingles, profiles[right].shingles) >= threshold:
                    sets.join(left, right)
                else:
                    refused.add((row, other))
    return tuple(sets.find(number) for number in range(len(profiles)))


def nearest(profiles: Sequence[Profile], others: Sequence[Profile], threshold: float = NEAR) -> dict[int, int]:
    """The number of a text that is near to one of the others -> the number of the first such."""
    forms: dict[bytes, int] = {}
    for number, one in enumerate(others):
        for form in one.forms:
            forms.setdefault(form, number)
    buckets = _buckets(others)
    found: dict[int, int] = {}
    for number, one in enumerate(profiles):
        near = {forms[form] for form in one.forms if form in forms}
        if len(one.shingles):
            near |= set(_near(one, buckets, others, threshold))
        if near:
            found[number] = min(near)
    return found


def _near(one: Profile, buckets: _Buckets, others: Sequence[Profile], threshold: float) -> Iterator[int]:
    values = signature(one.shingles).reshape(BANDS, ROWS)
    rows = {row for band in range(BANDS) for row in buckets.members.get((band, values[band].tobytes()), ())}
    for row in sorted(rows):
        if (buckets.signatures[row] == values.ravel()).mean() >= threshold - _CERTAINLY_FAR:
            number = buckets.numbers[row]
            if similarity(one.shingles, others[number].shingles) >= threshold:
                yield number


class _Sets:
    """Disjoint sets; a set is known by its least number, so that no order of joining changes it."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number

    def join(self, left: int, right: int) -> None:
        left, right = sorted((self.find(left), self.find(right)))
        self._parent[right] = left
