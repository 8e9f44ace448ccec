"""All places in one file where a task could be. Each knows its file alone, so that other files do not move it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from pipeline.codebase.context import LEAST_TELLING, squeezed
from pipeline.codebase.documents import stretches
from pipeline.codebase.lexis import comments_and_strings
from pipeline.codebase.links import BUILT_IN, outline
from pipeline.codebase.types import Place, Room, SourceFile, Span, Symbol

# Characters without blanks. Shorter bodies are `pass`, `return self.x` and other trifles; and of what is at least this
# long it is seen whether a prompt tells it.
LEAST_BODY = LEAST_TELLING
LEAST_DOCUMENTATION = LEAST_TELLING
LEAST_MIDDLE = 12
LEAST_REST = 3
LEAST_NAME = 4  # of what is explained: shorter ones are the name of everything
ONE_IMPORT_IN = 8
MOST_SIBLINGS = 3  # statements in one gap
CHARACTERS_PER_TOKEN = 8  # more than any code has: a body longer than this many times the room surely does not fit

_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\w")
_BLANKS = re.compile(r"\s*")
_DOCUMENTING = re.compile(r"[rRuU]?(?:\"{3}|'{3})")  # of a module or an attribute: no symbol has it


def chance(*parts: str) -> int:
    """A number that only depends on these texts: the same in every process and on every machine."""
    return int.from_bytes(blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=8).digest(), "big")


def documents(file: SourceFile, number: int, room: Room) -> Iterator[Place]:
    """The whole file, in stretches that fit."""
    for span in stretches(file, room):
        yield Place(number, span)


# ---- lines ----


def lines(file: SourceFile, number: int, room: Room) -> Iterator[Place]:
    """One place in each line that has code: from behind one of its tokens to its end. Not in tests, whose lines are
    mostly what was expected of one input."""
    del room
    if file.language is None or file.is_test:
        return
    text = file.text
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    closed = _not_code(file, starts)
    imports = {at for each in outline(file).imports for at in _lines_of(each.span, starts)}
    symbols = Enclosing(outline(file).symbols)
    for line, start in enumerate(starts):
        if line in closed:
            continue
        end = starts[line + 1] - 1 if line + 1 < len(starts) else len(text)
        ends = [match.end() for match in _TOKEN.finditer(text, start, end)]
        while ends and not (len(text[ends[-1] : end].strip()) >= LEAST_REST and _WORD.search(text, ends[-1], end)):
            ends.pop()  # the further on, the less is left
        if not ends:
            continue
        drawn = chance("line", file.path, text[max(0, start - 80) : end])
        if line in imports and drawn % ONE_IMPORT_IN:
            continue
        at = ends[drawn // ONE_IMPORT_IN % len(ends)]
        yield Place(number, Span(at, end), symbols.at(at))


def _not_code(file: SourceFile, starts: Sequence[int]) -> set[int]:
    """Lines that a longer text touches, that are a text alone, or that a comment ends: nobody can know what it says,
    and the code alone would not be the line."""
    assert file.language is not None
    text = file.text
    closed: set[int] = set()
    for span, is_comment in comments_and_strings(text, file.language):
        first, *more = _lines_of(span, starts)
        alone = not text[starts[first] : span.start].strip()
        behind = text[span.end : text.find("\n", span.end) + 1 or len(text)]
        if more or is_comment or (alone and not behind.strip(" \t\n,;)")):
            closed.update([first, *more])
    return closed


def _lines_of(span: Span, starts: Sequence[int]) -> range:
    first = bisect_right(starts, span.start) - 1
    return range(first, max(first + 1, bisect_right(starts, max(span.start, span.end - 1))))


class Enclosing:
    """Finds the innermost symbol around a character."""

    def __init__(self, symbols: Sequence[Symbol]) -> None:
        self._symbols = symbols
        self._starts = [symbol.whole.start for symbol in symbols]
        self._outer: list[int] = []
        open_: list[int] = []
        for number, symbol in enumerate(symbols):
            while open_ and symbols[open_[-1]].whole.end <= symbol.whole.start:
                open_.pop()
            self._outer.append(open_[-1] if open_ else -1)
            open_.append(number)

    def at(self, character: int) -> int:
        """Its number, -1 where there is none."""
        number = bisect_right(self._starts, character) - 1
        while number >= 0 and self._symbols[number].whole.end <= character:
            number = self._outer[number]
        return number


# ---- functions ----


def bodies(file: SourceFile, number: int, room: Room) -> Iterator[Place]:
    """Function bodies that are more than a trifle, outside of tests."""
    for index, symbol in _functions(file):
        if symbol.body is not None and len(squeezed(_cut(file.text, symbol.body))) >= LEAST_BODY:
            span = Span(gap_start(file.text, symbol), symbol.body.end)
            if span.end - span.start <= room.reference * CHARACTERS_PER_TOKEN:
                yield Place(number, span, index)


def gap_start(text: str, symbol: Symbol) -> int:
    """Where what is missing begins when a body is: behind the line that ends the signature or the docstring, so that
    the body's first line is written with its indentation; within the line where the body begins in it."""
    assert symbol.body is not None
    known = symbol.head.end
    if symbol.docstring is not None and symbol.docstring.start >= known:
        known = symbol.docstring.end
    line_end = text.find("\n", known, symbol.body.start)
    return known if line_end < 0 else line_end + 1


def docstrings(file: SourceFile, number: int, room: Room) -> Iterator[Place]:
    """Documentation that has lines of its own."""
    for index, symbol in _functions(file):
        span = symbol.docstring
        if span is None or symbol.body is None or len(squeezed(_cut(file.text, span))) < LEAST_DOCUMENTATION:
            continue
        start, end = own_lines(file.text, span)
        alone = not file.text[start : span.start].strip() and not file.text[span.end : end].strip()
        if alone and span.end - span.start <= room.reference * CHARACTERS_PER_TOKEN:
            yield Place(number, span, index)


def own_lines(text: str, span: Span) -> Span:
    """From the start of the first line that a span touches to behind the end of its last."""
    end = text.find("\n", span.end)
    return Span(text.rfind("\n", 0, span.start) + 1, len(text) if end < 0 else end + 1)


def named(file: SourceFile, number: int, room: Room) -> Iterator[Place]:
    """What others may use: classes, functions and methods under a name that says which is meant."""
    del room
    if file.is_test:
        return
    for index, symbol in enumerate(outline(file).symbols):
        if len(symbol.name) >= LEAST_NAME and symbol.name not in BUILT_IN and not symbol.name.startswith("__"):
            yield Place(number, symbol.whole, index)


def removable(file: SourceFile, number: int, room: Room) -> Iterator[Place]:
    """Bodies of Python whose function can be left standing with an error in place of its body."""
    if file.language == "python":
        for place in bodies(file, number, room):
            if file.text[place.span.start - 1] == "\n":
                yield place


def _functions(file: SourceFile) -> Iterator[tuple[int, Symbol]]:
    if not file.is_test:
        for index, symbol in enumerate(outline(file).symbols):
            if symbol.kind != "class":
                yield index, symbol


# ---- gaps ----


def gaps(file: SourceFile, number: int, room: Room) -> Iterator[Place]:
    """Runs of one to three statements that follow each other, but no imports and no documentation.
    Not in tests."""
    if room.fim is None or file.is_test:
        return
    found = outline(file)
    symbols = Enclosing(found.symbols)
    apart = {each.span for each in found.imports} | {each.docstring for each in found.symbols if each.docstring}
    statements = [
        span for span in found.statements if span not in apart and not _DOCUMENTING.match(file.text, span.start)
    ]
    at = {span.start: span for span in reversed(statements)}  # of those that begin together the outermost
    for span in statements:
        long = 1 + chance("siblings", file.path, _cut(file.text, span)) % MOST_SIBLINGS
        gap = _with_siblings(file.text, span, at, long)
        short_enough = gap.end - gap.start <= room.reference * CHARACTERS_PER_TOKEN
        if short_enough and len(squeezed(_cut(file.text, gap))) >= LEAST_MIDDLE:
            yield Place(number, gap, symbols.at(gap.start))


def _with_siblings(text: str, span: Span, at: dict[int, Span], count: int) -> Span:
    """Up to `count` statements from this one on, with nothing but blanks between them and indented alike."""
    end = span.end
    column = _column(text, span.start)
    for _ in range(count - 1):
        blanks = _BLANKS.match(text, end)
        start = blanks.end() if blanks else end
        following = at.get(start)
        if following is None or "\n" not in text[end:start] or _column(text, start) != column:
            break
        end = following.end
    return Span(span.start, end)


def _column(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 : at]


def _cut(text: str, span: Span) -> str:
    return text[span.start : span.end]
