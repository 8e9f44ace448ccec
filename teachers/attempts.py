"""The rules of asking one question, the same for every remote teacher.

The journal may know the answer. Else the question waits for its turn (concurrency, rates), reserves what it can cost,
is written down, is asked, what came of it is written down, and it is asked again where that may help.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from teachers.config import Limits
from teachers.ledger import RUN, OverBudget
from teachers.limits import Pace, backoff
from teachers.types import Answer, RemoteTeacher, ScoreRequest, TeacherFailure, Usage

if TYPE_CHECKING:
    from teachers.journal import Journal
    from teachers.ledger import Ledger, Reservation

Result = Answer | TeacherFailure
T = TypeVar("T")

GRACE = 0.5  # seconds that an attempt has beyond its deadline to say itself that it was too late
WRITERS = 8  # threads that write to the journal: what comes at the same time shares one flush to the disk


@dataclass(eq=False)
class Desk:
    """One teacher, and the state of asking it. Changed on the loop's thread alone.

    models: the names that it returned, the first one first. open: questions that are not answered yet; under_way: those
    of them that are at the teacher now; reserved: attempts with a place in the budget. The rest as in `Progress`.
    """

    teacher: RemoteTeacher
    limits: Limits
    pace: Pace
    slots: asyncio.Semaphore
    models: list[str]
    gate: asyncio.Lock = field(default_factory=asyncio.Lock)  # first come, first served, however many tokens
    last_answer: float = 0.0
    open: int = 0
    under_way: int = 0
    reserved: int = 0
    answered: int = 0
    replayed: int = 0
    in_doubt: int = 0
    waited: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.teacher.name

    def cancelled(self) -> TeacherFailure:
        return TeacherFailure(self.name, "cancelled", True, "the run is ending")

    def wrong_model(self, usage: Usage | None = None) -> TeacherFailure:
        first, *others = self.models
        detail = f"it answered as {', '.join(others)}, and as {first} before"
        return TeacherFailure(self.name, "wrong_model", False, detail, usage=usage)


def charged(result: Result, estimate: Usage) -> Usage:
    """The tokens that an attempt is charged for. What is in doubt costs the most that it can."""
    if isinstance(result, Answer):
        return result.usage
    return result.usage or (estimate if result.in_doubt else Usage())


class Attempts:
    """Asks questions, each to its result. Used on one event loop's thread alone.

    model_change: what follows when a teacher returns another model's name than its first one: stop: that answer and all
        further questions to it are failures (wrong_model); go_on: it is only noted.
    seed: of the jitter. mistake: told what a teacher raised after it was cut off.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        *,
        model_change: Literal["stop", "go_on"],
        seed: int,
        mistake: Callable[[BaseException], None],
    ) -> None:
        self._journal, self._ledger, self._model_change = journal, ledger, model_change
        self._random, self._mistake = Random(seed), mistake
        self._writers = ThreadPoolExecutor(WRITERS, "journal")
        self._writes: set[asyncio.Future[Any]] = set()
        self._cut_off: set[asyncio.Task[Any]] = set()  # held, because the loop itself forgets them
        self._reserved = 0  # attempts with a place in the run's budget
        self._settled = asyncio.Event()  # replaced by a new one at every settling

    async def result(self, desk: Desk, request: ScoreRequest, key: str) -> Result:
        """What becomes of a question. key: the journal's. Raises what teacher and journal raise: mistakes alone."""
        kept = await self._written(partial(self._journal.find, key))
        if kept is not None:
            desk.replayed += 1
            self._ledger.replayed(desk.name, kept.usage)
            return self._same_model(desk, kept)
        asked = _now()

        def patience() -> float:
            """While the teacher answers others, a question waits for its turn; one who is silent is given up."""
            return max(asked, desk.last_answer) + desk.limits.deadline

        if await _wait(desk, desk.slots.acquire, patience):
            try:
                estimate = desk.teacher.estimate(request)
                if await _wait(desk, partial(_turn, desk, estimate), patience):
                    return await self._attempts(desk, request, key, estimate)
            finally:
                desk.slots.release()
        detail = f"it answered nothing for {desk.limits.deadline:g} s, and this question had no turn"
        return TeacherFailure(desk.name, "timeout", True, detail)

    async def finish(self) -> None:
        """Waits for what is on its way to the disk. Nothing can be asked afterwards."""
        if self._writes:
            await asyncio.wait(self._writes)
        self._writers.shutdown()

    # ---- asking ----

    async def _attempts(self, desk: Desk, request: ScoreRequest, key: str, estimate: Usage) -> Result:
        deadline = _now() + desk.limits.deadline
        failed = 0
        while True:
            result = await self._attempt(desk, request, key, estimate, deadline)
            if isinstance(result, Answer) or not result.retryable or failed == desk.limits.retries:
                return result
            failed += 1
            if result.reason == "rate_limited" and result.retry_after is not None:
                # Whoever has the same key is limited too: the other questions need not find it out one by one.
                desk.pace.rest(_now() + min(result.retry_after, desk.limits.deadline))
            delay = backoff(failed, result.retry_after, self._random)
            if _now() + delay >= deadline:
                return result
            if not await _wait(desk, partial(_turn, desk, estimate, delay), lambda: deadline):
                return result
            desk.retries[result.reason] += 1

    async def _attempt(self, desk: Desk, request: ScoreRequest, key: str, estimate: Usage, deadline: float) -> Result:
        if self._model_change == "stop" and len(desk.models) > 1:
            return desk.wrong_model()
        reservation = await self._reserve(desk, estimate, deadline)
        if isinstance(reservation, OverBudget):
            reason = "over_budget" if reservation.then == "drop" else "budget_spent"  # which ends the run
            return TeacherFailure(desk.name, reason, False, str(reservation))
        intent = self._write(partial(
            self._journal.intend, key, teacher=desk.name, request_id=request.request_id, step=request.step,
            dollars=reservation.dollars, tokens=reservation.tokens, private=request.private,
        ))  # fmt: skip
        result: Result = desk.cancelled()
        try:
            await asyncio.shield(intent)
            # From here on it may have been sent: what is settled if anything is raised below.
            result = TeacherFailure(desk.name, "error", True, in_doubt=True)
            result = self._same_model(desk, await self._score(desk, request, key, deadline))
        finally:
            await self._settle(desk, reservation, intent, result)
        return result

    async def _score(self, desk: Desk, request: ScoreRequest, key: str, deadline: float) -> Result:
        """Asks; a teacher that keeps no deadline is cut off, even one that does not let itself be cancelled."""
        start = _now()
        until = min(start + desk.limits.timeout, deadline)
        task = asyncio.get_running_loop().create_task(desk.teacher.score(request, until))
        desk.under_way += 1
        try:
            await asyncio.wait({task}, timeout=until + GRACE - start)
        finally:
            desk.under_way -= 1
            if not task.done():
                task.cancel()
                self._cut_off.add(task)
                task.add_done_callback(self._let_go)
        if not task.done():
            return TeacherFailure(desk.name, "timeout", True, f"no answer for {until - start:g} s", in_doubt=True)
        if task.cancelled():
            raise RuntimeError("its `score` cancelled itself")
        result = task.result()
        if isinstance(result, Answer):
            desk.last_answer = _now()
            return replace(result, journal_key=key, latency=result.latency or desk.last_answer - start)
        if not isinstance(result, TeacherFailure):
            raise TypeError(f"its `score` returned {type(result).__name__}, not an Answer or a TeacherFailure")
        return result

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._cut_off.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            error.add_note("after it was cut off")
            self._mistake(error)

    def _same_model(self, desk: Desk, result: Result) -> Result:
        """The result, unless the model's name is another one and that is not allowed."""
        if isinstance(result, TeacherFailure) or result.model_returned is None:
            return result
        if result.model_returned not in desk.models:
            desk.models.append(result.model_returned)
        if self._model_change == "go_on" or result.model_returned == desk.models[0]:
            return result
        return desk.wrong_model(result.usage)

    # ---- money and paper ----

    async def _reserve(self, desk: Desk, estimate: Usage, deadline: float) -> Reservation | OverBudget:
        """A place in the budgets. What others hold may come back: a budget is over only where nobody holds any."""
        while isinstance(found := self._ledger.reserve(desk.name, estimate), OverBudget):
            held = self._reserved if found.who == RUN else desk.reserved
            if not held or not await _wait(desk, self._settled.wait, lambda: deadline):
                return found
        desk.reserved += 1
        self._reserved += 1
        return found

    async def _settle(self, desk: Desk, reservation: Reservation, intent: asyncio.Future[int], result: Result) -> None:
        """Charges an attempt, lets those go on who wait for the budget, and writes down what came of it."""
        dollars = self._ledger.settle(reservation, charged(result, reservation.estimate))
        desk.reserved -= 1
        self._reserved -= 1
        self._settled.set()
        self._settled = asyncio.Event()
        if isinstance(result, Answer):
            desk.answered += 1
        else:
            desk.in_doubt += result.in_doubt and result.usage is None
        await self._written(partial(self._journal.settle, await intent, result, dollars))

    def _write(self, call: Callable[[], T]) -> asyncio.Future[T]:
        writing = asyncio.get_running_loop().run_in_executor(self._writers, call)
        self._writes.add(writing)
        writing.add_done_callback(self._writes.discard)
        return writing

    async def _written(self, call: Callable[[], T]) -> T:
        return await asyncio.shield(self._write(call))  # a paid answer is kept, even if the run is ending


# ---- waiting ----


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _wait(desk: Desk, what: Callable[[], Awaitable[object]], until: Callable[[], float]) -> bool:
    """Whether it was over in time. `until` may move on while it waits."""
    start = _now()
    try:
        while _now() < until():
            try:
                async with asyncio.timeout_at(until()):
                    await what()
                    return True
            except TimeoutError:
                continue
        return False
    finally:
        desk.waited += _now() - start


async def _turn(desk: Desk, estimate: Usage, delay: float = 0.0) -> None:
    """Waits until the teacher's pace lets this question go, and not less than `delay` seconds."""
    await asyncio.sleep(delay)
    tokens = estimate.input + estimate.output
    async with desk.gate:
        while (at := desk.pace.earliest(_now(), tokens)) > _now():
            await asyncio.sleep(at - _now())
        desk.pace.book(_now(), tokens)
