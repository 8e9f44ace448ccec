"""What a run's directory says about its student, as a model card tells it.

No text of prompts, answers or references, no path and no address: a card goes where the model goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.codebase.tasks import TASKS
from pipeline.export.origin import Licence, Origin, hub_name, origin_of
from pipeline.files import read_json, read_lines
from pipeline.privacy import provider_of
from pipeline.recipe import CodebaseSource, DatasetSource, DistillRecipe, Source, TaskSource
from pipeline.recipe_checks import prepared_name
from pipeline.recorded import RecordedRun
from teachers.config import ProgramTeacher, ProvidedBase, SelfTeacher, TeacherConfig

# How a checker's score is called: in the hub's metadata, and in words.
METRICS = {
    "exact": ("exact_match", "share of answers that are exactly right"),
    "numeric": ("accuracy", "share of answers whose number is right"),
    "first_line": ("exact_match", "share of answers whose first line is exactly right"),
    "similarity": ("edit_similarity", "edit similarity to the reference"),
    "python_tests": ("pass@1", "share of answers that pass their tests"),
    "repository_tests": ("pass@1", "share of answers that pass the repository's tests"),
}
_BY_TESTS = ("feature", "body")  # tasks of a codebase that its own tests judge, where they are run


@dataclass(frozen=True)
class Measured:
    """A mean score with its 95% interval, over so many prompts."""

    value: float
    low: float
    high: float
    prompts: int


@dataclass(frozen=True)
class Domain:
    """A domain's scores, None where there is none. data: its data set on a hub. metric: of METRICS, or another word."""

    name: str
    base: Measured | None
    teacher: Measured | None
    student: Measured | None
    teacher_name: str | None
    data: str | None
    metric: tuple[str, str]


@dataclass(frozen=True)
class Teacher:
    """model: how others would know it. terms: whether its outputs may be trained on, and who says so; None where it
    runs in this process. requests, dollars: what it was asked and cost; None where nobody counted."""

    name: str
    kind: str
    model: str
    terms: str | None
    requests: int | None
    dollars: str | None


@dataclass(frozen=True)
class Data:
    """shown: what it is, in words that may be read by anybody. hub: its name on a hub."""

    name: str
    shown: str
    private: bool
    hub: str | None


@dataclass(frozen=True)
class Facts:
    """All that a card says. step of steps. adapted: the rank of a LoRA student, None for full tuning. quantized: what
    its weights are rounded to, if they are."""

    run: str
    origin: Origin
    licence: Licence | None
    method: str
    objective: str | None
    adapted: int | None
    dtype: str
    step: int
    steps: int
    private: bool
    domains: tuple[Domain, ...]
    teachers: tuple[Teacher, ...]
    data: tuple[Data, ...]
    fingerprint: str | None
    held_out: int
    samples: int
    share: Measured | None
    worse: tuple[str, ...]
    refusals: Mapping[str, Any] | None
    tokens: int
    hours: float
    dollars: str | None
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    stop: tuple[str, ...]
    own_template: bool
    max_new_tokens: int
    quantized: str | None = None


def facts_of(run: RecordedRun, step: int, licence: Licence | None) -> Facts:
    """Of the student after `step` updates."""
    recipe = run.recipe
    evaluation = _whole(run.folder / "evaluation.json") if step == last_evaluated(run.folder) else {}
    ledger = _whole(run.folder / "ledger.json")
    metrics = [line for line in read_lines(run.folder / "metrics.jsonl") if line["step"] <= step]
    timings = [line for line in read_lines(run.folder / "timings.jsonl") if line["step"] <= step]
    refusals = evaluation.get("refusals")
    tune = recipe.student.tune
    return Facts(
        run=run.name,
        origin=origin_of(run),
        licence=licence,
        method=recipe.method,
        objective=recipe.objective.divergence.kind if isinstance(recipe, DistillRecipe) else None,
        adapted=tune.rank if tune.kind == "lora" else None,
        dtype=recipe.student.dtype,
        step=step,
        steps=recipe.training.steps,
        private=run.private,
        domains=tuple(_domains(run, step)),
        teachers=tuple(_teacher(run, name, config, ledger) for name, config in recipe.teachers.items()),
        data=tuple(_data(name, source) for name, source in recipe.data.sources.items()),
        fingerprint=_whole(run.folder / "data.json").get("fingerprint"),
        held_out=recipe.evaluation.prompts_per_domain,
        samples=recipe.evaluation.samples,
        share=_measured(evaluation.get("share_of_specialists"), 0),
        worse=tuple(_worse(evaluation)),
        refusals=refusals if isinstance(refusals, dict) else None,
        tokens=sum(line.get("tokens", 0) for line in metrics),
        hours=sum(_seconds(line) for line in timings) / 3600,
        dollars=ledger.get("dollars"),
        versions=_whole(run.folder / "run.json").get("versions", {}),
        settings=_settings(run),
        stop=recipe.rollout.stop,
        own_template=recipe.student.chat_template is not None,
        max_new_tokens=recipe.rollout.max_new_tokens,
        quantized=None if recipe.student.quantize is None else recipe.student.quantize.kind,
    )


def last_evaluated(folder: Path) -> int:
    """The last step whose student was evaluated: the one that evaluation.json tells of. 0 where there is none."""
    names = [path.stem for path in (folder / "evaluations").glob("student-*.json")]
    return max((int(name.removeprefix("student-")) for name in names), default=0)


def _seconds(line: Mapping[str, Any]) -> float:
    """Of a step. `waiting` and `early` are parts of other phases."""
    return float(sum(value for name, value in line["seconds"].items() if name not in ("waiting", "early")))


def _whole(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.exists() else {}
    return value if isinstance(value, dict) else {}


# ---- scores ----


def _domains(run: RecordedRun, step: int) -> Iterator[Domain]:
    folder = run.folder / "evaluations"
    tested = run.recipe.source is not None and run.recipe.source.tests is not None
    base, student = _whole(folder / "base.json"), _whole(folder / f"student-{step:06d}.json")
    teachers = {name: _whole(folder / f"teacher-{name}.json") for name in run.recipe.teachers}
    for domain in dict.fromkeys([*base, *student]):
        sources = [source for name, source in run.recipe.data.sources.items() if _domain_of(name, source) == domain]
        teacher = next((name for name, scores in teachers.items() if domain in scores), None)
        hub = next((found for source in sources if (found := _hub_data(source)) is not None), None)
        yield Domain(
            name=domain,
            base=_score(base.get(domain)),
            teacher=None if teacher is None else _score(teachers[teacher].get(domain)),
            student=_score(student.get(domain)),
            teacher_name=teacher,
            data=hub,
            metric=_metric(sources, tested),
        )


def _score(score: Any) -> Measured | None:
    if not isinstance(score, dict) or score.get("mean") is None:
        return None
    return Measured(score["mean"], score["low"], score["high"], score["prompts"])


def _measured(value: Any, prompts: int) -> Measured | None:
    return Measured(value["value"], value["low"], value["high"], prompts) if isinstance(value, dict) else None


def _worse(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Domains in which the student is surely behind what it was: the interval of the difference is below 0."""
    for domain, models in evaluation.get("differences", {}).items():
        if "base" in models and models["base"]["high"] < 0:
            yield domain


def _metric(sources: list[Source], tested: bool) -> tuple[str, str]:
    checkers = {_checker(source, tested) for source in sources}
    (checker,) = checkers if len(checkers) == 1 else {""}
    return METRICS.get(checker, ("score", "score of the recipe's own checker"))


def _checker(source: Source, tested: bool) -> str:
    """tested: whether the recipe's codebase runs its tests."""
    if source.checker is None and isinstance(source, CodebaseSource):
        if source.of is None and tested and source.task in _BY_TESTS:
            return "repository_tests"
        return TASKS[source.task].checker
    return source.checker or ""


def _domain_of(name: str, source: Source) -> str:
    return source.task if isinstance(source, TaskSource) else source.domain or name


# ---- data and teachers ----


def _hub_data(source: Source) -> str | None:
    public = isinstance(source, DatasetSource) and not source.private
    return hub_name(source.path) if public and isinstance(source, DatasetSource) else None


def _data(name: str, source: Source) -> Data:
    hub = _hub_data(source)
    if isinstance(source, TaskSource):
        shown = f"generated questions, task {source.task}"
    elif isinstance(source, CodebaseSource):
        shown = f"places in a codebase, task {source.task}"
    elif hub is not None:
        shown = ", ".join(filter(None, (hub, source.config, f"split {source.split}")))
    else:
        shown = "a data set of its owner's"
    return Data(name, shown, source.private, hub)


def _teacher(run: RecordedRun, name: str, config: TeacherConfig, ledger: Mapping[str, Any]) -> Teacher:
    taken = ledger.get("teachers", {}).get(name, {})
    terms = None
    if isinstance(config, ProvidedBase):
        provider = provider_of(config)
        said = ", ".join(filter(None, (provider.source, provider.date)))
        terms = f"training on its outputs: {provider.training or 'unknown'}" + (f" ({said})" if said else "")
    return Teacher(name, config.kind, _model(run, config), terms, taken.get("requests"), taken.get("dollars"))


def _model(run: RecordedRun, config: TeacherConfig) -> str:
    if isinstance(config, SelfTeacher):
        return f"the student itself, shown the {config.sees.partition(':')[0]}"
    if isinstance(config, ProgramTeacher):
        return f"a program: {config.check.kind}"
    named = getattr(config, "adapter", None) or getattr(config, "model", None)
    if named is None:
        return "a class of its owner's"
    prepared = prepared_name(named)
    if prepared is not None:
        return f"{prepared}, made by the run itself"
    if isinstance(config, ProvidedBase):
        return str(named)  # as a server names it
    return hub_name(named) or "a model of its owner's"


def _settings(run: RecordedRun) -> dict[str, str]:
    recipe, training = run.recipe, run.recipe.training
    found = {
        "prompts a step": str(training.prompts_per_step),
        "learning rate": f"{training.learning_rate:g}, {training.schedule}",
        "seed": str(recipe.seed),
    }
    if isinstance(recipe, DistillRecipe):
        rollout = recipe.rollout
        found["answers"] = f"{rollout.samples_per_prompt} a prompt, at temperature {rollout.temperature:g}"
        found["longest answer"] = f"{rollout.max_new_tokens} tokens"
    return found
