"""Kinds of students, teachers and steps in shards over two processes: each as one process has it on the same rollouts.

As in `test_sharding.py`, every test asserts how many processes there were, and how much of the student each held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import manifest
from pipeline.errors import RunError
from pipeline.files import read_json, read_lines
from tests.integration.test_sharding import CHANGES, IN_SHARDS, replay_of, torchrun
from tests.models import save_adapter, save_tiny
from tests.runs import DOMAINS, Settings, changed, distill_settings, run_here, write_recipe

STEPS = {**CHANGES, "training.steps": 4}
# Tokens enough for a guard to judge a teacher by.
LONG = {"rollout.max_new_tokens": 60, "rollout.rows": 8, "training.tokens_per_forward": 4000}


def settings_of(folder: Path) -> dict[str, Settings]:
    plain = distill_settings(folder)
    base = save_tiny(folder / "base")
    adapters = {
        domain: {
            "kind": "adapter",
            "base": base,
            "adapter": save_adapter(folder / f"adapter-{domain}", base, seed=n),
            "dtype": "float32",
        }
        for n, domain in enumerate(DOMAINS)
    }
    selves = {name: {"kind": "self", "weights": name, "sees": "reference"} for name in ("initial", "base")}
    own = {"student.model": base, "student.tune": "lora", "teachers": adapters | selves, "routing": "all"}
    return {
        "half": changed(plain, STEPS | {"student.dtype": "bfloat16"}),
        "mixed": changed(plain, STEPS | {"training.mixed_precision": "bf16"}),
        "deepseek": changed(distill_settings(folder / "v4", "deepseek_v4"), STEPS),
        "adapters": changed(plain, STEPS | own),
        "guarded": changed(plain, STEPS | LONG),
    }


# Nats: no teacher is as sharp, so that the guard always finds something.
GUARDED = ("guards.uniform={threshold: 100, action: roll_back}", "guards.rollbacks=1")


class Kinds:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        recipes = {kind: write_recipe(folder / f"{kind}.yaml", each) for kind, each in settings_of(folder).items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manifest, "prune", lambda *_: None)  # keep every step's rollouts
            for kind, recipe in recipes.items():
                if kind == "guarded":
                    with pytest.raises(RunError, match="1 roll-backs did not help"):
                        run_here(recipe, f"output={folder / kind}", *GUARDED)
                run_here(recipe, f"output={folder / kind}", "guards.uniform=off", resume=kind == "guarded")
        many: list[list[str]] = []
        for kind, recipe in recipes.items():
            output = folder / f"{kind}-2"
            shared = [str(recipe), f"output={output}", *IN_SHARDS]
            if kind == "guarded":
                many += [[*shared, *GUARDED, "--stops"], [*shared, "guards.uniform=off", "--resume"]]
            else:
                replay_of(folder / kind, output)
                many.append([*shared, "guards.uniform=off", "--resume"])
        torchrun(2, many, folder)

    def lines(self, name: str, what: str = "metrics") -> list[dict[str, Any]]:
        return list(read_lines(self.folder / name / f"{what}.jsonl"))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return Kinds(tmp_path_factory.mktemp("kinds"))


def assert_in_shards(kinds: Kinds, name: str) -> None:
    lines = kinds.lines(name, "timings")
    assert len(lines) == 4
    for line in lines:
        assert line["processes"] == 2
        assert line["shards"]["by"] == "torch fully_shard over gloo"
        assert 0.45 < line["shards"]["held"] / line["shards"]["of"] < 0.6


@pytest.mark.parametrize("kind", ["deepseek", "adapters"])
def test_losses_are_those_of_one_process(kinds: Kinds, kind: str) -> None:
    """A DeepSeek-V4 student with its experts and hyper-connections; adapters over the student's own base, and the
    student's own former self, as teachers."""
    assert_in_shards(kinds, f"{kind}-2")
    for one, two in zip(kinds.lines(kind), kinds.lines(f"{kind}-2"), strict=True):
        assert two["tokens"] == one["tokens"]
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert two["kl"]["teacher"] == pytest.approx(one["kl"]["teacher"], rel=1e-3, abs=1e-6)
        assert two["failures"] == one["failures"]


@pytest.mark.parametrize("kind", ["half", "mixed"])
def test_products_in_bf16_are_those_of_one_process_but_for_their_rounding(kinds: Kinds, kind: str) -> None:
    assert_in_shards(kinds, f"{kind}-2")
    pairs = list(zip(kinds.lines(kind), kinds.lines(f"{kind}-2"), strict=True))
    assert pairs[0][1]["loss"] == pytest.approx(pairs[0][0]["loss"], rel=2e-3)
    for one, two in pairs:
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-2)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=5e-2)


def test_half_precision_has_its_masters_in_shards(kinds: Kinds) -> None:
    """Each is a copy in fp32, of which the weight is the rounding; the file is the one that a single process writes."""
    states = []
    for name in ("half", "half-2"):
        checkpoint = kinds.folder / name / "checkpoints" / "step-000004"
        state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        assert {master.dtype for master in state["masters"]} == {torch.float32}
        kept = {value.to(torch.bfloat16).flatten()[:8].float().sum().item() for value in state["masters"]}
        weights = load_file(checkpoint / "weights.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        assert {weight.flatten()[:8].float().sum().item() for weight in weights.values()} == kept
        states.append([master.shape for master in state["masters"]])
    assert states[0] == states[1]


def test_a_roll_back_in_shards_is_that_of_one_process(kinds: Kinds) -> None:
    """From step 1 back to the untrained student, at half the rate, with fresh rollouts, and on from there."""
    assert_in_shards(kinds, "guarded-2")
    one, two = (
        [
            (line["step"], line["name"], line["value"])
            for line in kinds.lines(name, "events")
            if line["what"] == "rollback"
        ]
        for name in ("guarded", "guarded-2")
    )
    assert one == two
    assert [(step, name) for step, name, _ in one] == [(1, "uniform")]
    assert [line.get("attempt") for line in kinds.lines("guarded-2")] == [1, 1, 1, 1]
    assert read_json(kinds.folder / "guarded-2" / "run.json")["status"] == "finished"
    for single, sharded in zip(kinds.lines("guarded"), kinds.lines("guarded-2"), strict=True):
        assert sharded["learning_rate"] == single["learning_rate"]
        assert sharded["loss"] == pytest.approx(single["loss"], abs=1e-5)
