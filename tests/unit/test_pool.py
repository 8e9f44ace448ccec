"""The pool never drops or doubles an answer silently: a teacher that breaks its promise stops the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

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


def questions(names: str) -> list[ScoreRequest]:
    return [REQUESTS[name] for name in names]


def test_any_order_of_a_teachers_answers_will_do() -> None:
    pool = pool_of(t=lambda results: results[::-1], u=lambda results: results)
    assert [request for request, _ in pool.score("t", questions("ab"))] == ["b", "a"]
    assert [request for request, _ in pool.score("u", questions("ac"))] == ["a", "c"]


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
        list(pool_of(t=script).score("t", questions("ab")))


def test_an_exception_of_a_teacher_is_passed_on() -> None:
    def breaks(results: list[Result]) -> list[Result]:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        list(pool_of(t=breaks).score("t", questions("a")))
