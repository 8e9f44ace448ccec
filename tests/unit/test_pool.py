"""The pool never drops or doubles an answer silently: a teacher that breaks its promise stops the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from teachers.plan import Assignment
from teachers.pool import Pool
from teachers.types import Answer, Judgment, RawText, ScoreRequest, SignalKind, TeacherFailure

Result = tuple[str, Answer | TeacherFailure]
REQUESTS = {name: ScoreRequest(name, name, 0, 0, "d", RawText("x"), (), "end") for name in "abc"}


class Scripted:
    """A teacher that answers as told."""

    signals = frozenset({SignalKind.JUDGMENT})

    def __init__(self, name: str, script: Callable[[list[Result]], list[Result]]) -> None:
        self.name = name
        self.script = script

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Result]:
        return iter(self.script([(request.request_id, Answer(Judgment(score=1.0))) for request in requests]))

    def close(self) -> None:
        pass


def pool_of(**scripts: Callable[[list[Result]], list[Result]]) -> Pool:
    return Pool(cast(Any, {name: Scripted(name, script) for name, script in scripts.items()}))


def stage(*pairs: str) -> tuple[Assignment, ...]:
    return tuple(Assignment(teacher, request, 1.0) for teacher, request in pairs)


def test_any_order_of_a_teachers_answers_will_do() -> None:
    pool = pool_of(t=lambda results: results[::-1], u=lambda results: results)
    results = pool.score(stage("ua", "ta", "tb", "uc"), REQUESTS)
    assert [(teacher, request) for teacher, request, _ in results] == [("t", "b"), ("t", "a"), ("u", "a"), ("u", "c")]


def test_a_teacher_without_work_is_not_asked() -> None:
    def untouchable(results: list[Result]) -> list[Result]:
        raise AssertionError

    assert len(list(pool_of(t=untouchable, u=lambda results: results).score(stage("ua"), REQUESTS))) == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda results: results[1:], "t left 1 requests unanswered, a first"),
        (lambda results: [*results, results[0]], "t answered a, which was not asked or is answered already"),
        (lambda results: [*results, ("c", results[0][1])], "t answered c, which was not asked"),
    ],
)
def test_a_broken_promise_stops(script: Callable[[list[Result]], list[Result]], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        list(pool_of(t=script).score(stage("ta", "tb"), REQUESTS))


def test_an_exception_of_a_teacher_is_passed_on() -> None:
    def breaks(results: list[Result]) -> list[Result]:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        list(pool_of(t=breaks).score(stage("ta"), REQUESTS))


@pytest.mark.parametrize(("pairs", "message"), [(["ta", "ta"], "same request twice"), (["xa"], "no teacher x")])
def test_a_stage_that_makes_no_sense_is_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(pool_of(t=lambda results: results).score(stage(*pairs), REQUESTS))
