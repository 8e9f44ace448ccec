"""Commands about a run that is there: its recipe is read, this process set up as the run's was, and then torch loaded.

Imports no torch itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.display import Display
from pipeline.export.form import SHARD, Dtype, Kind
from pipeline.recorded import RecordedRun, read_run, seal_like

SetUp = Callable[[int], None]  # called with the recipe's threads


def export(
    folder: Path,
    set_up: SetUp,
    display: Display,
    *,
    kind: Kind = "model",
    dtype: Dtype | None = None,
    shard: str = SHARD,
    step: int | None = None,
    to: Path | None = None,
    push: str | None = None,
    private: bool = True,
) -> None:
    """`tutelage export`. Raises TutelageError for what a user can mend."""
    run = _opened(folder, set_up)
    from pipeline.export.command import Wanted, export_run

    export_run(run, Wanted(kind, dtype, shard, step, to, push, private), display)


def chat(
    folder: Path,
    set_up: SetUp,
    *,
    against: tuple[str, ...] = (),
    once: str | None = None,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    step: int | None = None,
) -> None:
    """`tutelage chat`. Raises TutelageError and TeacherError for what a user can mend."""
    run = _opened(folder, set_up)
    from pipeline.chat.command import Wanted, chat_with

    chat_with(run, Wanted(against, once, temperature, max_new_tokens, step))


def _opened(folder: Path, set_up: SetUp) -> RecordedRun:
    run = read_run(folder)
    set_up(run.recipe.threads)
    seal_like(run)
    return run
