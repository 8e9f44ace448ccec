"""A step's questions: every request is settled by all who were asked, whenever their answers come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

import pytest

from teachers.exchange import Exchange
from teachers.plan import Plan, Routes
from teachers.types import (
    Answer,
    Finding,
    Judgment,
    RawText,
    ScoreRequest,
    SignalKind,
    TeacherFailure,
    Usage,
)

Result = Answer | TeacherFailure


def request(name: str) -> ScoreRequest:
    return ScoreRequest(name, name, 0, 1, "d", RawText(name), (), "end")


@dataclass
class Local:
    """Answers a batch and remembers which requests came together, and what it was shown."""

    name: str
    fails: bool = False
    batches: list[list[str]] = field(default_factory=list)
    shown: dict[str, Mapping[str, Judgment]] = field(default_factory=dict)
    signals: frozenset[SignalKind] = frozenset({SignalKind.JUDGMENT})

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, Result]]:
        self.batches.append([r.request_id for r in requests])
        for r in requests:
            self.shown[r.request_id] = r.upstream
            failure = TeacherFailure(self.name, "too_long", retryable=False)
            yield r.request_id, failure if self.fails else Answer(Judgment(1.0, self.name))

    def close(self) -> None: ...


class Remote:
    """Stands in the pool by the protocol; who answers in its place is the `Post` below."""

    signals = frozenset({SignalKind.JUDGMENT})
    identity = "remote"

    def __init__(self, name: str) -> None:
        self.name = name

    def key(self, request: ScoreRequest) -> str:
        return request.request_id

    def estimate(self, request: ScoreRequest) -> Usage:
        return Usage()

    async def score(self, request: ScoreRequest, deadline: float) -> Result:
        raise NotImplementedError

    async def examine(self, deadline: float) -> tuple[Finding, ...]:
        return ()

    async def aclose(self) -> None: ...


class Post:
    """A courier whose answers leave in the order that a test wants: those of `order`, then as they were asked."""

    def __init__(self, order: Sequence[str] = (), fails: Callable[[str, str], bool] = lambda *_: False) -> None:
        self.order, self.fails = order, fails
        self.asked: list[tuple[str, str]] = []
        self.held: dict[str, Callable[[], None]] = {}
        self.lock = threading.Lock()

    def ask(self, teacher: str, question: ScoreRequest, done: Callable[[Result], None]) -> None:
        self.asked.append((teacher, question.request_id))
        failed = self.fails(teacher, question.request_id)
        result = TeacherFailure(teacher, "unavailable", True) if failed else Answer(Judgment(0.5, f"by {teacher}"))
        with self.lock:
            self.held[question.request_id] = lambda: done(result)
        wanted = [name for name in self.order if name in self.held] if len(self.held) >= len(self.order) else []
        if len(self.held) >= len(self.order):
            names = [*wanted, *(name for name in self.held if name not in wanted)]
            held, self.held = self.held, {}
            threading.Thread(target=lambda: [held[name]() for name in names]).start()

    def check(self) -> None: ...

    def close(self) -> None: ...


def pool(post: Post, *teachers: Any) -> Any:
    from teachers.pool import Pool

    return Pool({teacher.name: teacher for teacher in teachers}, post)  # type: ignore[arg-type]


def test_a_remote_teacher_is_asked_before_the_step_is_complete() -> None:
    post = Post()
    exchange = Exchange(pool(post, Local("near"), Remote("far")), Plan(Routes({}, {"near": 1, "far": 1})), {})
    exchange.submit(request("a"))
    assert post.asked == [("far", "a")]
    exchange.submit(request("b"))
    settled = exchange.settle()
    assert {name: dict(found.shares) for name, found in settled.items()} == {
        "a": {"near": 0.5, "far": 0.5},
        "b": {"near": 0.5, "far": 0.5},
    }


@pytest.mark.parametrize("order", [["a", "b", "c"], ["c", "a", "b"]])
@pytest.mark.parametrize("submitted", ["abc", "cab"])
def test_which_requests_a_local_teacher_scores_together_does_not_depend_on_when_answers_come(
    order: list[str], submitted: str
) -> None:
    fallback = Local("near")
    post = Post(order, fails=lambda teacher, name: name in "ac")
    plan = Plan(Routes({}, {"far": 1.0}), fallback={"far": "near"})
    exchange = Exchange(pool(post, fallback, Remote("far")), plan, {})
    for name in submitted:
        exchange.submit(request(name))
    settled = exchange.settle()
    assert fallback.batches == [["a", "c"]]
    assert [dict(settled[name].shares) for name in "abc"] == [{"near": 1.0}, {"far": 1.0}, {"near": 1.0}]
    assert set(exchange.failures()) == {("far", "a"), ("far", "c")}


def test_feedback_reaches_the_teacher_that_is_shown_it() -> None:
    shown = Local("own")
    plan = Plan(Routes({}, {"own": 1.0}), needs={"own": "critic"})
    exchange = Exchange(pool(Post(), shown, Remote("critic")), plan, {})
    exchange.submit(request("a"))
    settled = exchange.settle()
    assert shown.shown["a"] == {"critic": Judgment(0.5, "by critic")}
    assert dict(settled["a"].shares) == {"own": 1.0}


def test_what_failed_before_a_restart_fails_again_and_is_not_asked() -> None:
    known = {("far", "a"): TeacherFailure("far", "timeout", retryable=True)}
    post = Post()
    exchange = Exchange(
        pool(post, Remote("far"), Remote("other")), Plan(Routes({}, {"far": 1.0}), {"far": "other"}), known
    )
    exchange.submit(request("a"))
    settled = exchange.settle()
    assert post.asked == [("other", "a")]
    assert dict(settled["a"].shares) == {"other": 1.0}
    assert exchange.failures() == known


def test_nobody_left_to_ask_is_a_request_without_shares() -> None:
    exchange = Exchange(pool(Post(), Local("near", fails=True)), Plan(Routes({}, {"near": 1.0})), {})
    exchange.submit(request("a"))
    assert dict(exchange.settle()["a"].shares) == {}
    with pytest.raises(ValueError, match="twice"):
        exchange.submit(request("a"))


class Doors(Post):
    """Each answer leaves when its door is opened, and at once where it is open already."""

    def __init__(self, fails: Callable[[str, str], bool] = lambda *_: False) -> None:
        super().__init__(fails=fails)
        self.open: set[str] = set()

    def ask(self, teacher: str, question: ScoreRequest, done: Callable[[Result], None]) -> None:
        self.asked.append((teacher, question.request_id))
        failed = self.fails(teacher, question.request_id)
        result = TeacherFailure(teacher, "unavailable", True) if failed else Answer(Judgment(0.5, f"by {teacher}"))
        with self.lock:
            if question.request_id not in self.open:
                self.held[question.request_id] = lambda: done(result)
                return
        done(result)

    def let(self, *names: str) -> None:
        with self.lock:
            self.open.update(names)
            leaving = [self.held.pop(name) for name in names if name in self.held]
        for leave in leaving:
            leave()


def test_some_are_settled_while_others_are_still_waited_for() -> None:
    """Those that were named and no other, whatever else has come; a local teacher scores those together."""
    near = Local("near")
    post = Doors(fails=lambda _, name: name != "c")
    exchange = Exchange(pool(post, Remote("far"), near), Plan(Routes({}, {"far": 1.0}), fallback={"far": "near"}), {})
    for name in ("a", "b", "c", "d"):
        exchange.submit(request(name))
    post.let("d", "b", "a")
    assert list(exchange.settle(["b", "a"])) == ["a", "b"]
    assert near.batches == [["a", "b"]]
    post.let("c")
    settled = exchange.settle()
    assert {name: dict(found.shares) for name, found in settled.items()} == {
        "a": {"near": 1.0}, "b": {"near": 1.0}, "c": {"far": 1.0}, "d": {"near": 1.0},
    }  # fmt: skip
    assert near.batches == [["a", "b"], ["d"]]
    assert [name for _, name in post.asked] == ["a", "b", "c", "d"]


def test_who_is_asked_next_is_asked_while_others_train() -> None:
    """A fallback's question goes out when the first teacher has failed, whoever is waited for."""
    near, post = Local("near"), Doors(fails=lambda teacher, name: teacher == "far")
    routes = Routes({"near": {"near": 1.0}}, {"far": 1.0})
    exchange = Exchange(pool(post, Remote("far"), Remote("dear"), near), Plan(routes, fallback={"far": "dear"}), {})
    exchange.submit(request("b"))
    exchange.submit(replace(request("a"), domain="near"))
    post.let("b")
    assert list(exchange.settle(["a"])) == ["a"]
    assert ("dear", "b") in post.asked


def test_several_processes_settle_some_while_others_are_waited_for() -> None:
    post, found = Doors(), {}
    gathers = gathers_of_two()
    waiting = threading.Barrier(3)

    def process(rank: int, early: str, late: str) -> None:
        teachers = pool(post if rank == 0 else None, Remote("far"))  # type: ignore[arg-type]
        exchange = Exchange(teachers, Plan(Routes({}, {"far": 1.0})), {}, gather=gathers[rank], rank=rank)
        for name in (late, early):
            exchange.submit(request(name))
        found[rank, "early"] = list(exchange.settle([early]))
        waiting.wait(30)
        found[rank, "late"] = list(exchange.settle())

    post.let("early0", "early1", "late1")
    threads = [threading.Thread(target=process, args=(n, f"early{n}", f"late{n}"), daemon=True) for n in (0, 1)]
    for thread in threads:
        thread.start()
    waiting.wait(30)
    assert found == {(0, "early"): ["early0"], (1, "early"): ["early1"]}
    post.let("late0")
    for thread in threads:
        thread.join(timeout=30)
    assert found[0, "late"] == ["late0", "early0"]
    assert found[1, "late"] == ["late1", "early1"]
    assert len(post.asked) == 4


def test_an_answer_to_another_process_that_comes_between_is_its_own() -> None:
    """`late1` is answered while the first process trains: what lies there when it goes on is not about its rows."""
    post, found = Doors(), {}
    gathers = gathers_of_two()
    early = threading.Barrier(3)
    go_on = threading.Event()

    def process(rank: int) -> None:
        teachers = pool(post if rank == 0 else None, Remote("far"))  # type: ignore[arg-type]
        exchange = Exchange(teachers, Plan(Routes({}, {"far": 1.0})), {}, gather=gathers[rank], rank=rank)
        for name in (f"early{rank}", f"late{rank}"):
            exchange.submit(request(name))
        exchange.settle([f"early{rank}"])
        early.wait(30)
        go_on.wait(30)
        found[rank] = {name: dict(each.shares) for name, each in exchange.settle().items()}

    post.let("early0", "early1")
    threads = [threading.Thread(target=process, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    early.wait(30)
    post.let("late1", "late0")
    go_on.set()
    for thread in threads:
        thread.join(timeout=30)
    assert found == {rank: {f"early{rank}": {"far": 1.0}, f"late{rank}": {"far": 1.0}} for rank in (0, 1)}


def gathers_of_two() -> list[Callable[[Any], list[Any]]]:
    """`gather` of two ranks in two threads."""
    mail: list[SimpleQueue[Any]] = [SimpleQueue(), SimpleQueue()]
    barrier = threading.Barrier(2)

    def gather_of(rank: int) -> Callable[[Any], list[Any]]:
        boxes: list[Any] = [None, None]

        def gather(value: Any) -> list[Any]:
            mail[1 - rank].put(value)
            boxes[rank], boxes[1 - rank] = value, mail[rank].get()
            barrier.wait()
            return list(boxes)

        return gather

    return [gather_of(0), gather_of(1)]


def test_several_processes_ask_through_the_first() -> None:
    """Two ranks in two threads: only the first has a courier, and each gets the answers to its own questions."""
    gathers = gathers_of_two()
    post = Post(fails=lambda teacher, name: name == "b1")
    found: dict[int, Any] = {}

    def process(rank: int, names: Sequence[str], local: Local) -> None:
        teachers = pool(post if rank == 0 else None, Remote("far"), local)  # type: ignore[arg-type]
        plan = Plan(Routes({}, {"far": 1.0}), fallback={"far": "near"})
        exchange = Exchange(teachers, plan, {}, gather=gathers[rank], rank=rank)
        for name in names:
            exchange.submit(request(name))
        found[rank] = exchange.settle()

    locals_ = [Local("near"), Local("near")]
    threads = [
        threading.Thread(target=process, args=(0, ["a0", "b0"], locals_[0])),
        threading.Thread(target=process, args=(1, ["a1", "b1", "c1"], locals_[1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(post.asked) == [("far", name) for name in ("a0", "a1", "b0", "b1", "c1")]
    assert {name: dict(f.shares) for name, f in found[0].items()} == {"a0": {"far": 1.0}, "b0": {"far": 1.0}}
    assert {name: dict(f.shares) for name, f in found[1].items()} == {
        "a1": {"far": 1.0},
        "b1": {"near": 1.0},
        "c1": {"far": 1.0},
    }
    assert [local.batches for local in locals_] == [[], [["b1"]]]
