"""Tasks from code: where in a codebase each can be, and the example that is made of such a place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest
from types import MappingProxyType

from pipeline.codebase import candidates, commits, examples
from pipeline.codebase.candidates import chance
from pipeline.codebase.links import Links
from pipeline.codebase.types import Code, Example, Place, Room, SourceFile, TaskName

MOST_IN_A_FILE = 64  # places of one task, documents aside: the codebase is to be learned, not its longest file


@dataclass(frozen=True)
class Task:
    """candidates: all places of one file (its number in `Code.files`), in any order; None for what is no file's.
    example: from one of them; None where it does not fit the room. checker: how an answer is judged where nothing is
    run (`pipeline.checkers`). exhaustive: every candidate counts."""

    summary: str
    candidates: Callable[[SourceFile, int, Room], Iterator[Place]] | None
    example: Callable[[Code, Links, Place, Room], Example | None]
    checker: str
    exhaustive: bool = False


TASKS: Mapping[TaskName, Task] = MappingProxyType(
    {
        "document": Task(
            "a file, in stretches, as text to learn", candidates.documents, examples.document, "none", True
        ),
        "line": Task("complete a line", candidates.lines, examples.line, "first_line"),
        "body": Task("write a function's body", candidates.bodies, examples.body, "similarity"),
        "fim": Task("fill in statements between others", candidates.gaps, examples.fill, "similarity"),
        "docstring": Task("document a function", candidates.docstrings, examples.docstring, "similarity"),
        "explain": Task("name what uses a symbol", candidates.named, examples.explain, "similarity"),
        "commit": Task("make the change of a commit message", None, commits.commit, "similarity"),
        "feature": Task(
            "write a missing body until its tests pass", candidates.removable, examples.feature, "similarity"
        ),
    }
)


def places(task: TaskName, code: Code, paths: Collection[str], count: int, room: Room) -> list[Place]:
    """At most `count` places in the files of these paths; for `commit`, in changes of these commits.

    One of each file in the files' own order, then a second of each, and so on. Which ones, and in which order, is
    decided by hashes of path and text, so that another file more, or less, moves none of the rest.

    room: decides where documents are cut, and leaves out what surely does not fit; an example may still be None.
    """
    if task == "commit":
        return commits.places(code, paths, count)
    found = TASKS[task].candidates
    assert found is not None
    wanted = frozenset(paths)
    order = sorted((chance(task, file.path), number) for number, file in enumerate(code.files) if file.path in wanted)
    chosen: list[list[Place]] = []
    for _, number in order:
        if len(chosen) >= count:
            break  # one of each of these is enough
        file = code.files[number]
        ranked = sorted((_rank(task, file, place), place) for place in found(file, number, room))
        most = count if TASKS[task].exhaustive else min(count, MOST_IN_A_FILE)
        if ranked:
            chosen.append([place for _, place in ranked[:most]])
    rounds = (place for each in zip_longest(*chosen) for place in each if place is not None)
    return list(islice(rounds, count))


def example(task: TaskName, code: Code, links: Links, place: Place, room: Room) -> Example | None:
    """The task at a place, None where it does not fit the room or would give its own answer away."""
    return TASKS[task].example(code, links, place, room)


def _rank(task: TaskName, file: SourceFile, place: Place) -> int:
    start, end = place.span
    return chance(task, file.path, file.text[max(0, start - 80) : end])
