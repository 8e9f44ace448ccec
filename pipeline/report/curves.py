"""A run's numbers over its steps: which share a chart, thinned without losing a spike, and what happened when."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.report.read import Line, Run, number, section

MOST_POINTS = 1_000  # of a curve
Series = Mapping[int, float]  # step -> value


@dataclass(frozen=True)
class Curve:
    """values: one per x of its chart; None where there is no value. points: measured now and then, drawn as dots."""

    name: str
    values: tuple[float | None, ...]
    points: bool = False


@dataclass(frozen=True)
class Chart:
    """id: the same in every run, so that runs can be laid over each other. note: what it shows and what is good."""

    id: str
    group: str
    title: str
    unit: str
    note: str
    x: tuple[int, ...]
    curves: tuple[Curve, ...]
    summary: str


@dataclass(frozen=True)
class Event:
    """Something that happened at a step. count: how many of the same kind fell together here."""

    step: int
    what: str
    name: str
    said: str
    count: int = 1


@dataclass(frozen=True)
class Kind:
    """Which flat keys of a metrics line a chart takes; a key is named by what its `*` stands for, else by its end."""

    id: str
    group: str
    title: str
    unit: str
    note: str
    keys: tuple[str, ...]


_LEARNING, _WRITING, _MACHINE = "Learning", "What the student writes", "Rate, tokens and time"
KINDS = (
    Kind("held_out", _LEARNING, "Held-out score", "", "Of prompts that never train. Higher is better.",
         ("held_out/*",)),
    Kind("kl_teacher", _LEARNING, "KL to each teacher", "nats per token",
         "On the student's own answers. It should fall, and stay down.", ("kl/teacher/*",)),
    Kind("kl_domain", _LEARNING, "KL in each domain", "nats per token",
         "What is left to learn, domain by domain.", ("kl/domain/*",)),
    Kind("score", _LEARNING, "Score in training", "",
         "The checkers' mean over a step's sampled answers; few of each, so it jumps.", ("score/*",)),
    Kind("loss", _LEARNING, "Loss, and its parts", "",
         "nll: the supervised part; divergence: the rest.", ("loss", "nll", "divergence")),
    Kind("nll", _LEARNING, "Loss on what is imitated", "nats per token", "By who wrote it, before weights.",
         ("nll_per_token/*",)),
    Kind("grade", _LEARNING, "Grades", "", "The mean score that each judge gave.", ("grade/*",)),
    Kind("advantage", _LEARNING, "Advantage", "", "Mean size: how far grades differ within a prompt.",
         ("advantage/*", "ratio/*")),
    Kind("entropy", _WRITING, "Entropy", "nats per token",
         "How open the student is. A fall to 0 is collapse.", ("entropy", "entropy_gap", "entropy_gap/*")),
    Kind("overlap", _WRITING, "Agreement with the teachers", "share",
         "overlap: of the likeliest tokens, those in common; mass_in_support: the student's on the teacher's top k.",
         ("overlap", "mass_in_support", "coverage/*")),
    Kind("length", _WRITING, "Length of answers", "tokens", "Growth without end is a warning.",
         ("length/mean", "length/max")),
    Kind("truncated", _WRITING, "Answers cut off", "share", "The share that ran out of room.",
         ("truncated", "truncated/*")),
    Kind("repetition", _WRITING, "Repetition", "share", "Of the answers, those that say the same again and again.",
         ("repetition", "repetition/*")),
    Kind("learning_rate", _MACHINE, "Learning rate", "", "", ("learning_rate",)),
    Kind("grad_norm", _MACHINE, "Gradient norm", "", "Before clipping.", ("grad_norm",)),
    Kind("gradient_share", _MACHINE, "Whose gradient", "share", "One that dominates drowns the others.",
         ("gradient_share/*",)),
    Kind("tokens", _MACHINE, "Tokens written", "in all", "Completion tokens that trained.", ("cumulative/tokens",)),
    Kind("dollars", _MACHINE, "Dollars", "in all", "Charged by remote teachers.", ("dollars/*",)),
    Kind("seconds", _MACHINE, "Seconds a step", "s", "Where the time goes.", ("seconds/*",)),
    Kind("speed", _MACHINE, "Tokens per second", "", "New tokens, over the whole step.", ("speed",)),
    Kind("memory", _MACHINE, "Memory at most", "GB", "", ("memory",)),
    Kind("unanswered", _MACHINE, "Failures", "a step", "Questions to teachers that came to nothing.",
         ("failures/*", "unanswered")),
)  # fmt: skip
_LEFT_OUT = ("step", "rows", "prompt_tokens", "tokens", "logprob", "rewrites/*", "alone/*")


def charts_of(run: Run, dollars: Mapping[str, Series] | None = None) -> tuple[Chart, ...]:
    """Every chart that the run has numbers for. dollars: teacher -> step -> charged at that step."""
    return charts(flat_series(run, dollars or {}))


def charts(series: Mapping[str, Series]) -> tuple[Chart, ...]:
    """Charts of flat keys; a key that no kind knows makes one of its own, by its first part."""
    taken: set[str] = set()
    found: list[Chart] = []
    for kind in KINDS:
        keys = keys_of(kind, series)
        taken |= keys.keys()
        if keys and not (kind.id == "unanswered" and not any(any(series[key].values()) for key in keys)):
            found.append(chart(kind, {keys[key]: series[key] for key in keys}))
    rest = [k for k in series if k not in taken and not any(fnmatchcase(k, pattern) for pattern in _LEFT_OUT)]
    for name in dict.fromkeys(key.partition("/")[0] for key in rest):
        own = {key: series[key] for key in rest if key.partition("/")[0] == name}
        kind = Kind(name, "More", name.replace("_", " ").capitalize(), "", "", ())
        found.append(chart(kind, {_label(key, f"{name}/*"): values for key, values in own.items()}))
    return tuple(found)


def keys_of(kind: Kind, series: Mapping[str, Series]) -> dict[str, str]:
    """The flat keys that a chart of this kind takes, with what their curves are called."""
    return {key: _label(key, pattern) for pattern in kind.keys for key in series if fnmatchcase(key, pattern)}


def _label(key: str, pattern: str) -> str:
    return key.removeprefix(pattern.removesuffix("*")) if pattern.endswith("*") else key.rpartition("/")[2]


def chart(kind: Kind, named: Mapping[str, Series], of: str = "") -> Chart:
    """of: what of the kind these curves are, where each is another run's."""
    steps = sorted({step for values in named.values() for step in values})
    columns = {name: [values.get(step) for step in steps] for name, values in named.items()}
    x, thin = thinned(steps, columns)
    sparse = {name: len(values) * 4 < len(steps) or len(values) < 12 for name, values in named.items()}
    curves = tuple(Curve(name, tuple(map(_short, values)), sparse[name]) for name, values in thin.items())
    return Chart(
        f"{kind.id}/{of}" if of else kind.id,
        kind.group,
        f"{kind.title}: {of}" if of else kind.title,
        kind.unit,
        kind.note,
        tuple(x),
        curves,
        "; ".join(_told(named)) + ".",
    )


def _told(named: Mapping[str, Series]) -> Iterator[str]:
    """What someone who cannot see the chart should know of each curve."""
    for name, values in named.items():
        first, last = min(values), max(values)
        low, high = min(values.values()), max(values.values())
        yield (
            f"{name} goes from {values[first]:.3g} at step {first:,} to {values[last]:.3g} at step {last:,}, "
            f"between {low:.3g} and {high:.3g}"
        )


# ---- flat keys ----


def flat_series(run: Run, dollars: Mapping[str, Series]) -> dict[str, dict[int, float]]:
    """Every number of every step, by its path in a metrics line: kl/teacher/math -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    whole = 0.0
    for step, line in _stepped(run.metrics):
        flat = dict(_flat(line))
        for key, value in flat.items():
            found.setdefault(key, {})[step] = value
        if "nll" in flat and "loss" in flat and run.teachers:
            found.setdefault("divergence", {})[step] = flat["loss"] - flat["nll"]
        whole += number(line.get("tokens"))
        if "tokens" in line:
            found.setdefault("cumulative/tokens", {})[step] = whole
    by_teacher, by_domain = (
        [values for key, values in sorted(found.items()) if key.startswith(prefix)]
        for prefix in ("kl/teacher/", "kl/domain/")
    )
    if by_teacher == by_domain:  # a teacher for each domain: the same curves twice
        found = {key: values for key, values in found.items() if not key.startswith("kl/domain/")}
    if not any(found.get("nll", {}).values()):  # all of the loss is divergence: one curve says it
        found.pop("nll", None)
        found.pop("divergence", None)
    tokens = found.get("tokens", {})
    for step, line in _stepped(run.timings):
        seconds = {name: value for name, value in _flat(section(line, "seconds")) if name not in ("early",)}
        for name, value in seconds.items():
            found.setdefault(f"seconds/{name}", {})[step] = value
        if step in tokens and sum(seconds.values()) > 0:
            found.setdefault("speed", {})[step] = tokens[step] / sum(seconds.values())
        if number(line.get("peak_bytes")):
            found.setdefault("memory", {})[step] = line["peak_bytes"] / 1e9
    for name, values in dollars.items():
        spent = 0.0
        for step in sorted(values):
            spent += values[step]
            found.setdefault(f"dollars/{name}", {})[step] = spent
    return {**_held_out(run), **found}


def _stepped(lines: Iterable[Line]) -> Iterator[tuple[int, Line]]:
    return ((step, line) for line in lines if (step := number(line.get("step"))) > 0)


def _flat(value: Line, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{prefix}{name}/")
        elif isinstance(entry, int | float) and not isinstance(entry, bool) and math.isfinite(entry):
            yield f"{prefix}{name}", float(entry)


def _held_out(run: Run) -> dict[str, dict[int, float]]:
    """The base at step 0, and the student wherever it was judged; nothing where that is at one step only."""
    found: dict[str, dict[int, float]] = {}
    for name, domains in run.models.items():
        match = re.fullmatch(r"student-(\d+)|base", name)
        for domain, score in domains.items() if match else ():
            if match and isinstance(score.get("mean"), int | float):
                found.setdefault(f"held_out/{domain}", {})[int(match[1] or 0)] = float(score["mean"])
    return {key: values for key, values in found.items() if len(values) > 1}


# ---- fewer points ----


def thinned(
    steps: Sequence[int], columns: Mapping[str, Sequence[float | None]], most: int = MOST_POINTS
) -> tuple[list[int], dict[str, list[float | None]]]:
    """At most `most` points per column, its lowest and highest of every stretch of steps among them, in their order.

    All columns share the steps that come back: those where a stretch begins and ends.
    """
    if len(steps) <= most:
        return list(steps), {name: list(values) for name, values in columns.items()}
    count = most // 2
    edges = [len(steps) * index // count for index in range(count + 1)]
    stretches = [(a, b) for a, b in itertools.pairwise(edges) if b > a]
    x = [steps[place] for a, b in stretches for place in ((a, b - 1) if b - a > 1 else (a,))]
    return x, {name: [v for a, b in stretches for v in _extremes(values[a:b])] for name, values in columns.items()}


def _extremes(values: Sequence[float | None]) -> list[float | None]:
    if len(values) == 1:
        return list(values)
    there = [(value, place) for place, value in enumerate(values) if value is not None]
    if not there:
        return [None, None]
    low, high = min(there), max(there, key=lambda one: (one[0], -one[1]))
    return [low[0], high[0]] if low[1] <= high[1] else [high[0], low[0]]


def _short(value: float | None) -> float | None:
    """Five significant digits: more than a screen has."""
    return None if value is None else float(f"{value:.5g}")


# ---- what happened ----


def events_of(run: Run) -> tuple[Event, ...]:
    """Guards, roll-backs, faults and checkpoints, in order. Where a run did not write them down, its checkpoints that
    are left, and the steps at which teachers failed."""
    said = [
        Event(number(line.get("step")), str(line.get("what") or "event"), _about(line), str(line.get("said") or ""))
        for line in run.events
    ]
    known = {event.what for event in said}
    if "checkpoint" not in known:
        said += [Event(step, "checkpoint", "", f"checkpoint after step {step}") for step in run.checkpoints]
    if "fault" not in known:
        said += list(_failures(run))
    return tuple(sorted(said, key=lambda event: event.step))


def _about(line: Line) -> str:
    return " ".join(str(line[key]) for key in ("name", "subject") if line.get(key))


def _failures(run: Run) -> Iterator[Event]:
    for step, line in _stepped(run.metrics):
        for teacher, reasons in section(line, "failures").items():
            if isinstance(reasons, Mapping) and reasons:
                why = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
                total = sum(number(count) for count in reasons.values())
                yield Event(step, "fault", str(teacher), f"{teacher} failed: {why}", total)


def gathered(events: Sequence[Event], steps: int, most: int = 200) -> tuple[Event, ...]:
    """At most about `most` of each kind: those that fall together become one, with how many they were."""
    width = max(1, -(-steps // most))
    found: dict[tuple[str, str, int], Event] = {}
    for event in events:
        key = (event.what, event.name, event.step // width)
        before = found.get(key)
        found[key] = event if before is None else Event(
            before.step, event.what, event.name, before.said, before.count + event.count
        )  # fmt: skip
    return tuple(sorted(found.values(), key=lambda event: event.step))
