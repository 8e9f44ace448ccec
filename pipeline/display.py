"""What a person sees during a run: bars with the time left on a terminal, plain lines everywhere else.

Lines go through rich, which honours NO_COLOR. Only the main rank is given a display that speaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

Cell = str | float | int | None

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_LINES_ABOVE_A_BAR = 30.0  # there the bar shows every step


class Counter:
    """What `Display.progress` hands out."""

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved = moved

    def advance(self, n: int = 1) -> None:
        """n more pieces of work are done."""
        self._moved(n)


class Display:
    """One per process. It is a context manager: leaving it, on an error too, takes the bars off the screen.

    console: default standard output; a quiet one for ranks other than the main one. clock: in seconds.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console()
        self._clock = clock
        self._names: list[str] = []
        self._steps: TaskID | None = None
        self._last_line = 0.0
        self._seconds_between_lines = (
            SECONDS_BETWEEN_LINES_ABOVE_A_BAR if self._console.is_interactive else SECONDS_BETWEEN_LINES
        )
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=self._console,
            refresh_per_second=4,
            transient=True,
            disable=self._console.quiet or not self._console.is_interactive,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextmanager
    def nested(self, name: str) -> Iterator[None]:
        """While inside, every line carries the name: for a recipe that another one prepares."""
        self._end_steps()
        self._names.append(name)
        try:
            yield
        finally:
            self._end_steps()
            self._names.pop()

    def phase(self, name: str) -> None:
        """A new part of the run begins."""
        self._end_steps()
        self._print(name, "bold")

    def note(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", "yellow")

    def step(self, step: int, steps: int, numbers: Mapping[str, float]) -> None:
        """One update is done, number `step` of `steps`, counted from 1. A line for the first, the last, and now and
        then between; on a terminal every step moves the bar."""
        text = "  ".join(f"{name} {_number(value)}" for name, value in numbers.items())
        first, last = self._steps is None, step >= steps
        if self._steps is None:
            self._steps = self._add("steps", steps, step - 1)
        self._bars.update(self._steps, completed=step, numbers=text)
        now = self._clock()
        if first or last or now - self._last_line >= self._seconds_between_lines:
            self._last_line = now
            self._print(f"step {step:>{len(str(steps))}}/{steps}  {text}".rstrip())
        if last:
            self._end_steps()

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Counter]:
        """A bar for `total` pieces of work; without a terminal a line at a quarter, where the work takes long."""
        done, last = 0, self._clock()
        task = self._add(description, total, 0)

        def moved(n: int) -> None:
            nonlocal done, last
            before, done = done, done + n
            self._bars.update(task, completed=done)
            quarter = total > 0 and done * 4 // total > before * 4 // total
            if quarter and not self._console.is_interactive and self._clock() - last >= self._seconds_between_lines:
                last = self._clock()
                self._print(f"{description}: {done}/{total}")

        try:
            yield Counter(moved)
        finally:
            self._remove(task)

    @contextmanager
    def counted(self, description: str) -> Iterator[Callable[[int, int], None]]:
        """Gives a function of (pieces done, of how many), for work whose size is known once it has begun."""
        with ExitStack() as stack:
            bar: Counter | None = None
            before = 0

            def moved(done: int, total: int) -> None:
                nonlocal bar, before
                bar = bar or stack.enter_context(self.progress(description, total))
                bar.advance(done - before)
                before = done

            yield moved

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Aligned columns, never cut: numbers to the right with three decimals, None as a dash."""
        cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
        right = [any(isinstance(row[column], int | float) for row in rows) for column in range(len(columns))]
        self._print(title, "bold")
        for number, row in enumerate(cells):
            line = "  ".join(
                text.rjust(width) if to_right else text.ljust(width)
                for text, width, to_right in zip(row, widths, right, strict=True)
            )
            self._print(f"  {line.rstrip()}", "underline" if number == 0 and self._console.is_terminal else "")

    # ---- within ----

    def _prefix(self) -> str:
        return "".join(f"{name}: " for name in self._names)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(self._prefix() + text, style=style), soft_wrap=True)

    def _add(self, description: str, total: int, completed: int) -> TaskID:
        self._bars.start()
        return self._bars.add_task(self._prefix() + description, total=total, completed=completed, numbers="")

    def _remove(self, task: TaskID) -> None:
        self._bars.remove_task(task)
        if not self._bars.task_ids:
            self._bars.stop()

    def _end_steps(self) -> None:
        if self._steps is not None:
            self._remove(self._steps)
            self._steps = None


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
