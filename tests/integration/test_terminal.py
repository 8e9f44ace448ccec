"""The live screen of real runs on a pseudo-terminal: what is seen, no colour, Ctrl-C, watching."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.runs import changed, distill_settings, tutelage, write_recipe
from tests.terminals import Terminal

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3\d|9\d|38;5;\d+)m")
SHOWN = b"\x1b[?25h"  # the cursor
HIDDEN = b"\x1b[?25l"


def recipe(folder: Path, steps: int) -> Path:
    settings = changed(distill_settings(folder), {"training.steps": steps})
    return write_recipe(folder / "r.yaml", settings)


def stepping(text: str) -> bool:
    return "loss" in text and re.search(r"step \d+/\d+ ", text) is not None and "left" in text


def test_a_run_shows_its_screen_and_leaves_the_terminal_clean(tmp_path: Path) -> None:
    terminal = Terminal("run", str(recipe(tmp_path, 200)))
    text = terminal.read_until(stepping)
    for said in ("run › training to step 200", "kl sorting", "length", "truncated", "score addition", "tokens/s"):
        assert said in text
    assert terminal.read_to_end() == 0
    assert COLOUR.search(terminal.raw)
    assert terminal.raw.rindex(SHOWN) > terminal.raw.rindex(HIDDEN)
    assert "the run is in" in terminal.text
    assert "tokens/s" not in terminal.text


def test_ctrl_c_leaves_the_terminal_clean(tmp_path: Path) -> None:
    terminal = Terminal("run", str(recipe(tmp_path, 5000)))
    terminal.read_until(stepping)
    os.kill(terminal.process.pid, signal.SIGINT)
    assert terminal.read_to_end() == 130
    assert terminal.raw.rindex(SHOWN) > terminal.raw.rindex(HIDDEN)
    assert "interrupted; go on with: tutelage run" in " ".join(terminal.text.split())
    assert b"Traceback" not in terminal.raw


@pytest.mark.parametrize(("variables", "moves"), [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False)])
def test_without_colour(variables: dict[str, str], moves: bool, tmp_path: Path) -> None:
    terminal = Terminal("run", str(recipe(tmp_path, 3)), **variables)
    assert terminal.read_to_end() == 0
    assert not COLOUR.search(terminal.raw)
    assert (HIDDEN in terminal.raw) is moves
    assert b"step 3/3  loss" in terminal.raw


def test_through_a_pipe_there_are_lines_alone_and_watching_says_how_it_stands(tmp_path: Path) -> None:
    path = recipe(tmp_path, 3)
    before = tutelage("watch", str(tmp_path / "run"), "--once")
    assert (before.returncode, before.stdout) == (0, "run: not started\n")
    done = tutelage("run", str(path))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "step 3/3  loss" in done.stdout
    after = tutelage("watch", str(tmp_path / "run"))
    assert "run: finished\n" in after.stdout
    assert "step 3/3  loss" in after.stdout
    wrong = tutelage("watch", str(tmp_path))
    assert wrong.returncode == 1
    assert "name a run's directory" in wrong.stderr


def test_watching_a_run_that_is_killed(tmp_path: Path) -> None:
    run = Terminal("run", str(recipe(tmp_path, 5000)))
    run.read_until(stepping)
    watching = Terminal("watch", str(tmp_path / "run"), columns=60, rows=24)
    text = watching.read_until(stepping)
    assert text.startswith("run")
    run.process.kill()
    run.read_to_end()
    assert watching.read_to_end() == 0
    assert "no process holds its lock" in " ".join(watching.text.split())
    assert watching.raw.rindex(SHOWN) > watching.raw.rindex(HIDDEN)
