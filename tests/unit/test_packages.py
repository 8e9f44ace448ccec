"""Packages that are not there are told before anything runs, of a recipe and of what it prepares, a line for each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.packages import missing_packages
from pipeline.recipe_file import load_recipe
from tests.repositories import write_files
from tests.runs import changed, distill_settings, run_here, sft_settings, write_recipe

CODE = {"path": "code", "split": "file"}
GO = "package a\n\nfunc F() int { return 1 }\n"


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def code_recipe(folder: Path) -> Path:
    settings = changed(sft_settings(folder), {"data.sources": {"code": {"kind": "codebase", "task": "line"}}})
    return write_recipe(folder / "r.yaml", {**settings, "source": CODE})


def test_what_a_prepared_recipe_lacks_is_told_before_the_first_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "torchao", "tensorboard")
    write_recipe(tmp_path / "first.yaml", changed(sft_settings(tmp_path), {"output": None}))
    second = {"training.optimizer": "adamw_8bit", "output": None}
    write_recipe(tmp_path / "second.yaml", changed(sft_settings(tmp_path), second))
    prepare = {"first": {"recipe": "first.yaml"}, "second": {"recipe": "second.yaml"}}
    settings = changed(distill_settings(tmp_path), {"tracking": "tensorboard", "training.optimizer": "adamw_8bit"})
    path = write_recipe(tmp_path / "r.yaml", {**settings, "prepare": prepare, "student": {"model": "prepared:first"}})
    with pytest.raises(RunError) as caught:
        run_here(path)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(tmp_path / "second.yaml"), str(path), str(path)]
    for line in (lines[0], lines[1]):
        assert line.endswith(
            'training.optimizer: adamw_8bit needs torchao, which is not installed; pip install -e ".[quantize]", or '
            "write adamw"
        )
    assert lines[2].endswith(
        'tracking: tensorboard is not installed; pip install -e ".[tensorboard]", or leave tensorboard out of tracking'
    )
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_to_be_started_needs_a_python_with_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "vllm")
    (tmp_path / "empty" / "vllm").mkdir(parents=True)
    (tmp_path / "empty" / "vllm" / "__init__.py").touch()
    start = {"kind": "vllm", "max_new_tokens": 6}

    def told(server: object) -> list[str]:
        settings = {**distill_settings(tmp_path), "rollout": {**start, "server": server}}
        return missing_packages(load_recipe(write_recipe(tmp_path / "r.yaml", settings)))

    (own,) = told("start")
    assert own.endswith(
        f"rollout.server.python: {sys.executable}, which runs this, has no vLLM; name one that has vLLM"
    )
    (nowhere,) = told({"kind": "start", "python": "/nowhere/python"})
    assert "/nowhere/python cannot be started (No such file or directory)" in nowhere
    there = {"kind": "start", "python": sys.executable, "environment": {"PYTHONPATH": str(tmp_path / "empty")}}
    assert told(there) == []
    write_files(tmp_path, {"bare/sitecustomize.py": "import sys\nsys.modules['vllm'] = None\n"})
    (bare,) = told({**there, "environment": {"PYTHONPATH": str(tmp_path / "bare")}})
    assert f"{sys.executable} has no vLLM; name one that has vLLM" in bare
    assert told("http://127.0.0.1:8000/v1") == []


def test_a_grammar_is_missed_where_there_is_a_file_to_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tree_sitter_go", "tree_sitter_javascript")
    minified = "var a=1;" * 2_000 + "\n"
    write_files(
        tmp_path,
        {"code/a.py": "x = 1\n", "code/vendor/b.go": GO, "code/app.min.js": minified, "code/c.js": minified},
    )
    path = code_recipe(tmp_path)
    assert missing_packages(load_recipe(path)) == []
    write_files(tmp_path, {"code/d.go": GO, "code/e.go": GO})
    (line,) = missing_packages(load_recipe(path))
    assert "source.path: go is read by tree_sitter_go, which is not installed;" in line
    assert missing_packages(load_recipe(path, ["source.languages=[python]"])) == []
    assert missing_packages(load_recipe(path, ["source.exclude=['*.go']"])) == []
    monkeypatch.undo()
    assert missing_packages(load_recipe(path)) == []
