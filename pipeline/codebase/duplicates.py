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
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.codebase.normal_form import normal_forms
from pipeline.codebase.types import Language, Sketch

Hashes = npt.NDArray[np.uint64]

NEAR: Final = 0.8  # the Jaccard similarity from which on two texts are one
WIDTH: Final = 5  # tokens of a shingle
LEAST: Final = 30  # shingles: below, a text is a formality that many files share, such as an `__init__.py` of imports
BANDS: Final = 32
ROWS: Final = 5
MOST_VERIFIED: Final = 500_000_000  # shingles, about 20 s
_CERTAINLY_FAR: Final = 0.2  # below the threshold: six standard deviations of what BANDS x ROWS hashes estimate

_STRING = r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
_HASH_COMMENT = re.compile(rf'("""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|{_STRING})|\#[^\n]*', re.DOTALL)
_SLASH_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_SPACE, _WORD, _MARK = 0, 1, 2


@dataclass(frozen=True)
class Profile:
    """A text that is compared. Its shingles are made where they are needed, which is seldom."""

    text: str
    language: Language | None
    sketch: Sketch

    @cached_property
    def shingles(self) -> Hashes:
        return shingles(self.text, self.language)


def profile(text: str, language: Language | None, known: Sketch | None = None) -> Profile:
    """known: the text's sketch, where somebody made it before."""
    return Profile(text, language, known or sketch(text, language))


def sketch(text: str, language: Language | None) -> Sketch:
    """Two texts with an equal form are equal but for names, constants and comments, in a function or as a whole."""
    found = shingles(text, language)
    forms = normal_forms(text) if language == "python" else frozenset()
    return Sketch(signature(found).tobytes() if len(found) else b"", forms)


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
    """numbers: (R,) of the texts that have a signature. signatures: a row for each. members: band and its values ->
    rows, in order."""

    numbers: npt.NDArray[np.int64]
    signatures: npt.NDArray[np.uint32]
    members: Mapping[tuple[int, bytes], list[int]]


def _buckets(profiles: Sequence[Profile]) -> _Buckets:
    numbers = [number for number, one in enumerate(profiles) if one.sketch.signature]
    members: dict[tuple[int, bytes], list[int]] = {}
    for row, number in enumerate(numbers):
        for place in _bands(profiles[number].sketch):
            members.setdefault(place, []).append(row)
    written = b"".join(profiles[number].sketch.signature for number in numbers)
    signatures = np.frombuffer(written, np.uint32).reshape(len(numbers), BANDS * ROWS)
    return _Buckets(np.array(numbers, np.int64), signatures, members)


def _bands(of: Sketch) -> Iterator[tuple[int, bytes]]:
    width = ROWS * 4
    return ((band, of.signature[band * width : (band + 1) * width]) for band in range(BANDS))


class _Verifier:
    """Whether two texts are near, at first by an exact comparison.

    Of files that came out of one mould each pair may be near and is not, and there would be as many comparisons as
    pairs. After `most` shingles what may be near counts as near: that keeps more together, and never less.
    """

    def __init__(self, threshold: float, most: int) -> None:
        self._threshold = threshold
        self._left = most

    def may_be_near(self, one: npt.NDArray[np.uint32], others: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """By the estimates: which of the signatures `others` (R, ·) belong to texts that may be near to `one`'s."""
        agreement: npt.NDArray[np.int64] = (others == one).sum(axis=1)
        return agreement >= (self._threshold - _CERTAINLY_FAR) * len(one)

    def near(self, one: Profile, other: Profile) -> bool:
        if self._left <= 0:
            return True
        self._left -= len(one.shingles) + len(other.shingles)
        return similarity(one.shingles, other.shingles) >= self._threshold


# ---- what is too near ----


def groups(
    profiles: Sequence[Profile],
    joined: Iterable[tuple[int, int]] = (),
    threshold: float = NEAR,
    most: int = MOST_VERIFIED,
) -> tuple[int, ...]:
    """For each text the least number in its group: those that are near, or near to one that is. joined: pairs that
    belong together for another reason. most: of shingles that are compared, see `_Verifier`."""
    sets = _Sets(len(profiles))
    for left, right in joined:
        sets.join(left, right)
    first: dict[bytes, int] = {}
    for number, one in enumerate(profiles):
        for form in one.sketch.forms:
            sets.join(first.setdefault(form, number), number)
    buckets = _buckets(profiles)
    verifier = _Verifier(threshold, most)
    refused: set[tuple[int, int]] = set()
    for members in buckets.members.values():
        if len(members) > 1:
            _join_near(np.array(members), profiles, buckets, verifier, sets, refused)
    return tuple(sets.find(number) for number in range(len(profiles)))


def _join_near(
    rows: npt.NDArray[np.int64],
    profiles: Sequence[Profile],
    buckets: _Buckets,
    verifier: _Verifier,
    sets: _Sets,
    refused: set[tuple[int, int]],
) -> None:
    """Of one bucket. refused: pairs of rows that were compared before and are not near."""
    labels = np.array([sets.find(number) for number in buckets.numbers[rows].tolist()])
    for place, row in enumerate(rows[:-1].tolist()):
        later = np.flatnonzero(labels[place + 1 :] != labels[place]) + place + 1
        if not len(later):
            continue
        later = later[verifier.may_be_near(buckets.signatures[row], buckets.signatures[rows[later]])]
        for at in later.tolist():
            other = int(rows[at])
            if labels[at] == labels[place] or (row, other) in refused:
                continue
            left, right = int(buckets.numbers[row]), int(buckets.numbers[other])
            if verifier.near(profiles[left], profiles[right]):
                sets.join(left, right)
                labels[(labels == labels[at]) | (labels == labels[place])] = sets.find(left)
            else:
                refused.add((row, other))


def nearest(
    profiles: Sequence[Profile], others: Sequence[Profile], threshold: float = NEAR, most: int = MOST_VERIFIED
) -> dict[int, int]:
    """The number of a text that is near to one of the others -> the number of the first such. most: as in `groups`."""
    forms: dict[bytes, int] = {}
    for number, one in enumerate(others):
        for form in one.sketch.forms:
            forms.setdefault(form, number)
    buckets = _buckets(others)
    verifier = _Verifier(threshold, most)
    found: dict[int, int] = {}
    for number, one in enumerate(profiles):
        equal = min((forms[form] for form in one.sketch.forms if form in forms), default=None)
        first = next(_near(one, buckets, others, verifier, equal), equal)
        if first is not None:
            found[number] = first
    return found


def _near(
    one: Profile, buckets: _Buckets, others: Sequence[Profile], verifier: _Verifier, before: int | None
) -> Iterator[int]:
    """In order; only those before that number."""
    if not one.sketch.signature:
        return
    rows = np.array(sorted({row for place in _bands(one.sketch) for row in buckets.members.get(place, ())}), np.int64)
    if before is not None:
        rows = rows[buckets.numbers[rows] < before]
    mine = np.frombuffer(one.sketch.signature, np.uint32)
    for number in buckets.numbers[rows[verifier.may_be_near(mine, buckets.signatures[rows])]].tolist():
        if verifier.near(one, others[number]):
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
