"""Completion as bash asks for it: commands, recipes, runs, dotted keys with a recipe's own names, values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def completed(line: str, folder: Path) -> list[str]:
    """What bash is given for the last word of a line."""
    words = line.split(" ")
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "_TUTELAGE_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    code = "from pipeline.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    text = (ROOT / "recipes/hosted-teacher.yaml").read_text(encoding="utf-8")
    (tmp_path / "recipes/mine.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs/other").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tutelage wa", ["watch"]),
        ("tutelage run ", ["recipes/mine.yaml"]),
        ("tutelage run recipes/m", ["recipes/mine.yaml"]),
        ("tutelage watch ", ["runs/first"]),
        ("tutelage run recipes/mine.yaml training.sched", ["training.schedule="]),
        ("tutelage run recipes/mine.yaml teachers.critic.bud", ["teachers.critic.budget.then="]),
        ("tutelage check recipes/mine.yaml training.schedule=cos", ["training.schedule=cosine"]),
        ("tutelage check nowhere.yaml student.gradient", ["student.gradient_checkpointing="]),
    ],
)  # fmt: skip
def test_bash(line: str, expected: list[str], folder: Path) -> None:
    found = completed(line, folder)
    assert set(expected) <= set(found), found
    assert all(each.startswith(line.split(" ")[-1]) for each in found)
