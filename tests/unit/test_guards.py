"""Every detector at its threshold's edges, and what is done about what it finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.events import FILE, Event, happened
from pipeline.files import read_lines
from pipeline.guards import DETECTORS, RECENT, WINDOW, findings, pulls, seen
from pipeline.lookout import HARDEST, QUIET, Alarm, Watch, first_alarm, look, rolled_back
from pipeline.metrics import LOOPS, describe_repetition, shrinks
from pipeline.recipe_guards import NAMES, POSSIBLE, Guards

DEFAULTS = {name: Guards.model_fields[name].default.threshold for name in NAMES}


def window(first: dict[str, Any], last: dict[str, Any], between: int = 0) -> list[dict[str, Any]]:
    lines = [first] * (RECENT + between) + [last] * RECENT
    return [{"step": number, **line} for number, line in enumerate(lines, 1)]


def length(mean: float) -> dict[str, Any]:
    return {"length": {"mean": mean, "max": 99}}


def share(a: float) -> dict[str, Any]:
    return {"gradient_share": {"a": a, "b": 1 - a}, "domain_rows": {"a": 2, "b": 2}}


def loops(a: float, rows: int = 16) -> dict[str, Any]:
    return {"repetition": {"a": a}, "domain_rows": {"a": rows}}


def sharp(mean: float, deviation: float, one_token: bool = True) -> dict[str, Any]:
    return {"sharpness": {"t": {"mean": mean, "deviation": deviation, "one_token": one_token}}}


# name, the lines before, those now at the threshold (fine), those now beyond it, who is found
EDGES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str | None]] = [
    ("repetition", loops(0.0), loops(0.1), loops(0.11), "a"),
    ("length", length(10), length(20), length(20.01), None),
    ("truncation", {"truncated": 0.0}, {"truncated": 0.3}, {"truncated": 0.31}, None),
    ("entropy", {"entropy": 1.0}, {"entropy": 0.1}, {"entropy": 0.0999}, None),
    ("overlap", {"overlap": 0.15}, {"overlap": 0.0}, {"overlap": -0.01}, None),
    ("kl", {"kl": {"domain": {"a": 0.5}}}, {"kl": {"domain": {"a": 1.5}}}, {"kl": {"domain": {"a": 1.51}}}, "a"),
    ("score", {"score": {"a": 0.3}}, {"score": {"a": 0.0}}, {"score": {"a": -0.01}}, "a"),
    ("gradient", share(0.5), share(10 / 11 - 1e-9), share(0.91), "a"),
    ("mass", {}, {"mass_in_support": 0.5}, {"mass_in_support": 0.49}, None),
    ("uniform", {}, sharp(0.05, 1.0), sharp(0.049, 1.0), "t"),
    ("stale", {}, sharp(3.0, 1e-6), sharp(3.0, 0.9e-6), "t"),
]


def test_every_guard_has_a_detector_and_an_edge() -> None:
    assert list(DETECTORS) == [name for name, *_ in EDGES] == [name for name in NAMES if name not in POSSIBLE]


@pytest.mark.parametrize(("name", "before", "at", "beyond", "subject"), EDGES, ids=[name for name, *_ in EDGES])
def test_at_its_threshold_and_beyond(
    name: str, before: dict[str, Any], at: dict[str, Any], beyond: dict[str, Any], subject: str | None
) -> None:
    assert findings(name, [], DEFAULTS[name]) == []
    assert findings(name, window(before, at), DEFAULTS[name]) == []
    (found,) = findings(name, window(before, beyond), DEFAULTS[name])
    assert (found.name, found.subject, found.threshold) == (name, subject, DEFAULTS[name])
    assert found.said
    assert "{" not in found.said
    assert (found.value < found.threshold) == (name in ("uniform", "stale"))
    read = [seen(line) for line in window(before, beyond)]
    assert findings(name, read, DEFAULTS[name]) == [found]


@pytest.mark.parametrize("name", ["repetition", "length", "truncation", "entropy", "overlap", "kl", "score"])
def test_growth_needs_two_sides(name: str) -> None:
    before, beyond = next((before, beyond) for edge, before, _, beyond, _ in EDGES if edge == name)
    assert findings(name, window(before, beyond)[1:], DEFAULTS[name]) == []
    assert findings(name, window(before, beyond, between=5), DEFAULTS[name])


def test_another_best_token_is_another_answer() -> None:
    assert findings("stale", [sharp(3.0, 0.0)], DEFAULTS["stale"])
    assert not findings("stale", [sharp(3.0, 0.0, one_token=False)], DEFAULTS["stale"])


def graded(grades: Sequence[float], advantage: float = 0.0, **scores: float) -> list[dict[str, Any]]:
    rows = {"score": scores, "domain_rows": {"a": 8, "b": 8}}
    return [{"grade": {"t": grade}, "advantage": {"t": advantage}, **rows} for grade in grades]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (graded([0.5] * 4), True),  # to all of them, and no checker is needed to know it
        (graded([0.5, 0.5, 0.5, 0.51]), False),
        (graded([0.5] * 4, advantage=0.1), False),  # from answer to answer
        (graded([0.5] * 3), False),  # too early
        (graded([1.0] * 4), False),  # all may be right, or wrong
        (graded([0.0] * 4, a=0.0, b=0.3), False),
        (graded([0.0] * 4, a=0.2), False),  # nobody checks the other domain
        (graded([1.0] * 4, a=0.2, b=0.7), True),  # they are not
        (graded([0.0] * 4, a=0.2, b=0.7), True),
        ([{"score": {"a": 0.5}}] * 4, False),  # nobody grades
    ],
)
def test_a_grader_that_says_the_same_of_everything(lines: list[dict[str, Any]], told: bool) -> None:
    found = findings("stale", [seen({"step": n, **line}) for n, line in enumerate(lines)], DEFAULTS["stale"])
    assert [each.subject for each in found] == (["t"] if told else [])
    assert all(each.said == "t gives the same answer whatever it is asked" for each in found)


def test_a_small_kl_may_grow() -> None:
    """By less than is seen where a teacher is the student as it was."""
    small, grown, more = ({"kl": {"domain": {"a": value}}} for value in (0.001, 0.2, 0.21))
    assert findings("kl", window(small, grown), 2.0) == []
    assert findings("kl", window(small, more), 2.0)


def test_a_score_has_to_fall_further_out_of_its_noise() -> None:
    values = [1.0, 0.9, 1.0, 0.9, 0.5, 0.6, 0.5, 0.6]  # by 4.5 standard errors
    assert findings("overlap", [seen({"step": n, "overlap": value}) for n, value in enumerate(values)], 0.3)
    assert not findings("score", [seen({"step": n, "score": {"a": value}}) for n, value in enumerate(values)], 0.3)
    steady = [0.95] * 4 + [0.55] * 4
    assert findings("score", [seen({"step": n, "score": {"a": value}}) for n, value in enumerate(steady)], 0.3)


def test_steps_that_go_up_and_down_are_no_fall() -> None:
    """A mean that falls by 0.4 among steps that differ by as much, and one that falls by 0.4 among steady ones."""
    restless, steady = ([0.9, 0.3, 0.8, 0.4, 0.1, 0.6, -0.1, 0.2], [0.6, 0.61, 0.59, 0.6, 0.2, 0.21, 0.19, 0.2])
    for values, told in ((restless, False), (steady, True)):
        lines = [{"step": step, "score": {"a": value}} for step, value in enumerate(values, start=1)]
        assert bool(findings("score", lines, 0.3)) is told


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("chance", [0.5, 0.9, 0.97])
def test_chance_alone_sets_hardly_a_guard_off(chance: float, rows: int) -> None:
    """Once in a thousand steps of few answers at most, where each is right, loops or is cut by the same chance."""
    random = Random(f"{chance}/{rows}")
    said: list[tuple[int, str]] = []

    def drawn(chance: float) -> float:
        return sum(random.random() < chance for _ in range(rows)) / rows

    for _ in range(5):
        lines = [
            {
                "step": step,
                "score": {"a": drawn(chance)},
                "truncated": drawn(1 - chance),
                **loops(drawn(1 - chance), rows),
            }
            for step in range(1, 200)
        ]
        said += run(Guards(), lines)[1]
    assert len(said) <= 1


def test_growth_is_not_taken_for_noise() -> None:
    """Answers that grow from the first steps on, as they do where student and teacher end theirs differently."""
    lines = [{"step": step, **length(mean)} for step, mean in enumerate((7, 8, 13, 21, 23, 29, 30, 31), start=1)]
    assert [found.name for found in findings("length", lines, 2.0)] == ["length"]


def test_one_looping_answer_in_eight_is_seen() -> None:
    """Where there are enough of them: two among eight answers may be chance."""
    for rows, after, told in ((16, 0.125, True), (16, 0.0625, False), (2, 0.25, False), (2, 0.5, True)):
        lines = window(loops(0.0, rows), loops(after, rows))
        assert bool(findings("repetition", lines, DEFAULTS["repetition"])) is told


def test_a_domain_that_appears_late_has_no_past() -> None:
    lines = window({"score": {"a": 1.0}}, {"score": {"a": 1.0, "b": 0.0}})
    assert findings("score", lines, 0.2) == []


def test_a_pull_is_per_row() -> None:
    """Nine rows of ten may have nine tenths of the gradient."""
    lines = window({}, {"gradient_share": {"a": 0.9, "b": 0.1}, "domain_rows": {"a": 9, "b": 1}})
    assert pulls(lines) == pytest.approx({"a": 1.0, "b": 1.0})
    assert pulls(window({}, {"gradient_share": {"a": 1.0}, "domain_rows": {"a": 9}})) == {}


def test_repetition_is_seen_at_the_end_of_an_answer() -> None:
    prose = Path(__file__).read_text(encoding="utf-8")
    assert 1 < shrinks(prose[:3000]) < LOOPS < shrinks(prose + "ab" * 5000)
    assert shrinks("") == 0


@pytest.mark.parametrize(
    ("said", "least"), [("a", 65), ("the same again ", 210), ("It is the end. So we go on. ", 360)]
)
def test_loops_are_seen_in_short_answers(said: str, least: int) -> None:
    assert shrinks((said * least)[:least]) > LOOPS
    assert shrinks((said * least)[: least * 4 // 5]) < LOOPS


def test_repetition_is_the_share_of_answers_that_loop() -> None:
    """One in ten does not go under in the mean of the others."""
    texts = [("a", "The answer is 12, since 3 times 4 is that.")] * 9 + [("a", "12 " * 40), ("b", "y"), ("a", "")]
    assert describe_repetition(texts) == {"repetition": {"a": pytest.approx(1 / 11), "b": 0.0}}


# ---- what is done ----


def run(guards: Guards, lines: list[dict[str, Any]], watch: Watch | None = None) -> tuple[Watch, list[tuple[int, str]]]:
    watch, said = watch or Watch(), []
    for line in lines:
        watch, raised = look(guards, watch, line)
        watch = Watch.from_json(json.loads(json.dumps(watch.to_json())))  # as through a checkpoint
        said += [(line["step"], each.finding.name) for each in raised]
    return watch, said


def loud(steps: int) -> list[dict[str, Any]]:
    return [{"step": step, **sharp(0.0, 1.0)} for step in range(1, steps + 1)]


def test_a_guard_speaks_now_and_then() -> None:
    _, said = run(Guards(), loud(2 * QUIET + 1))
    assert said == [(1, "uniform"), (1 + QUIET, "uniform"), (1 + 2 * QUIET, "uniform")]


def test_a_rate_is_lowered_by_its_factor_each_time() -> None:
    guards = Guards.model_validate({"uniform": "lower_rate", "rate_factor": 0.1})
    watch, _ = run(guards, loud(QUIET + 1))
    assert watch.rate == pytest.approx(0.01)
    assert len(run(guards, loud(100))[0].window) == WINDOW


def test_balance_makes_rows_pull_alike() -> None:
    lines = [{"step": step, **share(0.95)} for step in range(1, RECENT + 1)]
    watch, said = run(Guards(), lines)
    assert said == [(RECENT, "gradient")]
    assert watch.balance["a"] / watch.balance["b"] == pytest.approx(0.05 / 0.95)
    assert sum(watch.balance.values()) == pytest.approx(2)
    hard, _ = run(Guards(), [{"step": step, **share(1 - 1e-9)} for step in range(1, RECENT + 1)])
    assert hard.balance["b"] / hard.balance["a"] == pytest.approx(HARDEST)


def test_stopping_comes_before_rolling_back() -> None:
    guards = Guards.model_validate({"uniform": "roll_back", "stale": "stop"})
    _, raised = look(guards, Watch(), {"step": 3, **sharp(0.0, 0.0)})
    alarm = first_alarm(3, raised)
    assert isinstance(alarm, Alarm)
    assert alarm.raised.action == "stop"
    assert "\n" not in str(alarm)
    assert "guards.stale=warn" in str(alarm)
    assert first_alarm(3, raised[:1]).raised.action == "roll_back"  # type: ignore[union-attr]
    assert first_alarm(3, []) is None


def test_each_roll_back_lowers_the_rate_further_and_one_done_twice_counts_once() -> None:
    guards, kept = Guards(), Watch(rate=1.0)
    watch = Watch(balance={"a": 2.0})
    for number in (1, 2, 3):
        again = [rolled_back(guards, watch, kept, 20) for _ in range(2)]
        assert again[0] == again[1]
        watch = again[0]
        assert (watch.rollbacks, watch.rate, watch.rolled_to) == (number, 0.5**number, 20)
    assert watch.balance == {"a": 2.0}


# ---- the recipe's section ----


def test_short_forms() -> None:
    guards = Guards.model_validate(
        {"repetition": "off", "kl": "lower_rate", "length": 3, "score": {"action": "stop"}, "mass": False}
    )
    assert guards.repetition is guards.mass is None
    assert "repetition" not in guards.on()
    assert (guards.kl.threshold, guards.kl.action) == (3, "lower_rate")  # type: ignore[union-attr]
    assert (guards.length.threshold, guards.length.action) == (3, "warn")  # type: ignore[union-attr]
    assert (guards.score.threshold, guards.score.action) == (0.3, "stop")  # type: ignore[union-attr]
    assert Guards.model_validate(json.loads(guards.model_dump_json())) == guards


@pytest.mark.parametrize(
    "wrong",
    [
        {"kl": "shout"},
        {"kl": -1},
        {"no_such": "off"},
        {"rate_factor": 1},
        {"kl": [1]},
        {"not_finite": "warn"},
        {"not_finite": "balance"},
        {"refusals": "stop"},
    ],
)
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Guards.model_validate(wrong)


def test_whether_it_may_roll_back() -> None:
    assert Guards().roll_back
    assert not Guards(rollbacks=0).roll_back
    assert not Guards.model_validate({"repetition": "off", "not_finite": "stop"}).roll_back


# ---- events ----


def test_an_event_that_is_replayed_is_written_once(tmp_path: Path) -> None:
    event = Event(3, "guard", "kl", "it grew", "a", 2.5, 2.0, "warn")
    assert happened(tmp_path, event)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "wh')  # a kill
    assert not happened(tmp_path, event)
    assert happened(tmp_path, Event(3, "guard", "kl", "it grew", "a", 2.5, 2.0, "warn", attempt=1))
    assert [line["attempt"] for line in read_lines(tmp_path / FILE)] == [0, 1]
