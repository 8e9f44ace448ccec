"""What a prompt shows around a place, nearest first, up to a budget of tokens.

The same file comes first and is cut at line ends from its far side. Then, from other files, what the place's symbol
uses, who calls it, and the rest of its module: heads before whole bodies. What stands at the place itself is never
shown, nor the same symbol from another copy of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from posixpath import dirname
from textwrap import dedent
from typing import NamedTuple

from pipeline.codebase.lexis import comment
from pipeline.codebase.links import Links, Ref, outline
from pipeline.codebase.types import Code, Place, Room, SourceFile, Span, Symbol

MOST_PIECES = 48  # looked at for one place; budgets end long before
LEAST_TELLING = 24  # characters without blanks: a shorter text stands in many places by chance
_LONG_TOKEN = 8  # characters; a text with more for each token that is left surely has too many, and is not counted
_CLOSE_ENOUGH = 0.97  # of the budget: then the search for the best line to cut at ends
_MOST_TRIES = 10


@dataclass(frozen=True)
class Packed:
    """retrieved: pieces from other files, the nearest last, each under a line with its path; empty or ends in an empty
    line. before: what the file holds before the place, from a line's start on. after: the same behind it, up to a
    line's end."""

    retrieved: str = ""
    before: str = ""
    after: str = ""


class Window(NamedTuple):
    """What of the place's file may be shown: text[:before], and text[after:] where that is asked for.

    must: from here on `before` is not cut; a prompt without it is none. render: the whole prompt, for its tokens.
    answer: what must not be shown.
    """

    before: int
    must: int
    after: int | None
    render: Callable[[Packed], str]
    answer: str


def pack(code: Code, links: Links, place: Place, room: Room, window: Window | None = None) -> Packed | None:
    """The context of a place, None where not even the nearest fits. window: without one, the file up to the place.

    room.count(window.render(packed)) <= room.prompt holds for what is returned.
    """
    file = code.files[place.file]
    window = window or plain_window(file, place)
    text = file.text
    after = "" if window.after is None else text[window.after :]
    least = Packed("", text[window.must : window.before], "")
    bare = room.count(window.render(least))
    if bare > room.prompt:
        return None
    spare = min(room.retrieved, room.prompt - bare)
    packed = replace(least, retrieved=_retrieve(code, links, place, room, spare, window.answer))

    # Behind the place comes a third of what is left; then all that is before it; then what that left over.
    def fits(tried: Packed) -> int:
        return room.prompt - room.count(window.render(tried))

    while packed.retrieved and fits(packed) < 0:
        packed = replace(packed, retrieved=_without_farthest(packed.retrieved))
    limit = room.prompt
    if after:
        used = limit - fits(packed)
        packed = _grow_after(packed, after, window, room, used + (limit - used) // 3)
    packed = _grow_before(packed, text, window, room, limit)
    if after and len(packed.after) < len(after):
        packed = _grow_after(packed, after, window, room, limit)
    return packed


def plain_window(file: SourceFile, place: Place) -> Window:
    """Everything up to the place, the last line unbroken."""
    start = place.span.start
    return Window(
        start,
        file.text.rfind("\n", 0, start) + 1,
        None,
        lambda packed: headed(file, packed),
        file.text[place.span.start : place.span.end],
    )


def headed(file: SourceFile, packed: Packed) -> str:
    """What is retrieved, then the file under a line with its path, as `document` has it too."""
    return f"{packed.retrieved}{comment(file.path, file.language)}\n{packed.before}"


def squeezed(text: str) -> str:
    """Without any blanks, so that indentation and line breaks do not hide that two texts say the same."""
    return "".join(text.split())


def tells(shown: str, answer: str) -> bool:
    """Whether a text holds an answer that is long enough to be no coincidence."""
    wanted = squeezed(answer)
    return len(wanted) >= LEAST_TELLING and wanted in squeezed(shown)


# The same pieces are near to many places, and counting tokens is what takes time.
_squeezed_piece = lru_cache(maxsize=16_384)(squeezed)


@lru_cache(maxsize=32_768)
def _cost(count: Callable[[str], int], piece: str) -> int:
    return count(piece)


# ---- the same file ----


def _grow_before(packed: Packed, text: str, window: Window, room: Room, limit: int) -> Packed:
    """As many whole lines before the place as fit."""
    starts = [0, *(at + 1 for at in _line_ends(text, 0, window.must))]
    starts = [start for start in starts if start <= window.must]
    if starts[-1] != window.must:
        starts.append(window.must)

    def tried(count: int) -> Packed:
        return replace(packed, before=text[starts[len(starts) - 1 - count] : window.before])

    return tried(_most(len(starts) - 1, tried, window, room, limit))


def _grow_after(packed: Packed, after: str, window: Window, room: Room, limit: int) -> Packed:
    ends = [0, *(at + 1 for at in _line_ends(after, 0, len(after)))]
    if ends[-1] != len(after):
        ends.append(len(after))

    def tried(count: int) -> Packed:
        return replace(packed, after=after[: ends[count]])

    return tried(_most(len(ends) - 1, tried, window, room, limit))


def _most(count: int, tried: Callable[[int], Packed], window: Window, room: Room, limit: int) -> int:
    """How many of `count` lines fit: nearly the most, by a search that guesses from how long lines have been so far."""
    fits, fails = 0, count + 1
    used = room.count(window.render(tried(0)))
    nothing = len(window.render(tried(0)))
    per_token = 3.0
    for _ in range(_MOST_TRIES):
        if fails - fits <= 1 or (fits and used >= limit * _CLOSE_ENOUGH):
            break
        guess = _lines_for(tried, fits, fails, nothing + int((limit - used) * per_token) if not fits else None)
        rendered = window.render(tried(guess))
        tokens = room.count(rendered)
        per_token = max(len(rendered) / max(tokens, 1), 0.5)
        if tokens <= limit:
            fits, used = guess, tokens
        else:
            fails = guess
    return fits


def _lines_for(tried: Callable[[int], Packed], fits: int, fails: int, characters: int | None) -> int:
    """A number of lines between the two: about as many as these characters hold, or half way."""
    if characters is None:
        return (fits + fails) // 2
    low, high = fits + 1, fails - 1
    while low < high:
        middle = (low + high + 1) // 2
        packed = tried(middle)
        if len(packed.before) + len(packed.after) + len(packed.retrieved) <= characters:
            low = middle
        else:
            high = middle - 1
    return low


def _line_ends(text: str, start: int, end: int) -> Iterator[int]:
    at = text.find("\n", start, end)
    while at >= 0:
        yield at
        at = text.find("\n", at + 1, end)


# ---- other files ----


class _Piece(NamedTuple):
    """What another file can give: forms of it from short to long, as they would stand in the prompt."""

    short: str
    head: str
    whole: str


def _retrieve(code: Code, links: Links, place: Place, room: Room, budget: int, answer: str) -> str:
    """Pieces within the budget, the nearest last. Heads with their documentation for all, then whole bodies."""
    if budget <= 0:
        return ""
    count = room.count
    left = budget
    chosen: dict[int, str] = {}
    costs: dict[int, int] = {}
    pieces = list(islice(_pieces(code, links, place, room.withheld, answer), MOST_PIECES))
    for number, piece in enumerate(pieces):
        for form in dict.fromkeys((piece.head, piece.short)):
            if form and len(form) <= left * _LONG_TOKEN and (cost := _cost(count, form)) <= left:
                chosen[number], costs[number] = form, cost
                left -= cost
                break
        if left < budget // 32:
            break
    for number in list(chosen):
        whole = pieces[number].whole
        most = left + costs[number]
        if (
            whole
            and whole != chosen[number]
            and len(whole) <= most * _LONG_TOKEN
            and (cost := _cost(count, whole)) <= most
        ):
            chosen[number] = whole
            left -= cost - costs[number]
    retrieved = "".join(chosen[number] for number in sorted(chosen, reverse=True))
    while retrieved and count(retrieved) > budget:
        retrieved = _without_farthest(retrieved)
    return retrieved


_BETWEEN = "\n\n\n"  # ends every piece, and stands in none


def _without_farthest(retrieved: str) -> str:
    return retrieved.partition(_BETWEEN)[2]


def _pieces(code: Code, links: Links, place: Place, withheld: frozenset[str], answer: str) -> Iterator[_Piece]:
    """Nearest first, without repetition, without what is withheld and what would give the answer away."""
    own = _own(code, place)
    wanted = squeezed(answer)
    telling = len(wanted) >= LEAST_TELLING
    for ref in _near(code, links, place):
        file = code.files[ref.file]
        if ref.file != place.file and file.path not in withheld and not _is_copy(links.symbol(ref), own):
            piece = _piece(file, links.symbol(ref))
            forms = ["" if telling and wanted in _squeezed_piece(form) else form for form in piece]
            if any(forms):
                yield _Piece(*forms)


def _near(code: Code, links: Links, place: Place) -> Iterator[Ref]:
    seen: set[Ref] = set()
    for ref in _candidates(code, links, place):
        if ref not in seen:
            seen.add(ref)
            yield ref


def _candidates(code: Code, links: Links, place: Place) -> Iterator[Ref]:
    """What the symbol uses, what the file imports where there is no symbol; who calls it; the files beside it."""
    if place.symbol >= 0:
        here = Ref(place.file, place.symbol)
        yield from links.uses(here)
        callers = links.callers.get(here, ())
        yield from sorted(callers, key=lambda ref: (code.files[ref.file].is_test, ref))
    else:
        yield from links.imported[place.file].values()
    folder = dirname(code.files[place.file].path)
    imported = links.imports[place.file]
    beside = [number for number in links.beside(folder) if number not in imported]
    for number in (*imported, *beside):
        if not code.files[number].is_test:
            for index, symbol in enumerate(outline(code.files[number]).symbols):
                if symbol.path == symbol.name:
                    yield Ref(number, index)


def _own(code: Code, place: Place) -> Symbol | None:
    return outline(code.files[place.file]).symbols[place.symbol] if place.symbol >= 0 else None


def _is_copy(symbol: Symbol, own: Symbol | None) -> bool:
    """Whether it is, by its name and all that it stands in, the place's own symbol, or what stands around it."""
    return own is not None and f"{own.path}.".startswith(f"{symbol.path}.")


def _piece(file: SourceFile, symbol: Symbol) -> _Piece:
    title = comment(f"{file.path}: {symbol.path}", file.language)
    return _forms(title, file.text, symbol.whole, symbol.head, symbol.docstring)


@lru_cache(maxsize=16_384)
def _forms(title: str, text: str, whole: Span, signature: Span, documented: Span | None) -> _Piece:
    """The same functions are near to many places."""
    if documented is None:
        head = _lines(text, signature)
    elif documented.start < whole.start:
        head = _lines(text, Span(documented.start, signature.end))
    else:
        head = _lines(text, Span(whole.start, documented.end))
    start = min(whole.start, documented.start) if documented else whole.start
    forms = (_lines(text, signature), head, _lines(text, Span(start, whole.end)))
    return _Piece(*(f"{title}\n{_single_spaced(form)}{_BETWEEN}" for form in forms))


def _single_spaced(text: str) -> str:
    while _BETWEEN in text:
        text = text.replace(_BETWEEN, "\n\n")
    return text.strip("\n")


def _lines(text: str, span: Span) -> str:
    """A span without the indentation that all its lines share."""
    line = text.rfind("\n", 0, span.start) + 1
    indentation = text[line : span.start]
    return dedent((indentation if not indentation.strip() else "") + text[span.start : span.end])
