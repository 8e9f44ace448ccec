"""The errors that were worst when all commands were tried with bad inputs: each is one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app

RECIPE = "method: sft\nstudent: {model: {}}\ndata: {sources: {sorting: {kind: tasks, task: sorting}}}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("journal nowhere", "nowhere: there is nothing there; name a run's directory, such as runs/quickstart"),
        ("ingest . commits=x", "commits: must be a whole number, not 'x'; the default is 0"),
        ("watch folder", "folder: holds notes and no run; name a run's directory, such as runs/quickstart"),
        ("watch ok.yaml", "ok.yaml is a file; name a run's directory, such as runs/quickstart"),
        ("check ok.yaml tracking=mlflow", "'mlflow' is not known; write trackio, wandb or tensorboard"),
        ("run nowhere.yaml", "there is no such file; `tutelage recipes` lists"),
        ("init ok.yaml", "name another file: tutelage init FILE"),
    ],
)
def test_one_line_says_what_to_do(arguments: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ok.yaml").write_text(RECIPE, encoding="utf-8")
    Path("folder").mkdir()
    Path("folder/notes").touch()
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code in (1, 2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
