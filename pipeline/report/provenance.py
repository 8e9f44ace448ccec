"""Where a model comes from: recipe, versions, data, seeds, machine, and the terms of everyone who taught it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.read import Line, Run, is_number, newest, number, section


@dataclass(frozen=True)
class Terms:
    """What is known of a teacher's terms: whether its outputs may train, where it runs, as of when, by whom."""

    teacher: str
    kind: str
    training: str
    region: str
    date: str
    source: str


@dataclass(frozen=True)
class Part:
    """A run that this one prepared or is compared with."""

    name: str
    status: str
    steps: int
    fingerprint: str
    student: str
    score: float | None


@dataclass(frozen=True)
class Provenance:
    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    sources: tuple[tuple[str, str, str, str], ...]
    terms: tuple[Terms, ...]
    parts: tuple[Part, ...]
    recipe: str


def provenance_of(run: Run) -> Provenance:
    return Provenance(
        tuple(_facts(run)),
        tuple((str(name), str(value)) for name, value in section(run.about, "versions").items()),
        tuple(_sources(run)),
        tuple(_terms(run)),
        tuple(_part(name, inner) for name, inner in run.inner.items()),
        run.recipe_text,
    )


def taken_of(run: Run, dollars: float | None) -> tuple[tuple[str, str, str], ...]:
    """(what, how much, a remark) of what the run took so far. dollars: None where nobody was asked who charges."""
    seconds = sum(
        float(value)
        for line in run.timings
        for name, value in section(line, "seconds").items()
        if is_number(value) and name != "early"  # a part of the update's
    )
    tokens = sum(number(line.get("tokens")) for line in run.metrics)
    prompts = sum(number(line.get("rows")) for line in run.metrics)
    memory = max((number(line.get("peak_bytes")) for line in run.timings), default=0)
    found = [("time in steps", _duration(seconds), f"{run.step:,} steps")]
    found.append(("tokens written", f"{tokens:,}", f"{prompts:,} answers"))
    if memory:
        found.append(("memory at most", f"{memory / 1e9:.1f} GB", "of a process"))
    said = "asked nobody who charges" if dollars is None else f"{_a_thousand(dollars, prompts)} a thousand answers"
    found.append(("paid to teachers", "$0" if not dollars else f"${dollars:,.2f}", said))
    return tuple(found)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _a_thousand(dollars: float, answers: int) -> str:
    return f"${1000 * dollars / answers:,.2f}" if answers else "–"


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    recipe = run.recipe
    student, training, rollout = (section(recipe, name) for name in ("student", "training", "rollout"))
    yield "status", run.status
    yield "method", str(recipe.get("method", "?"))
    yield "student", _named(student.get("model"))
    yield "trained", str(section(student, "tune").get("kind", "?"))
    yield "steps", f"{run.step:,} of {run.steps:,}"
    for name, where, key in (
        ("prompts a step", training, "prompts_per_step"),
        ("samples a prompt", rollout, "samples_per_prompt"),
        ("temperature", rollout, "temperature"),
        ("learning rate", training, "learning_rate"),
        ("schedule", training, "schedule"),
    ):
        if key in where:
            yield name, str(where[key])
    divergence = section(section(recipe, "objective"), "divergence").get("kind")
    if divergence:
        yield "divergence", str(divergence)
    yield "seed", str(recipe.get("seed", "?"))
    yield "data's fingerprint", str(run.data.get("fingerprint", "?"))
    yield "private", ", ".join(run.mark.get("private_sources") or ()) or "yes" if run.private else "no"
    yield "privacy mode", str(section(recipe, "privacy").get("mode", "?"))
    yield "Python", str(run.about.get("python", "?"))
    yield "machine", str(run.about.get("system", "?"))
    processes = {line.get("processes") for line in run.timings[-1:]}
    if processes:
        yield "processes", str(processes.pop())
    tokens = section(run.evaluation, "tokens_trained").get("student")
    if tokens:
        yield "tokens trained", f"{tokens:,}"


def _named(model: Any) -> str:
    if isinstance(model, Mapping):
        said = {key: value.get("kind") if isinstance(value, Mapping) else value for key, value in model.items()}
        return ", ".join(f"{key} {value}" for key, value in said.items() if value is not None)
    return str(model or "?")


def _sources(run: Run) -> Iterator[tuple[str, str, str, str]]:
    """(name, kind, what it reads, private or not)."""
    for name, source in section(section(run.recipe, "data"), "sources").items():
        if isinstance(source, Mapping):
            reads = source.get("path") or source.get("task") or ""
            of = section(source, "of").get("path") or section(run.recipe, "source").get("path")
            if source.get("kind") == "codebase" and of:
                reads = f"{source.get('task')} of {of}"
            yield str(name), str(source.get("kind", "?")), str(reads), "private" if source.get("private") else "open"


def _terms(run: Run) -> Iterator[Terms]:
    for name in run.teachers:
        said = section(section(run.mark, "teachers"), name)
        kind = str(said.get("kind") or section(section(run.recipe, "teachers"), name).get("kind") or "?")
        if "training" not in said:  # nobody else's: it runs here, under its weights' own licence
            yield Terms(name, kind, "by its weights' licence", "this machine", "", "")
            continue
        yield Terms(name, kind, *(str(said.get(key) or "") for key in ("training", "region", "date", "source")))


def _part(name: str, inner: Run) -> Part:
    last = newest(inner)
    means = [score.get("mean") for score in inner.models.get(last or "", {}).values()]
    values = [float(value) for value in means if isinstance(value, int | float)]
    return Part(
        name, inner.status, inner.step, str(inner.data.get("fingerprint", "?")),
        _named(section(inner.recipe, "student").get("model")), sum(values) / len(values) if values else None,
    )  # fmt: skip


def differences(recipes: Mapping[str, Line]) -> list[tuple[str, list[str]]]:
    """(key, its value in each recipe) of every setting that is not the same in all."""
    flat = [dict(_flat(recipe)) for recipe in recipes.values()]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [
        (key, [str(one.get(key, "–")) for one in flat])
        for key in keys
        if key != "output" and len({repr(one.get(key, "–")) for one in flat}) > 1
    ]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _flat(entry, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
