"""The courier, with teachers that misbehave as they are told, a real journal and a real ledger."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from teachers.attempts import GRACE, WRITERS, Result
from teachers.config import Budget, Limits, Price
from teachers.courier import Courier, Progress, journal_key
from teachers.journal import FILE, Journal
from teachers.ledger import Ledger
from teachers.prices import tariff_of
from teachers.types import (
    Answer,
    Chat,
    Finding,
    Judgment,
    Message,
    ScoreRequest,
    SignalKind,
    TeacherFailure,
    TopK,
    Usage,
)
from tests.clock import LeapingLoop

ROOT = Path(__file__).parents[2]
ESTIMATE = Usage(input=100, output=50)
USED = Usage(input=10, output=5)
PATIENCE = 60.0  # real seconds before a test gives up; nothing here takes as long

Step = Callable[["Told", ScoreRequest, float], Awaitable[Any]]


# ---- teachers that do as they are told ----


@dataclass(eq=False)
class Told:
    """For each request by its id, one step after the other; then `otherwise`."""

    name: str = "t"
    script: dict[str, list[Step]] = field(default_factory=dict)
    otherwise: Step | None = None
    signals: frozenset[SignalKind] = frozenset({SignalKind.JUDGMENT})
    identity: str = "told"
    asked: list[tuple[str, float, float]] = field(default_factory=list)  # request, when, deadline
    at_once: int = 0
    most_at_once: int = 0
    closed: int = 0

    def key(self, request: ScoreRequest) -> str:
        return request.group_id

    def estimate(self, request: ScoreRequest) -> Usage:
        return ESTIMATE

    async def score(self, request: ScoreRequest, deadline: float) -> Any:
        self.asked.append((request.request_id, asyncio.get_running_loop().time(), deadline))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            steps = self.script.get(request.request_id)
            return await (steps.pop(0) if steps else self.otherwise or says())(self, request, deadline)
        finally:
            self.at_once -= 1

    async def examine(self, deadline: float) -> tuple[Finding, ...]:
        return (Finding("reachable", True, threading.current_thread().name),)

    async def aclose(self) -> None:
        self.closed += 1

    @property
    def times(self) -> list[float]:
        return [when for _, when, _ in self.asked]


def says(model: str | None = None, usage: Usage = USED, after: float = 0.0) -> Step:
    async def step(told: Told, request: ScoreRequest, deadline: float) -> Answer:
        await asyncio.sleep(after)
        return Answer(Judgment(score=0.5, feedback=request.request_id), usage, model)

    return step


def fails(reason: str = "unavailable", *, retryable: bool = True, **more: Any) -> Step:
    async def step(told: Told, request: ScoreRequest, deadline: float) -> TeacherFailure:
        return TeacherFailure(told.name, reason, retryable, **more)

    return step


def raises(error: BaseException) -> Step:
    async def step(told: Told, request: ScoreRequest, deadline: float) -> Answer:
        raise error

    return step


def returns(value: object) -> Step:
    async def step(told: Told, request: ScoreRequest, deadline: float) -> object:
        return value

    return step


async def hangs(told: Told, request: ScoreRequest, deadline: float) -> Any:
    await asyncio.Event().wait()


async def holds_on(told: Told, request: ScoreRequest, deadline: float) -> Any:
    """Does not let itself be cancelled, ten times."""
    for _ in range(10):
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def question(name: str, key: str | None = None, **more: Any) -> ScoreRequest:
    chat = Chat((Message("user", "2 + 2?"),))
    return ScoreRequest(name, key or name, 0, 1, "math", chat, (), "end", completion="4", **more)


def questions(count: int) -> list[ScoreRequest]:
    return [question(f"q{n}") for n in range(count)]


# ---- a courier on a clock that leaps ----


class Post:
    """A courier with a journal and a ledger; `ask` brings all questions at one moment and lets the time flow."""

    def __init__(
        self,
        folder: Path,
        *teachers: Told,
        limits: Limits | None = None,
        price: Price | None = None,
        budget: Budget | None = None,
        **more: Any,
    ) -> None:
        names = [teacher.name for teacher in teachers]
        self.file = folder / FILE
        self.journal = Journal(self.file)
        prices = dict.fromkeys(names, tariff_of(price)) if price else {}
        self.ledger = Ledger(self.journal, prices, dict.fromkeys(names, budget))
        self.loop = LeapingLoop()
        self.courier = Courier(
            {teacher.name: teacher for teacher in teachers},
            dict.fromkeys(names, limits or Limits()),
            self.journal,
            self.ledger,
            new_loop=lambda: self.loop,
            **more,
        )

    def ask(self, *requests: ScoreRequest, of: Sequence[str] = ("t",)) -> dict[str, Result]:
        """All requests, of all teachers: "teacher request" -> the result. Each must come exactly once."""
        arrived: queue.SimpleQueue[tuple[str, Result]] = queue.SimpleQueue()
        self.loop.flow(False)
        asked = [(teacher, request) for teacher in of for request in requests]
        for teacher, request in asked:
            name = request.request_id if len(of) == 1 else f"{teacher} {request.request_id}"
            self.courier.ask(teacher, request, lambda result, name=name: arrived.put((name, result)))
        self.loop.flow(True)
        found = [arrived.get(timeout=PATIENCE) for _ in asked]
        self.loop.flow(False)
        assert max(Counter(name for name, _ in found).values()) == 1
        return dict(found)

    def one(self, request: ScoreRequest | None = None) -> Result:
        (result,) = self.ask(request or question("q")).values()
        return result

    @property
    def progress(self) -> Progress:
        return self.courier.snapshot()["t"]

    def close(self) -> None:
        """The time flows from when the loop knows of it: else it could leap to what ends a question before."""
        closing = threading.Thread(target=self.courier.close)
        closing.start()
        while not self.courier._closing:
            os.sched_yield()
        with self.courier._lock:
            self.loop.flow(True)
        closing.join()
        self.journal.close()


Open = Callable[..., Post]


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Open]:
    opened: list[Post] = []

    def make(*teachers: Told, folder: Path = tmp_path, **more: Any) -> Post:
        opened.append(Post(folder, *teachers, **more))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def failure(result: Result) -> TeacherFailure:
    assert isinstance(result, TeacherFailure)
    return result


def answer(result: Result) -> Answer:
    assert isinstance(result, Answer), result
    return result


def states(file: Path) -> Counter[str]:
    """What another process would see of the attempts in a journal."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        return Counter(state for (state,) in connection.execute("SELECT state FROM attempts"))


# ---- an answer, and where it is kept ----


def test_an_answer_is_given_charged_and_kept(post: Open) -> None:
    teacher = Told()
    office = post(teacher, price=Price(input=1, output=2))
    result = answer(office.one())
    assert result.signal == Judgment(score=0.5, feedback="q")
    assert result.journal_key == journal_key(teacher, question("q"))
    totals = office.ledger.totals()["t"]
    assert (totals.requests, totals.input, totals.output, float(totals.dollars)) == (1, 10, 5, 20e-6)
    assert states(office.file) == {"answered": 1}


def test_what_the_journal_knows_is_not_asked_again_and_is_the_same_to_the_bit(post: Open, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = TopK(
        token_logprobs=torch.randn(5, generator=generator),
        ids=torch.randint(0, 9, (5, 3), generator=generator),
        logprobs=torch.randn(5, 3, generator=generator),
        log_tail=torch.tensor([-1.0, float("-inf"), -0.1, -1e-30, -2.0]),
        valid=torch.tensor([True, True, False, True, True]),
    )
    first = post(Told(otherwise=returns(Answer(scores, Usage(7, 1, 2, 3), "m", latency=0.25))))
    given = answer(first.one())
    first.close()
    never = Told(otherwise=raises(AssertionError("asked again")))
    second = post(never, folder=tmp_path)
    kept = answer(second.one())
    second.courier.check()
    assert never.asked == []
    assert isinstance(given.signal, TopK)
    assert isinstance(kept.signal, TopK)
    for name in ("token_logprobs", "ids", "logprobs", "log_tail", "valid"):
        one, other = getattr(given.signal, name), getattr(kept.signal, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    for name in ("usage", "model_returned", "latency", "journal_key"):
        assert getattr(given, name) == getattr(kept, name)
    assert second.ledger.totals()["t"].requests == 1
    assert (second.progress.replayed, second.progress.answered) == (1, 0)
    assert [row.replayed for row in second.ledger.table()] == [1]


def test_the_key_knows_who_is_asked_and_what() -> None:
    one = journal_key(Told(), question("q"))
    assert one == journal_key(Told(name="other"), question("another id", key="q"))
    assert one != journal_key(Told(identity="other"), question("q"))
    assert one != journal_key(Told(), question("p"))
    assert journal_key(Told(identity="ab"), question("c")) != journal_key(Told(identity="a"), question("bc"))


def test_the_intent_is_on_the_disk_before_the_question_leaves(post: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the disk takes: a question that did not wait would overtake its intent."""
    seen: list[Counter[str]] = []
    intend = Journal.intend

    def slowly(journal: Journal, *given: Any, **named: Any) -> int:
        threading.Event().wait(0.1)
        return intend(journal, *given, **named)

    monkeypatch.setattr(Journal, "intend", slowly)

    async def looks(told: Told, request: ScoreRequest, deadline: float) -> Answer:
        seen.append(states(office.file))
        return Answer(Judgment(score=1.0))

    office = post(Told(otherwise=looks))
    office.one()
    assert seen == [{"intended": 1}]


def test_a_private_question_is_noted_as_one(post: Open) -> None:
    office = post(Told())
    office.ask(question("open"), question("secret", private=True))
    with sqlite3.connect(office.file) as connection:
        assert dict(connection.execute("SELECT request_id, private FROM attempts")) == {"open": 0, "secret": 1}


def test_equal_questions_under_way_are_asked_once(post: Open) -> None:
    teacher = Told(otherwise=says(after=3.0))
    office = post(teacher)
    results = office.ask(question("one", key="same"), question("two", key="same"), question("three"))
    assert len(teacher.asked) == 2
    assert results["one"] is results["two"] is not results["three"]
    assert office.progress.answered == 2


def test_one_model_under_two_names_fails_under_each(post: Open) -> None:
    one, other = Told("one", otherwise=fails("rejected", retryable=False)), Told("other")
    results = post(one, other).ask(question("q"), of=("one", "other"))
    assert {name: failure(result).teacher for name, result in results.items()} == {"one q": "one", "other q": "other"}
    assert (len(one.asked), len(other.asked)) == (1, 0)


# ---- again ----


def test_a_failure_that_may_pass_is_tried_again(post: Open) -> None:
    teacher = Told(script={"q": [fails(), fails("broken", in_doubt=True)]})
    office = post(teacher)
    assert isinstance(office.one(), Answer)
    assert len(teacher.asked) == 3
    first, second, third = teacher.times
    assert 0 < second - first <= 0.5
    assert 0 < third - second <= 1.0
    assert office.progress.retries == {"unavailable": 1, "broken": 1}
    assert states(office.file) == {"failed": 1, "doubtful": 1, "answered": 1}


def test_the_last_failure_is_what_remains(post: Open) -> None:
    teacher = Told(script={"q": [fails("broken")] * 2 + [fails("unavailable", detail="HTTP 503")] * 10})
    office = post(teacher, limits=Limits(retries=3))
    assert office.one() == TeacherFailure("t", "unavailable", True, "HTTP 503")
    assert len(teacher.asked) == 4
    assert office.progress.failures == {"unavailable": 1}
    assert states(office.file) == {"failed": 4}


def test_what_will_not_pass_is_not_tried_again(post: Open) -> None:
    teacher = Told(otherwise=fails("rejected", retryable=False))
    assert failure(post(teacher).one()).reason == "rejected"
    assert len(teacher.asked) == 1


def test_retry_after_is_kept_by_all_that_the_teacher_is_asked(post: Open) -> None:
    limited = Told(script={"q0": [fails("rate_limited", retry_after=20.0)]}, otherwise=says(after=1.0))
    other = Told("other", identity="another")
    office = post(limited, other, limits=Limits(concurrency=2))
    office.ask(*questions(6), of=("t", "other"))
    again = [when for name, when, _ in limited.asked if name == "q0"]
    assert again[1] - again[0] >= 20.0
    assert not [when for when in limited.times if 0.0 < when < 20.0]  # q0 and q1 were under way already
    assert max(other.times) < 20.0


def test_a_retry_that_would_come_too_late_is_not_waited_for(post: Open) -> None:
    teacher = Told(otherwise=fails("rate_limited", retry_after=301.0))
    office = post(teacher, limits=Limits(deadline=300.0))
    result = failure(office.one())
    assert (result.reason, result.retry_after, office.loop.time()) == ("rate_limited", 301.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_asked_after_the_deadline(post: Open, tmp_path: Path, seed: int) -> None:
    async def slow(told: Told, request: ScoreRequest, deadline: float) -> TeacherFailure:
        await asyncio.sleep(3.0)
        return TeacherFailure("t", "unavailable", True)

    teacher = Told(otherwise=slow)
    office = post(teacher, limits=Limits(deadline=20.0, timeout=15.0, retries=1000), seed=seed)
    assert failure(office.one()).reason in ("unavailable", "timeout")
    assert len(teacher.asked) > 3
    for _, when, deadline in teacher.asked:
        assert when < 20.0
        assert deadline == min(when + 15.0, 20.0)


def test_jitter_comes_from_the_seed(post: Open, tmp_path: Path) -> None:
    def times(seed: int, folder: str) -> list[float]:
        teacher = Told(script={"q": [fails()] * 4})
        post(teacher, folder=tmp_path / folder, seed=seed).one()
        return teacher.times

    assert times(1, "a") == times(1, "b") != times(2, "c")


# ---- teachers that do not come back ----


def test_a_teacher_that_hangs_is_cut_off_and_charged(post: Open) -> None:
    teacher = Told(otherwise=hangs)
    office = post(teacher, limits=Limits(timeout=10.0, retries=1), price=Price(input=1, output=1))
    result = failure(office.one())
    assert (result.reason, result.retryable, result.in_doubt) == ("timeout", True, True)
    assert teacher.at_once == 0  # it was cancelled
    assert teacher.times[1] - teacher.times[0] >= 10.0 + GRACE
    assert office.loop.time() < 25.0
    totals = office.ledger.totals()["t"]
    assert (totals.doubtful, float(totals.dollars)) == (2, 2 * 150e-6)
    assert office.progress.in_doubt == len(office.journal.doubtful()) == 2


def test_a_teacher_that_cannot_be_cancelled_does_not_hold_up_the_run(post: Open) -> None:
    office = post(Told(otherwise=holds_on), limits=Limits(timeout=5.0, retries=2, concurrency=2))
    results = office.ask(*questions(4))
    assert {failure(result).reason for result in results.values()} == {"timeout"}


def test_its_own_timeout_is_heard(post: Open) -> None:
    async def late(told: Told, request: ScoreRequest, deadline: float) -> TeacherFailure:
        await asyncio.sleep(deadline - asyncio.get_running_loop().time())
        return TeacherFailure("t", "timeout", True, "no byte came", in_doubt=True)

    office = post(Told(otherwise=late), limits=Limits(retries=0))
    assert failure(office.one()).detail == "no byte came"


def test_charged_failures_cost_what_they_say(post: Open) -> None:
    office = post(
        Told(script={"a": [fails("unparsable", usage=Usage(input=30, output=3), retryable=False)]}),
        price=Price(input=1, output=1),
    )
    office.one(question("a"))
    totals = office.ledger.totals()["t"]
    assert (totals.tokens, totals.doubtful, float(totals.dollars)) == (33, 0, 33e-6)


# ---- taking turns ----


def test_no_more_are_under_way_than_the_recipe_says(post: Open) -> None:
    teacher = Told(otherwise=says(after=1.0))
    office = post(teacher, limits=Limits(concurrency=3))
    results = office.ask(*questions(20))
    assert teacher.most_at_once == 3
    assert {type(result) for result in results.values()} == {Answer}
    assert office.progress.waited == pytest.approx(sum(n // 3 for n in range(20)))


def in_any_minute(times: Sequence[float]) -> int:
    return max(sum(start <= when < start + 60.0 for when in times) for start in times)


def test_requests_per_minute_count_every_attempt(post: Open) -> None:
    teacher = Told(script={f"q{n}": [fails()] for n in range(0, 12, 2)})
    results = post(teacher, limits=Limits(requests_per_minute=5, deadline=3600.0)).ask(*questions(12))
    assert {type(result) for result in results.values()} == {Answer}
    assert len(teacher.times) == 18
    assert in_any_minute(teacher.times) == 5


def test_tokens_per_minute_count_the_estimate(post: Open) -> None:
    teacher = Told()
    limit = 3 * (ESTIMATE.input + ESTIMATE.output) + 1
    post(teacher, limits=Limits(tokens_per_minute=limit)).ask(*questions(10))
    assert in_any_minute(teacher.times) == 3


def test_waiting_for_a_slow_teacher_is_nobody_s_failure(post: Open) -> None:
    """A thousand seconds in the queue, and a deadline of sixty: the teacher answers all the time."""
    teacher = Told(otherwise=says(after=10.0))
    office = post(teacher, limits=Limits(concurrency=1, deadline=60.0))
    results = office.ask(*questions(100))
    assert {type(result) for result in results.values()} == {Answer}
    assert office.loop.time() == pytest.approx(1000.0)


def test_a_silent_teacher_is_given_up_by_all_who_wait(post: Open) -> None:
    teacher = Told(otherwise=hangs)
    office = post(teacher, limits=Limits(concurrency=1, deadline=60.0, timeout=50.0))
    results = office.ask(*questions(100))
    assert {failure(result).reason for result in results.values()} == {"timeout"}
    assert office.loop.time() <= 2 * (60.0 + GRACE)
    never_sent = [result for result in results.values() if not failure(result).in_doubt]
    assert len(never_sent) == 100 - len({name for name, _, _ in teacher.asked})


# ---- all at once ----


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_every_question_is_settled_and_the_books_agree(post: Open, seed: int) -> None:
    random = Random(seed)
    slow = says(after=random.uniform(0.1, 9.0))
    moods: list[Step] = [slow, says(), fails(), fails("broken", in_doubt=True), fails("rejected", retryable=False),
                         fails("rate_limited", retry_after=4.0), fails("unparsable", usage=USED), hangs]  # fmt: skip
    names = [f"t{n}" for n in range(4)]
    asked = [question(f"q{n}", key=f"k{random.randrange(40)}") for n in range(60)]
    teachers = [
        Told(name, {request.request_id: random.choices(moods, k=3) for request in asked}, identity=name)
        for name in names
    ]
    limits = Limits(concurrency=random.randint(1, 8), retries=random.randint(0, 3), timeout=5.0, deadline=40.0,
                    requests_per_minute=random.choice([None, 30]))  # fmt: skip
    budget = Budget(tokens=random.choice([1500, 10**6]))
    office = post(*teachers, limits=limits, budget=budget, price=Price(input=1, output=1), seed=seed)
    results = office.ask(*asked, of=names)
    office.courier.check()
    assert len(results) == len(asked) * len(names)
    assert "intended" not in states(office.file)
    totals, keys = office.ledger.totals(), {request.group_id for request in asked}
    for teacher in teachers:
        mine = {request.group_id: results[f"{teacher.name} {request.request_id}"] for request in asked}
        progress, total = office.courier.snapshot()[teacher.name], totals[teacher.name]
        assert (progress.waiting, progress.under_way, teacher.at_once) == (0, 0, 0)
        assert progress.answered + sum(progress.failures.values()) == len(keys)
        assert progress.answered == sum(isinstance(result, Answer) for result in mine.values())
        assert total.requests == len(teacher.asked)
        assert total.doubtful == progress.in_doubt
        assert total.tokens <= (budget.tokens or 0)
        assert teacher.most_at_once <= limits.concurrency
        if limits.requests_per_minute:
            assert in_any_minute(teacher.times) <= limits.requests_per_minute


# ---- money ----


def test_a_budget_is_not_exceeded_and_used_up(post: Open) -> None:
    """Each may cost 150 tokens and costs 15: with 200, one goes at a time, and none that may cost too much."""
    teacher = Told(otherwise=says(after=1.0))
    office = post(teacher, budget=Budget(tokens=200))
    results = office.ask(*questions(10))
    reasons = Counter(type(result).__name__ for result in results.values())
    assert reasons == {"Answer": 4, "TeacherFailure": 6}  # after four, 60 are spent: 140 are left
    assert teacher.most_at_once == 1
    assert len(teacher.asked) == 4
    assert office.ledger.totals()["t"].tokens == 60
    refused = [failure(result) for result in results.values() if isinstance(result, TeacherFailure)]
    assert {(result.reason, result.retryable) for result in refused} == {("budget_spent", False)}
    assert all("200" in result.detail for result in refused)


def test_one_teacher_s_empty_budget_does_not_wait_for_another(post: Open) -> None:
    poor, busy = Told("t"), Told("busy", identity="another", otherwise=says(after=50.0))
    office = post(poor, busy, budget=Budget(tokens=160))
    office.one(question("earlier"))
    refused_at: list[float] = []
    office.courier.ask("busy", question("q"), lambda result: None)
    office.courier.ask("t", question("q"), lambda result: refused_at.append(office.loop.time()))
    office.ask(question("later"), of=("busy",))
    assert refused_at == [0.0]


def test_what_is_in_doubt_uses_up_the_budget(post: Open) -> None:
    teacher = Told(otherwise=fails("broken", in_doubt=True))
    office = post(teacher, budget=Budget(tokens=310), limits=Limits(retries=10))
    assert failure(office.one()).reason == "budget_spent"
    assert len(teacher.asked) == 2


# ---- mistakes in programs ----


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (raises(ZeroDivisionError("a mistake")), ZeroDivisionError),
        (raises(TimeoutError("not ours")), TimeoutError),
        (raises(SystemExit(3)), RuntimeError),
        (raises(asyncio.CancelledError()), RuntimeError),
        (returns(None), TypeError),
    ],
)
def test_a_teacher_s_mistake_is_raised_and_the_others_are_answered(
    post: Open, step: Step, expected: type[Exception]
) -> None:
    office = post(Told(script={"q1": [step]}))
    results = office.ask(*questions(4))
    assert failure(results.pop("q1")).reason == "error"
    assert {type(result) for result in results.values()} == {Answer}
    with pytest.raises(expected) as raised:
        office.courier.check()
    assert "while t was asked about q1" in raised.value.__notes__
    assert states(office.file) == {"answered": 3, "doubtful": 1}
    assert isinstance(office.one(question("later")), Answer)


@pytest.mark.parametrize("method", ["key", "estimate"])
@pytest.mark.parametrize("error", [KeyError("a mistake"), SystemExit(3)])
def test_a_mistake_before_anything_is_sent(
    post: Open, method: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(request: ScoreRequest) -> Any:
        raise error

    teacher = Told()
    monkeypatch.setattr(teacher, method, mistaken)
    office = post(teacher)
    assert failure(office.one()).reason == "error"
    with pytest.raises((KeyError, RuntimeError)):
        office.courier.check()
    assert teacher.asked == []


def test_a_mistake_in_done_is_raised(post: Open) -> None:
    office = post(Told())

    def mistaken(result: Result) -> None:
        raise ZeroDivisionError

    office.courier.ask("t", question("q"), mistaken)

    def others() -> None:
        for number in range(1000):  # it comes when it comes
            office.one(question(f"another {number}"))
            office.courier.check()

    with pytest.raises(ZeroDivisionError):
        others()


def test_a_broken_journal_is_raised_and_everybody_is_told(post: Open) -> None:
    teacher = Told()
    office = post(teacher)
    office.journal.close()
    assert {failure(result).reason for result in office.ask(*questions(3)).values()} == {"error"}
    with pytest.raises(sqlite3.ProgrammingError):
        office.courier.check()
    assert teacher.asked == []


# ---- another model ----


def test_another_model_s_answers_are_failures(post: Open) -> None:
    teacher = Told(script={"q": [says("v1")], "r": [says("v2", after=1.0)], "s": [says("v2")]})
    office = post(teacher)
    assert isinstance(office.one(), Answer)
    result = failure(office.one(question("r")))
    assert (result.reason, result.retryable, result.usage) == ("wrong_model", False, USED)
    assert "v1" in result.detail
    assert "v2" in result.detail
    assert failure(office.one(question("s"))).reason == "wrong_model"
    assert [name for name, _, _ in teacher.asked] == ["q", "r"]  # nothing is paid for after that
    assert office.courier.changed_models() == {"t": ("v1", "v2")}
    assert office.ledger.totals()["t"].requests == 2


def test_or_go_on(post: Open) -> None:
    office = post(Told(script={"q": [says("v1")], "r": [says("v2")]}), model_change="go_on")
    assert [answer(office.one(question(name))).model_returned for name in "qrs"] == ["v1", "v2", None]
    assert office.progress.models == ("v1", "v2")


def test_names_from_before_a_restart_count(post: Open, tmp_path: Path) -> None:
    known = post(Told(otherwise=says("v2")), folder=tmp_path / "a", models={"t": "v1"})
    assert failure(known.one()).reason == "wrong_model"
    first = post(Told(otherwise=says("v1")), folder=tmp_path / "b")
    first.one()
    first.close()
    second = post(Told(otherwise=says("v2")), folder=tmp_path / "b")
    assert answer(second.one()).model_returned == "v1"  # the journal's
    assert failure(second.one(question("r"))).reason == "wrong_model"


# ---- the end ----


def test_closing_lets_go_of_what_is_under_way(tmp_path: Path) -> None:
    teacher = Told(otherwise=hangs)
    office = Post(tmp_path, teacher, limits=Limits(concurrency=2))
    results: queue.SimpleQueue[Result] = queue.SimpleQueue()
    for request in questions(5):
        office.courier.ask("t", request, results.put)
    end = time.monotonic() + PATIENCE
    while len(teacher.asked) < 2:
        assert time.monotonic() < end
        threading.Event().wait(0.01)
    office.close()
    found = [failure(results.get(timeout=PATIENCE)) for _ in range(5)]
    assert results.empty()
    assert {result.reason for result in found} == {"cancelled"}
    assert teacher.closed == 1
    assert teacher.at_once == 0
    assert states(office.file) == {"doubtful": 2}  # sent, and nobody knows; the others never left
    assert not [thread for thread in threading.enumerate() if thread.name == "courier"]
    office.close()
    with pytest.raises(RuntimeError, match="closed"):
        office.courier.ask("t", question("q"), results.put)


def test_answers_that_are_there_are_kept_though_the_run_ends(tmp_path: Path) -> None:
    """`close` comes while some answers are on their way to the disk, and more wait for a thread to take them there."""
    count = 3 * WRITERS
    all_asked, writing = asyncio.Event(), threading.Semaphore(0)

    async def all_together(told: Told, request: ScoreRequest, deadline: float) -> Answer:
        if len(told.asked) == count:
            all_asked.set()
        await all_asked.wait()
        return Answer(Judgment(score=1.0))

    class Slow(Journal):
        def settle(self, *given: Any) -> None:
            writing.release()
            threading.Event().wait(0.1)
            super().settle(*given)

    journal = Slow(tmp_path / FILE)
    limits = {"t": Limits(concurrency=count)}
    courier = Courier({"t": Told(otherwise=all_together)}, limits, journal, Ledger(journal, {}, {"t": None}))
    told: queue.SimpleQueue[Result] = queue.SimpleQueue()
    for request in questions(count):
        courier.ask("t", request, told.put)
    for _ in range(WRITERS):
        assert writing.acquire(timeout=PATIENCE)
    courier.close()
    assert states(tmp_path / FILE) == {"answered": count}
    assert told.qsize() == count
    journal.close()


def test_closing_without_a_question_closes_the_teachers(post: Open) -> None:
    teacher = Told()
    post(teacher).close()
    assert teacher.closed == 1


def test_many_threads_ask_and_each_is_told_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / FILE)
    teacher = Told(otherwise=says(after=0.001))
    courier = Courier({"t": teacher}, {"t": Limits()}, journal, Ledger(journal, {}, {"t": None}))
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask_some(thread: int) -> None:
        for n in range(25):
            name = f"{thread} {n}"
            courier.ask("t", question(name), lambda result, name=name: told.put(name))

    threads = [threading.Thread(target=ask_some, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    found = Counter(told.get(timeout=PATIENCE) for _ in range(200))
    for thread in threads:
        thread.join()
    courier.close()
    journal.close()
    assert found == {f"{thread} {n}": 1 for thread in range(8) for n in range(25)}
    assert told.empty()
    assert len(teacher.asked) == 200


INTERRUPTED = """
import asyncio, queue, sys, threading
from pathlib import Path
from teachers.config import Limits
from teachers.courier import Courier
from teachers.journal import Journal
from teachers.ledger import Ledger
from tests.unit.test_courier import Told, question

async def hangs(told, request, deadline):
    print("asked", flush=True)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

journal = Journal(Path(sys.argv[1]))
courier = Courier({"t": Told(otherwise=hangs)}, {"t": Limits()}, journal, Ledger(journal, {}, {"t": None}))
arrived = queue.SimpleQueue()
try:
    courier.ask("t", question("q"), arrived.put)
    arrived.get()
finally:
    courier.close()
    print("closed", arrived.qsize(), flush=True)
"""


def test_an_interrupted_run_ends_though_a_teacher_holds_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / FILE)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert out == "closed 1\n"
    assert "KeyboardInterrupt" in err.splitlines()[-1]
    assert states(tmp_path / FILE) == {"doubtful": 1}


# ---- looking on ----


def test_every_question_is_in_the_counts(post: Open) -> None:
    script: Mapping[str, list[Step]] = {"q0": [fails("rejected", retryable=False)], "q1": [fails(), fails()]}
    office = post(Told(script=dict(script)))
    office.one(question("earlier"))
    office.ask(question("earlier"), *questions(5))
    progress = office.progress
    assert (progress.waiting, progress.under_way) == (0, 0)
    assert (progress.answered, progress.replayed, progress.failures) == (5, 1, {"rejected": 1})
    assert (progress.retries, progress.in_doubt) == ({"unavailable": 2}, 0)


def test_counts_while_they_are_under_way(post: Open) -> None:
    seen: list[Progress] = []

    async def looks(told: Told, request: ScoreRequest, deadline: float) -> Answer:
        await asyncio.sleep(1.0)
        seen.append(office.progress)
        return Answer(Judgment(score=1.0))

    office = post(Told(otherwise=looks), limits=Limits(concurrency=2))
    office.ask(*questions(5))
    assert (seen[0].waiting, seen[0].under_way) == (3, 2)


def test_examining_runs_where_the_questions_run(post: Open) -> None:
    office = post(Told())
    assert office.courier.examine("t", 10.0) == (Finding("reachable", True, "courier"),)


def test_examining_one_who_is_silent(post: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(deadline: float) -> tuple[Finding, ...]:
        await asyncio.Event().wait()
        raise AssertionError

    teacher = Told()
    monkeypatch.setattr(teacher, "examine", silent)
    office = post(teacher)
    office.loop.flow(True)
    (finding,) = office.courier.examine("t", 10.0)
    assert finding.good is False
    assert "10 s" in finding.text
