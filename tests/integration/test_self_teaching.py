"""Runs in which the student is its own teacher, beside a class of the user's: trained, stopped, resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import trainer
from pipeline.checkpoint import list_checkpoints
from tests.runs import Settings, changed, distill_settings, run_here, write_recipe

SAME = ("metrics.jsonl", "samples.jsonl", "model/model.safetensors")
PLUGIN = Path(__file__).parents[1] / "plugins" / "shortest.py"


def settings_for(folder: Path, tune: str) -> Settings:
    """Three teachers: the averaged student shown the answer, the initial one, and a plugin that grades a batch."""
    own = {"kind": "self", "template": "{seen}|{prompt}"}
    teachers = {
        "ahead": {**own, "weights": "average", "decay": 0.3},
        "behind": {**own, "weights": "initial"},
        "short": {"kind": "plugin", "use": f"{PLUGIN}:Shortest"},
    }
    return changed(
        distill_settings(folder),
        {
            "output": None,
            "teachers": None,
            "routing": "all",
            "student.tune": tune,
            "rollout.samples_per_prompt": 2,
            "training.steps": 5,
            "training.checkpoint_every": 2,
        },
    ) | {"teachers": teachers}


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", settings_for(tmp_path, tune))
    whole = run_here(recipe, f"output={tmp_path / 'whole'}")
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["failures"] for line in lines] == [{}] * 5
    assert all({"ahead", "behind"} <= line["kl"]["teacher"].keys() for line in lines)

    class Stop(BaseException):
        pass

    update = trainer.update

    def stop_in_the_fourth(loop: Any, rows: Any, step: int, *rest: Any) -> Any:
        if step == 4:
            raise Stop
        return update(loop, rows, step, *rest)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "update", stop_in_the_fourth)
        with pytest.raises(Stop):
            run_here(recipe, f"output={stopped}")
    *_, newest = list_checkpoints(stopped / "checkpoints")
    assert newest.name == "step-000002"
    weights = load_file(newest / "weights.safetensors")
    averages = {name.removeprefix("0.3/"): value for name, value in load_file(newest / "averages.safetensors").items()}
    assert averages.keys() == weights.keys()
    assert any(not torch.equal(averages[name], weights[name]) for name in weights)
    run_here(recipe, f"output={stopped}", resume=True)
    assert {name: (stopped / name).read_bytes() for name in SAME} == {
        name: (whole / name).read_bytes() for name in SAME
    }
