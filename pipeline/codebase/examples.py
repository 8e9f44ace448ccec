"""From a place to an example: what the student is shown, and what the codebase has there. The tasks within a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from pipeline.codebase.asked import Asked
from pipeline.codebase.candidates import own_lines
from pipeline.codebase.context import Packed, Window, headed, pack, tells
from pipeline.codebase.documents import titled
from pipeline.codebase.lexis import comment
from pipeline.codebase.links import Links, Ref, outline
from pipeline.codebase.types import Code, Example, FillInTheMiddle, Place, Room, Span, Symbol
from teachers.types import RawText

MOST_CALLERS = 16  # of a symbol that is explained
MOST_TESTS = 32  # files, the nearest
STUB = "raise NotImplementedError"
STEPS_TO_TESTS = 3  # a test that calls what calls what calls it


def document(code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """Supervised text, for chatting students too: after its file's path, the stretch itself."""
    del links
    file = code.files[place.file]
    reference = file.text[place.span.start : place.span.end]
    return Example(RawText(titled(file)), reference) if room.count(reference) <= room.reference else None


def line(code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """The rest of a line."""
    file = code.files[place.file]

    def asked(packed: Packed) -> Asked:
        words = "Complete the last line of this code. Answer with the rest of that line and nothing else."
        return Asked(words, headed(file, packed))

    start = place.span.start
    must = file.text.rfind("\n", 0, start) + 1
    return _unless_told(_within_file(code, links, place, room, _Way(start, must, None, asked)))


def body(code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """A function's body, after its signature, its docstring and what the file holds before them."""
    file, symbol = code.files[place.file], _symbol(code, place)

    def asked(packed: Packed) -> Asked:
        words = f"Write the body of `{symbol.path}`, the last function below. Answer with its lines and nothing else, "
        return Asked(words + "indented as they are in the file.", headed(file, packed))

    must = own_lines(file.text, symbol.whole).start
    return _unless_told(_within_file(code, links, place, room, _Way(place.span.start, must, None, asked)))


def fill(code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """The middle of a file in the student's own format, which is a raw text whether or not it chats."""
    file, fim = code.files[place.file], room.fim
    if fim is None:
        return None
    marks = [token for token in (fim.prefix, fim.suffix, fim.middle) if token]

    def asked(packed: Packed) -> Asked:
        return Asked("", fim_text(fim, headed(file, packed), packed.after))

    start, end = place.span
    must = file.text.rfind("\n", 0, start) + 1
    raw = replace(room, as_chat=False)
    found = _unless_told(_within_file(code, links, place, raw, _Way(start, must, end, asked)))
    if found is None or any(_prompt(found).count(mark) > 1 or mark in found.reference for mark in marks):
        return None  # the code itself holds one of them
    return found


def fim_text(fim: FillInTheMiddle, prefix: str, suffix: str) -> str:
    if fim.order == "suffix_first":
        return f"{fim.suffix}{suffix}{fim.prefix}{prefix}{fim.middle}"
    return f"{fim.prefix}{prefix}{fim.suffix}{suffix}{fim.middle}"


def docstring(code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """The documentation of a function that is shown without it."""
    file, symbol = code.files[place.file], _symbol(code, place)
    gap = own_lines(file.text, place.span)
    rest = file.text[gap.end : symbol.whole.end]

    def asked(packed: Packed) -> Asked:
        words = f"Write the documentation of `{symbol.path}`, the last function below, as it would stand in the file. "
        tail = f"\n\n\n{comment(f'The documentation of `{symbol.path}`:', file.language)}\n"
        return Asked(words + "Answer with it and nothing else.", headed(file, packed) + rest, tail)

    must = min(gap.start, own_lines(file.text, symbol.whole).start)
    found = _within_file(code, links, place, room, _Way(gap.start, must, None, asked))
    return _unless_told(found)


def feature(code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """A body that is missing from a file which is else whole, and that tests reach: they tell whether it is back."""
    file, symbol = code.files[place.file], _symbol(code, place)
    if not tests_reaching(links, Ref(place.file, place.symbol)):
        return None
    start, end = place.span
    inside = file.text[start:end]
    stub = inside[: len(inside) - len(inside.lstrip())].rpartition("\n")[2] + STUB
    must = own_lines(file.text, symbol.whole).start
    head = file.text[must:start]

    def asked(packed: Packed) -> Asked:
        words = f"The body of `{symbol.path}` is missing below. Write it, so that its tests pass. "
        tail = f"\n\n\n{comment(f'`{symbol.path}` with its body:', file.language)}\n{head}"
        shown = headed(file, packed) + stub + packed.after.rstrip("\n")
        return Asked(words + "Answer with its lines and nothing else, indented as they are in the file.", shown, tail)

    return _unless_told(_within_file(code, links, place, room, _Way(start, must, end, asked)))


def explain(code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """Who calls a symbol: one line each, `path: caller`, sorted. Only the symbol itself is shown: it must be known."""
    file, symbol = code.files[place.file], _symbol(code, place)
    here = Ref(place.file, place.symbol)
    others = [ref for ref in links.defined[symbol.name] if not code.files[ref.file].is_test]
    callers = links.callers.get(here, ())
    if others != [here] or not 0 < len(callers) <= MOST_CALLERS:
        return None  # by its name alone nobody could say which one a call means
    if any(code.files[ref.file].path in room.withheld for ref in callers):
        return None  # the whole list would tell of them, and any other would be wrong
    reference = "\n".join(sorted({f"{code.files[ref.file].path}: {links.symbol(ref).path}" for ref in callers}))
    documented = max(symbol.head.end, symbol.docstring.end if symbol.docstring else 0)
    first = min(symbol.whole.start, symbol.docstring.start if symbol.docstring else symbol.whole.start)
    for end in dict.fromkeys((symbol.whole.end, documented, symbol.head.end)):
        start = own_lines(file.text, Span(first, end)).start
        shown = headed(file, Packed(before=file.text[start:end]))
        words = f"Where is `{symbol.path}` used? Answer with one line for each place, `path: caller`, sorted."
        lead = comment(f"Where `{symbol.path}` is used, one line for each caller, `path: caller`:", file.language)
        asked = Asked(words, shown, f"\n\n\n{lead}\n")
        if room.count(asked.text(room, file.language)) <= room.prompt:
            if room.count(reference) > room.reference:
                return None
            return Example(asked.conversation(room, file.language), reference)
    return None


# ---- what they share ----


class _Way(NamedTuple):
    """How a place's file is shown: see `context.Window`; asked: what is put to the student once it is packed."""

    before: int
    must: int
    after: int | None
    asked: Callable[[Packed], Asked]


def _within_file(code: Code, links: Links, place: Place, room: Room, way: _Way) -> Example | None:
    """What stands at the place is the reference. None where it or the prompt does not fit."""
    file = code.files[place.file]
    reference = file.text[place.span.start : place.span.end]
    if room.count(reference) > room.reference:
        return None
    window = Window(
        way.before, way.must, way.after, lambda packed: way.asked(packed).text(room, file.language), reference
    )
    packed = pack(code, links, place, room, window)
    if packed is None:
        return None
    shown = packed if room.shows_retrieved else replace(packed, retrieved="")
    return Example(way.asked(shown).conversation(room, file.language), reference, packed.retrieved or None)


def _unless_told(example: Example | None) -> Example | None:
    """None where the file says the same a second time, so that the answer could be copied."""
    if example is None:
        return None
    return None if tells(_prompt(example), example.reference) else example


def _prompt(example: Example) -> str:
    conversation = example.conversation
    return conversation.text if isinstance(conversation, RawText) else conversation.messages[-1].content


def _symbol(code: Code, place: Place) -> Symbol:
    return outline(code.files[place.file]).symbols[place.symbol]


# ---- tests ----


def tests_reaching(links: Links, ref: Ref) -> list[str]:
    """The test files that call a symbol, or what calls it, and so on for a few steps; the nearest first."""
    found: dict[str, None] = {}
    seen, edge = {ref}, [ref]
    for _ in range(STEPS_TO_TESTS):
        edge = [caller for each in edge for caller in links.callers.get(each, ()) if caller not in seen]
        seen.update(edge)
        found.update(dict.fromkeys(links.files[each.file].path for each in edge if links.files[each.file].is_test))
        edge = [each for each in dict.fromkeys(edge) if not links.files[each.file].is_test]
    return list(found)[:MOST_TESTS]
