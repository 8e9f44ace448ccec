"""`tutelage journal RUN`: what a run asked its remote teachers, what they cost, and what of it is kept."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.checkpoint import list_checkpoints
from pipeline.display import Cell, Display
from pipeline.errors import RunError
from pipeline.run_directory import locked
from teachers.journal import FILE
from teachers.prices import money
from teachers.records import Records, records

_SQLITE = b"SQLite format 3\0"


def show_journal(target: Path, *, export: Path | None, prune: bool, display: Display) -> None:
    """target: a run's directory, or a journal's file. export: a file for every attempt as a line of JSON.

    prune: takes out the answers that no checkpoint can need any more.
    Raises TeacherError for what is no journal, RunError where nothing can be pruned.
    """
    if not target.exists():
        raise RunError(f"{target}: there is nothing there; name a run's directory, such as runs/quickstart")
    path = target / FILE if target.is_dir() else target
    with records(path) as found:
        if export is None and not prune:
            _list(found, display)
        if export is not None:
            count = _export(found, export)
            display.note(f"{export}: {count} lines")
    if prune:
        _prune(target, display)


def _list(found: Records, display: Display) -> None:
    outcomes = found.outcomes()

    def times(teacher: str, state: str) -> int:
        return sum(count for name, was, _, count in outcomes if (name, was) == (teacher, state))

    totals = found.totals()
    rows: list[list[Cell]] = []
    for name, t in totals.items():
        states = [times(name, state) for state in ("answered", "failed", "doubtful", "intended")]
        rows.append([name, t.requests, *states, t.input, t.cached, t.output, t.reasoning, money(t.dollars)])
    columns = (
        *("teacher", "asked", "answered", "failed", "in doubt", "under way"),
        *("input", "cached", "output", "reasoning", "cost"),
    )
    display.table("questions to remote teachers, each attempt counted", columns, rows)
    reasons = [(name, reason, count) for name, state, reason, count in outcomes if reason and state != "answered"]
    if reasons:
        display.table("why attempts came to nothing", ("teacher", "reason", "times"), reasons)
    for name, t in totals.items():
        if t.doubtful:
            display.note(
                f"{name}: {t.doubtful} in doubt or under way, charged with the most: {money(t.doubtful_dollars)}"
            )
    kept = found.kept()
    since = "" if kept.first_step is None else f", this run's from step {kept.first_step} on"
    display.note(f"{kept.answers} answers are kept in {kept.bytes / 1e6:.1f} MB{since}")


def _export(found: Records, path: Path) -> int:
    _refuse_target(path)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for line in found.lines():
            file.write(json.dumps(line, allow_nan=False) + "\n")
            count += 1
    return count


def _refuse_target(path: Path) -> None:
    """Raises RunError where no file can be, and where one is that holds paid answers."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"{path}: {path.parent} is not a folder; name another file for --export") from error
    if path.is_dir():
        raise RunError(f"{path}: a folder is there; name a file for --export")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_SQLITE)) == _SQLITE:
                raise RunError(f"{path}: a journal is there, which --export would write over; name another file")


def _prune(folder: Path, display: Display) -> None:
    """The oldest checkpoint may be gone back to, so what follows it stays."""
    if not folder.is_dir():
        raise RunError(f"{folder}: a file has no checkpoints that say what may go; give the run's directory to prune")
    with locked(folder):
        checkpoints = list_checkpoints(folder / "checkpoints")
        if not checkpoints:
            raise RunError(f"{folder}: no checkpoint yet, so every answer may still be needed; nothing was pruned")
        step = int(checkpoints[0].name.removeprefix("step-"))
        with records(folder / FILE) as found:
            count = found.prune(step)
            kept = found.kept()
    display.note(
        f"pruned {count} answers, of steps up to {step}; {kept.answers} are left in {kept.bytes / 1e6:.1f} MB. "
        "What was charged stays on record"
    )
