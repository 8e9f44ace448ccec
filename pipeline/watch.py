"""`tutelage watch`: a run's screen, followed from another terminal until the run has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.screen.draw import draw
from pipeline.screen.follow import Follower, at_work, lines_of, require_run, standing
from pipeline.screen.view import View

SECONDS = 1.0  # between two looks
UNDER_WAY = ("running", "starting", "not started")


class Watched:
    """A run and, while it prepares or compares others, the one that is at work."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followers: dict[Path, Follower] = {}

    def look(self, now: float) -> tuple[View, str]:
        """What is to be seen, and how the run stands. now: seconds since the epoch."""
        said = standing(self._folder, now)
        working, parts = at_work(self._folder)
        follower = self._followers.setdefault(working, Follower(working))
        state = "" if said == "running" else said
        return replace(follower.look(), title=self._folder.name, parts=parts, state=state), said


def watch(
    folder: Path,
    console: Console,
    *,
    once: bool = False,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Shows a run until it has ended; with `once`, as it is now. On a terminal the live screen, else a line for each
    step that is new at a look. Raises RunError for what is no run's directory."""
    require_run(folder)
    watched = Watched(folder)
    view, said = watched.look(now())
    plain = not console.encoding.lower().startswith("utf")
    if once or not console.is_interactive:
        _lines(watched, console, view, said, once=once, now=now, sleep=sleep)
        return
    width, height = console.size

    def drawn() -> object:
        width, height = console.size
        return draw(view, width, height - 1, plain=plain)

    with Live(get_renderable=drawn, console=console, auto_refresh=False, transient=True) as live:  # type: ignore[arg-type]
        while said in UNDER_WAY:
            live.refresh()
            sleep(SECONDS)
            view, said = watched.look(now())
    console.print(draw(view, width, height, plain=plain))


def _lines(
    watched: Watched,
    console: Console,
    view: View,
    said: str,
    *,
    once: bool,
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    told, seen = "", (0, ())
    while True:
        if said not in ("running", told):
            told = said
            console.print(Text(f"{view.title}: {said}"), soft_wrap=True)
        if (view.step, view.parts) != seen:
            seen = (view.step, view.parts)  # type: ignore[assignment]
            for line in lines_of(view):
                console.print(Text(line), soft_wrap=True)
        if once or said not in UNDER_WAY:
            return
        sleep(SECONDS)
        view, said = watched.look(now())
