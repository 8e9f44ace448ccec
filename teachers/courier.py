"""The only one who asks remote teachers: an event loop in a thread of its own, with questions from any thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from teachers.attempts import GRACE, Attempts, Desk, Result
from teachers.config import Limits
from teachers.limits import pace_of
from teachers.types import Finding, RemoteTeacher, ScoreRequest, TeacherFailure

if TYPE_CHECKING:
    from teachers.journal import Journal
    from teachers.ledger import Ledger

Done = Callable[[Result], None]

CLOSING = 3.0  # seconds in which what is under way must let go when the courier closes


@dataclass(frozen=True)
class Progress:
    """How the asking of one teacher goes.

    Questions, equal ones at the same time counted once. waiting: for a turn or before another attempt; under_way: at
    the teacher now; answered: by the teacher; replayed: from the journal; failures: given up, by the last reason.
    Attempts. retries: by the reason of the one before; in_doubt: perhaps charged, and nobody knows.
    waited: seconds in which questions stood still, added up. models: the names that the teacher returned, the first one
    first. dollars: charged in the whole run. seconds: waited for answers in it, over `requests` of them.
    """

    waiting: int
    under_way: int
    answered: int
    replayed: int
    failures: Mapping[str, int]
    retries: Mapping[str, int]
    in_doubt: int
    waited: float
    models: tuple[str, ...]
    dollars: Decimal
    seconds: float = 0.0
    requests: int = 0


def journal_key(teacher: RemoteTeacher, request: ScoreRequest) -> str:
    """Under which an answer is kept: who was asked, and exactly what. Hex, 64 characters."""
    return hashlib.sha256(f"{teacher.identity}\0{teacher.key(request)}".encode()).hexdigest()


class Courier:
    """Asks remote teachers, from any thread and many at once, by the rules of `Attempts`.

    limits: by teacher. models: by teacher, the first name that it returned in this run before it was resumed.
    new_loop: an event loop; another one than asyncio's own is for tests.
    """

    def __init__(
        self,
        teachers: Mapping[str, RemoteTeacher],
        limits: Mapping[str, Limits],
        journal: Journal,
        ledger: Ledger,
        *,
        model_change: Literal["stop", "go_on"] = "stop",
        models: Mapping[str, str] | None = None,
        seed: int = 0,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._desks = {
            name: Desk(
                teacher,
                limits[name],
                pace_of(limits[name]),
                asyncio.Semaphore(limits[name].concurrency),
                [models[name]] if models and name in models else [],
            )
            for name, teacher in teachers.items()
        }
        self._attempts = Attempts(journal, ledger, model_change=model_change, seed=seed, mistake=self._blame)
        self._ledger = ledger
        self._flights: dict[str, list[tuple[Desk, Done]]] = {}  # by the journal's key: equal questions fly once
        self._flying: set[asyncio.Task[None]] = set()  # held, because the loop itself forgets them
        self._error: BaseException | None = None
        self._new_loop = new_loop
        self._lock = threading.Lock()  # of the three below
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    # ---- from any thread ----

    def ask(self, teacher: str, request: ScoreRequest, done: Done) -> None:
        """Asks one question; `done` is called exactly once, on the courier's thread, and must be quick.

        A mistake in a teacher's program is a failure here too (reason `error`), and is raised by `check`.
        """
        desk = self._desks[teacher]
        with self._lock:  # so that nothing comes after the last of what `close` ends
            self._running().call_soon_threadsafe(self._accept, desk, request, done)

    def check(self) -> None:
        """Raises the first exception that a teacher, the journal or a `done` has raised, if there was one."""
        if self._error is not None:
            raise self._error

    def examine(self, teacher: str, seconds: float) -> tuple[Finding, ...]:
        """What preflight finds out about a teacher, on the loop that its connections belong to."""

        async def examining() -> tuple[Finding, ...]:
            deadline = asyncio.get_running_loop().time() + seconds
            try:
                async with asyncio.timeout_at(deadline + GRACE) as limit:
                    return await self._desks[teacher].teacher.examine(deadline)
            except TimeoutError:
                if not limit.expired():
                    raise
                return (Finding("reachable", False, f"it said nothing within {seconds:g} s"),)

        with self._lock:
            found = asyncio.run_coroutine_threadsafe(examining(), self._running())
        return found.result()

    def snapshot(self) -> dict[str, Progress]:
        """Teacher -> how the asking goes just now."""
        charged = self._ledger.totals(*self._desks)
        return {
            name: Progress(
                desk.open - desk.under_way, desk.under_way, desk.answered, desk.replayed, dict(desk.failures),
                dict(desk.retries), desk.in_doubt, desk.waited, tuple(desk.models), charged[name].dollars,
                charged[name].seconds, charged[name].requests,
            )
            for name, desk in self._desks.items()
        }  # fmt: skip

    def changed_models(self) -> dict[str, tuple[str, ...]]:
        """Teacher -> the models' names that it returned, the first one first; only where there is more than one."""
        return {name: tuple(desk.models) for name, desk in self._desks.items() if len(desk.models) > 1}

    def close(self) -> None:
        """Lets go of what is under way (what was sent stays in doubt), closes the teachers and ends the thread.

        Returns within some ten seconds, whatever a teacher does.
        """
        with self._lock:
            if self._closing:
                return
            loop, self._closing = self._running(), True
            ended = asyncio.run_coroutine_threadsafe(self._shut_down(), loop)
        concurrent.futures.wait([ended], timeout=3 * CLOSING)
        if ended.done() and self._thread is not None:  # else a teacher blocks the loop, which ends with the process
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        """The loop, which starts with the first question. Under the lock."""
        if self._closing:
            raise RuntimeError("the courier is closed")
        if self._loop is None:
            self._loop = self._new_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="courier", daemon=True)
            self._thread.start()
        return self._loop

    # ---- on the loop's thread ----

    def _accept(self, desk: Desk, request: ScoreRequest, done: Done) -> None:
        if self._closing:
            self._tell(done, desk.cancelled())
            return
        try:
            key = journal_key(desk.teacher, request)
        except (Exception, SystemExit) as error:
            self._tell(done, self._mistake(desk, request, error))
            return
        waiting = self._flights.setdefault(key, [])
        waiting.append((desk, done))
        if len(waiting) == 1:
            task = asyncio.get_running_loop().create_task(self._fly(desk, request, key))
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)

    async def _fly(self, desk: Desk, request: ScoreRequest, key: str) -> None:
        """One question from its beginning to its end, whatever happens on the way."""
        desk.open += 1
        result: Result
        try:
            result = await self._attempts.result(desk, request, key)
        except asyncio.CancelledError:
            result = desk.cancelled()
        except (Exception, SystemExit) as error:
            result = self._mistake(desk, request, error)
        finally:
            desk.open -= 1
        if isinstance(result, TeacherFailure):
            desk.failures[result.reason] += 1
        for asker, done in self._flights.pop(key):
            # Two teachers may be one model under two names: each has its own failures.
            self._tell(done, replace(result, teacher=asker.name) if isinstance(result, TeacherFailure) else result)

    def _tell(self, done: Done, result: Result) -> None:
        try:
            done(result)
        except Exception as error:
            self._blame(error)

    def _mistake(self, desk: Desk, request: ScoreRequest, error: Exception | SystemExit) -> TeacherFailure:
        if isinstance(error, SystemExit):  # raised by `check`, it would end the program without a word
            error = RuntimeError(f"it wanted to end the program: {error!r}")
        error.add_note(f"while {desk.name} was asked about {request.request_id}")
        self._blame(error)
        return TeacherFailure(desk.name, "error", False, type(error).__name__)

    def _blame(self, error: BaseException) -> None:
        self._error = self._error or error

    async def _shut_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING)
        await self._attempts.finish()
        if self._flying:  # they waited for the journal too
            await asyncio.wait(self._flying, timeout=CLOSING)
        closing = [asyncio.ensure_future(desk.teacher.aclose()) for desk in self._desks.values()]
        if closing:
            ended, _ = await asyncio.wait(closing, timeout=CLOSING)
            for one in ended:
                if (error := one.exception()) is not None:
                    self._blame(error)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
        except SystemExit:  # a teacher's, which its own question reports; the others' questions go on
            continue
        return
