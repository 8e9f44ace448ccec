"""Several runs side by side: how good each student is, their curves over each other, and which settings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunError
from pipeline.files import write_text
from pipeline.report.curves import KINDS, Chart, Series, chart, events_of, flat_series, gathered, keys_of
from pipeline.report.page import curves_data, render
from pipeline.report.provenance import differences
from pipeline.report.read import Line, Run, read_run, section
from pipeline.report.strips import Scale, scale_of
from pipeline.report.teachers import asked_of
from pipeline.report.verdict import Domain, Estimate, Model, difference, verdict_of

LEFT_OUT = ("seconds", "memory", "unanswered")  # say more of the machine than of the run


@dataclass(frozen=True)
class Cell:
    """One run's student in one domain. change: against the first run's, on the prompts that both were judged on."""

    student: Model | None
    domain: Domain | None
    change: Estimate | None
    best: bool


@dataclass(frozen=True)
class Row:
    """A domain: a cell per run, and the models to draw, named after their runs."""

    name: str
    cells: tuple[Cell, ...]


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Writes the page and returns where it is. It holds no texts. Raises RunError: fewer than two runs, or no run."""
    write_text(output, comparison_page(folders))
    return output


def comparison_page(folders: Sequence[Path]) -> str:
    if len({folder.resolve() for folder in folders}) < 2:
        raise RunError("compare needs two different runs or more: tutelage compare runs/one runs/two")
    runs = dict(zip(names_of(folders), (read_run(folder, texts=False) for folder in folders), strict=True))
    rows = rows_of({name: verdict_of(run).domains for name, run in runs.items()})
    verdicts = {name: verdict_of(run) for name, run in runs.items()}
    data = {"name": " / ".join(runs), **curves_data(charts_over(runs), ()), "runs": list(runs)}
    return render(
        "compare.html",
        data,
        live=False,
        runs=runs,
        rows=rows,
        verdicts=verdicts,
        scale=_scale(rows),
        settings=differences({name: _settings(run) for name, run in runs.items()}),
        happened={name: _counted(run) for name, run in runs.items()},
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """The directories' names, with as many of those above as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise RunError("compare was given the same run twice; give different ones")


def rows_of(domains: Mapping[str, Sequence[Domain]]) -> tuple[Row, ...]:
    """By domain, in the order in which the runs have them."""
    names = dict.fromkeys(domain.name for found in domains.values() for domain in found)
    return tuple(
        _row(name, [next((d for d in found if d.name == name), None) for found in domains.values()]) for name in names
    )


def _row(name: str, found: Sequence[Domain | None]) -> Row:
    students = [domain.of("student") if domain else None for domain in found]
    first = students[0]
    highest = max((student.score.value for student in students if student), default=None)
    cells = tuple(
        Cell(
            student,
            domain,
            difference(student, first) if index and student and first else None,
            student is not None and student.score.value == highest,
        )
        for index, (student, domain) in enumerate(zip(students, found, strict=True))
    )
    return Row(name, cells)


def _scale(rows: Sequence[Row]) -> Scale:
    return scale_of(model.score for row in rows for cell in row.cells if cell.domain for model in cell.domain.models)


def charts_over(runs: Mapping[str, Run]) -> tuple[Chart, ...]:
    """A chart per number that some run has, a curve per run."""
    flat = {
        name: flat_series(run, {who: one.dollars for who, one in asked_of(run).items() if one.dollars})
        for name, run in runs.items()
    }
    found: list[Chart] = []
    for kind in KINDS:
        if kind.id in LEFT_OUT:
            continue
        labels: dict[str, dict[str, Series]] = {}
        for name, series in flat.items():
            for key, label in keys_of(kind, series).items():
                labels.setdefault(label, {})[name] = series[key]
        found += [chart(kind, named, label if len(labels) > 1 else "") for label, named in labels.items()]
    return tuple(found)


def _settings(run: Run) -> Line:
    """The recipe, and what else a result hangs on."""
    return {
        **run.recipe,
        "data's fingerprint": run.data.get("fingerprint"),
        "versions": section(run.about, "versions"),
        "machine": run.about.get("system"),
    }


def _counted(run: Run) -> dict[str, int]:
    counts: dict[str, int] = {}
    for event in gathered(events_of(run), run.steps):
        counts[event.what] = counts.get(event.what, 0) + event.count
    return counts
