"""What a person sees during a run: one live screen on a terminal, plain lines everywhere else.

Lines go through rich, which honours NO_COLOR. Only the main rank is given a display that speaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from pipeline.screen.draw import draw
from pipeline.screen.view import Bar, Health, Moment, Part, View, after, noted

Cell = str | float | int | None

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_LINES_ABOVE_A_SCREEN = 30.0  # there the screen shows every step
PER_SECOND = 2  # redrawings: one takes some 2 ms, so that is under 1% of a run


class Counter:
    """What `Display.progress` hands out."""

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved = moved

    def advance(self, n: int = 1) -> None:
        """n more pieces of work are done."""
        self._moved(n)


class Display:
    """One per process. It is a context manager: the screen is there inside, and leaving, on an error too, takes it off.

    console: default standard output; a quiet one for ranks other than the main one. clock: in seconds.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console()
        self._clock = clock
        self._view = View()
        self._stepping = False
        self._last_line = 0.0
        self._seconds_between_lines = (
            SECONDS_BETWEEN_LINES_ABOVE_A_SCREEN if self._console.is_interactive else SECONDS_BETWEEN_LINES
        )
        self._entered = False
        self._live = Live(
            get_renderable=self._drawn, console=self._console, refresh_per_second=PER_SECOND, transient=True,
            vertical_overflow="crop",
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        self._live.stop()

    def title(self, name: str) -> None:
        """What the whole is called, on the screen."""
        self._see(replace(self._view, title=name))

    @contextmanager
    def nested(self, name: str, number: int = 0, of: int = 0) -> Iterator[None]:
        """While inside, every line carries the name: for a recipe that another one prepares, the `number`th `of`."""
        outer, self._stepping = self._view, False
        part = Part(name, number, of)
        self._see(View(title=outer.title, parts=(*outer.parts, part), events=outer.events))
        try:
            yield
        finally:
            self._stepping = False
            self._see(replace(outer, events=self._view.events))

    def phase(self, name: str) -> None:
        """A new part of the run begins."""
        self._stepping = False
        self._see(replace(self._view, phase=name))
        self._start()
        self._print(name, "bold")

    def note(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", "yellow")
        self._see(noted(self._view, [{"step": self._view.step, "said": text}]))

    def happened(self, event: Mapping[str, Any]) -> None:
        """A line of events.jsonl, for the screen; it is said elsewhere."""
        self._see(noted(self._view, [event]))

    def asked(self, teachers: Mapping[str, Health]) -> None:
        """How the asking goes just now, between steps."""
        self._see(replace(self._view, teachers=dict(teachers)))

    def step(self, moment: Moment) -> None:
        """One update is done. A line for the first, the last, and now and then between; the screen shows every one."""
        first, last = not self._stepping, moment.step >= moment.steps
        self._stepping = not last
        self._see(after(self._view, moment))
        self._start()
        now = self._clock()
        if first or last or now - self._last_line >= self._seconds_between_lines:
            self._last_line = now
            text = "  ".join(f"{name} {_number(value)}" for name, value in moment.numbers.items())
            self._print(f"step {moment.step:>{len(str(moment.steps))}}/{moment.steps}  {text}".rstrip())

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Counter]:
        """A bar for `total` pieces of work; without a terminal a line at a quarter, where the work takes long."""
        done, last = 0, self._clock()
        around = self._view.bars

        def moved(n: int) -> None:
            nonlocal done, last
            before, done = done, done + n
            self._see(replace(self._view, bars=(*around, Bar(description, done, total))))
            quarter = total > 0 and done * 4 // total > before * 4 // total
            if quarter and not self._console.is_interactive and self._clock() - last >= self._seconds_between_lines:
                last = self._clock()
                self._print(f"{description}: {done}/{total}")

        moved(0)
        self._start()
        try:
            yield Counter(moved)
        finally:
            self._see(replace(self._view, bars=around))

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

    def _see(self, view: View) -> None:
        self._view = view

    def _start(self) -> None:
        """The screen, once there is something on it; a terminal that cannot move its cursor gets lines alone."""
        if self._entered and self._console.is_interactive and not self._console.quiet:
            self._live.start()

    def _drawn(self) -> RenderableType:
        # One row is left free, so that what is printed above never scrolls the screen into itself.
        width, height = self._console.size
        return draw(self._view, width, height - 1, plain=not self._console.encoding.lower().startswith("utf"))

    def _print(self, text: str, style: str = "") -> None:
        prefix = "".join(f"{part.name}: " for part in self._view.parts)
        self._console.print(Text(prefix + text, style=style), soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
