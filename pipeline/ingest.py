"""What a codebase would give before anything is trained: what is read and left out, the split, each task's places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from pipeline.codebase.source import Opened, Shelf, cache_file, open_codebase, withheld
from pipeline.codebase.summary import Summary, summary
from pipeline.codebase.tasks import TASKS, example, places
from pipeline.codebase.types import Example, FillInTheMiddle, Place, Room, TaskName
from pipeline.display import Display
from pipeline.errors import RecipeError
from pipeline.recipe import Codebase
from pipeline.recipe_problems import problems_of
from pipeline.yaml_lines import read_yaml
from teachers.types import RawText

PLACES = 2_000  # of a task that are counted; more are "at least"
BYTES_PER_TOKEN = 3.0  # there is no student yet, and so no tokenizer: what code comes to with most of them
ROOM = Room(
    prompt=1024,
    retrieved=256,
    reference=128,
    count=lambda text: int(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN) + 1,
    fim=FillInTheMiddle("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
)
SHOWN_LINES = 24


def settings_of(path: str, overrides: Sequence[str]) -> Codebase:
    """The `source` section for `path`, with keys of it set. Raises RecipeError, one line per mistake."""
    data: dict[str, object] = {"path": path}
    problems = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            problems.append(f"command line: {override}: write KEY=VALUE, such as commits=200")
            continue
        data[key] = read_yaml(text).data
    adapter: TypeAdapter[Codebase] = TypeAdapter(Codebase)
    try:
        found = adapter.validate_python(data)
    except ValidationError as error:
        problems += [
            f"command line: {'.'.join(map(str, each.path))}: {each.text}" for each in problems_of(error, Codebase)
        ]
    if problems:
        raise RecipeError(problems)
    return found


def tasks_of(names: Sequence[str]) -> tuple[TaskName, ...]:
    """All of them where none is named. Raises RecipeError for a name that no task has."""
    known = get_args(TaskName)
    if wrong := [name for name in names if name not in known]:
        raise RecipeError([f"command line: --task {name}: the tasks are {', '.join(known)}" for name in wrong])
    return tuple(task for task in known if task in names or not names)


def ingest(config: Codebase, tasks: Sequence[TaskName], shown: int, display: Display) -> None:
    """Prints all of it, with `shown` examples of each task from the training side. Raises DataError as reading does."""
    opened = _read(config, display)
    code, sides = opened.code, opened.split
    _show(summary(code), display)
    display.table(
        "split",
        ["side", "files", "commits"],
        [
            ["training", len(sides.train), len(sides.train_changes)],
            ["held out", len(sides.held_out), len(sides.held_out_changes)],
            ["dropped: too near to a held-out file", len(sides.dropped), 0],
        ],
    )
    found = {task: _places(opened, task) for task in tasks}
    rows = [
        [task, TASKS[task].summary, *(_counted(side) for side in sides_of_task)]
        for task, sides_of_task in found.items()
    ]
    display.table("tasks", ["task", "what", "places to train on", "held out"], rows)
    if "commit" in found and not config.commits:
        display.note("commit: the history is not read; add commits=500 to read its newest 500 commits")
    display.note(
        "tokens are counted as bytes / 3 here: a prompt of 1,024, of which 256 from other files, an answer of 128"
    )
    for task, (train, _) in found.items():
        for each in _examples(opened, task, train, shown):
            display.note(f"\n──── {task} ────\n{_text(each)}")


def _read(config: Codebase, display: Display) -> Opened:
    with display.counted("reading") as advance:
        return open_codebase(config, Shelf(Path.cwd(), cache_file(), advance))


def _show(found: Summary, display: Display) -> None:
    taken = [
        [row.language, row.files, row.tests, f"{row.lines:,}", f"{row.size:,}", ", ".join(row.licences) or None]
        for row in found.taken
    ]
    display.table("what is used", ["language", "files", "of them tests", "lines", "bytes", "licences"], taken)
    if found.left_out:
        display.table("what is left out", ["why", "files", "the first one"], [list(each) for each in found.left_out])
    if found.secrets:
        display.table("secrets, replaced", ["kind", "found"], [list(each) for each in found.secrets])


def _places(opened: Opened, task: TaskName) -> tuple[list[Place], list[Place]]:
    sides = opened.split
    train, held_out = (
        (sides.train_changes, sides.held_out_changes) if task == "commit" else (sides.train, sides.held_out)
    )
    return places(task, opened.code, train, PLACES, ROOM), places(task, opened.code, held_out, PLACES, ROOM)


def _counted(found: Sequence[Place]) -> str:
    return f"{PLACES:,} or more" if len(found) >= PLACES else f"{len(found):,}"


def _examples(opened: Opened, task: TaskName, found: Sequence[Place], count: int) -> list[Example]:
    room = replace(ROOM, withheld=withheld(opened.split))
    made = (example(task, opened.code, opened.links, place, room) for place in found)
    chosen: list[Example] = []
    for each in made:
        if len(chosen) == count:
            break
        if each is not None:
            chosen.append(each)
    return chosen


def _text(each: Example) -> str:
    asked = each.conversation
    prompt = asked.text if isinstance(asked, RawText) else "\n".join(message.content for message in asked.messages)
    beside = f"({each.retrieved.count(chr(10))} lines of other files belong to it)\n" if each.retrieved else ""
    return f"{beside}{_last_lines(prompt)}⟦{each.reference}⟧"


def _last_lines(text: str) -> str:
    lines = text.split("\n")
    return text if len(lines) <= SHOWN_LINES else "\n".join(["…", *lines[-SHOWN_LINES:]])
