"""The loop, and nothing else: launch a step (`flights.py`), settle what was asked, update the student, record it.

A step is a transaction. Its rollouts reach the disk before its update; what they depend on is the seed, the step, the
prompts and the weights, so a run that was killed does the same again, or replays what it finds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import torch

from pipeline.asking import Asked, joined, rows_of
from pipeline.checkers import check_all
from pipeline.early import Early, accumulate, early_of
from pipeline.errors import NotFinite, RunError
from pipeline.evaluate import answer_text
from pipeline.events import Event, happened
from pipeline.files import append_line
from pipeline.flights import Flight, Flights, asking_now, launch, launch_together, settle, teachers_now
from pipeline.keeping import alarm_of, announce, keep_start, roll_back, save_state
from pipeline.lookout import Alarm, first_alarm, look
from pipeline.loop import Loop, State
from pipeline.metrics import (
    LOOKED_AT,
    Sums,
    all_finite,
    describe,
    describe_coverage,
    describe_judged,
    describe_mismatch,
    describe_repetition,
    describe_rollouts,
    divergence_by,
    merge,
)
from pipeline.mixing import MixState, draw, observe
from pipeline.optim import learning_rate, set_learning_rate
from pipeline.samples import Kept, keep, line_of, view_of
from pipeline.screen.view import Moment
from pipeline.sharding import described
from pipeline.student import Student
from pipeline.targets import Normaliser, Row, build_batch, group_rows, normaliser, weighted
from pipeline.types import Prompt, Rollout, Shown, TrainingBatch
from pipeline.writers import REFERENCE, reference_rollout
from teachers.exchange import Settled
from teachers.plan import Result
from teachers.shards import gathered


@dataclass
class Clock:
    """Seconds per phase of one step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def train(loop: Loop, state: State, after_step: Callable[[State], None]) -> State:
    """Runs from `state` to the last step, with a checkpoint every so often and at the end, and back to one where a
    guard wants that. Raises the Alarm of a guard that stops the run."""
    flights: Flights = {}
    keep_start(loop, state)
    while not finished(loop, state):
        try:
            reached = advance(loop, state, flights)
            after_step(reached)
            if reached.step % loop.training.checkpoint_every == 0 or finished(loop, reached):
                save_state(loop, reached)
        except (Alarm, NotFinite) as trouble:
            alarm = alarm_of(loop, state, trouble) if isinstance(trouble, NotFinite) else trouble
            if alarm.raised.action == "stop":
                raise
            flights.clear()
            state = roll_back(loop, state, alarm)
        else:
            state = reached
    return state


def finished(loop: Loop, state: State) -> bool:
    return state.step >= loop.training.steps or _spent(loop, state) >= 1.0


def _spent(loop: Loop, state: State) -> float:
    return state.tokens / loop.token_limit if loop.token_limit else 0.0


def _expected_steps(loop: Loop, state: State) -> int:
    """How many steps there will be, as far as one can tell from those that were made."""
    spent = _spent(loop, state)
    return min(loop.training.steps, ceil(state.step / spent)) if spent else loop.training.steps


def advance(loop: Loop, state: State, flights: Flights) -> State:
    """One step: from `state` to the next, with its line of metrics written. flights: those under way, kept here."""
    clock = Clock()
    step = state.step + 1
    with clock.phase("rollout"):
        state = take_off(loop, state, flights)
    flight = flights.pop(step)
    kept = keep(flight.rollouts, step, loop.training.steps)
    early = early_of(loop, flight, state.baselines, state.watch.balance, kept.shown)
    with clock.phase("teachers"):
        asked, said, waited = _asked(loop, flight, early)
        rows = weighted([*asked.rows, *_references(loop, flight.mine)], state.watch.balance)
    clock.seconds |= {"waiting": waited, "early": early.seconds}
    clock.seconds["teachers"] -= early.seconds
    failures = _merge_failures(loop.world.gather(asked.failures))
    if not any(loop.world.gather(early.taught or any(row.taught for row in rows))):
        raise RunError(
            f"step {step}: no row was taught ({failures or 'every answer is empty'}); see what the teachers need"
        )
    with clock.phase("update"):
        rate = learning_rate(state.step, loop.training, _spent(loop, state)) * state.watch.rate
        sums, grad_norm, seen = update(loop, rows, step, rate, early)
        loop.averages.update()
    clock.seconds["update"] += early.seconds
    scores = score_rollouts(loop, flight.rollouts)
    line: dict[str, Any] = {
        "step": step,
        **describe(sums),
        **describe_rollouts(flight.rollouts, scores),
        **describe_repetition(_texts(loop, flight.rollouts)),
        **describe_judged(loop.world.gather(asked.judged)),
        **describe_coverage(loop.world.gather(asked.covered)),
        "failures": failures,
        "unanswered": sum(loop.world.gather(asked.unanswered)),
        "grad_norm": grad_norm,
        "learning_rate": rate,
    }
    line |= describe_mismatch(sums) if loop.elsewhere else {}
    line |= {"attempt": state.attempt} if state.attempt else {}
    line |= {"balance": dict(state.watch.balance)} if state.watch.balance else {}
    watch, raised = loop.world.gather(look(loop.guards, state.watch, line))[0]
    line |= {"guards": [each.to_json() for each in raised]} if raised else {}
    by_domain = divergence_by(sums, "domain")
    mix = observe(state.mix, _by_source(flight.prompts, by_domain)) if by_domain else state.mix
    reached = State(step, mix, state.tokens + line["tokens"], asked.baselines, state.ahead[1:], watch)
    given = [entry for part in loop.world.gather(asked.given) for entry in part]
    sample = sample_of(loop, kept, seen, scores[kept.place], asked, said)
    if loop.world.is_main:
        record(loop, line, clock, sample, _expected_steps(loop, reached))
        if given:
            append_line(loop.folder / "provenance.jsonl", {"step": step, "samples": given})
    announce(loop, state, step, raised)
    if alarm := first_alarm(step, raised):
        raise alarm
    return reached


def take_off(loop: Loop, state: State, flights: Flights) -> State:
    """Launches the steps that have to be under way now: the next one and as many after it as `staleness` says, or all
    of the next one's block."""
    first = state.step + 1
    last = first + loop.staleness if loop.block == 1 else -(-first // loop.block) * loop.block
    steps = range(first, min(last, loop.training.steps) + 1)
    drawn: dict[int, tuple[Prompt, ...]] = {}
    for step in steps[len(state.ahead) :]:
        drawn[step], mix = draw_prompts(loop, state.mix)
        state = replace(state, mix=mix, ahead=(*state.ahead, tuple(prompt.prompt_id for prompt in drawn[step])))
    missing = {
        step: drawn.get(step) or tuple(loop.prompt_of[prompt_id] for prompt_id in state.ahead[step - first])
        for step in steps
        if step not in flights
    }
    if loop.block > 1 and missing:
        flights.update((flight.step, flight) for flight in launch_together(loop, missing, state.attempt))
    elif missing:
        flights.update(
            (step, launch(loop, step, state.step, prompts, state.attempt)) for step, prompts in missing.items()
        )
    return state


def _asked(loop: Loop, flight: Flight, early: Early) -> tuple[Asked, dict[str, Settled], float]:
    """What the teachers made of this process's rollouts, with the rows that have still to train; what they said, by
    rollout id; and the seconds of waiting for them."""
    if loop.asking is None:
        early.begin()
        return Asked(tuple(Row(rollout, supervised=1.0) for rollout in flight.mine)), {}, 0.0
    settled, waited = settle(loop, flight, early)
    late = [rollout for rollout in flight.mine if rollout.rollout_id not in early.ids]
    of_late = {rollout.rollout_id: settled[rollout.rollout_id] for rollout in late}
    rest = rows_of(loop.asking, late, of_late, early.baselines, loop.world.gather)
    return joined([*early.asked, rest], flight.mine), settled, waited


def draw_prompts(loop: Loop, mix: MixState) -> tuple[tuple[Prompt, ...], MixState]:
    weights = {name: source.weight for name, source in loop.data.sources.items()}
    count = loop.training.prompts_per_step
    return draw(mix, loop.prompts, weights, mixing=loop.data.mixing, count=count, seed=loop.seed)


class Updated(NamedTuple):
    """sums: of all processes. grad_norm: before clipping. seen: of the kept rollout, where this process trained it."""

    sums: Sums
    grad_norm: float
    seen: Shown | None


def update(loop: Loop, rows: Sequence[Row], step: int, rate: float, early: Early) -> Updated:
    """Forwards, backwards, clipping, one optimizer step at `rate`. Raises NotFinite, before any weight has changed,
    where a number is not finite.

    early: the gradient so far, its weights too small by one factor where some of its rollouts, or of those in `rows`,
    were answered by nobody. The rest gets weights that are too small by the same, and then all is made larger.
    """
    own = Normaliser.merge([*early.counted, normaliser(rows, loop.average)])
    norm = Normaliser.merge(loop.world.gather(own))
    factor = early.norm.over(norm) if early.parts else Fraction(1)
    batches = cut_into_batches(loop, rows, norm.divided_by(factor), early.kept)
    sums, seen = early.sums, early.seen
    for index, batch in enumerate(batches):
        seen = accumulate(loop, batch, sums, last=index == len(batches) - 1) or seen
    if factor != 1:
        enlarge(loop.student, sums, float(factor))
    norm_before = loop.accelerator.clip_grad_norm_(loop.student.parameters(), loop.training.clip_norm)
    grad_norm = float(gathered(norm_before))
    whole = merge(loop.world.gather_all(sums))
    if not all_finite({"loss": whole.total["loss"], "grad_norm": grad_norm}):
        raise NotFinite(
            f"step {step}: not finite: loss {whole.total['loss']:.3g}, gradient norm {grad_norm:.3g}; the weights of "
            f"step {step - 1} were kept. Start another run with a lower training.learning_rate, or in float32"
        )
    set_learning_rate(loop.optimizer, rate)
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)  # they are as large as the weights, and rollouts need the room
    return Updated(whole, grad_norm, seen)


def cut_into_batches(
    loop: Loop, rows: Sequence[Row], norm: Normaliser, kept: Rollout | None = None
) -> list[TrainingBatch]:
    """This process's forwards: as many as the process with the most has, the missing ones empty."""
    groups = group_rows(rows, loop.training.tokens_per_forward)
    most = max(1, *loop.world.gather(len(groups)))
    groups += [[] for _ in range(most - len(groups))]
    device = loop.accelerator.device
    return [build_batch(group, norm, temperature=loop.temperature, device=device, shown=kept) for group in groups]


def enlarge(student: Student, sums: Sums, factor: float) -> None:
    """The whole gradient and the loss, all their weights multiplied by `factor`."""
    for parameter in student.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
    for name in ("loss", "nll"):
        sums.total[name] *= factor


def score_rollouts(loop: Loop, rollouts: Sequence[Rollout]) -> list[float | None]:
    """The checkers' scores of what the student or a teacher wrote; None where nobody judges it."""
    judged = [rollout.writer != REFERENCE and rollout.prompt.checker is not None for rollout in rollouts]
    asked = [
        (rollout.prompt, answer_text(rollout, loop.student.lm, loop.stop))
        for rollout, wanted in zip(rollouts, judged, strict=True)
        if wanted
    ]
    found = iter(check_all(asked))
    return [next(found) if wanted else None for wanted in judged]


def sample_of(
    loop: Loop, kept: Kept, seen: Shown | None, score: float | None, asked: Asked, said: Mapping[str, Settled]
) -> dict[str, Any]:
    """The line about the rollout that people are shown, without its step. What only one process knows comes from it."""
    rollout = kept.rollout
    decode = partial(loop.student.lm.tokenizer.decode, clean_up_tokenization_spaces=False)
    line = line_of(rollout, decode)
    if not kept.viewed:
        return line
    view = None
    if kept.place % loop.world.size == loop.world.rank:
        results: Mapping[str, Result] = said[rollout.rollout_id].results if said else {}
        rewritten = {
            row.rollout.writer: answer_text(row.rollout, loop.student.lm, loop.stop)
            for row in asked.rows
            if row.rewrite and row.rollout.rollout_id == rollout.rollout_id
        }
        view = view_of(rollout, seen, decode, score=score, said=results, rewritten=rewritten)
    return line | next(known for known in loop.world.gather(view) if known is not None)


def _texts(loop: Loop, rollouts: Sequence[Rollout]) -> Iterator[tuple[str, str]]:
    """The domain and the text of what the student or a teacher wrote, one after the other; of a long one its end, which
    is all that is looked at."""
    for rollout in rollouts:
        if rollout.writer != REFERENCE:
            end = rollout.completion_ids[-8 * LOOKED_AT :]  # a token is a byte or more, a character four bytes at most
            yield rollout.prompt.domain, loop.student.lm.tokenizer.decode(end)


def record(loop: Loop, line: Mapping[str, Any], clock: Clock, sample: Mapping[str, Any], steps: int) -> None:
    """The step, of `steps` in all, in metrics and timings, and one of its rollouts in samples."""
    step = line["step"]
    timings = {"step": step, "processes": loop.world.processes, "seconds": clock.seconds, "peak_bytes": peak_bytes()}
    if loop.student.in_shards:
        timings["shards"] = described(loop.student).to_json()
    if loop.asking is not None and loop.asking.pool.placement:
        timings["groups"] = loop.asking.pool.placement
    if loop.world.stretch is not None:
        timings["context"] = loop.world.stretch.size
    if line["failures"]:
        loop.display.warn(f"step {step}: teachers failed: {line['failures']}")
    for teacher, reasons in line["failures"].items():
        said = f"{teacher} did not answer: {', '.join(f'{reason} ({count})' for reason, count in reasons.items())}"
        count = float(sum(reasons.values()))
        happened(loop.folder, Event(step, "fault", "teacher", said, teacher, count, attempt=line.get("attempt", 0)))
    append_line(loop.folder / "metrics.jsonl", line)
    append_line(loop.folder / "timings.jsonl", timings)
    loop.log(line)
    append_line(loop.folder / "samples.jsonl", {"step": step, **sample})
    asking = asking_now(loop)
    waited = {"waited": clock.seconds["waiting"]} if asking else {}
    numbers = _numbers_that_matter(line) | asking | waited
    loop.display.step(Moment(step, steps, numbers, line, clock.seconds, sample, teachers_now(loop)))


def peak_bytes() -> int:
    """The most memory this process has held, on the accelerator if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _numbers_that_matter(line: Mapping[str, Any]) -> dict[str, float]:
    numbers = {"loss": line["loss"]}
    for name, by_domain in (("kl", line["kl"]["domain"]), ("score", line["score"])):
        if by_domain:
            numbers[name] = sum(by_domain.values()) / len(by_domain)
    if found := line.get("mismatch"):
        numbers |= {"mismatch": found["mean"]}
    return numbers | {"length": line["length"]["mean"], "truncated": line["truncated"], "lr": line["learning_rate"]}


def _references(loop: Loop, rollouts: Sequence[Rollout]) -> list[Row]:
    """The supervised rows beside the on-policy ones: each prompt's reference, once."""
    if loop.reference == 0:
        return []
    prompts = {rollout.prompt.prompt_id: rollout.prompt for rollout in rollouts}
    return [Row(reference_rollout(prompt, loop.student.lm), supervised=loop.reference) for prompt in prompts.values()]


def _by_source(prompts: Sequence[Prompt], by_domain: Mapping[str, float]) -> dict[str, float]:
    """KL by domain -> KL by source, over the domains of the prompts that a source gave."""
    values: dict[str, list[float]] = {}
    for prompt in prompts:
        if prompt.domain in by_domain:
            values.setdefault(prompt.source, []).append(by_domain[prompt.domain])
    return {source: sum(found) / len(found) for source, found in values.items()}


def _merge_failures(parts: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    merged: dict[str, dict[str, int]] = {}
    for part in parts:
        for teacher, counts in part.items():
            for reason, count in counts.items():
                reasons = merged.setdefault(teacher, {})
                reasons[reason] = reasons.get(reason, 0) + count
    return merged
