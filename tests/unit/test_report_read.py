"""A run directory is read whatever is missing, cut off or older; and privacy fails closed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.report.page import run_page
from pipeline.report.read import MOST_ROLLOUTS, newest, read_run
from tests.run_directories import Size, make_run, write, write_lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", Size(steps=20, rollouts=5))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", [path.name for path in (Path("recipe.yaml"), Path("run.json"))] + [
    "metrics.jsonl", "timings.jsonl", "samples.jsonl", "events.jsonl", "provenance.jsonl", "tutelage.json", "data.json",
    "journal.sqlite", "evaluations/base.json", "evaluations/base.samples.jsonl", "evaluations/student-000020.json",
])  # fmt: skip
def test_any_file_may_be_missing_or_damaged(run: Path, name: str) -> None:
    whole = (run / name).read_bytes()
    for left in (whole[: len(whole) * 2 // 3], b"", b"\xff\xfe{", b"[1, 2]\n", b"null\n"):
        (run / name).write_bytes(left)
        assert "<h1>run</h1>" in run_page(run, with_texts=True)
    (run / name).unlink()
    assert "<h1>run</h1>" in run_page(run, with_texts=True)


def test_a_last_line_that_is_being_written_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": 0.')
    found = read_run(run)
    assert found.step == 20
    assert len(found.metrics) == 20


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such directory"):
        read_run(tmp_path / "none")
    with pytest.raises(RunError, match="not a run's directory"):
        read_run(tmp_path)


def test_runs_inside_are_read_too(run: Path) -> None:
    make_run(run / "prepared" / "expert", Size(steps=4, rollouts=1))
    write(run / "compare" / "sft_on_code" / "run.json", {"status": "running"})
    found = read_run(run)
    assert list(found.inner) == ["prepared/expert", "compare/sft_on_code"]
    assert found.inner["prepared/expert"].step == 4
    assert found.inner["prepared/expert"].samples == ()


def test_rollouts_are_spread_over_the_run_and_those_with_tokens_preferred(tmp_path: Path) -> None:
    write(tmp_path / "run.json", {})
    lines = [{"step": step, **({"tokens": ["a"]} if step % 2 else {})} for step in range(1, 4001)]
    write_lines(tmp_path / "samples.jsonl", lines)
    found = read_run(tmp_path)
    steps = [line["step"] for line in found.samples]
    assert found.samples_in_all == 4000
    assert len(steps) == MOST_ROLLOUTS
    assert all("tokens" in line for line in found.samples)
    assert (steps[0], steps[-1]) == (1, 3999)
    assert {b - a for a, b in pairwise(steps)} == {8, 10}
    write_lines(tmp_path / "samples.jsonl", [{"step": step} for step in range(1, 700)])
    assert len(read_run(tmp_path).samples) == MOST_ROLLOUTS


def test_the_newest_evaluation_is_the_students_last(run: Path) -> None:
    assert newest(read_run(run)) == "student-000020"


def test_provenance_is_counted(run: Path) -> None:
    given = read_run(run).given
    assert given.samples == 60
    assert given.gave == {"arithmetic": {"distribution": 20}, "python": {"top_k": 20}, "editor": {"judgment": 20}}


# ---- private ----


def test_privacy_fails_closed(run: Path) -> None:
    assert not read_run(run).private
    (run / "tutelage.json").write_text("{")
    assert read_run(run).private
    (run / "tutelage.json").write_text(json.dumps({"teachers": {}}))
    assert read_run(run).private
    (run / "tutelage.json").unlink()
    assert not read_run(run).private  # an older run: its recipe says so
    (run / "recipe.yaml").unlink()
    assert read_run(run).private  # nothing does


def test_a_private_source_counts_whatever_the_mark_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Size(steps=4, rollouts=2), private=True)
    write(run / "tutelage.json", {"private": False})
    assert read_run(run).private
