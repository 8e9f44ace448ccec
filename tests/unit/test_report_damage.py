"""A page opens whatever a run's files hold, and says what could not be read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import run_page
from pipeline.report.read import read_run
from tests.run_directories import Size, make_run, write, write_lines

STRANGE: tuple[Any, ...] = (
    None,
    "x",
    -1,
    2.5,
    True,
    float("nan"),
    float("inf"),
    [],
    [1],
    [["x"]],
    {},
    {"a": 1},
    {"a": []},
)
FILES = (
    *("metrics.jsonl", "timings.jsonl", "samples.jsonl", "events.jsonl", "provenance.jsonl", "tutelage.json"),
    *("data.json", "run.json", "evaluation.json", "ledger.json", "recipe.yaml"),
    *("evaluations/base.json", "evaluations/base.samples.jsonl", "evaluations/student-000004.json"),
)
EACH = 6  # pages of every file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small(tmp_path / "run")


def small(folder: Path) -> Path:
    make_run(folder, Size(steps=4, rollouts=3, tokens=4, choices=2, prompts=3))
    write(folder / "evaluation.json", {"tokens_trained": {"student": 70}, "refusals": {"base": 0.9, "student": 0.5}})
    write(folder / "ledger.json", {"teachers": {"editor": {"dollars": "0.1", "tokens": 9}}, "in_doubt": [{"key": "k"}]})
    return folder


@pytest.mark.parametrize("name", FILES)
def test_any_value_of_a_file_may_be_another(run: Path, name: str) -> None:
    cases = list(damaged(run / name))
    whole = (run / name).read_text()
    for text, where in random.Random(name).sample(cases, min(EACH, len(cases))):
        (run / name).write_text(text)
        assert "<h1>run</h1>" in run_page(run, with_texts=True), where
    (run / name).write_text(whole)


def damaged(path: Path) -> Iterator[tuple[str, str]]:
    """(the file with one of its values, or one of the first lines', in turn made each strange one; which)."""
    text = path.read_text()
    values = [json.loads(line) for line in lines_of(text)] if path.suffix == ".jsonl" else [json.loads(text)]
    for number, value in enumerate(values[:3]):
        for place in places(value):
            for strange in STRANGE:
                others = [*values[:number], replaced(value, place, strange), *values[number + 1 :]]
                yield "".join(f"{json.dumps(other)}\n" for other in others), f"{place}: {strange}"


def lines_of(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")  # splitlines would end lines at \u2028 too


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside, itself first; of a list, that to its first two."""
    yield ()
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, entry in inner:
        for place in places(entry):
            yield (key, *place)


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


def test_what_could_not_be_read_is_said(run: Path) -> None:
    assert read_run(run).unread == ()
    lines = [json.loads(line) for line in lines_of((run / "samples.jsonl").read_text())]
    lines[0]["top"] = [["a"]]
    write_lines(run / "samples.jsonl", lines)
    write(run / "evaluations" / "base.json", {"math": {"mean": "high"}})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5\n[]\n{"step": 6, "lo')  # the last is being written
    assert read_run(run).unread == (
        "evaluations/base.json could not be read.",
        "metrics.jsonl: 2 lines could not be read, and left out.",
        "samples.jsonl: 1 line could not be read, and left out.",
    )
    page = run_page(run, with_texts=True)
    assert "Not all of the run is here: samples.jsonl: 1 line could not be read, and left out." in page
    assert read_run(run).step == 4
