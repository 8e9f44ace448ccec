"""The questions of one step: asked as completions finish, walked through the plan until every request is settled.

Remote teachers are asked the moment a request comes in, and answer while the student is still writing and the local
teachers score. Which local requests are scored together depends on what was answered, never on when: a batch's
composition changes the last bits of its scores.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from teachers.plan import Plan, Result, before, final_shares, next_teachers
from teachers.types import Answer, Judgment, ScoreRequest, TeacherFailure

if TYPE_CHECKING:
    from teachers.pool import Pool

Failures = Mapping[tuple[str, str], TeacherFailure]  # by (teacher, request id)
Question = tuple[str, ScoreRequest]  # whom, what
Gather = Callable[[Any], list[Any]]


class Arrival(NamedTuple):
    """What a remote teacher said. rank: of the process that has the request."""

    rank: int
    request_id: str
    teacher: str
    result: Result


@dataclass(frozen=True, eq=False)
class Settled:
    """One request, answered by all who were asked. shares: of those who answered and teach; they sum to 1, or none."""

    request: ScoreRequest
    results: Mapping[str, Result]
    shares: Mapping[str, float]


class Exchange:
    """One step's questions. `submit` each request as it is there, then `settle` some of them, and all in the end.

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
        self._open: Counter[tuple[int, str]] = Counter()  # questions at remote teachers, by (rank, request id)
        self._arrived: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._kept: list[Arrival] = []  # several processes: what came before it was waited for
        self.waited = 0.0  # seconds in which nothing was left to do but wait for remote teachers

    def submit(self, request: ScoreRequest) -> None:
        """Asks the remote teachers whose turn it is; the local ones are asked together in `settle`."""
        if request.request_id in self._requests:
            raise ValueError(f"{request.request_id} is asked about twice")
        self._requests[request.request_id] = request
        self._results[request.request_id] = {}
        self._asked[request.request_id] = set()
        self._advance(request.request_id)
        self._take_arrived()

    def settle(self, names: Collection[str] | None = None) -> dict[str, Settled]:
        """Waits until these requests are settled, or all; others stay under way. By request id, in order.

        Several processes call it equally often, each with its own names.
        """
        wanted = frozenset(self._requests if names is None else names)
        first, self._first = self._first, []
        self._score_locally(first)
        self._take_arrived()  # who is asked next is asked at once, whoever is waited for
        while True:
            if self._gather is not None:
                self._ask_together(self._gather, wanted)
            while any(self._open[self._rank, name] for name in wanted):
                start = time.perf_counter()
                self._receive()
                self.waited += time.perf_counter() - start
            # Only now, when nobody is waited for: what is here follows from what was said, not from when.
            later = [question for question in self._later if question[1].request_id in wanted]
            remote = any(question.request_id in wanted for _, question in self._remote)
            if not self._everyone_has(bool(later or remote)):
                break
            self._later = [question for question in self._later if question[1].request_id not in wanted]
            self._score_locally(later)
        return {
            name: Settled(request, self._results[name], final_shares(self._plan, request, self._results[name]))
            for name, request in self._requests.items()
            if name in wanted
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
            self._send(self._rank, name, question)

    def _send(self, rank: int, name: str, question: ScoreRequest) -> None:
        self._open[rank, question.request_id] += 1
        self._pool.ask(name, question, partial(self._arrive, rank, question.request_id, name))

    def _arrive(self, rank: int, request_id: str, name: str, result: Result) -> None:
        """Called on the courier's thread."""
        self._arrived.put(Arrival(rank, request_id, name, result))

    def _take(self) -> Arrival:
        arrival = self._arrived.get()
        self._open[arrival.rank, arrival.request_id] -= 1
        self._pool.check()
        return arrival

    def _receive(self) -> None:
        arrival = self._take()
        self._record(arrival.teacher, arrival.request_id, arrival.result)

    def _take_arrived(self) -> None:
        """Of one process: of several, the first one's are every process's, and are shared out in `_ask_together`."""
        while self._gather is None and not self._arrived.empty():
            self._receive()

    def _record(self, name: str, request_id: str, result: Result) -> None:
        self._results[request_id][name] = result
        self._advance(request_id)

    # ---- many ----

    def _score_locally(self, questions: Sequence[Question]) -> None:
        # Not in the order of arrival, which differs where rollouts are replayed.
        pending = sorted(questions, key=lambda question: question[1].request_id)
        for name, request_id, result in self._pool.answers(pending):
            self._record(name, request_id, result)

    def _ask_together(self, gather: Gather, wanted: Collection[str]) -> None:
        """The first process asks what all of them have to ask, and everybody takes the answers that it waits for."""
        mine, self._remote = self._remote, []
        everyones: list[tuple[list[Question], list[str]]] = gather((mine, sorted(wanted)))
        start = time.perf_counter()
        answers: list[list[Arrival]] = [[] for _ in everyones]
        if self._pool.courier is not None:
            for rank, (questions, _) in enumerate(everyones):
                for name, question in questions:
                    self._send(rank, name, question)
            answers = self._answers([names for _, names in everyones])
        answered: list[list[Arrival]] = gather(answers)[0]
        self.waited += time.perf_counter() - start
        for arrival in answered[self._rank]:
            self._record(arrival.teacher, arrival.request_id, arrival.result)

    def _answers(self, wanted: Sequence[Sequence[str]]) -> list[list[Arrival]]:
        """For each process the answers to its wanted requests, as they come to be; the others are kept."""
        keys = {(rank, name) for rank, names in enumerate(wanted) for name in names}
        while any(self._open[key] for key in keys):
            self._kept.append(self._take())
        while not self._arrived.empty():
            self._kept.append(self._take())
        ready = [arrival for arrival in self._kept if (arrival.rank, arrival.request_id) in keys]
        self._kept = [arrival for arrival in self._kept if (arrival.rank, arrival.request_id) not in keys]
        return [[arrival for arrival in ready if arrival.rank == rank] for rank in range(len(wanted))]

    def _everyone_has(self, work: bool) -> bool:
        return any(self._gather(work)) if self._gather is not None else work


def _said(results: Mapping[str, Result], names: Sequence[str]) -> dict[str, Judgment]:
    """The judgments of these teachers, as far as they gave any."""
    signals = {name: result.signal for name in names if isinstance(result := results.get(name), Answer)}
    return {name: signal for name, signal in signals.items() if isinstance(signal, Judgment)}
