"""What teachers gave and took, how far they agree, and where they conflict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.report.read import Run, read_run
from pipeline.report.teachers import Staff, asked_of, staff_of
from tests.run_directories import Size, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "run", Size(steps=40, rollouts=12)))


@pytest.fixture(scope="module")
def staff(run: Run) -> Staff:
    return staff_of(run, asked_of(run), run.samples)


def test_the_journal_says_what_was_asked(run: Run) -> None:
    asked = asked_of(run)["editor"]
    assert (asked.attempts, asked.answered, asked.retries) == (44, 40, 4)
    assert asked.reasons == {"timeout": 4}
    assert sum(asked.dollars.values()) == pytest.approx(40 * 0.0123)
    assert len(asked.seconds) == 40


def test_a_row_per_teacher(staff: Staff) -> None:
    by_name = {one.name: one for one in staff.teachers}
    assert list(by_name) == ["arithmetic", "algebra", "python", "editor"]
    assert by_name["arithmetic"].domains == ("math",)
    assert by_name["arithmetic"].score == pytest.approx(0.9)
    assert by_name["algebra"].domains == ("math",)  # by the routing's table: it was not evaluated itself
    assert by_name["python"].gave == {"top_k": 40}
    assert by_name["editor"].dollars == "$0.49"
    latency = by_name["editor"].latency
    assert latency is not None
    assert 0.4 < latency[0] < latency[1] < 1.4
    assert by_name["arithmetic"].latency is None
    first, last = by_name["python"].kl or (0, 1)
    assert first > 3 * last


def two(tops: list[Any], scores: tuple[float, float] | None = None) -> dict[str, Any]:
    """A rollout that two teachers saw; tops: per token, what each finds likeliest, with its probability."""
    teachers = {name: {"divergence": [], "top": [[one[n]] for one in tops]} for n, name in enumerate("ab")}
    judged = {name: {"score": score} for name, score in zip("ab", scores, strict=True)} if scores else {}
    return {"step": 7, "domain": "d", "teachers": teachers, "judgments": judged}


def test_agreement_is_of_the_likeliest_tokens(run: Run) -> None:
    lines = [
        two([(["x", 0.9], ["x", 0.5]), (["x", 0.9], ["y", 0.8]), (["z", 0.99], ["w", 0.4]), (["q", 0.4], ["q", 0.4])])
    ]
    found = staff_of(run, {}, lines)
    agreement = found.agreement["a", "b"]
    assert (agreement.value, agreement.count) == (0.5, 4)
    assert found.agreement["b", "a"] == agreement
    first, second = found.conflicts
    assert (first.place, first.said) == (1, (("a", "“x” 90%"), ("b", "“y” 80%")))  # both are sure: the sharpest
    assert second.place == 2


def test_judges_agree_where_their_scores_are_near(run: Run) -> None:
    found = staff_of(run, {}, [two([], (0.9, 0.8)), two([], (1.0, 0.2))])
    assert found.agreement["a", "b"].value == pytest.approx(1 - 0.45)
    (conflict,) = found.conflicts
    assert (conflict.rollout, conflict.place) == (1, None)


def test_nothing_is_said_of_teachers_that_never_met(run: Run) -> None:
    assert staff_of(run, {}, [{"teachers": {"a": {"top": [[["x", 1.0]]]}}}]).agreement == {}


def test_a_damaged_journal_does_not_take_the_page_away(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", Size(steps=3, rollouts=1))
    (folder / "journal.sqlite").write_bytes(b"no journal")
    assert asked_of(read_run(folder)) == {}
