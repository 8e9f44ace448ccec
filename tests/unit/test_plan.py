"""Who is asked, in what order, and what failures do to the shares."""

from __future__ import annotations

import pytest
import torch

from teachers.errors import TeacherError
from teachers.plan import Cascade, Plan, Result, Routes, final_shares, next_teachers
from teachers.types import Answer, Judgment, RawText, ScoreRequest, TeacherFailure, TopK

ROUTES = Routes({"math": {"a": 3.0, "b": 1.0}, "code": {"c": 0.2}}, {"d": 5.0})


def request(domain: str, checked: float | None = None) -> ScoreRequest:
    return ScoreRequest("r", "r", 0, 0, domain, RawText("x"), (), "end", checked=checked)


def said(score: float | None = 1.0) -> Answer:
    return Answer(Judgment(score, "because"))


def surprise(nats: float) -> Answer:
    """A teacher to whom each of the student's two tokens came as a surprise of so many nats; a third is not valid."""
    logprobs = torch.tensor([-nats, -nats, -100.0])
    valid = torch.tensor([True, True, False])
    return Answer(TopK(logprobs, torch.zeros(3, 0), torch.zeros(3, 0), torch.zeros(3), valid))


def failed(name: str) -> TeacherFailure:
    return TeacherFailure(name, "unavailable", retryable=True)


def walk(plan: Plan, asked_about: ScoreRequest, says: dict[str, Result]) -> tuple[list[set[str]], dict[str, float]]:
    """The waves in which teachers are asked, each answering at once, and the shares in the end."""
    waves: list[set[str]] = []
    settled: dict[str, Result] = {}
    while names := next_teachers(plan, asked_about, settled.keys(), settled):
        waves.append(set(names))
        settled |= {name: says[name] for name in names}
    return waves, final_shares(plan, asked_about, settled)


@pytest.mark.parametrize(
    ("domain", "shares"), [("math", {"a": 0.75, "b": 0.25}), ("code", {"c": 1.0}), ("poetry", {"d": 1.0})]
)
def test_shares_are_relative_and_other_domains_go_to_the_default(domain: str, shares: dict[str, float]) -> None:
    waves, found = walk(Plan(ROUTES), request(domain), {name: said() for name in "abcd"})
    assert waves == [set(shares)]
    assert found == shares


def test_a_domain_without_teacher_is_named() -> None:
    with pytest.raises(TeacherError, match=r"'poetry'.*code, math.*routing\.default"):
        next_teachers(Plan(Routes(ROUTES.by_domain)), request("poetry"), (), {})


def test_main_teacher_is_the_largest_share_and_the_first_of_equals() -> None:
    assert ROUTES.main_teacher("math") == "a"
    assert Routes(otherwise={"x": 1, "y": 1}).main_teacher("any") == "x"
    assert Cascade(("cheap", "dear")).main_teacher("any") == "dear"


def test_nobody_is_asked_twice_while_others_are_still_thinking() -> None:
    plan = Plan(Routes({}, {"a": 1.0, "b": 1.0}))
    assert next_teachers(plan, request("x"), {"a", "b"}, {"a": said()}) == ()


def test_shares_of_a_failed_teacher_go_to_those_who_answered() -> None:
    plan = Plan(Routes({}, {"a": 1, "b": 2, "c": 3}))
    _, shares = walk(plan, request("x"), {"a": said(), "b": said(), "c": failed("c")})
    assert shares == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    _, shares = walk(plan, request("x"), {"a": failed("a"), "b": failed("b"), "c": failed("c")})
    assert shares == {}


def test_a_fallback_is_asked_after_the_failure_and_takes_the_share() -> None:
    plan = Plan(Routes({}, {"a": 1.0, "b": 3.0}), fallback={"a": "c", "c": "d"})
    says = {"a": failed("a"), "b": said(), "c": failed("c"), "d": said()}
    assert walk(plan, request("x"), says) == ([{"a", "b"}, {"c"}, {"d"}], {"d": 0.25, "b": 0.75})
    # One that is in the routing anyway is not asked again, and has both shares.
    plan = Plan(Routes({}, {"a": 1.0, "b": 3.0}), fallback={"a": "b"})
    assert walk(plan, request("x"), {"a": failed("a"), "b": said()}) == ([{"a", "b"}], {"b": 1.0})


def test_a_teacher_that_is_shown_feedback_waits_for_it() -> None:
    plan = Plan(Routes({}, {"self": 1.0}), needs={"self": "critic"})
    waves, shares = walk(plan, request("x"), {"self": said(), "critic": said()})
    assert waves == [{"critic"}, {"self"}]
    assert shares == {"self": 1.0}  # the critic was asked for its feedback and has no share of its own


@pytest.mark.parametrize(
    ("cheap", "checked", "goes_on"),
    [
        (said(0.9), None, False),
        (said(0.5), None, True),
        (said(0.25), None, False),
        (said(None), None, True),
        (said(0.9), 0.0, True),
        (said(0.9), 1.0, False),
        (said(0.1), 0.0, False),
        (failed("cheap"), None, True),
        (surprise(0.5), None, False),
        (surprise(3.0), None, True),
    ],
)
def test_a_cascade_goes_on_where_it_pays(cheap: Result, checked: float | None, goes_on: bool) -> None:
    plan = Plan(Cascade(("cheap", "dear"), disagreement=2.0))
    waves, shares = walk(plan, request("x", checked), {"cheap": cheap, "dear": said()})
    assert waves == ([{"cheap"}, {"dear"}] if goes_on else [{"cheap"}])
    assert shares == ({"dear": 1.0} if goes_on else {"cheap": 1.0})


def test_a_cascade_whose_dear_teacher_fails_is_taught_by_the_cheap_one() -> None:
    waves, shares = walk(Plan(Cascade(("cheap", "dear"))), request("x"), {"cheap": said(0.5), "dear": failed("dear")})
    assert waves == [{"cheap"}, {"dear"}]
    assert shares == {"cheap": 1.0}
