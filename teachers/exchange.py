"""The questions of one step: asked as completions finish, walked through the plan until every request is settled.

Remote teachers are asked the moment a request comes in, and answer while the student is still writing and the local
teachers score. Which local requests are scored together depends on what was answered, never on when: a batch's
composition changes the last bits of its scores.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from teachers.plan import Plan, Result, before, final_shares, next_teachers
from teachers.types import Answer, Judgment, ScoreRequest, TeacherFailure

if TYPE_CHECKING:
    from teachers.pool import Pool

Failures = Mapping[tuple[str, str], TeacherFailure]  # by (teacher, request id)
Question = tuple[str, ScoreRequest]  # whom, what
Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True, eq=False)
class Settled:
    """One request, answered by all who were asked. shares: of those who answered and teach; they sum to 1, or none."""

    request: ScoreRequest
    results: Mapping[str, Result]
    shares: Mapping[str, float]


class Exchange:
    """One step's questions. `submit` each request as it is there, then `settle` once.

    known: failures of this step that were recorded before a restart: they stay failures, so that the step is the same.
    gather: a value of this process -> those of all, in rank order; given where several processes share the work, and
        then only the first of them, that of rank 0, talks to remote teachers.
    """

    def __init__(self, pool: Pool, plan: Plan, known: Failures, *, gather: Gather | None = None, rank: int = 0) -> None:
        self._pool, self._plan, self._known, self._gather, self._rank = pool, plan, known, gather, rank
        self._requests: dict[str, ScoreRequest] = {}
        self._results: dict[str, dict[str, Result]] = {}
        self._asked: dict[str, set[str]] = {}
        self._first: list[Question] = []  # for local teachers, whatever others say
        self._later: list[Question] = []  # for local teachers, since another has spoken or failed
        self._remote: list[Question] = []  # several processes: what the first one is to ask
        self._under_way = 0
        self._arrived: queue.SimpleQueue[tuple[str, str, Result]] = queue.SimpleQueue()
        self.waited = 0.0  # seconds in which nothing was left to do but wait for remote teachers

    def submit(self, request: ScoreRequest) -> None:
        """Asks the remote teachers whose turn it is; the local ones are asked together in `settle`."""
        if request.request_id in self._requests:
            raise ValueError(f"{request.request_id} is asked about twice")
        self._requests[request.request_id] = request
        self._results[request.request_id] = {}
        self._asked[request.request_id] = set()
        self._advance(request.request_id)
        while not self._arrived.empty():
            self._receive()

    def settle(self) -> dict[str, Settled]:
        """Waits until every request is settled. By request id."""
        first, self._first = self._first, []
        self._score_locally(first)
        while True:
            if self._gather is not None:
                self._ask_together(self._gather)
            while self._under_way:
                start = time.perf_counter()
                self._receive()
                self.waited += time.perf_counter() - start
            # Only now, when nobody is waited for: what is here follows from what was said, not from when.
            if not self._everyone_has(bool(self._later or self._remote)):
                break
            later, self._later = self._later, []
            self._score_locally(later)
        return {
            name: Settled(request, self._results[name], final_shares(self._plan, request, self._results[name]))
            for name, request in self._requests.items()
        }

    def failures(self) -> dict[tuple[str, str], TeacherFailure]:
        """Remote teachers' failures so far: what has to be remembered for the step to be the same when replayed."""
        return {
            (teacher, request_id): result
            for request_id, results in self._results.items()
            for teacher, result in results.items()
            if isinstance(result, TeacherFailure) and teacher in self._pool.remote
        }

    # ---- one request ----

    def _advance(self, request_id: str) -> None:
        request, results, asked = self._requests[request_id], self._results[request_id], self._asked[request_id]
        while names := next_teachers(self._plan, request, asked, results):
            asked.update(names)
            local = self._later if results else self._first
            for name in names:
                if failure := self._known.get((name, request_id)):
                    results[name] = failure
                else:
                    upstream = _said(results, before(self._plan, name))
                    self._ask(name, replace(request, upstream=upstream) if upstream else request, local)

    def _ask(self, name: str, question: ScoreRequest, local: list[Question]) -> None:
        if name not in self._pool.remote:
            local.append((name, question))
        elif self._gather is not None:
            self._remote.append((name, question))
        else:
            self._under_way += 1
            self._pool.ask(name, question, partial(self._arrive, name, question.request_id))

    def _arrive(self, name: str, request_id: str, result: Result) -> None:
        """Called on the courier's thread."""
        self._arrived.put((name, request_id, result))

    def _receive(self) -> None:
        name, request_id, result = self._arrived.get()
        self._under_way -= 1
        self._pool.check()
        self._record(name, request_id, result)

    def _record(self, name: str, request_id: str, result: Result) -> None:
        self._results[request_id][name] = result
        self._advance(request_id)

    # ---- many ----

    def _score_locally(self, questions: Sequence[Question]) -> None:
        # Not in the order of arrival, which differs where rollouts are replayed.
        pending = sorted(questions, key=lambda question: question[1].request_id)
        for name in self._pool.names:
            own = [request for teacher, request in pending if teacher == name]
            for request_id, result in self._pool.score(name, own) if own else ():
                self._record(name, request_id, result)

    def _ask_together(self, gather: Gather) -> None:
        """The first process asks what all of them have to ask, and everybody takes its own answers."""
        mine, self._remote = self._remote, []
        asked: list[list[Question]] = gather(mine)
        start = time.perf_counter()
        answers = self._answers(asked) if self._rank == 0 else None
        answered: list[list[Result]] = gather(answers or [])[0]
        self.waited += time.perf_counter() - start
        for (name, request), result in zip(mine, answered[self._rank], strict=True):
            self._record(name, request.request_id, result)

    def _answers(self, asked: Sequence[Sequence[Question]]) -> list[list[Result]]:
        """For each process its answers, in the order of its questions."""
        arrived: queue.SimpleQueue[tuple[int, int, Result]] = queue.SimpleQueue()

        def arrive(rank: int, place: int, result: Result) -> None:
            arrived.put((rank, place, result))

        for rank, questions in enumerate(asked):
            for place, (name, request) in enumerate(questions):
                self._pool.ask(name, request, partial(arrive, rank, place))
        found: dict[tuple[int, int], Result] = {}
        for _ in range(sum(map(len, asked))):
            rank, place, result = arrived.get()
            self._pool.check()
            found[rank, place] = result
        return [[found[rank, place] for place in range(len(questions))] for rank, questions in enumerate(asked)]

    def _everyone_has(self, work: bool) -> bool:
        return any(self._gather(work)) if self._gather is not None else work


def _said(results: Mapping[str, Result], names: Sequence[str]) -> dict[str, Judgment]:
    """The judgments of these teachers, as far as they gave any."""
    signals = {name: result.signal for name in names if isinstance(result := results.get(name), Answer)}
    return {name: signal for name, signal in signals.items() if isinstance(signal, Judgment)}
