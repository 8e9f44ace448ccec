"""A file in stretches that fit: each begins at a line, if possible where a function or another statement begins."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

from pipeline.codebase.lexis import comment
from pipeline.codebase.links import outline
from pipeline.codebase.types import Room, SourceFile, Span

CLOSE_ENOUGH = 0.9  # of the room: a stretch is cut back further anyway, to where a function begins


def titled(file: SourceFile) -> str:
    """The line above a stretch: its file's path."""
    return f"{comment(file.path, file.language)}\n"


def stretches(file: SourceFile, room: Room) -> Iterator[Span]:
    """One after the other they are the whole file, but for single lines that are too long for the room and for
    stretches of blanks."""
    text = file.text
    starts = [0]
    while (end := text.find("\n", starts[-1])) >= 0 and end + 1 < len(text):
        starts.append(end + 1)
    preferred = _preferred(file, starts)
    bounds = [*starts, len(text)]

    def tokens(first: int, last: int) -> int:
        return room.count(text[bounds[first] : bounds[last]])

    first = 0
    while first < len(starts):
        last = _far(first, bounds, tokens, room.reference)
        if last == first:
            first += 1  # a line that no room holds
            continue
        if last < len(starts):
            last = _better(first, last, preferred)
        if text[bounds[first] : bounds[last]].strip():
            yield Span(bounds[first], bounds[last])
        first = last


def _far(first: int, bounds: Sequence[int], tokens: Callable[[int, int], int], most: int) -> int:
    """A boundary up to which it fits, nearly the last, `first` where not even one line does.

    Counting tokens is what takes time, so it is guessed from the characters that a token has had so far.
    """
    fits, fails, per_token = first, len(bounds), 4.0
    while fails - fits > 1:
        guess = bisect_right(bounds, bounds[first] + int(most * per_token)) - 1
        guess = min(max(guess, fits + 1), fails - 1)
        found = tokens(first, guess)
        if found <= most:
            fits = guess
            if found >= most * CLOSE_ENOUGH:
                break
        else:
            fails = guess
        per_token = (bounds[guess] - bounds[first]) / max(found, 1) * (1 + CLOSE_ENOUGH) / 2
    return fits


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
