"""A run directory as values. Every file may be missing, cut off in its last line, damaged, or of an older format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import RunError
from pipeline.report import shapes
from pipeline.report.shapes import fits

Line = Mapping[str, Any]
MOST_ROLLOUTS = 500  # whose tokens a page shows


@dataclass(frozen=True)
class Given:
    """What the trained samples had from their teachers.

    gave: teacher -> kind of signal -> samples. models: teacher -> names that came back. asked: teacher -> domainless
    sum of shares. samples: all that were trained.
    """

    gave: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0


@dataclass(frozen=True)
class Run:
    """Everything that a page may show of a run.

    models: evaluation's name (base, teacher-NAME, student-000100, …) -> domain -> its score as the file has it.
    answers: the same names -> the lines of their answers. inner: the runs it prepared or is compared with, by
    "prepared/NAME" and "compare/NAME", without their samples. private: learned from private texts. unread: what of its
    files could not be read, a sentence each.
    """

    folder: Path
    recipe: Line
    recipe_text: str
    about: Line
    mark: Line
    data: Line
    evaluation: Line
    ledger: Line
    models: Mapping[str, Mapping[str, Line]]
    answers: Mapping[str, tuple[Line, ...]]
    left: Line
    metrics: tuple[Line, ...]
    timings: tuple[Line, ...]
    events: tuple[Line, ...]
    samples: tuple[Line, ...]
    samples_in_all: int
    checkpoints: tuple[int, ...]
    given: Given
    inner: Mapping[str, Run]
    private: bool
    unread: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def status(self) -> str:
        return str(self.about.get("status", "unknown"))

    @property
    def step(self) -> int:
        """The last that was done; 0 before the first."""
        return max((number(line.get("step")) for line in self.metrics[-1:]), default=0)

    @property
    def steps(self) -> int:
        """That the recipe asks for; those that were done, where it does not say."""
        return number(section(self.recipe, "training").get("steps")) or self.step

    @property
    def teachers(self) -> tuple[str, ...]:
        return tuple(section(self.recipe, "teachers")) or tuple(section(self.mark, "teachers"))


def read_run(folder: Path, *, texts: bool = True) -> Run:
    """What is there of a run. texts: with its samples and answers; a private run's are for its owner to ask for.

    Raises RunError where no run is.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: there is no such directory; give a run's, such as runs/quickstart")
    if not any((folder / name).is_file() for name in ("run.json", "recipe.yaml", "metrics.jsonl")):
        raise RunError(f"{folder}: this is not a run's directory; give one that `tutelage run` made")
    found = _read(folder, texts=texts, given=True)
    inner = {
        f"{kind}/{path.name}": _read(path, texts=False, given=False)
        for kind in ("prepared", "compare")
        for path in sorted((folder / kind).glob("*"))
        if path.is_dir()
    }
    return Run(**{**vars(found), "inner": inner})


def _read(folder: Path, *, texts: bool, given: bool) -> Run:
    files = _Files(folder)
    recipe_text = _text(folder / "recipe.yaml")
    recipe, mark = files.recipe(recipe_text), files.mapping("tutelage.json", shapes.Mark)
    evaluations = folder / "evaluations"
    left = max((path.name for path in evaluations.glob("kl-*.json")), default=None)
    return Run(
        folder=folder,
        recipe=recipe,
        recipe_text=recipe_text,
        about=files.mapping("run.json"),
        mark=mark,
        data=files.mapping("data.json"),
        evaluation=files.mapping("evaluation.json", shapes.Evaluation),
        ledger=files.mapping("ledger.json", shapes.Ledger),
        models={
            path.stem: files.mapping(f"evaluations/{path.name}", shapes.Scores)
            for path in sorted(evaluations.glob("*.json"))
            if not path.stem.startswith(("kl-", "refusals-"))
        },
        answers={
            path.name.removesuffix(".samples.jsonl"): tuple(files.lines(f"evaluations/{path.name}", shapes.Answered))
            for path in sorted(evaluations.glob("*.samples.jsonl"))
        }
        if texts
        else {},
        left=files.mapping(f"evaluations/{left}") if left else {},
        metrics=tuple(files.lines("metrics.jsonl", shapes.Metrics)),
        timings=tuple(files.lines("timings.jsonl", shapes.Timings)),
        events=tuple(files.lines("events.jsonl", shapes.Happened)),
        samples=tuple(files.lines("samples.jsonl", shapes.Sample, _spread(folder / "samples.jsonl"))) if texts else (),
        samples_in_all=sum(1 for _ in _raw(folder / "samples.jsonl")),
        checkpoints=_checkpoints(folder / "checkpoints"),
        given=_given(files.lines("provenance.jsonl", shapes.Provenance)) if given else Given(),
        inner={},
        private=_is_private(folder, recipe, mark),
        unread=tuple(files.unread),
    )


def newest(run: Run) -> str | None:
    """The name of the student's last evaluation."""
    return max((name for name in run.models if name.startswith("student-")), default=None)


def section(value: Line, name: str) -> Line:
    """A mapping inside another; an empty one where it is missing or something else."""
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any) -> int:
    return int(value) if is_number(value) and isfinite(value) else 0


class _Files:
    """Reads a run's files. unread: what could not be, a sentence each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.unread: list[str] = []

    def mapping(self, name: str, shape: type[BaseModel] = shapes.Anything) -> dict[str, Any]:
        """A JSON file, an empty mapping where it is missing or no such thing."""
        path = self._folder / name
        value = _parsed(_text(path))
        if path.is_file() and not fits(value, shape):
            self.unread.append(f"{name} could not be read.")
            return {}
        return value or {}

    def lines(self, name: str, shape: type[BaseModel], raw: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """Those lines of a JSON lines file that have the shape. raw: of them these only. A last one that is being
        written is not counted among those that could not be read."""
        damaged = 0
        for line in _raw(self._folder / name) if raw is None else raw:
            value = _parsed(line)
            if fits(value, shape):
                yield value
            elif line.endswith("\n"):
                damaged += 1
        if damaged:
            self.unread.append(f"{name}: {damaged:,} line{'s' * (damaged > 1)} could not be read, and left out.")

    def recipe(self, text: str) -> dict[str, Any]:
        value = _yaml(text)
        if value is None:
            self.unread.append("recipe.yaml could not be read.")
        return value or {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _raw(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from file


def _spread(path: Path) -> Iterator[str]:
    """At most MOST_ROLLOUTS lines over the whole file; with tokens where any have them. Only these are parsed."""
    with_tokens = ['"tokens":' in raw for raw in _raw(path)]
    wanted = [index for index, has in enumerate(with_tokens) if has or not any(with_tokens)]
    count = min(len(wanted), MOST_ROLLOUTS)
    kept = {wanted[n * (len(wanted) - 1) // max(1, count - 1)] for n in range(count)}
    return (raw for index, raw in enumerate(islice(_raw(path), len(with_tokens))) if index in kept)


def _given(lines: Iterable[Line]) -> Given:
    gave: dict[str, dict[str, int]] = {}
    models: dict[str, dict[str, None]] = {}
    shares: dict[str, float] = {}
    count = 0
    for line in lines:
        for sample in line.get("samples") or ():
            count += 1
            for teacher, said in section(sample, "teachers").items():
                kinds = gave.setdefault(teacher, {})
                for kind in said.get("gave") or ():
                    kinds[kind] = kinds.get(kind, 0) + 1
                shares[teacher] = shares.get(teacher, 0.0) + float(said.get("share") or 0.0)
                if said.get("model"):
                    models.setdefault(teacher, {})[str(said["model"])] = None
    return Given(gave, {name: tuple(found) for name, found in models.items()}, shares, count)


def _checkpoints(folder: Path) -> tuple[int, ...]:
    named = (re.fullmatch(r"step-(\d+)", path.name) for path in folder.glob("step-*"))
    return tuple(sorted(int(match[1]) for match in named if match))


def _is_private(folder: Path, recipe: Line, mark: Line) -> bool:
    """As `pipeline.privacy.is_marked`, but nothing is certain of a directory that lacks its files: then it is."""
    sources = section(section(recipe, "data"), "sources").values()
    if any(isinstance(source, Mapping) and source.get("private") for source in sources):
        return True
    if (folder / "tutelage.json").is_file():
        return mark.get("private") is not False
    return not recipe


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


@lru_cache(64)  # a page that is served reads the same recipes again and again
def _yaml(text: str) -> dict[str, Any] | None:
    """None where it is no mapping."""
    try:
        value = YAML(typ="safe").load(text) if text else {}
    except YAMLError:
        return None
    return value if isinstance(value, dict) else None
