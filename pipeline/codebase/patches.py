"""A change to files as text: a unified diff without line numbers, which a model would have to count.

    --- path                 of a file that changes; `+++ path` of a new one; `xxx path` of one that goes
    @@                       a place in it, the next one where the lines that follow are found
     a line that stays
    -a line that goes
    +a line that comes

A place is found by the lines that stay or go, the first time that they follow each other behind the place before; a
patch shows as many lines that stay as this takes. Lines are what stands between "\\n"; so the end of a file that ends
with one is an empty line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise

from pipeline.codebase.types import Edit, Span

CONTEXTS = (3, 8, 25)  # lines shown around what changes, the fewest that are found again
MOST_LINES = 3_000  # that differ, of one file: finding the shortest change takes their product


class PatchError(ValueError):
    """A patch that does not apply; says which line of it."""


def patch_of(edits: Sequence[Edit]) -> str | None:
    """None where some edit changes too much, or where no patch of this form is found again: `patched` makes of what was
    before what is after, or there is none. (A line that goes and begins with `-- ` reads like a file's name.)"""
    parts = []
    for edit in edits:
        part = _part(edit)
        if part is None:
            return None
        parts.append(part)
    patch = "\n".join(parts)
    return patch if _makes(patch, edits) else None


def changed_lines(before: str, after: str) -> list[Span]:
    """The lines of `before` that a change replaces, as numbers from 0; an insertion is an empty span."""
    return [Span(start, end) for start, end, _, _ in _changes(before.split("\n"), after.split("\n")) or ()]


def patched(files: Mapping[str, str], patch: str) -> dict[str, str | None]:
    """What a patch makes of the files it names: path -> text, None for one that goes.

    Raises PatchError: a line of no known kind, a file that is not there, a place that is not found.
    """
    made: dict[str, str | None] = {}
    for title, hunks in _sections(patch):
        kind, path = title[:4], title[4:]
        if kind == "+++ ":
            made[path] = "\n".join(line[1:] for hunk in hunks for line in hunk)
        elif path not in files:
            raise PatchError(f"{title!r}: there is no such file")
        else:
            made[path] = None if kind == "xxx " else _apply(files[path], hunks, path)
    return made


# ---- making one ----


def _part(edit: Edit) -> str | None:
    if edit.after is None:
        return f"xxx {edit.path}"
    if edit.before is None:
        return "\n".join([f"+++ {edit.path}", "@@", *(f"+{line}" for line in edit.after.split("\n"))])
    before, after = edit.before.split("\n"), edit.after.split("\n")
    changes = _changes(before, after)
    if changes is None:
        return None
    for context in CONTEXTS:
        hunks = list(_hunks(before, after, changes, context))
        if _applies(edit.before, edit.after, hunks, edit.path):
            return "\n".join([f"--- {edit.path}", *(line for hunk in hunks for line in ("@@", *hunk))])
    return None


Replaced = tuple[int, int, int, int]  # lines [start, end) of the old, [start, end) of the new


def _changes(before: list[str], after: list[str]) -> list[Replaced] | None:
    """What both share at their ends is set aside first: most changes are small."""
    head = _shared(before, after)
    tail = _shared(before[head:][::-1], after[head:][::-1])
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    if max(len(old), len(new)) > MOST_LINES:
        return None
    opcodes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(a + head, b + head, c + head, d + head) for kind, a, b, c, d in opcodes if kind != "equal"]


def _shared(one: list[str], other: list[str]) -> int:
    """How many lines they begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (left, right) in pairs if left != right), min(len(one), len(other)))


def _hunks(before: list[str], after: list[str], changes: Sequence[Replaced], context: int) -> Iterator[list[str]]:
    groups: list[list[Replaced]] = [[changes[0]]] if changes else []
    for last, this in pairwise(changes):
        if this[0] - last[1] <= 2 * context:
            groups[-1].append(this)
        else:
            groups.append([this])
    for group in groups:
        at = max(0, group[0][0] - context)
        hunk: list[str] = []
        for old_start, old_end, new_start, new_end in group:
            hunk += [f" {line}" for line in before[at:old_start]]
            hunk += [f"-{line}" for line in before[old_start:old_end]]
            hunk += [f"+{line}" for line in after[new_start:new_end]]
            at = old_end
        yield hunk + [f" {line}" for line in before[at : at + context]]


def _makes(patch: str, edits: Sequence[Edit]) -> bool:
    before = {edit.path: edit.before for edit in edits if edit.before is not None}
    try:
        return patched(before, patch) == {edit.path: edit.after for edit in edits}
    except PatchError:
        return False


def _applies(before: str, after: str, hunks: list[list[str]], path: str) -> bool:
    try:
        return _apply(before, hunks, path) == after
    except PatchError:
        return False


# ---- applying one ----


def _sections(patch: str) -> Iterator[tuple[str, list[list[str]]]]:
    title: str | None = None
    hunks: list[list[str]] = []
    for line in patch.split("\n"):
        in_hunk = bool(hunks) and line[:1] in (" ", "-", "+") and not _is_title(line)
        if _is_title(line):
            if title is not None:
                yield title, hunks
            title, hunks = line, []
        elif title is None:
            raise PatchError(f"{line!r} stands before any file's name")
        elif line == "@@":
            hunks.append([])
        elif in_hunk:
            hunks[-1].append(line)
        else:
            raise PatchError(f"{line!r} is no line of a patch")
    if title is not None:
        yield title, hunks


def _is_title(line: str) -> bool:
    return line[:4] in ("--- ", "+++ ", "xxx ")


def _apply(before: str, hunks: list[list[str]], path: str) -> str:
    lines = before.split("\n")
    made: list[str] = []
    at = 0
    for hunk in hunks:
        old = [line[1:] for line in hunk if line[0] != "+"]
        found = next((n for n in range(at, len(lines) - len(old) + 1) if lines[n : n + len(old)] == old), None)
        if found is None:
            raise PatchError(f"{path}: {old[0] if old else ''!r} and what follows it are not there")
        made += lines[at:found] + [line[1:] for line in hunk if line[0] != "-"]
        at = found + len(old)
    return "\n".join(made + lines[at:])
