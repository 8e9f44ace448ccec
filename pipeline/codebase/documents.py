"""A file in stretches that fit: each begins at a line, if possible where a function or another statement begins."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

from pipeline.codebase.lexis import comment
from pipeline.codebase.links import outline
from pipeline.codebase.types import Room, SourceFile, Span


def document_text(file: SourceFile, span: Span) -> str:
    """A stretch as a model sees it: under a line with the file's path."""
    return f"{comment(file.path, file.language)}\n{file.text[span.start : span.end]}"


def stretches(file: SourceFile, room: Room) -> Iterator[Span]:
    """One after the other they are the whole file, but for single lines that are too long for the room and for
    stretches of blanks."""
    text = file.text
    starts = [0]
    while (end := text.find("\n", starts[-1])) >= 0 and end + 1 < len(text):
        starts.append(end + 1)
    preferred = _preferred(file, starts)
    bounds = [*starts, len(text)]

    def fits(first: int, last: int) -> bool:
        return room.count(document_text(file, Span(bounds[first], bounds[last]))) <= room.reference

    first = 0
    while first < len(starts):
        last = _furthest(first, len(starts), fits)
        if last == first:
            first += 1  # a line that no room holds
            continue
        if last < len(starts):
            last = _better(first, last, preferred)
        if text[bounds[first] : bounds[last]].strip():
            yield Span(bounds[first], bounds[last])
        first = last


def _furthest(first: int, most: int, fits: Callable[[int, int], bool]) -> int:
    """The last boundary up to which it fits, `first` where not even one line does."""
    low, step = first, 16
    while low + step <= most and fits(first, low + step):
        low, step = low + step, step * 2
    high = min(low + step, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(first, middle):
            low = middle
        else:
            high = middle
    return low


def _preferred(file: SourceFile, starts: Sequence[int]) -> list[list[int]]:
    """Lines where to cut: where a symbol of the outer level begins, where any does, where any statement does."""
    found = outline(file)
    outer = [symbol.whole.start for symbol in found.symbols if symbol.path == symbol.name]
    kinds = (outer, [symbol.whole.start for symbol in found.symbols], [span.start for span in found.statements])
    return [sorted({bisect_right(starts, start) - 1 for start in kind}) for kind in kinds]


def _better(first: int, last: int, preferred: Sequence[Sequence[int]]) -> int:
    """The last preferred line in the stretch's second half."""
    for candidates in preferred:
        place = bisect_left(candidates, last + 1) - 1
        if place >= 0 and candidates[place] > (first + last) // 2:
            return candidates[place]
    return last
