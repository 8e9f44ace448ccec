"""What a codebase would give before anything is trained: what is read and left out, the split, each task's places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pipeline.codebase.history import shallow
from pipeline.codebase.shown import shown_example
from pipeline.codebase.source import Opened, Shelf, cache_file, open_codebase, withheld
from pipeline.codebase.summary import Summary, summary
from pipeline.codebase.tasks import TASKS, example, places
from pipeline.codebase.types import Code, Example, FillInTheMiddle, Place, Room, TaskName
from pipeline.display import Cell, Display
from pipeline.recipe import Codebase

PLACES = 2_000  # of a task that are counted; more are "at least"
BYTES_PER_TOKEN = 3.0  # there is no student yet, and so no tokenizer: what code comes to with most of them
ROOM = Room(
    prompt=1024,
    retrieved=256,
    reference=128,
    count=lambda text: int(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN) + 1,
    fim=FillInTheMiddle("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
)


def ingest(config: Codebase, tasks: Sequence[TaskName], shown: int, display: Display) -> None:
    """Prints all of it, with `shown` examples of each task from the training side. Raises DataError as reading does."""
    opened = _read(config, display)
    code = opened.code
    display.note(str(code.root) + (f", commit {code.revision[:12]}" if code.revision else ", no git checkout"))
    _show(summary(code), display)
    _show_split(opened, display)
    if len(code.changes) < config.commits and shallow(code.root):
        display.warn("a shallow clone: its older commits are not here; `git fetch --unshallow` fetches them")
    found = {task: _places(opened, task) for task in tasks}
    rows = [
        [task, TASKS[task].summary, _counted(train), _counted(held_out)] for task, (train, held_out) in found.items()
    ]
    display.table("tasks", ["task", "what", "places to train on", "held out"], rows)
    display.note(
        f"counted with prompts of {ROOM.prompt:,} tokens, {ROOM.retrieved:,} of them from other files, and answers of "
        f"{ROOM.reference:,}; a token is taken for {BYTES_PER_TOKEN:.0f} bytes"
    )
    if "commit" in found and not config.commits:
        display.note("no history was read: commits=200 reads the newest 200 commits")
    if shown:
        display.note("examples that would be trained on; what the codebase itself has there stands in ⟦ ⟧")
    for task, (train, _) in found.items():
        examples = _examples(opened, task, train, shown)
        if shown and train and not examples:
            display.note(f"{task}: no example fits; a source's reference_tokens lets longer answers in")
        for place, each in examples:
            display.note(f"\n──── {task}: {_where(code, task, place)} ────\n{shown_example(each, ROOM)}")


def _read(config: Codebase, display: Display) -> Opened:
    with display.counted("reading") as advance:
        return open_codebase(config, Shelf(Path.cwd(), cache_file(), advance))


def _show(found: Summary, display: Display) -> None:
    taken: list[list[Cell]] = [
        [each.language, each.files, each.tests, each.lines, -(-each.size // 1000), ", ".join(each.licences) or None]
        for each in found.taken
    ]
    display.table("what is used", ["language", "files", "of them tests", "lines", "kilobytes", "licences"], taken)
    if found.left_out:
        dropped: list[list[Cell]] = [
            [each.reason.replace("_", " "), each.files, each.example] for each in found.left_out
        ]
        display.table("what is left out", ["why", "files", "the first one"], dropped)
    if found.secrets:
        display.table("secrets, replaced", ["kind", "found"], [list(each) for each in found.secrets])


def _show_split(opened: Opened, display: Display) -> None:
    sides, history = opened.split, bool(opened.code.changes)
    rows: list[list[Cell]] = [
        ["training", len(sides.train), len(sides.train_changes) if history else None],
        ["held out", len(sides.held_out), len(sides.held_out_changes) if history else None],
    ]
    if sides.dropped:
        rows.append(["neither: too near to what is held out", len(sides.dropped), None])
    display.table("split", ["side", "files", "commits"], rows)


def _places(opened: Opened, task: TaskName) -> tuple[list[Place], list[Place]]:
    sides = opened.split
    train, held_out = (
        (sides.train_changes, sides.held_out_changes) if task == "commit" else (sides.train, sides.held_out)
    )
    return places(task, opened.code, train, PLACES, ROOM), places(task, opened.code, held_out, PLACES, ROOM)


def _counted(found: Sequence[Place]) -> str:
    return f"{PLACES:,} or more" if len(found) >= PLACES else f"{len(found):,}"


def _examples(opened: Opened, task: TaskName, found: Sequence[Place], count: int) -> list[tuple[Place, Example]]:
    room = replace(ROOM, withheld=withheld(opened.split))
    made = ((place, example(task, opened.code, opened.links, place, room)) for place in found)
    return list(islice(((place, each) for place, each in made if each is not None), count))


def _where(code: Code, task: TaskName, place: Place) -> str:
    return code.changes[place.file].commit[:12] if task == "commit" else code.files[place.file].path
