"""What the teachers gave, what they took, and where they contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import combinations
from statistics import fmean, quantiles
from typing import Any

from pipeline.report.curves import Series
from pipeline.report.read import Line, Run, is_number, number, section
from teachers.errors import TeacherError
from teachers.journal import FILE
from teachers.prices import money
from teachers.records import records

MOST_CONFLICTS = 40


@dataclass(frozen=True)
class Asked:
    """What a remote teacher's journal says. seconds: of each attempt. dollars: by step."""

    attempts: int = 0
    answered: int = 0
    retries: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    dollars: Series = field(default_factory=dict)


@dataclass(frozen=True)
class Teacher:
    """One row. latency: (median, 95th percentile) in seconds. kl: (first steps, last steps), nats per token."""

    name: str
    kind: str
    model: str
    domains: tuple[str, ...]
    gave: Mapping[str, int]
    share: float | None
    kl: tuple[float, float] | None
    score: float | None
    latency: tuple[float, float] | None
    attempts: int
    retries: int
    failures: Mapping[str, int]
    tokens: int
    dollars: str | None


@dataclass(frozen=True)
class Agreement:
    """Of two teachers that were shown the same tokens: the share at which their likeliest tokens are the same; of two
    judges, 1 less the mean difference of their scores. count: tokens or answers."""

    value: float
    count: int
    of: str


@dataclass(frozen=True)
class Conflict:
    """Where two teachers would go different ways. rollout: its place among the views; place: the token, or None."""

    rollout: int
    place: int | None
    step: int
    domain: str
    said: tuple[tuple[str, str], ...]
    weight: float


@dataclass(frozen=True)
class Staff:
    teachers: tuple[Teacher, ...]
    agreement: Mapping[tuple[str, str], Agreement]
    conflicts: tuple[Conflict, ...]
    in_doubt: int


def staff_of(run: Run, asked: Mapping[str, Asked], samples: Sequence[Line]) -> Staff:
    """samples: the rollouts in the order in which a page shows them; none of a private run."""
    pairs = _pairs(samples)
    return Staff(
        tuple(_teacher(run, name, asked.get(name, Asked())) for name in run.teachers),
        _agreement(run.teachers, pairs),
        _conflicts(pairs, samples),
        len(run.ledger.get("in_doubt") or ()),
    )


def asked_of(run: Run) -> dict[str, Asked]:
    """What the run's journal says of each teacher; nothing where it asked nobody over the network."""
    if not (run.folder / FILE).is_file():
        return {}
    found: dict[str, list[Line]] = {}
    try:
        with records(run.folder / FILE) as journal:
            for line in journal.attempts():
                found.setdefault(line["teacher"], []).append(line)
    except TeacherError:  # damaged, or another's: the page is about the rest
        return {}
    return {name: _asked(attempts) for name, attempts in found.items()}


def _asked(attempts: Sequence[Line]) -> Asked:
    dollars: dict[int, float] = {}
    reasons: dict[str, int] = {}
    for line in attempts:
        dollars[line["step"]] = dollars.get(line["step"], 0.0) + float(line["dollars"])
        if line["state"] != "answered":
            why = line["reason"] or ("under way" if line["state"] == "intended" else line["state"])
            reasons[why] = reasons.get(why, 0) + 1
    return Asked(
        len(attempts),
        sum(line["state"] == "answered" for line in attempts),
        len(attempts) - len({line["key"] for line in attempts}),
        reasons,
        tuple(line["seconds"] for line in attempts if line["state"] == "answered"),
        dollars if any(dollars.values()) else {},
    )


def _teacher(run: Run, name: str, asked: Asked) -> Teacher:
    config = section(section(run.recipe, "teachers"), name)
    total = sum(run.given.shares.values())
    taken = section(section(run.ledger, "teachers"), name)
    ledger_dollars = taken.get("dollars")
    if isinstance(ledger_dollars, Mapping) or ledger_dollars is None:
        ledger_dollars = str(sum(asked.dollars.values())) if asked.dollars else None
    return Teacher(
        name=name,
        kind=str(config.get("kind") or section(section(run.mark, "teachers"), name).get("kind") or "?"),
        model=_model(config, run.given.models.get(name, ())),
        domains=_domains(run, name),
        gave=run.given.gave.get(name, {}),
        share=run.given.shares.get(name, 0.0) / total if total else None,
        kl=_ends(run.metrics, ("kl", "teacher", name)),
        score=_mean_score(run, name),
        latency=_latency(asked.seconds),
        attempts=asked.attempts,
        retries=asked.retries,
        failures=asked.reasons or _failures(run, name),
        tokens=number(taken.get("tokens")),
        dollars=_money(ledger_dollars),
    )


def _model(config: Line, returned: Sequence[str]) -> str:
    named = next((str(config[key]) for key in ("model", "adapter", "check", "use", "weights") if config.get(key)), "")
    others = [name for name in returned if name != named]
    return f"{named} (answered as {', '.join(others)})" if others and config.get("url") else named


def _domains(run: Run, name: str) -> tuple[str, ...]:
    own = next((tuple(scores) for key, scores in run.models.items() if key == f"teacher-{name}"), ())
    if own:
        return own
    table = section(section(run.recipe, "routing"), "table")
    routed = [d for d, to in table.items() if to == name or (isinstance(to, Mapping) and name in to)]
    known = {domain for line in run.metrics[-1:] for domain in section(section(line, "kl"), "domain")}
    return tuple(routed) or tuple(domain for domain in (name,) if domain in known)


def _ends(metrics: Sequence[Line], path: Sequence[str]) -> tuple[float, float] | None:
    """The means over the first and the last tenth of the steps that have the value."""
    values = []
    for line in metrics:
        value: Any = line
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            values.append(float(value))
    tenth = max(1, len(values) // 10)
    return (fmean(values[:tenth]), fmean(values[-tenth:])) if values else None


def _mean_score(run: Run, name: str) -> float | None:
    found = [score.get("mean") for score in run.models.get(f"teacher-{name}", {}).values()]
    values = [float(value) for value in found if isinstance(value, int | float)]
    return fmean(values) if values else None


def _latency(seconds: Sequence[float]) -> tuple[float, float] | None:
    if len(seconds) < 2:
        return (seconds[0], seconds[0]) if seconds else None
    cuts = quantiles(seconds, n=20, method="inclusive")
    return cuts[9], cuts[18]


def _failures(run: Run, name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in run.metrics:
        for reason, count in section(section(line, "failures"), name).items():
            found[reason] = found.get(reason, 0) + number(count)
    return found


def _money(dollars: Any) -> str | None:
    try:
        return None if dollars is None else money(Decimal(str(dollars)))
    except InvalidOperation:
        return None


# ---- with each other ----


@dataclass(frozen=True)
class _Pair:
    """Two teachers on one rollout: at each place both likeliest tokens with their probabilities; or both scores."""

    rollout: int
    names: tuple[str, str]
    places: tuple[tuple[int, tuple[str, float], tuple[str, float]], ...]
    scores: tuple[float, float] | None


def _pairs(samples: Sequence[Line]) -> list[_Pair]:
    return [pair for index, line in enumerate(samples) for pair in _pairs_in(index, line)]


def _pairs_in(index: int, line: Line) -> Iterator[_Pair]:
    teachers, judged = section(line, "teachers"), section(line, "judgments")
    for a, b in combinations(sorted({*teachers, *judged}), 2):
        tops = [section(teachers, name).get("top") or () for name in (a, b)]
        places = tuple(
            (place, _first(one), _first(two))
            for place, (one, two) in enumerate(zip(*tops, strict=False))
            if one and two
        )
        scores = [section(judged, name).get("score") for name in (a, b)]
        known = [float(score) for score in scores if is_number(score)]
        if places or len(known) == 2:
            yield _Pair(index, (a, b), places, (known[0], known[1]) if len(known) == 2 else None)


def _first(top: Sequence[Any]) -> tuple[str, float]:
    return str(top[0][0]), float(top[0][1])


def _agreement(names: Sequence[str], pairs: Sequence[_Pair]) -> dict[tuple[str, str], Agreement]:
    found: dict[tuple[str, str], Agreement] = {}
    for names_of in dict.fromkeys(pair.names for pair in pairs):
        own = [pair for pair in pairs if pair.names == names_of]
        same = [one[0] == two[0] for pair in own for _, one, two in pair.places]
        near = [1 - abs(pair.scores[0] - pair.scores[1]) for pair in own if pair.scores]
        value = Agreement(fmean(same), len(same), "tokens") if same else Agreement(fmean(near), len(near), "answers")
        found[names_of] = found[names_of[1], names_of[0]] = value
    return found


def _conflicts(pairs: Sequence[_Pair], samples: Sequence[Line]) -> tuple[Conflict, ...]:
    """The sharpest first: where both are sure, of different tokens; where their scores are far apart."""
    found: list[Conflict] = []
    for pair in pairs:
        line = samples[pair.rollout]
        step, domain = number(line.get("step")), str(line.get("domain"))
        for place, one, two in pair.places:
            if one[0] != two[0]:
                said = tuple(
                    (name, f"“{text}” {p:.0%}") for name, (text, p) in zip(pair.names, (one, two), strict=True)
                )
                found.append(Conflict(pair.rollout, place, step, domain, said, min(one[1], two[1])))
        if pair.scores and abs(pair.scores[0] - pair.scores[1]) >= 0.25:
            said = tuple((name, f"score {score:.2f}") for name, score in zip(pair.names, pair.scores, strict=True))
            found.append(Conflict(pair.rollout, None, step, domain, said, abs(pair.scores[0] - pair.scores[1])))
    return tuple(sorted(found, key=lambda one: (-one.weight, one.step))[:MOST_CONFLICTS])
