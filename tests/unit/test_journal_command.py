"""`tutelage journal`: what it lists, exports and prunes, and that reading changes nothing."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.run_directory import locked
from teachers.journal import FILE, Journal
from teachers.types import Answer, Judgment, TeacherFailure, TopK, Usage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two teachers: answers at steps 1 to 6, a failure, one in doubt, one shared."""
    shared = Journal(tmp_path / "shared.sqlite", shared=tmp_path / "for-all.sqlite")
    settle(shared, "borrowed", Answer(Judgment(feedback="from another run")), step=1, private=False)
    shared.close()
    journal = Journal(tmp_path / "run" / FILE, shared=tmp_path / "for-all.sqlite")
    for step in range(1, 7):
        settle(journal, f"k{step}", Answer(Judgment(0.5, "good", None), Usage(10, 1, 5, 2), "m-1", 0.5), step)
    settle(journal, "failed", TeacherFailure("grader", "rate_limited", True), 6, dollars="0")
    settle(journal, "doubt", TeacherFailure("grader", "timeout", True, in_doubt=True), 6)
    signal = TopK(
        torch.tensor([-0.5, float("nan")]), torch.tensor([[3], [4]]), torch.tensor([[-0.5], [-1.0]]),
        torch.tensor([float("-inf"), 0.0]), torch.tensor([True, False]),
    )  # fmt: skip
    settle(journal, "scored", Answer(signal), 6, teacher="scorer", dollars="0")
    assert journal.find("borrowed") is not None
    journal.close()
    return tmp_path / "run"


def settle(
    journal: Journal, key: str, result: Any, step: int, *, teacher: str = "grader", dollars: str = "0.01",
    private: bool = True,
) -> None:  # fmt: skip
    attempt = journal.intend(
        key, teacher=teacher, request_id=f"r/{key}", step=step, dollars=Decimal(dollars), tokens=50, private=private
    )
    journal.settle(attempt, result, Decimal(dollars))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["journal", *map(str, arguments)], env={"COLUMNS": "200"})


def checkpoint(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_it_lists_each_teacher(folder: Path) -> None:
    result = invoke(folder)
    assert result.exit_code == 0
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "grader 8 6 1 1 0 60 6 30 12 $0.07" in rows
    assert "scorer 1 1 0 0 0 0 0 0 0 $0.00" in rows
    assert "grader rate_limited 1" in rows
    assert "grader: 1 in doubt or under way, charged with the most: $0.01\n" in result.stdout
    assert "8 answers are kept" in result.stdout
    assert invoke(folder / FILE).stdout == result.stdout


def test_reading_does_not_touch_what_is_under_way(folder: Path) -> None:
    journal = Journal(folder / FILE)
    attempt = journal.intend("now", teacher="grader", request_id="r", step=7, dollars=Decimal(1), tokens=1)
    rows = [" ".join(line.split()) for line in invoke(folder).stdout.splitlines()]
    assert "grader 9 6 1 1 1 60 6 30 12 $1.07" in rows
    journal.settle(attempt, Answer(Judgment()), Decimal(1))
    journal.close()


def test_it_exports_every_attempt_and_answer_as_plain_json(folder: Path) -> None:
    target = folder.parent / "out" / "journal.jsonl"
    assert invoke(folder, "--export", target).exit_code == 0
    found = lines(target)
    assert [line["state"] for line in found] == ["answered"] * 6 + ["failed", "doubtful", "answered", "shared"]
    first = found[0]
    assert (first["teacher"], first["step"], first["dollars"], first["private"]) == ("grader", 1, "0.01", True)
    assert first["answer"] == {"model": "m-1", "latency": 0.5, "score": 0.5, "feedback": "good", "rewrite": None}
    assert "answer" not in found[6]
    assert found[8]["answer"]["token_logprobs"] == [-0.5, "nan"]
    assert found[8]["answer"]["log_tail"] == ["-inf", 0.0]
    assert found[8]["answer"]["ids"] == [[3], [4]]
    assert found[9]["answer"]["feedback"] == "from another run"


def test_it_prunes_what_no_checkpoint_can_need(folder: Path) -> None:
    checkpoint(folder, 4, 6)
    before = (folder / FILE).stat().st_size
    result = invoke(folder, "--prune")
    assert result.exit_code == 0
    assert "pruned 4 answers, of steps up to 4; 4 are left" in result.stdout
    assert (folder / FILE).stat().st_size <= before
    journal = Journal(folder / FILE)
    assert [step for step in range(1, 7) if journal.find(f"k{step}") is not None] == [5, 6]
    assert journal.find("borrowed") is not None
    assert journal.charged("grader").dollars == Decimal("0.07")  # what was paid stays paid
    journal.close()


def test_it_exports_before_it_prunes(folder: Path) -> None:
    checkpoint(folder, 6)
    target = folder.parent / "all.jsonl"
    assert invoke(folder, "--export", target, "--prune").exit_code == 0
    assert sum("answer" in line for line in lines(target)) == 8
    assert invoke(folder, "--export", target).exit_code == 0
    assert sum("answer" in line for line in lines(target)) == 1  # the shared one, whose step here is not known


def test_nothing_is_pruned_without_a_checkpoint_or_in_a_living_run(folder: Path) -> None:
    result = invoke(folder, "--prune")
    assert result.exit_code == 1
    assert "no checkpoint yet" in result.stderr
    checkpoint(folder, 6)
    with locked(folder):
        result = invoke(folder, "--prune")
    assert result.exit_code == 1
    assert "another process is writing this run" in result.stderr
    assert "a file has no checkpoints" in invoke(folder / FILE, "--prune").stderr


def test_it_exports_over_no_journal_and_no_folder(folder: Path) -> None:
    before = (folder / FILE).read_bytes()
    (folder.parent / "a file").write_text("")
    for target, words in (
        (folder / FILE, "a journal is there"),
        (folder.parent / "for-all.sqlite", "a journal is there"),
        (folder, "a folder is there"),
        (folder.parent / "a file" / "all.jsonl", "a file is not a folder"),
    ):
        result = invoke(folder, "--export", target, "--prune")
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert words in line
    assert (folder / FILE).read_bytes() == before


def test_what_is_no_journal_is_one_line(tmp_path: Path) -> None:
    result = invoke(tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (f"{tmp_path / FILE}: there is no journal here; a run without remote teachers keeps none\n")
    (tmp_path / FILE).write_text("something else " * 100)
    result = invoke(tmp_path)
    assert result.exit_code == 1
    assert "damaged, or no journal" in result.stderr
    assert len(result.stderr.splitlines()) == 1
