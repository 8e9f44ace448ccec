"""How answers are shown: side by side where there is room, else one below the other; plain text where nobody looks.

Model text is shown as it is: no markup is read in it, and what would steer a terminal is made visible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.chat.speakers import Said
from teachers.prices import money

NARROWEST = 38  # columns of a terminal that one answer is given beside others
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Without what a terminal would obey, new lines and tabs aside."""
    return _STEERING.sub(lambda found: f"\\x{ord(found[0]):02x}" if found[0] != "\r" else "", text)


def told(said: Said) -> str:
    """An answer's numbers, in a line."""
    rate = f", {said.tokens / said.seconds:.0f} a second" if said.seconds > 0 and said.tokens > 1 else ""
    cost = "" if said.dollars is None else f", {money(said.dollars)}"
    cut = ", cut off" if said.finish == "length" else ""
    return f"{said.tokens} tokens in {said.seconds:.2f} s{rate}, the first after {said.first:.2f} s{cost}{cut}"


class Board(Protocol):
    """One prompt's answers while they come."""

    def begin(self, name: str) -> None: ...
    def text(self, name: str, piece: str) -> None: ...
    def end(self, name: str, said: Said) -> None: ...
    def fail(self, name: str, why: str) -> None: ...


@contextmanager
def board(console: Console, names: Sequence[str]) -> Iterator[Board]:
    """Who answers is known; where there is no terminal and one answers, nothing but the answer is printed."""
    if console.is_terminal and len(names) > 1 and console.width >= NARROWEST * len(names):
        beside = Columns(console, names)
        with Live(beside, console=console, refresh_per_second=8, transient=True, vertical_overflow="crop"):
            yield beside
        console.print(beside.whole())  # the live one shows what fits
    elif console.is_terminal:
        yield Stacked(console, titled=len(names) > 1, numbers=True)
    else:
        yield Stacked(console, titled=len(names) > 1, numbers=False)


class Stacked:
    """One below the other, each as it comes, but for blank lines at its end: small models write many."""

    def __init__(self, console: Console, *, titled: bool, numbers: bool) -> None:
        self._console, self._titled, self._numbers = console, titled, numbers
        self._open = False  # whether the last line has no end yet
        self._held = ""  # blanks that nothing has followed yet

    def begin(self, name: str) -> None:
        self._open, self._held = False, ""
        if self._titled:
            self._console.print(Text(name, style="bold"), soft_wrap=True)

    def text(self, name: str, piece: str) -> None:
        whole = self._held + harmless(piece)
        text = whole.rstrip()
        self._held = whole[len(text) :]
        if text:
            self._console.print(Text(text), end="", soft_wrap=True)
            self._open = True

    def end(self, name: str, said: Said) -> None:
        self._console.print()
        if self._numbers:
            self._console.print(Text(told(said), style="dim"), soft_wrap=True)
        if self._titled:
            self._console.print()

    def fail(self, name: str, why: str) -> None:
        if self._open:
            self._console.print()
        self._console.print(Text(why, style="yellow"), soft_wrap=True)


class Columns:
    """Side by side: a column for each who answers. Drawn by rich whenever it likes."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._texts: dict[str, str] = dict.fromkeys(names, "")
        self._below: dict[str, Text] = {name: Text("…", style="dim") for name in names}

    def begin(self, name: str) -> None:
        self._below[name] = Text("writing", style="dim")

    def text(self, name: str, piece: str) -> None:
        self._texts[name] += harmless(piece)

    def end(self, name: str, said: Said) -> None:
        self._below[name] = Text(told(said), style="dim")

    def fail(self, name: str, why: str) -> None:
        self._below[name] = Text(why, style="yellow")

    def whole(self) -> Table:
        return self._table(self._texts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The end of each answer, as much as the screen is high."""
        width = max(1, console.width // len(self._texts) - 3)
        lines = max(1, console.height - 6)
        yield self._table({name: _last_lines(text, width, lines) for name, text in self._texts.items()})

    def _table(self, texts: Mapping[str, str]) -> Table:
        table = Table(expand=True, show_edge=False, pad_edge=False)
        for name in texts:
            table.add_column(Text(name, style="bold"), ratio=1, overflow="fold")
        table.add_row(*(Text(text.rstrip()) for text in texts.values()))
        table.add_row(*(self._below[name] for name in texts))
        return table


def _last_lines(text: str, width: int, lines: int) -> str:
    """The end of a text, in so many lines of a terminal at most, about."""
    kept: list[str] = []
    room = lines
    for line in reversed(text.split("\n")):
        room -= max(1, -(-len(line) // width))
        if room < 0:
            break
        kept.append(line)
    if not kept:
        kept = [text[-width * lines :]]
    return "\n".join(reversed(kept))
