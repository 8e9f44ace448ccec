"""Two CPU processes by torchrun agree with one on the same rollouts, and there really are two."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import manifest
from pipeline.files import read_lines
from tests.runs import Settings, changed, distill_settings, environment, in_processes, run_here, write_recipe


def torchrun(recipe: Path, *arguments: str, what: str = "run") -> str:
    """`tutelage run`, or what else it can do, in two processes on this machine's loopback; what it says."""
    command = [*in_processes(2), "-m", "pipeline.cli", what, str(recipe), *arguments]
    result = subprocess.run(
        command, env=environment() | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def settings_for(folder: Path) -> Settings:
    """Seven prompts a step, so that the processes have different numbers of rows."""
    changes = {"training.prompts_per_step": 7, "training.tokens_per_forward": 60, "training.clip_norm": 0.05}
    return changed(distill_settings(folder), changes)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_two_processes_agree_with_one_on_the_same_rollouts(
    tmp_path: Path, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", changed(settings_for(tmp_path), {"student.tune": tune}))
    one, two = tmp_path / "one", tmp_path / "two"
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "prune", lambda *_: None)  # keep every step's rollouts
        run_here(recipe, f"output={one}")
    shutil.copytree(one, two)
    for name in ("checkpoints", "evaluations", "model", "adapter"):
        shutil.rmtree(two / name, ignore_errors=True)
    state = json.loads((two / "run.json").read_text())
    (two / "run.json").write_text(json.dumps({**state, "status": "running"}))
    dumped = (two / "recipe.yaml").read_text().replace(str(one), str(two))
    (two / "recipe.yaml").write_text(dumped)
    torchrun(recipe, f"output={two}", "--resume")
    assert {line["processes"] for line in read_lines(two / "timings.jsonl")} == {2}
    for single, double in zip(read_lines(one / "metrics.jsonl"), read_lines(two / "metrics.jsonl"), strict=True):
        assert double["tokens"] == single["tokens"]
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-5, abs=1e-7)
        assert double["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-4)
        assert double["kl"]["domain"] == pytest.approx(single["kl"]["domain"], rel=1e-4)
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


def test_two_processes_write_their_own_rollouts(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", settings_for(tmp_path))
    torchrun(recipe)
    lines = list(read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert [line["rows"] for line in lines] == [7, 7, 7]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_two_processes_try_a_step(tmp_path: Path) -> None:
    """A new student is made once, by the main process, in a folder that both find."""
    new = {"architecture": "qwen3", "hidden_size": 32, "layers": 2, "heads": 2, "context": 128}
    recipe = write_recipe(tmp_path / "recipe.yaml", changed(settings_for(tmp_path), {"student.model": new}))
    torchrun(recipe, "--step", what="check")
