"""The screen's values and drawing: curves, speed, every size, plain text; a directory followed line by line."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.errors import RunError
from pipeline.screen.draw import BLOCKS, draw, spark
from pipeline.screen.follow import Follower, at_work, is_held, require_run, standing
from pipeline.screen.view import KEPT, Curve, Health, Moment, Part, View, after, noted

METRICS = {
    "step": 1, "loss": 0.5, "kl": {"domain": {"math": 0.25}}, "length": {"mean": 12.0}, "truncated": 0.0,
    "score": {"math": 0.75}, "tokens": 100,
}  # fmt: skip
SECONDS = {"rollout": 1.0, "teachers": 0.5, "waiting": 0.4, "early": 0.2, "update": 0.5}
SAMPLE = {"domain": "math", "prompt": "1+1=", "completion": "two\n\x1b[31mred\x1b[2J and 日本語" + " more" * 90}


def full() -> View:
    view = View(title="run", parts=(Part("base", 2, 5),), phase="training")
    teachers = {"critic": Health(12, {"timeout": 3}, 1.25, 4, 5, 0.125)}
    for step in range(1, 6):
        line = {**METRICS, "step": step, "loss": 1 / step}
        view = after(view, Moment(step, 10, {}, line, SECONDS, SAMPLE, teachers))
    return noted(view, [{"step": 5, "what": "guard", "said": "answers grow", "action": "lower_rate"}])


def rows(view: View, width: int, height: int, *, plain: bool = False) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=True, legacy_windows=False)
    lines = console.render_lines(draw(view, width, height, plain=plain), pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


def test_everything_is_said() -> None:
    text = "\n".join(rows(full(), 100, 40))
    for said in (
        "run › base (2 of 5) › training", "step 5/10", "50%", "0:10 left", "50 tokens/s", "loss", "kl math",
        "score math",
        "critic", "12 answered", "3 failed (timeout)", "1.25 s each", "4 asked", "5 waiting", "$0.1250", "answers grow",
        "[lower_rate]", "1+1=", "two⏎",
    ):  # fmt: skip
        assert said in text, said


@pytest.mark.parametrize("width", [10, 20, 40, 79, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 12, 60])
@pytest.mark.parametrize("plain", [False, True])
def test_it_fits_any_size_and_steers_nothing(width: int, height: int, plain: bool) -> None:
    found = rows(full(), width, height, plain=plain)
    assert 1 <= len(found) <= height
    assert max(map(cell_len, found)) <= width
    assert "\x1b" not in "".join(found)
    assert not plain or "".join(found).isascii()


def test_spark() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 8) == BLOCKS
    assert spark([1, 1, 1], 8) == "▁▁▁"
    assert spark([0.0, 0.0, 1.0, 1.0], 2) == "▁█"
    assert spark([float("nan"), 1.0, float("inf"), 2.0], 9) == "▁█"
    assert spark([], 5) == ""


def test_a_long_curve_keeps_its_course_and_its_mean() -> None:
    curve = Curve()
    for value in range(10_000):
        curve = curve.grown(value)
    assert KEPT / 2 <= len(curve.points) < KEPT
    assert list(curve.points) == sorted(curve.points)
    assert curve.points[0] == (curve.every - 1) / 2
    assert curve.last == 9999


def test_time_left_is_the_mean_of_what_steps_took() -> None:
    view = full()
    assert view.seconds_left == pytest.approx(5 * 2.0)
    assert view.tokens_per_second == pytest.approx(50)
    assert View().seconds_left is None


# ---- a directory ----


def write(path: Path, *lines: dict[str, object], rest: str = "") -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + rest, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("training: {steps: 9}\nprepare: {base: {}, other: {}}\n", encoding="utf-8")
    (run / "run.json").write_text('{"status": "running"}', encoding="utf-8")
    (run / ".lock").touch()
    return run


def test_lines_are_read_once_they_are_whole_and_again_after_a_cut(folder: Path) -> None:
    follower = Follower(folder)
    assert (follower.look().step, follower.look().steps) == (0, 9)
    whole = json.dumps({**METRICS, "step": 2})
    write(folder / "metrics.jsonl", METRICS, rest=whole[:20])
    write(folder / "timings.jsonl", {"step": 1, "seconds": SECONDS})
    view = follower.look()
    assert (view.step, view.tokens_per_second) == (1, 50)
    write(folder / "metrics.jsonl", METRICS, {**METRICS, "step": 2})
    assert follower.look().step == 2
    assert len(follower.look().curves["loss"].points) == 2
    write(folder / "metrics.jsonl", METRICS)
    view = follower.look()
    assert view.step == 1
    assert len(view.curves["loss"].points) == 1


def test_what_happened_is_shown_but_checkpoints(folder: Path) -> None:
    events = [{"step": n, "what": what, "said": what} for n, what in enumerate(("guard", "checkpoint", "fault"))]
    write(folder / "events.jsonl", *events)
    assert [event["what"] for event in Follower(folder).look().events] == ["guard", "fault"]


def test_how_it_stands(folder: Path, tmp_path: Path) -> None:
    assert standing(tmp_path / "nowhere", 0) == "not started"
    assert "no process holds its lock" in standing(folder, 0)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_held(folder)
        assert standing(folder, 0) == "running"
    assert not is_held(folder)
    (folder / "run.json").write_text('{"status": "finished"}', encoding="utf-8")
    assert standing(folder, 0) == "finished"


def test_a_run_within_the_run_has_its_place_in_the_whole(folder: Path) -> None:
    assert at_work(folder) == (folder, ())
    inner = folder / "prepared/other"
    inner.mkdir(parents=True)
    (inner / "run.json").write_text('{"status": "running"}', encoding="utf-8")
    with (inner / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert at_work(folder) == (inner, (Part("other", 2, 2),))


def test_what_is_no_run_is_refused(folder: Path, tmp_path: Path) -> None:
    require_run(folder)
    require_run(tmp_path / "not there yet")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(RunError, match=r"holds notes\.txt and no run; name a run's directory"):
        require_run(tmp_path / "other")
    with pytest.raises(RunError, match="is a file; name a run's directory"):
        require_run(folder / "run.json")
