"""Runs side by side: their scores, their curves over each other, and the settings that differ."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.report.compare import charts_over, comparison_page, names_of, rows_of
from pipeline.report.provenance import differences
from pipeline.report.read import read_run
from pipeline.report.verdict import verdict_of
from tests.run_directories import SENTENCES, Size, evaluate, make_run, write


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    first = make_run(tmp_path / "one", Size(steps=20, rollouts=4))
    second = make_run(tmp_path / "two", Size(steps=30, rollouts=4), seed=3, privacy={"mode": "sealed"})
    evaluate(second, "student-000030", {"math": 0.4, "code": 0.9}, 60, random.Random(0))
    return [first, second]


def test_students_are_compared_on_the_same_prompts(folders: list[Path]) -> None:
    rows = rows_of({folder.name: verdict_of(read_run(folder)).domains for folder in folders})
    assert [row.name for row in rows] == ["math", "code", "chat"]
    math, code, chat = rows
    assert [cell.best for cell in math.cells] == [True, False]
    assert [cell.best for cell in code.cells] == [False, True]
    change = code.cells[1].change
    assert change is not None
    assert change.value == pytest.approx(0.6)
    assert 0 < change.low < 0.6 < change.high
    assert code.cells[0].change is None  # the first is what others are compared with
    assert chat.cells[1].student is None


def test_curves_lie_over_each_other(folders: list[Path]) -> None:
    charts = {chart.id: chart for chart in charts_over({folder.name: read_run(folder) for folder in folders})}
    loss = charts["loss/loss"]
    assert [curve.name for curve in loss.curves] == ["one", "two"]
    assert loss.x == tuple(range(1, 31))
    assert loss.curves[0].values[20:] == (None,) * 10
    assert None not in loss.curves[1].values
    assert charts["kl_teacher/python"].title == "KL to each teacher: python"
    assert charts["entropy"].title == "Entropy"
    assert "seconds/update" not in charts


def test_settings_that_differ() -> None:
    one = {"output": "a", "seed": 0, "training": {"steps": 10, "betas": [1, 2]}, "teachers": {"t": {"kind": "chat"}}}
    two = {"output": "b", "seed": 0, "training": {"steps": 20, "betas": [1, 2]}, "teachers": {}}
    assert differences({"one": one, "two": two}) == [
        ("training.steps", ["10", "20"]), ("teachers.t.kind", ["chat", "–"]), ("teachers", ["–", "{}"])
    ]  # fmt: skip


def test_the_page_has_no_texts(folders: list[Path]) -> None:
    page = comparison_page(folders)
    assert "privacy.mode" in page
    assert [text for text in (*SENTENCES, "Say it shorter", "Question") if text.strip() in page] == []


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c" / "other"]
    for place in places:
        write(place / "run.json", {})
    assert names_of(places) == ["a/run", "b/run", "c/other"]
    assert names_of(places[1:]) == ["run", "other"]
