"""A codebase as a source of prompts: read once, split once, and each task's places made into examples."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from pipeline.codebase.history import read_changes
from pipeline.codebase.links import Links, links_of
from pipeline.codebase.outline import outline_of
from pipeline.codebase.reading import read_code
from pipeline.codebase.split import split
from pipeline.codebase.tasks import TASKS, example, places
from pipeline.codebase.types import Code, Example, FillInTheMiddle, Room, Split
from pipeline.errors import DataError
from pipeline.recipe import Codebase, CodebaseSource

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Shelf:
    """Where codebases are found and kept.

    folder: what relative paths are relative to. cache: where readings are kept, so that only what changed is read
    again; None: nowhere. advance: (files done, of how many).
    """

    folder: Path
    cache: Path | None = None
    advance: Advance | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Opened:
    """A codebase, what in it belongs together, and which files teach and which measure."""

    code: Code
    links: Links
    split: Split


@dataclass(frozen=True)
class Reader:
    """What sources of kind codebase are built with. own: the recipe's codebase. count: text -> tokens of the student.
    prompt_tokens: of a whole prompt, at most. fim: how the student fills in the middle, None where it does not."""

    own: Codebase | None
    shelf: Shelf
    count: Callable[[str], int]
    prompt_tokens: int
    fim: FillInTheMiddle | None


@dataclass(frozen=True)
class Examples:
    """One source's. digest: of the split and of all that the examples say."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    digest: bytes


@lru_cache(maxsize=4)
def open_codebase(config: Codebase, shelf: Shelf) -> Opened:
    """Reads what `config` names, once for all sources and recipes of a process. Raises DataError as the stages do."""
    code = read_code(
        config,
        folder=shelf.folder,
        outline=outline_of,
        changes=read_changes,
        advance=shelf.advance,
        cache=shelf.cache,
    )
    return Opened(code, links_of(code), split(code, config))


def examples_of(source: CodebaseSource, name: str, held_out: int, reader: Reader) -> Examples:
    """A task's examples on either side of the split, at most `source.count` and `held_out` of them.

    Raises DataError: a side without any, a codebase that cannot be read.
    """
    config = source.of or reader.own
    assert config is not None, "the recipe's checks want one"
    opened = open_codebase(config, reader.shelf)
    room = Room(
        prompt=reader.prompt_tokens,
        retrieved=source.retrieved_tokens,
        reference=source.reference_tokens,
        count=reader.count,
        fim=reader.fim,
        as_chat=source.as_chat,
    )
    sides = opened.split
    by_change = source.task == "commit"
    train = _built(source, opened, sides.train_changes if by_change else sides.train, source.count, room)
    hidden = _built(source, opened, sides.held_out_changes if by_change else sides.held_out, held_out, room)
    for side, found in (("to train on", train), ("held out", hidden)):
        if not found:
            raise DataError(
                f"data.sources.{name}: no place for the task {source.task} is {side} in {config.path}; "
                f"`tutelage ingest {config.path}` shows what there is, and what each task needs"
            )
    digest = blake2b(sides.fingerprint.encode(), digest_size=16)
    for each in (*train, *hidden):
        digest.update(repr((each.conversation, each.reference, each.retrieved, each.grading)).encode())
    return Examples(train, hidden, digest.digest())


def _built(
    source: CodebaseSource, opened: Opened, allowed: Collection[str], count: int, room: Room
) -> tuple[Example, ...]:
    found = (
        example(source.task, opened.code, opened.links, place, room)
        for place in places(source.task, opened.code, allowed, count, room)
    )
    return tuple(each for each in found if each is not None)


def checker_of(source: CodebaseSource, each: Example) -> str:
    """How an answer is judged: as the recipe says, else by running where that can be done, else as the task is."""
    if source.checker is not None:
        return source.checker
    return "repository_tests" if each.grading is not None else TASKS[source.task].checker


def cache_file() -> Path:
    """Where readings of code are kept between runs: in the user's own cache, readable by them alone."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "tutelage" / "code.sqlite"
