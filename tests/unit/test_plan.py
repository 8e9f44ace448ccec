"""Who is asked, and what a failure does to the shares."""

from __future__ import annotations

from collections import defaultdict

import pytest

from teachers.errors import TeacherError
from teachers.plan import Assignment, Routes, plan, renormalise
from teachers.types import RawText, ScoreRequest

ROUTES = Routes({"math": {"a": 3.0, "b": 1.0}, "code": {"c": 0.2}}, {"d": 5.0})


def request(name: str, domain: str) -> ScoreRequest:
    return ScoreRequest(name, name, 0, 0, domain, RawText("x"), (), "end")


def totals(assignments: tuple[Assignment, ...]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for assignment in assignments:
        sums[assignment.request_id] += assignment.share
    return dict(sums)


def test_shares_are_relative_and_other_domains_go_to_the_default() -> None:
    (stage,) = plan([request("1", "math"), request("2", "code"), request("3", "poetry")], ROUTES)
    assert stage == (
        Assignment("a", "1", 0.75),
        Assignment("b", "1", 0.25),
        Assignment("c", "2", 1.0),
        Assignment("d", "3", 1.0),
    )


def test_a_domain_without_teacher_is_named() -> None:
    with pytest.raises(TeacherError, match=r"'poetry'.*code, math.*routing\.default"):
        plan([request("1", "poetry")], Routes(ROUTES.by_domain))


def test_main_teacher_is_the_largest_share_and_the_first_of_equals() -> None:
    assert ROUTES.main_teacher("math") == "a"
    assert Routes(otherwise={"x": 1, "y": 1}).main_teacher("any") == "x"


def test_no_requests_are_one_empty_stage() -> None:
    assert plan([], ROUTES) == ((),)


def test_shares_of_a_failed_teacher_go_to_those_who_answered() -> None:
    (stage,) = plan([request(str(n), "math") for n in range(3)], Routes({}, {"a": 1, "b": 2, "c": 3}))
    left = renormalise(stage, {("c", "0"), ("a", "1"), ("b", "1"), ("c", "1"), ("a", "2")})
    assert {(a.teacher, a.request_id): a.share for a in left} == pytest.approx(
        {("a", "0"): 1 / 3, ("b", "0"): 2 / 3, ("b", "2"): 2 / 5, ("c", "2"): 3 / 5}
    )
    assert totals(left) == pytest.approx({"0": 1.0, "2": 1.0})


def test_nothing_changes_where_nobody_failed() -> None:
    (stage,) = plan([request("1", "math"), request("2", "math")], Routes({}, {"a": 1, "b": 1, "c": 1}))
    assert renormalise(stage, ()) == stage
