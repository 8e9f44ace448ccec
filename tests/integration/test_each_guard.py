"""Each guard against the fault that it is for, at its default threshold: it speaks, and what is kept is better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.files import read_json
from pipeline.recipe_guards import Guards
from tests.chains import distance, kept
from tests.integration.test_guards import events, last, lines, made
from tests.misbehaving import (
    Fault,
    blind,
    dragged,
    endless,
    foreign_end,
    forgetting,
    looping,
    one_letter,
    stuck,
    too_fast,
)
from tests.runs import DOMAINS

# Where teachers are wrong there is nothing to go on with: the run stops, or goes on so slowly that little is lost.
FAULTS: dict[str, tuple[Callable[[Path], Fault], str]] = {
    "length": (foreign_end, "stop"),
    "truncation": (endless, "stop"),
    "entropy": (one_letter, "roll_back"),
    "repetition": (looping, "roll_back"),
    "kl": (dragged, "roll_back"),
    "score": (forgetting, "roll_back"),
    "mass": (blind, "roll_back"),
    "stale": (stuck, "stop"),
}


@pytest.mark.parametrize("guard", FAULTS)
def test_what_is_kept_is_better_than_without_the_guard(tmp_path: Path, guard: str) -> None:
    build, action = FAULTS[guard]
    fault = build(tmp_path)
    student = fault.settings["student"]["model"]
    without = made(tmp_path, fault.settings, "without", {})
    guards = {guard: action, "rate_factor": 0.1}
    if action == "stop":
        with pytest.raises(RunError, match=f"guards.{guard}=warn"):
            made(tmp_path, fault.settings, "guarded", guards)
    else:
        made(tmp_path, fault.settings, "guarded", guards)
    guarded = tmp_path / "guarded"
    spoke = [each for each in events(guarded, "guard") if each["name"] == guard]
    assert spoke[0]["action"] == action
    assert spoke[0]["threshold"] == Guards.model_fields[guard].default.threshold
    assert len(events(guarded, "rollback")) == (0 if action == "stop" else len(spoke))
    ends = [distance(fault.good, kept(run, student)) for run in (guarded, without)]
    assert ends[0] < 0.6 * ends[1]
    if guard == "stale":  # the good one is a chain: as sure at every letter, of another one
        assert {each["subject"] for each in spoke} == {DOMAINS[0]}
    if guard == "repetition":
        assert last(guarded, guard) < 0.1 < 0.8 < last(without, guard)
    if guard == "score":  # of held-out prompts
        scores = [read_json(run / "evaluation.json")["domains"][DOMAINS[0]]["student"] for run in (guarded, without)]
        assert scores[0] > scores[1] + 0.3


@pytest.mark.parametrize("action", ["roll_back", "lower_rate"])
def test_a_rate_that_is_too_high_for_the_overlap(tmp_path: Path, action: str) -> None:
    """It is so little too high that what was spoilt by then is learned again at a lower one."""
    settings = too_fast(tmp_path, rate=0.03)
    without = made(tmp_path, settings, "without", {})
    guarded = made(tmp_path, settings, "guarded", {"overlap": action, "rate_factor": 0.1})
    spoke = [each for each in events(guarded, "guard") if each["name"] == "overlap"]
    assert spoke[0]["action"] == action
    assert spoke[0]["threshold"] == Guards.model_fields["overlap"].default.threshold
    assert bool(events(guarded, "rollback")) is (action == "roll_back")
    assert last(guarded, "kl") < 0.5 * last(without, "kl")  # to good teachers
    overlaps = [[line["overlap"] for line in lines(run)[-4:]] for run in (guarded, without)]
    assert sum(overlaps[0]) > sum(overlaps[1])
    assert lines(guarded)[-1]["learning_rate"] <= 0.1 * lines(without)[-1]["learning_rate"] * 1.001
