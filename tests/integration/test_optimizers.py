"""Runs by each optimizer: they learn, and a run that was killed and resumed ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.checkpoint import list_checkpoints
from pipeline.files import read_lines
from tests.integration.test_resume import files_of
from tests.killing import run_until_killed
from tests.runs import Settings, changed, distill_settings, run_here, write_recipe


def settings_for(folder: Path, optimizer: str, tune: str, architecture: str = "qwen3") -> Settings:
    if optimizer == "adamw_8bit":
        pytest.importorskip("torchao")
    return changed(
        distill_settings(folder, architecture),
        {
            "output": None,
            "student.tune": tune,
            "training.optimizer": optimizer,
            "training.weight_decay": 0.1,
            "training.steps": 6,
        },
    )


def states_of(checkpoint: Path) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return found


def plain(value: Tensor) -> Tensor:
    """torchao's moments as numbers."""
    return value.dequantize() if hasattr(value, "tensor_attrs") else value


@pytest.mark.parametrize(
    ("optimizer", "tune", "architecture"),
    [("muon", "full", "deepseek_v4"), ("muon", "lora", "qwen3"), ("adamw_8bit", "full", "qwen3")],
)
def test_killed_and_resumed(tmp_path: Path, optimizer: str, tune: str, architecture: str) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", settings_for(tmp_path, optimizer, tune, architecture))
    whole = run_here(recipe, f"output={tmp_path / 'whole'}")
    folder = tmp_path / "killed"
    run_until_killed(recipe, folder, step=5)
    assert list_checkpoints(folder / "checkpoints")[-1].name == "step-000004"
    run_here(recipe, f"output={folder}", resume=True)
    assert files_of(folder) == files_of(whole)
    weights = Path("checkpoints") / "step-000006" / "weights.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
    state, again = (states_of(run / "checkpoints" / "step-000006") for run in (whole, folder))
    assert state.keys() == again.keys()
    for number, of_one in state.items():
        assert of_one.keys() == again[number].keys()
        assert all(torch.equal(plain(value), plain(again[number][name])) for name, value in of_one.items())
    names = {name for of_one in state.values() for name in of_one}
    assert ("momentum" in names) == (optimizer == "muon")


@pytest.mark.parametrize(("optimizer", "tune"), [("muon", "full"), ("muon", "lora"), ("adamw", "full")])
def test_it_learns(tmp_path: Path, optimizer: str, tune: str) -> None:
    """At one rate for all: updates of Muon are as large as AdamW's."""
    rate = 3e-3 if tune == "full" else 1e-2
    settings = changed(
        settings_for(tmp_path, optimizer, tune),
        {"training.steps": 30, "training.learning_rate": rate, "training.weight_decay": 0.0},
    )
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings), f"output={tmp_path / 'run'}")
    kl = [sum(line["kl"]["domain"].values()) / 2 for line in read_lines(folder / "metrics.jsonl")]
    assert sum(kl[-5:]) < (0.7 if tune == "full" else 0.85) * sum(kl[:5])
