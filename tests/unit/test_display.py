"""The display: plain lines without a terminal, bars on one, nested names, nothing where it must be silent."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pipeline.display import SECONDS_BETWEEN_LINES, Display
from pipeline.screen.view import Moment


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock | None = None) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, width=40), clock=clock or Clock()), out


def terminal() -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, force_terminal=True, force_interactive=True, width=120)), out


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_steps_are_lines_at_most_every_few_seconds_with_the_first_and_the_last() -> None:
    clock = Clock()
    display, out = plain(clock)
    for step in range(1, 101):
        clock.now += SECONDS_BETWEEN_LINES / 10
        display.step(Moment(step, 100, {"loss": 1 / step, "tokens": 1234}))
    lines = out.getvalue().splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [1, *range(11, 100, 10), 100]
    assert lines[0] == "step   1/100  loss 1  tokens 1,234"
    assert lines[-1] == "step 100/100  loss 0.01  tokens 1,234"


def test_a_resumed_run_begins_with_a_line() -> None:
    display, out = plain()
    display.step(Moment(57, 100, {}))
    assert out.getvalue().startswith("step  57/100")


def test_long_lines_are_not_broken() -> None:
    display, out = plain()
    display.step(Moment(1, 2, {f"number_{i}": 0.5 for i in range(20)}))
    display.note("word " * 50)
    assert len(out.getvalue().splitlines()) == 2


@pytest.mark.parametrize(("total", "shown"), [(100, [25, 50, 75, 100]), (3, [1, 2, 3]), (7, [2, 4, 6, 7])])
def test_slow_progress_prints_at_every_quarter(total: int, shown: list[int]) -> None:
    clock = Clock()
    display, out = plain(clock)
    with display.progress("evaluating", total) as counter:
        for _ in range(total):
            clock.now += SECONDS_BETWEEN_LINES
            counter.advance()
    assert out.getvalue().splitlines() == [f"evaluating: {done}/{total}" for done in shown]


def test_quick_progress_says_nothing() -> None:
    display, out = plain()
    with display.progress("evaluating", 8) as counter:
        counter.advance(8)
    assert out.getvalue() == ""


def test_progress_by_large_pieces_and_of_nothing() -> None:
    clock = Clock()
    display, out = plain(clock)
    with display.progress("reading", 10) as counter:
        clock.now += SECONDS_BETWEEN_LINES
        counter.advance(9)
    with display.progress("nothing", 0) as counter:
        counter.advance(0)
    assert out.getvalue().splitlines() == ["reading: 9/10"]


def test_nested_runs_carry_their_names() -> None:
    display, out = plain()
    display.phase("training")
    with display.nested("base"):
        display.note("inside")
        with display.nested("again"):
            display.step(Moment(1, 3, {}))
    display.warn("outside")
    assert out.getvalue().splitlines() == ["training", "base: inside", "base: again: step 1/3", "warning: outside"]


def test_a_nested_name_goes_when_an_error_leaves() -> None:
    display, out = plain()
    with pytest.raises(ValueError, match="x"), display.nested("base"):
        raise ValueError("x")
    display.note("after")
    assert out.getvalue() == "after\n"


def test_a_table_is_aligned_and_whole() -> None:
    display, out = plain()
    rows = [("sorting", 0.5, 3, None), ("a much longer domain name than that", 0.98765, 1000, "x")]
    display.table("held out", ["domain", "student", "n", "note"], rows)
    title, header, first, second = out.getvalue().splitlines()
    assert title == "held out"
    assert header.index("student") + len("student") == first.index("0.500") + 5 == second.index("0.988") + 5
    assert first.endswith("3  –")
    assert second.endswith("1000  x")


def test_square_brackets_are_only_text() -> None:
    for display, out in (plain(), terminal()):
        display.note("[red]a[/red] [x")
        with display.progress("[/b]", 1) as counter:
            counter.advance()
        assert "[red]a[/red] [x" in without_escapes(out.getvalue())


def test_a_terminal_shows_a_screen_with_the_numbers() -> None:
    display, out = terminal()
    with display:
        display.step(Moment(1, 3, {"loss": 0.25}, {"loss": 0.25}))
        display.step(Moment(2, 3, {"loss": 0.125}, {"loss": 0.125}))
        display._live.refresh()
        display.step(Moment(3, 3, {"loss": 0.0625}, {"loss": 0.0625}))
    text = without_escapes(out.getvalue())
    assert re.search(r"step 2/3 .*66%", text)
    assert re.search(r"loss +0\.125", text)
    assert "step 3/3  loss 0.0625" in text
    assert not display._live.is_started


def test_an_error_takes_the_screen_off_and_gives_the_cursor_back() -> None:
    display, out = terminal()
    with pytest.raises(ValueError, match="x"), display, display.progress("p", 10):
        raise ValueError("x")
    assert not display._live.is_started
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[(?:\d+;)*3\d")
    for variable, expected in ((None, True), ("1", False)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        if variable:
            monkeypatch.setenv("NO_COLOR", variable)
        display, out = terminal()
        display.warn("careful")
        assert bool(colours.search(out.getvalue())) is expected


def test_a_quiet_console_stays_silent() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, quiet=True, force_terminal=True, force_interactive=True))
    with display, display.progress("p", 4) as counter:
        counter.advance(4)
        display.phase("x")
        display.step(Moment(1, 1, {}))
        display.table("t", ["a"], [(1,)])
    assert out.getvalue() == ""
