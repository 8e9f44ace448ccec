"""The change for a commit message: the files as they were before, the message, and as the answer a patch."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from posixpath import splitext

from pipeline.codebase.asked import Asked
from pipeline.codebase.candidates import chance
from pipeline.codebase.lexis import comment
from pipeline.codebase.links import Links
from pipeline.codebase.patches import changed_lines, patch_of
from pipeline.codebase.types import Change, Code, Edit, Example, Language, Place, Room, Span

AROUND = (None, 80, 40, 20, 8)  # lines shown around what changes, the most that fit; None: whole files
INSTRUCTION = """\
Make the change that this commit message asks for:

{message}

Below are the files as they were before. Answer with a patch and nothing else: for each file `--- path` (`+++ path` for
a new one, `xxx path` for one that goes), for each place in it `@@`, then its lines: with a space before what stays, `-`
before what goes, `+` before what comes, and enough of what stays for the place to be found."""

# Who signed and reviewed is nobody's task to guess, and their addresses nobody's to learn.
_TRAILER = re.compile(r"^(?:[a-z]+(?:-[a-z]+)*-by|change-id|cc):.*\n?", re.MULTILINE | re.IGNORECASE)
_LANGUAGES: dict[str, Language] = {
    ".py": "python", ".js": "javascript", ".jsx": "javascript", ".ts": "typescript", ".tsx": "typescript", ".go": "go",
    ".rs": "rust", ".java": "java", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".hpp": "cpp",
}  # fmt: skip


def places(code: Code, commits: Collection[str], count: int) -> list[Place]:
    """Changes with a message and something that is written; merges repeat what other changes say."""
    wanted = frozenset(commits)
    found = [
        (chance("commit", change.commit), Place(number, Span(0, 0)))
        for number, change in enumerate(code.changes)
        if change.commit in wanted and _is_told(change)
    ]
    return [place for _, place in sorted(found)[:count]]


def commit(code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """None where the patch or even the lines right around it do not fit."""
    del links
    change = code.changes[place.file]
    reference = patch_of(change.edits)
    if reference is None or room.count(reference) > room.reference:
        return None
    message = _TRAILER.sub("", change.message).strip()
    language = _language(change.edits[0].path)
    lead = "\n".join(comment(line, language).rstrip() for line in ("The change:", *message.split("\n"), "As a patch:"))
    for around in AROUND:
        shown = "\n".join(_shown(edit, around) for edit in change.edits if edit.before is not None)
        tail = f"\n\n{lead}\n" if shown else f"{lead}\n"
        asked = Asked(INSTRUCTION.format(message=message), shown, tail)
        if room.count(asked.text(room, language)) <= room.prompt:
            return Example(asked.conversation(room, language), reference)
    return None


def _is_told(change: Change) -> bool:
    message = _TRAILER.sub("", change.message).strip()
    written = any(edit.after is not None and edit.after != edit.before for edit in change.edits)
    return bool(message) and not message.startswith("Merge ") and written


def _shown(edit: Edit, around: int | None) -> str:
    """A file as it was, or its lines around what changes, with a comment for those that are left out."""
    assert edit.before is not None
    language = _language(edit.path)
    lines = edit.before.split("\n")
    kept = [Span(0, len(lines))]
    if around is not None:
        kept = _merged(_changed(edit), around, len(lines))
    shown = [comment(edit.path, language)]
    at = 0
    for start, end in kept:
        if start > at:
            shown.append(comment("…", language))
        shown += lines[start:end]
        at = end
    if at < len(lines):
        shown.append(comment("…", language))
    return "\n".join(shown).rstrip("\n") + "\n"


def _changed(edit: Edit) -> list[Span]:
    assert edit.before is not None
    return [Span(0, 0)] if edit.after is None else changed_lines(edit.before, edit.after)


def _merged(changed: Sequence[Span], around: int, count: int) -> list[Span]:
    kept: list[Span] = []
    for start, end in changed:
        wide = Span(max(0, start - around), min(count, end + around))
        if kept and wide.start <= kept[-1].end:
            kept[-1] = Span(kept[-1].start, wide.end)
        else:
            kept.append(wide)
    return kept


def _language(path: str) -> Language | None:
    return _LANGUAGES.get(splitext(path)[1])
