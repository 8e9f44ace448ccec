"""What the live screen shows, as values: a `Moment` is what happened at one step, a `View` all that is to be seen.

A view grows by pure functions, whether the moments come from the loop itself or out of a run's directory. Imports no
torch and no rich.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

KEPT = 256  # points of a curve at most: more than a screen is wide
RECENT = 20  # steps of which speed and time left are the mean
EVENTS = 6


@dataclass(frozen=True)
class Health:
    """A remote teacher so far. failed: reason -> questions given up. latency: seconds an answer, None: no answer yet.
    under_way: questions at the teacher now; waiting: those that wait for a turn."""

    answered: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    latency: float | None = None
    under_way: int = 0
    waiting: int = 0
    dollars: float = 0.0


@dataclass(frozen=True)
class Moment:
    """One update, number `step` of `steps`, counted from 1.

    numbers: those of the plain line, in its order. metrics: its line of metrics.jsonl; seconds: its phases, by name, as
    in timings.jsonl; sample: its line of samples.jsonl; teachers: the remote ones, by name.
    """

    step: int
    steps: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    sample: Mapping[str, Any] | None = None
    teachers: Mapping[str, Health] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """A number's course in at most KEPT points, each the mean of `every` values; `rest` are those of the next point."""

    points: tuple[float, ...] = ()
    every: int = 1
    rest: tuple[float, ...] = ()
    last: float = 0.0

    def grown(self, value: float) -> Curve:
        """With one more value. Where there is no room the points join in pairs."""
        rest = (*self.rest, value)
        if len(rest) < self.every:
            return replace(self, rest=rest, last=value)
        points = (*self.points, sum(rest) / len(rest))
        if len(points) < KEPT:
            return Curve(points, self.every, (), value)
        pairs = tuple((one + other) / 2 for one, other in zip(points[::2], points[1::2], strict=True))
        return Curve(pairs, self.every * 2, (), value)


@dataclass(frozen=True)
class Part:
    """A run within a run: which one, and its place among `of`; 0 of 0 where that is not known."""

    name: str
    number: int = 0
    of: int = 0


@dataclass(frozen=True)
class Bar:
    """Work that is counted."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class View:
    """title: the run's name. parts: where in the whole, the outermost first. phase: what is done now. speeds: (seconds,
    completion tokens) of the last steps. events: lines of events.jsonl, the newest last. state: how the run stands,
    where it is watched from outside."""

    title: str = ""
    parts: tuple[Part, ...] = ()
    phase: str = ""
    step: int = 0
    steps: int = 0
    curves: Mapping[str, Curve] = field(default_factory=dict)
    scores: Mapping[str, Curve] = field(default_factory=dict)
    speeds: tuple[tuple[float, float], ...] = ()
    teachers: Mapping[str, Health] = field(default_factory=dict)
    sample: Mapping[str, Any] | None = None
    events: tuple[Mapping[str, Any], ...] = ()
    bars: tuple[Bar, ...] = ()
    state: str = ""

    @property
    def seconds_left(self) -> float | None:
        """From the last steps' mean, evaluations not counted; None before the first step and after the last."""
        if not self.speeds or self.step >= self.steps:
            return None
        return sum(seconds for seconds, _ in self.speeds) / len(self.speeds) * (self.steps - self.step)

    @property
    def tokens_per_second(self) -> float | None:
        seconds = sum(seconds for seconds, _ in self.speeds)
        return sum(tokens for _, tokens in self.speeds) / seconds if seconds else None


def after(view: View, moment: Moment) -> View:
    """The view once one more step is done."""
    metrics = moment.metrics
    speeds = view.speeds
    if seconds := step_seconds(moment.seconds):
        speeds = (*speeds, (seconds, float(metrics.get("tokens", 0))))[-RECENT:]
    return replace(
        view,
        step=moment.step,
        steps=moment.steps,
        curves=_grown(view.curves, curves_of(metrics)),
        scores=_grown(view.scores, metrics.get("score", {}).items()),
        speeds=speeds,
        teachers=moment.teachers or view.teachers,
        sample=moment.sample or view.sample,
    )


def noted(view: View, events: Sequence[Mapping[str, Any]]) -> View:
    """With more lines of events.jsonl. Checkpoints happen all the time, and are left out."""
    told = [event for event in events if event.get("what") != "checkpoint"]
    return replace(view, events=(*view.events, *told)[-EVENTS:]) if told else view


def step_seconds(seconds: Mapping[str, float]) -> float:
    """How long a step took. Waiting is part of asking the teachers, and what was early of the update."""
    return sum(seconds.get(phase, 0.0) for phase in ("rollout", "teachers", "update"))


def curves_of(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics whose course matters, the most important first."""
    if "loss" in metrics:
        yield "loss", metrics["loss"]
    divergences = metrics.get("kl", {}).get("domain", {})
    yield from ((f"kl {domain}", value) for domain, value in divergences.items())
    for name, value in (
        ("length", metrics.get("length", {}).get("mean")),
        *((name, metrics.get(name)) for name in ("truncated", "entropy", "overlap", "repetition", "grad_norm")),
        ("rate", metrics.get("learning_rate")),
    ):
        if value is not None:
            yield name, value


def _grown(curves: Mapping[str, Curve], values: Any) -> dict[str, Curve]:
    result = dict(curves)
    for name, value in values:
        if isinstance(value, int | float):
            result[name] = result.get(name, Curve()).grown(float(value))
    return result
