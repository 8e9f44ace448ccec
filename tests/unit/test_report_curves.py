"""Numbers over steps: each in a chart, none lost in thinning, and what happened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.report.curves import Event, charts_of, events_of, flat_series, gathered, thinned
from pipeline.report.read import read_run
from tests.run_directories import Size, make_run, write, write_lines


def test_thinning_keeps_every_spike_and_the_order() -> None:
    rng = random.Random(0)
    steps = list(range(1, 10_001))
    values: list[float | None] = [rng.random() for _ in steps]
    values[7_321], values[123] = 99.0, -99.0
    x, thin = thinned(steps, {"v": values}, 1000)
    assert len(x) == len(thin["v"]) == 1000
    assert x == sorted(set(x))
    assert (x[0], x[-1]) == (1, 10_000)
    assert max(filter(None, thin["v"])) == 99.0
    assert min(filter(None, thin["v"])) == -99.0
    place = thin["v"].index(99.0)
    assert abs(x[place] - 7_322) <= 20


def test_gaps_stay_gaps_and_a_rare_value_is_kept() -> None:
    steps = list(range(1, 5_001))
    rare: list[float | None] = [None] * 5_000
    rare[2_500] = 3.0
    _, thin = thinned(steps, {"rare": rare, "full": [1.0] * 5_000}, 100)
    assert thin["rare"].count(3.0) >= 1
    assert thin["rare"].count(None) >= 98
    assert thinned([1, 2], {"a": [None, 1.0]}, 100) == ([1, 2], {"a": [None, 1.0]})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", Size(steps=30, rollouts=3))


def test_every_number_of_a_line_is_in_some_chart(run: Path) -> None:
    charts = charts_of(read_run(run), {"editor": {1: 0.5, 3: 0.25}})
    ids = [chart.id for chart in charts]
    assert len(ids) == len(set(ids))
    known = "held_out kl_teacher kl_domain score loss entropy overlap length truncated learning_rate tokens dollars"
    assert {*known.split(), "repetition", "gradient_share", "seconds", "speed"} <= set(ids)
    by_id = {chart.id: chart for chart in charts}
    assert {curve.name for curve in by_id["loss"].curves} == {"loss", "nll", "divergence"}
    assert by_id["quality_of_something_new"].group == "More"
    assert by_id["dollars"].curves[0].values == (0.5, 0.75)
    assert by_id["tokens"].curves[0].values[-1] == sum(640 + step % 7 for step in range(1, 31))
    assert by_id["held_out"].x == (0, 15, 30)
    assert all(curve.points for curve in by_id["held_out"].curves)
    assert "math goes from 0.2 at step 0 to 0.883 at step 30, between 0.2 and 0.883" in by_id["held_out"].summary


def test_a_teacher_for_each_domain_is_one_chart(tmp_path: Path) -> None:
    write(tmp_path / "run.json", {})
    kl = {"math": 0.5, "code": 0.25}
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0, "kl": {"teacher": kl, "domain": kl}}])
    assert [chart.id for chart in charts_of(read_run(tmp_path))] == ["kl_teacher", "loss"]


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "run.json", {})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "entropy": 1.0, "why": "text", "yes": true}\n')
    assert flat_series(read_run(tmp_path), {}) == {"step": {1: 1.0}, "entropy": {1: 1.0}}


def test_what_happened_is_what_was_written_down(run: Path) -> None:
    found = events_of(read_run(run))
    assert [event.what for event in found if event.what != "fault"] == [
        "checkpoint",
        "guard",
        "checkpoint",
        "checkpoint",
    ]
    assert [event.step for event in found if event.what == "fault"] == [5, 14, 23]
    assert next(event for event in found if event.what == "guard").name == "gradient math"


def test_an_older_run_has_its_checkpoints_and_failures(run: Path) -> None:
    (run / "events.jsonl").unlink()
    (run / "checkpoints" / "step-000020").mkdir(parents=True)
    found = events_of(read_run(run))
    assert Event(20, "checkpoint", "", "checkpoint after step 20") in found
    assert Event(5, "fault", "editor", "editor failed: timeout (2)", 2) in found


def test_many_events_are_gathered_but_none_is_forgotten() -> None:
    events = [Event(step, "fault", "t", "timeout", 2) for step in range(1, 10_001)]
    found = gathered(events, 10_000, most=100)
    assert len(found) <= 101
    assert sum(event.count for event in found) == 20_000
    assert len(gathered([*events[:3], Event(2, "guard", "t", "")], 10, most=100)) == 4
