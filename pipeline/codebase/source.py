"""A codebase as a source of prompts: read once, split once, and each task's places made into examples."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from pipeline.codebase.history import read_changes
from pipeline.codebase.links import Links, links_of
from pipeline.codebase.outline import outline_of
from pipeline.codebase.reading import read_code
from pipeline.codebase.split import split
from pipeline.codebase.tasks import TASKS, example, places
from pipeline.codebase.tested import TASKS as TESTED
from pipeline.codebase.tested import Bench, with_gradings
from pipeline.codebase.types import Code, Example, FillInTheMiddle, Place, Room, Split, TaskName
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
    prompt_tokens: of a whole prompt, at most. fim: how the student fills in the middle, None where it does not.
    bench: where the codebase's own tests are run."""

    own: Codebase | None
    shelf: Shelf
    count: Callable[[str], int]
    prompt_tokens: int
    fim: FillInTheMiddle | None
    bench: Bench


@dataclass(frozen=True)
class Examples:
    """One source's. checker: how their answers are judged. digest: of the split and of all that the examples say."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    checker: str
    digest: bytes


def open_codebase(config: Codebase, shelf: Shelf) -> Opened:
    """Reads what `config` names, once for all sources and recipes of a process. Raises DataError as the stages do."""
    return _opened(config.model_copy(update={"tests": None}), shelf)  # how tests run changes nothing in what is read


@lru_cache(maxsize=4)
def _opened(config: Codebase, shelf: Shelf) -> Opened:
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

    A source that is trained may have none that is held out, as where every commit touches both sides: that is said.
    Raises DataError: none to train on, or of a source that is only measured none held out; a codebase that cannot be
    read.
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
        shows_retrieved=source.shows == "retrieved",
    )
    sides = opened.split
    by_change = source.task == "commit"

    def side(what: str, allowed: Collection[str], count: int, room: Room) -> tuple[Example, ...]:
        found = _examples(source.task, opened, allowed, count, room)
        if config.tests is not None and source.task in TESTED:
            only, whose = source.task == "feature", f"{name}, {what}"
            made = with_gradings(found, count, opened.code, config.tests, reader.bench, whose, only=only)
        else:
            made = [each for _, each in islice(found, count)]
        return tuple(made)

    hidden = side("held out", sides.held_out_changes if by_change else sides.held_out, held_out, room)
    allowed = sides.train_changes if by_change else sides.train
    train = side("to train on", allowed, source.count, replace(room, withheld=withheld(sides)))
    lacks = [which for which, found in (("to train on", train), ("held out", hidden)) if not found]
    nothing = f"data.sources.{name}: no place for the task {source.task} is {' or '.join(lacks)} in {config.path}"
    if not (train if source.weight else hidden):
        raise DataError(f"{nothing}{_remedy(config.path, room, by_change)}")
    if not hidden:
        reader.bench.display.note(f"{nothing}: it is trained, and not measured")
    digest = blake2b(sides.fingerprint.encode(), digest_size=16)
    for each in (*train, *hidden):
        digest.update(repr((each.conversation, each.reference, each.retrieved, each.grading)).encode())
    return Examples(train, hidden, _checker(source, config), digest.digest())


def _remedy(path: str, room: Room, by_change: bool) -> str:
    without = "set source.commits=0" if by_change else "leave the source out"
    return (
        f", with prompts of {room.prompt:,} tokens and answers of {room.reference:,}; raise data.max_prompt_tokens or "
        f"its reference_tokens, or {without}; `tutelage ingest {path}` shows what there is"
    )


def withheld(sides: Split) -> frozenset[str]:
    """The files of which what is trained on shows nothing: the held-out ones, and those too near to one of them."""
    return sides.held_out | sides.dropped.keys()


def _examples(
    task: TaskName, opened: Opened, allowed: Collection[str], count: int, room: Room
) -> Iterator[tuple[Place, Example]]:
    """All that can be made, in the places' own order; `count` are expected to be wanted."""
    seen = 0
    while True:
        found = places(task, opened.code, allowed, count, room)  # those for a smaller count come first
        for place in found[seen:]:
            made = example(task, opened.code, opened.links, place, room)
            if made is not None:
                yield place, made
        if len(found) < count:
            return
        seen, count = len(found), 2 * count


def _checker(source: CodebaseSource, config: Codebase) -> str:
    """As the recipe says, else by running where that can be done, else as the task is."""
    if source.checker is not None:
        return source.checker
    return "repository_tests" if config.tests is not None and source.task in TESTED else TASKS[source.task].checker


def cache_file() -> Path:
    """Where readings of code are kept between runs: in the user's own cache, readable by them alone."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "tutelage" / "code.sqlite"


def results_file() -> Path:
    """Where it is remembered what runs of tests came to."""
    return cache_file().with_name("tests.sqlite")
