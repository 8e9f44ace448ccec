"""Who is asked, in what order, and what failures do to the shares."""

from __future__ import annotations

import pytest
import torch

from teachers.errors import TeacherError
from teachers.plan import Cascade, Plan, Result, Routes, final_shares, next_teachers
from teachers.types import Answer, Judgment, RawText, ScoreRequest, TeacherFailure, TopK

ROUTES = Routes({"math": {"a": 3.0, "b": 1.0}, "code": {"c": 0.2}}, {"d": 5.0})


def request(domain: str, completion: str = "") -> ScoreRequest:
    return ScoreRequest("r", "r", 0, 0, domain, RawText("x"), (), "end", completion=completion)


def said(score: float | None = 1.0, rewrite: str | None = None) -> Answer:
    return Answer(Judgment(score, "because", rewrite))


def by_checker(request: ScoreRequest, text: str) -> float | None:
    return {"right": 1.0, "wrong": 0.0}.get(text)


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
    ("cheap", "completion", "goes_on"),
    [
        (said(0.9), "unknown", False),
        (said(0.5), "unknown", True),
        (said(0.25), "unknown", False),
        (said(None), "unknown", True),
        (said(0.9), "wrong", True),
        (said(0.1), "right", True),
        (said(0.9), "right", False),
        (said(0.1), "wrong", False),
        (said(0.1, rewrite="right"), "wrong", False),
        (said(0.1, rewrite="wrong"), "wrong", True),
        (said(0.1, rewrite="wrong"), "unknown", True),
        (said(None, rewrite="right"), "wrong", False),
        (said(None, rewrite="wrong"), "wrong", True),
        (said(None, rewrite="unknown"), "unknown", False),
        (failed("cheap"), "unknown", True),
        (surprise(0.5), "unknown", False),
        (surprise(3.0), "unknown", True),
    ],
)
def test_a_cascade_goes_on_where_it_pays(cheap: Result, completion: str, goes_on: bool) -> None:
    plan = Plan(Cascade(("cheap", "dear"), disagreement=2.0, check=by_checker))
    waves, shares = walk(plan, request("x", completion), {"cheap": cheap, "dear": said()})
    assert waves == ([{"cheap"}, {"dear"}] if goes_on else [{"cheap"}])
    assert shares == ({"dear": 1.0} if goes_on else {"cheap": 1.0})


@pytest.mark.parametrize("cheap", [said(0.9), said(0.1, rewrite="wrong")])
def test_without_a_checker_a_judgment_is_believed(cheap: Result) -> None:
    _, shares = walk(Plan(Cascade(("cheap", "dear"))), request("x", "wrong"), {"cheap": cheap, "dear": said()})
    assert shares == {"cheap": 1.0}


@pytest.mark.parametrize(("nats", "goes_on"), [(0.7, True), (0.05, False), (4.0, False)])
def test_of_a_sampled_token_alone_what_is_certain_counts(nats: float, goes_on: bool) -> None:
    """All other tokens count as one: near a half it is unsure, whatever it would have said instead."""
    plan = Plan(Cascade(("cheap", "dear"), entropy=0.5))
    _, shares = walk(plan, request("x"), {"cheap": surprise(nats), "dear": said()})
    assert shares == ({"dear": 1.0} if goes_on else {"cheap": 1.0})


def test_three_are_asked_one_after_the_other() -> None:
    plan = Plan(Cascade(("a", "b", "c")), fallback={"a": "c"})
    waves, shares = walk(plan, request("x"), {"a": said(0.5), "b": said(0.5), "c": said(0.5)})
    assert (waves, shares) == ([{"a"}, {"b"}, {"c"}], {"c": 1.0})
    waves, shares = walk(plan, request("x"), {"a": failed("a"), "b": said(), "c": said()})
    assert (waves, shares) == ([{"a"}, {"b", "c"}], {"c": 1.0})


def test_a_cascade_whose_dear_teacher_fails_is_taught_by_the_cheap_one() -> None:
    waves, shares = walk(Plan(Cascade(("cheap", "dear"))), request("x"), {"cheap": said(0.5), "dear": failed("dear")})
    assert waves == [{"cheap"}, {"dear"}]
    assert shares == {"cheap": 1.0}
