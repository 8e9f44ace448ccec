"""A step between its drawing and its update: its prompts, its rollouts, and its questions on their way.

With staleness s the rollouts of step n are written by the student after n - 1 - s updates, whatever the teachers take:
a rule, and no race. So what a step trains on is the same however often the run was stopped.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import manifest
from pipeline.asking import request_of
from pipeline.errors import RunError
from pipeline.screen.view import Health
from pipeline.types import Prompt, Rollout
from teachers.courier import Progress
from teachers.exchange import Exchange, Settled
from teachers.shards import whole
from teachers.types import TeacherFailure

if TYPE_CHECKING:
    from pipeline.early import Early
    from pipeline.loop import Loop

_ENDS = {
    "budget_spent": "raise the budget and go on with --resume, or set its `then` to drop",
    "wrong_model": "start another run, or accept it with pool.model_change=go_on and --resume",
}
REST = 30.0  # seconds
TOLD_EVERY = 10.0  # seconds


@dataclass(eq=False)
class Flight:
    """rollouts: of all processes, in the order of the prompts; mine: this process's.

    exchange: None where nobody is asked. attempt: roll-backs before it.
    """

    step: int
    prompts: Sequence[Prompt]
    rollouts: list[Rollout]
    mine: list[Rollout]
    exchange: Exchange | None
    attempt: int = 0


Flights = dict[int, Flight]  # by step


def launch(loop: Loop, step: int, version: int, prompts: Sequence[Prompt], attempt: int = 0) -> Flight:
    """Writes the rollouts of `step`, or reads them where they were recorded, and asks about each as it is finished.

    version: updates in the weights that write. attempt: roll-backs so far.
    """
    exchange = open_exchange(loop, step, attempt)
    recorded = manifest.load_rollouts(loop.journal(attempt), step, prompts)
    streaming = exchange is not None and loop.world.processes == 1
    rollouts = recorded or _write(loop, step, version, prompts, attempt, exchange if streaming else None)
    mine = rollouts[loop.world.rank :: loop.world.size]
    if exchange is not None and (recorded or not streaming):
        assert loop.asking is not None
        for rollout in mine:
            exchange.submit(request_of(loop.asking, rollout, step))
    return Flight(step, prompts, rollouts, mine, exchange, attempt)


def launch_together(loop: Loop, prompts: Mapping[int, Sequence[Prompt]], attempt: int = 0) -> list[Flight]:
    """Several steps of completions that do not depend on the student, written in one go: ten teachers that write a
    few answers each take nearly as long as for many. prompts: by step, a whole block or what is recorded of it."""
    journal = loop.journal(attempt)
    recorded = {step: manifest.load_rollouts(journal, step, wanted) for step, wanted in prompts.items()}
    if not all(recorded.values()):
        first = min(prompts)
        everything = tuple({p.prompt_id: p for wanted in prompts.values() for p in wanted}.values())
        by_prompt = _written(loop, first, 0, everything, attempt, None)
        for step, wanted in prompts.items():
            recorded[step] = [rollout for prompt in wanted for rollout in by_prompt[prompt.prompt_id]]
            if loop.world.is_main:
                manifest.save_rollouts(journal, step, recorded[step] or [])
        loop.world.wait()
    rank, size = loop.world.rank, loop.world.size
    return [
        Flight(step, prompts[step], found, found[rank::size], None, attempt)
        for step, found in recorded.items()
        if found
    ]


def open_exchange(loop: Loop, step: int, attempt: int = 0) -> Exchange | None:
    if loop.asking is None:
        return None
    known = manifest.load_failures(loop.journal(attempt), step)
    gather = loop.world.gather if loop.world.processes > 1 else None
    return Exchange(loop.asking.pool, loop.asking.plan, known, gather=gather, rank=loop.world.rank)


def _write(
    loop: Loop, step: int, version: int, prompts: Sequence[Prompt], attempt: int, exchange: Exchange | None
) -> list[Rollout]:
    """The rollouts in the order of the prompts; they are on disk before anything depends on them."""
    by_prompt = _written(loop, step, version, prompts, attempt, exchange)
    rollouts = [rollout for prompt in prompts for rollout in by_prompt[prompt.prompt_id]]
    if loop.world.is_main:
        manifest.save_rollouts(loop.journal(attempt), step, rollouts)
    loop.world.wait()
    return rollouts


def _written(
    loop: Loop, step: int, version: int, prompts: Sequence[Prompt], attempt: int, exchange: Exchange | None
) -> dict[str, list[Rollout]]:
    """By prompt id. Each process writes its share, and all get them all."""
    world = loop.world
    on_finished = None if exchange is None else _asker(loop, exchange, step)
    mine = loop.share(prompts)
    with whole(*loop.writing):
        own = loop.write(mine, step, version=version, attempt=attempt, on_finished=on_finished)
    by_prompt: dict[str, list[Rollout]] = {}
    for rollout in (rollout for part in world.gather(own) for rollout in part):
        by_prompt.setdefault(rollout.prompt.prompt_id, []).append(rollout)
    return by_prompt


def _asker(loop: Loop, exchange: Exchange, step: int) -> Callable[[Sequence[Rollout]], None]:
    asking = loop.asking
    assert asking is not None

    def ask(finished: Sequence[Rollout]) -> None:
        for rollout in finished:
            exchange.submit(request_of(asking, rollout, step))

    return ask


def settle(
    loop: Loop, flight: Flight, early: Early | None = None, *, rest: float = REST, told_every: float = TOLD_EVERY
) -> tuple[dict[str, Settled], float]:
    """Everything that was said of a step, and the seconds of waiting. What failed is recorded, so that it stays so.

    early: what trains before all is said. rest: seconds before a step that too few teachers answered is asked about
    again, where the recipe wants that.
    told_every: seconds between the lines that say how it goes.
    Raises RunError where fewer rows than the quorum were answered, or none, and the recipe says to stop.
    """
    exchange, asking = flight.exchange, loop.asking
    assert exchange is not None
    assert asking is not None
    waited = 0.0
    while True:
        with _telling(loop, flight.step, told_every):
            if early is not None:
                early.begin()
                for part in early.parts:
                    early.add(part, exchange.settle([rollout.rollout_id for rollout in part]))
            settled = exchange.settle()
        waited += exchange.waited
        _refuse(loop, flight.step, settled)
        answered = sum(loop.world.gather(sum(bool(found.shares) for found in settled.values())))
        needed = asking.quorum * len(flight.rollouts)
        if answered and answered >= needed:  # a step that taught nothing would be recorded as one that never can
            break
        exchange = _again(loop, flight, answered, _everyones_reasons(loop, settled), rest)
    failures = loop.world.gather(exchange.failures())
    if loop.world.is_main:
        manifest.save_failures(
            loop.journal(flight.attempt), flight.step, {k: v for part in failures for k, v in part.items()}
        )
    return settled, waited


def asking_now(loop: Loop) -> dict[str, float]:
    """How the asking of remote teachers goes: dollars and questions given up so far, those that are at a teacher now
    (of the next step too, with `staleness`), and those that wait for a turn. Empty where there are none."""
    courier = loop.asking.pool.courier if loop.asking else None
    if courier is None:
        return {}
    found = courier.snapshot().values()
    return {
        "dollars": float(sum(each.dollars for each in found)),
        "asked": sum(each.under_way for each in found),
        "queued": sum(each.waiting for each in found),
        "failed": sum(sum(each.failures.values()) for each in found),
    }


def teachers_now(loop: Loop) -> dict[str, Health]:
    """The same teacher by teacher, for who looks at a screen."""
    courier = loop.asking.pool.courier if loop.asking else None
    return {name: health_of(each) for name, each in courier.snapshot().items()} if courier else {}


def health_of(each: Progress) -> Health:
    answered = each.answered + each.replayed
    latency = each.seconds / each.requests if each.requests else None
    return Health(answered, each.failures, latency, each.under_way, each.waiting, float(each.dollars))


@contextmanager
def _telling(loop: Loop, step: int, every: float) -> Iterator[None]:
    """While inside, a line now and then: who waits for a slow teacher should see that it is one."""
    if not asking_now(loop):
        yield
        return
    over = threading.Event()

    def tell() -> None:
        while not over.wait(every):
            numbers = "  ".join(f"{name} {value:,.4g}" for name, value in asking_now(loop).items())
            loop.display.asked(teachers_now(loop))
            loop.display.note(f"step {step}, with the teachers:  {numbers}")

    teller = threading.Thread(target=tell, name="telling", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _refuse(loop: Loop, step: int, settled: Mapping[str, Settled]) -> None:
    """Raises RunError for failures that the recipe wants to end the run, in all processes if in one."""
    found = {
        result.reason: f"teachers.{teacher}: {result.detail}"
        for settlement in settled.values()
        for teacher, result in settlement.results.items()
        if isinstance(result, TeacherFailure) and result.reason in _ENDS
    }
    for everyones in loop.world.gather(found):
        for reason, text in everyones.items():
            raise RunError(f"step {step}: {text}; {_ENDS[reason]}")


def _everyones_reasons(loop: Loop, settled: Mapping[str, Settled]) -> str:
    """Who failed for which reason how often in all processes, the most frequent first."""
    own = Counter(
        f"{teacher}: {result.reason}"
        for found in settled.values()
        for teacher, result in found.results.items()
        if isinstance(result, TeacherFailure)
    )
    counts = sum(loop.world.gather(own), Counter())
    return ", ".join(f"{what} ({count})" for what, count in counts.most_common(3))


def _again(loop: Loop, flight: Flight, answered: int, reasons: str, rest: float) -> Exchange:
    """Asks again about a step, after a rest; what was answered comes from the journal."""
    asking = loop.asking
    assert asking is not None
    count = f"step {flight.step}: only {answered} of {len(flight.rollouts)} rows were answered ({reasons})"
    if not asking.waits:
        raise RunError(
            f"{count}, and pool.quorum is {asking.quorum:.0%}; see what the teachers need, then go on with --resume"
        )
    if loop.world.is_main:
        loop.display.warn(f"{count}; asking again in {rest:g} s")
    time.sleep(rest)
    exchange = open_exchange(loop, flight.step, flight.attempt)
    assert exchange is not None
    for rollout in flight.mine:
        exchange.submit(request_of(asking, rollout, flight.step))
    return exchange
