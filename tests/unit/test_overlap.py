"""The simulation of overlapped steps against closed forms, by hand, and against what a run records."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from pipeline.overlap import Layout, Phases, bound, ends, mean_of, phases_of, read_phases, rows_of, seconds_per_step

ALIKE = [
    Phases(writing=4.0, near=0.0, far=1.0, early=0.0, late=2.0),  # writing is slowest
    Phases(writing=1.0, near=0.5, far=0.0, early=0.0, late=3.0),  # training
    Phases(writing=1.0, near=0.0, far=9.0, early=0.5, late=1.0),  # teachers elsewhere
    Phases(writing=2.0, near=0.7, far=2.5, early=0.3, late=1.0),
]


@pytest.mark.parametrize("step", ALIKE)
@pytest.mark.parametrize("scorers", [1, 2, None])
def test_equal_steps_come_to_the_closed_form(step: Phases, scorers: int | None) -> None:
    """The slowest stage, or the way through a step over the number of steps under way: whichever is longer."""
    for staleness, engines in product((0, 1, 2, 4), (0, 1, 2, 4)):
        layout = Layout(staleness, engines, scorers)
        writing = step.writing / max(1, engines)
        stages = [step.near + step.early + step.late + (0 if engines else writing)]
        stages += [writing] if engines else []
        stages += [step.far / scorers] if scorers else []
        way = writing + max(step.far, step.near + step.early) + step.late
        expected = max(*stages, way / (staleness + 1))
        assert seconds_per_step([step], layout) == pytest.approx(expected), layout
        assert bound(step, layout).seconds == pytest.approx(expected)


def test_one_after_the_other_is_the_sum_and_never_slower_with_more() -> None:
    steps = [Phases(1.0 + n % 3, 0.2, 2.0 - n % 2, 0.1, 0.5 + n % 4) for n in range(12)]
    alone = ends(steps, Layout(0, 0))
    assert alone[-1] == pytest.approx(sum(s.writing + max(s.far, s.near + s.early) + s.late for s in steps))
    for scorers in (1, None):
        before = [ends(steps, Layout(ahead, 1, scorers))[-1] for ahead in (0, 1, 2, 4)]
        assert before == sorted(before, reverse=True)
        more = [ends(steps, Layout(2, engines, scorers))[-1] for engines in (1, 2, 4)]
        assert more == sorted(more, reverse=True)


def test_three_steps_by_hand() -> None:
    """One engine, one step ahead. Writing 2, teachers 1, update 3: the engine is done with a step at 2, 4, and with the
    third 2 after the first update; which is at 2 + 1 + 3."""
    steps = [Phases(2.0, 0.0, 1.0, 0.0, 3.0)] * 3
    assert ends(steps, Layout(1, 1)) == [6.0, 9.0, 12.0]
    # In one process: 2 + 2 written, the first is answered meanwhile, 3; then 2 more written, 3; and 3.
    assert ends(steps, Layout(1, 0)) == [7.0, 12.0, 15.0]
    assert ends(steps, Layout(0, 0)) == [6.0, 12.0, 18.0]


def test_what_a_run_has_recorded(tmp_path: Path) -> None:
    """One after the other, the simulation gives back the very seconds that were recorded."""
    lines = [
        {"step": n, "seconds": {"rollout": 2.0 + n, "teachers": 1.5, "waiting": 1.0, "early": 0.25, "update": 3.0}}
        for n in range(5)
    ]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = read_phases(tmp_path)
    assert len(steps) == 4
    assert steps[0] == phases_of(lines[1]) == Phases(3.0, 0.5, 1.75, 0.25, 2.75)
    recorded = sum(line["seconds"][name] for line in lines[1:] for name in ("rollout", "teachers", "update"))
    assert ends(steps, Layout(0, 0))[-1] == pytest.approx(recorded)
    assert mean_of(steps).writing == pytest.approx(4.5)
    rows = rows_of(steps, [0, 2], [0, 1], 1)
    assert [row[:2] for row in rows] == [["none", "0"], ["none", "1"], ["2", "0"], ["2", "1"]]
    assert rows[0][3] == "1.00"
    with pytest.raises(SystemExit, match="no steps after the first"):
        read_phases(tmp_path / "nothing")
