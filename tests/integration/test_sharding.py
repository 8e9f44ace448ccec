"""A student in shards over two and four CPU processes, by torchrun: the losses of one process on the same rollouts.

Every test asserts how many processes there really were, who cut the student, and how much of it each of them held.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import manifest
from pipeline.files import read_lines
from tests.runs import DOMAINS, changed, distill_settings, environment, in_processes, run_here, write_recipe

ROOT = Path(__file__).parents[2]
BY = "torch fully_shard over gloo"
IN_SHARDS = ("sharding.student=true", "sharding.teachers=shards")
IN_GROUPS = ("sharding.teachers=groups",)
SHARED = ("sharding.context=2",)
WRITTEN = "compare=[sft_on_teacher_samples]"
# Seven prompts a step, so that the processes have different numbers of rows; several forwards, so that gradients
# accumulate; every gradient is clipped.
CHANGES = {
    "training.prompts_per_step": 7,
    "training.tokens_per_forward": 60,
    "training.clip_norm": 0.05,
    "training.steps": 5,
    "training.keep_checkpoints": 9,
}


def torchrun(processes: int, runs: list[list[str]], folder: Path, what: str = "tests.many") -> None:
    """These runs (see `many.py`), one after another, in so many processes."""
    listed = folder / f"runs-{processes}-{what}.json"
    listed.write_text(json.dumps(runs))
    command = [*in_processes(processes), "-m", what, str(listed)]
    settings = environment() | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def replay_of(one: Path, other: Path, step: int = 0) -> Path:
    """A copy of a finished run, as it was after `step` steps, with the rollouts of the others recorded."""
    shutil.copytree(one, other)
    for name in ("evaluations", "model", "adapter"):
        shutil.rmtree(other / name, ignore_errors=True)
    for path in (other / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    state = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**state, "status": "running"}))
    recipe = other / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(one), str(other)))
    return other


class Runs:
    """The runs of this module: of one process first, then all that two processes do, then all that four do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipes = {
            "full": write_recipe(folder / "full.yaml", changed(distill_settings(folder), CHANGES)),
            "lora": write_recipe(
                folder / "lora.yaml",
                changed(
                    distill_settings(folder, "llama"),
                    CHANGES | {"student.tune": "lora", "student.gradient_checkpointing": True},
                ),
            ),
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manifest, "prune", lambda *_: None)  # keep every step's rollouts
            for kind, recipe in self.recipes.items():
                run_here(recipe, f"output={folder / kind}")
        two = [
            self.replayed("full", "full-2"),
            self.replayed("lora", "lora-2"),
            [*self.replayed("full", "full-accelerate-2"), "--accelerate"],
            self.replayed("full", "full-1-2", step=2),
            [str(self.recipes["full"]), f"output={folder / 'own-2'}", *IN_SHARDS],
            self.replayed("full", "full-groups-2", how=IN_GROUPS),
            self.replayed("full", "full-context-2", how=SHARED),
            self.replayed("lora", "lora-context-2", how=(*SHARED, *IN_SHARDS)),
            [str(self.recipes["full"]), f"output={folder / 'own-groups-2'}", *IN_GROUPS, WRITTEN],
        ]
        torchrun(2, two, folder)
        replay_of(folder / "full-2", folder / "full-2-4", step=2)
        four = [
            self.replayed("full", "full-4"),
            self.resumed("full", "full-2-4"),
            self.replayed("full", "full-groups-4", how=("sharding.student=true", *IN_GROUPS)),
            self.replayed("full", "full-context-4", how=(*SHARED, *IN_SHARDS)),
        ]
        torchrun(4, four, folder)

    def replayed(self, kind: str, name: str, step: int = 0, how: Sequence[str] = IN_SHARDS) -> list[str]:
        replay_of(self.folder / kind, self.folder / name, step)
        return self.resumed(kind, name, how)

    def resumed(self, kind: str, name: str, how: Sequence[str] = IN_SHARDS) -> list[str]:
        return [str(self.recipes[kind]), f"output={self.folder / name}", *how, "--resume"]

    def metrics(self, name: str) -> list[dict[str, Any]]:
        return list(read_lines(self.folder / name / "metrics.jsonl"))

    def weights(self, name: str, what: str = "model/model.safetensors") -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / what)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("sharding"))


def assert_in_shards(runs: Runs, name: str, processes: int, first: int = 1, by: str = BY) -> None:
    """From step `first` on there were so many processes, and each held about its share."""
    lines = [line for line in read_lines(runs.folder / name / "timings.jsonl") if line["step"] >= first]
    assert lines
    for line in lines:
        assert line["processes"] == processes
        assert line["shards"]["by"] == by
        assert 0.9 / processes < line["shards"]["held"] / line["shards"]["of"] < 1.2 / processes


def assert_same_training(runs: Runs, kind: str, name: str) -> None:
    for single, sharded in zip(runs.metrics(kind), runs.metrics(name), strict=True):
        assert sharded["tokens"] == single["tokens"]
        assert sharded["loss"] == pytest.approx(single["loss"], abs=1e-5)
        assert sharded["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-4)
        assert sharded["kl"]["domain"] == pytest.approx(single["kl"]["domain"], rel=1e-4)
    first, second = runs.weights(kind), runs.weights(name)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "name", "processes"), [("full", "full-2", 2), ("lora", "lora-2", 2), ("full", "full-4", 4)]
)
def test_shards_give_the_losses_of_one_process(runs: Runs, kind: str, name: str, processes: int) -> None:
    assert_in_shards(runs, name, processes)
    assert len(runs.metrics(name)) == 5
    assert_same_training(runs, kind, name)


def test_accelerate_shards_to_the_same_losses(runs: Runs) -> None:
    """accelerate's own FSDP2 code, over gloo; see `many.told_to_shard`."""
    assert_in_shards(runs, "full-accelerate-2", 2, by="accelerate FSDP2 over gloo")
    assert_same_training(runs, "full", "full-accelerate-2")


@pytest.mark.parametrize(("name", "processes"), [("full-1-2", 2), ("full-2-4", 4)])
def test_a_checkpoint_goes_on_in_another_number_of_processes(runs: Runs, name: str, processes: int) -> None:
    """One to two, two to four: moments and weights come back in other shards."""
    assert_in_shards(runs, name, processes, first=3)
    assert_same_training(runs, "full", name)


def test_a_checkpoint_of_shards_goes_on_in_one_process(runs: Runs) -> None:
    replay_of(runs.folder / "full-4", runs.folder / "full-4-1", step=2)
    run_here(runs.recipes["full"], f"output={runs.folder / 'full-4-1'}", resume=True)
    assert_same_training(runs, "full", "full-4-1")


def test_a_checkpoint_of_shards_is_one_like_any_other(runs: Runs) -> None:
    """The same files, names, shapes and dtypes as one process writes."""
    one, four = (runs.folder / name / "checkpoints" / "step-000004" for name in ("full", "full-4"))
    assert {path.name for path in one.iterdir()} == {path.name for path in four.iterdir()}
    states = [torch.load(path / "optimizer.pt", weights_only=True) for path in (one, four)]
    layouts = [
        {
            (number, key): (type(value), value.shape, value.dtype)
            for number, of in s["state"].items()
            for key, value in of.items()
        }
        for s in states
    ]
    assert layouts[0] == layouts[1]
    for number, of_one in states[0]["state"].items():
        torch.testing.assert_close(states[1]["state"][number]["exp_avg"], of_one["exp_avg"], rtol=1e-3, atol=1e-6)


def test_students_in_shards_write_their_own_rollouts(runs: Runs) -> None:
    """Gathered weights write what whole ones do: the first step is that of one process."""
    assert_in_shards(runs, "own-2", 2)
    assert runs.metrics("own-2")[0]["tokens"] == runs.metrics("full")[0]["tokens"]
    assert runs.metrics("own-2")[0]["loss"] == pytest.approx(runs.metrics("full")[0]["loss"], abs=1e-5)
    scores = [json.loads((runs.folder / name / "evaluation.json").read_text()) for name in ("own-2", "full")]
    assert scores[0].keys() == scores[1].keys()
    assert runs.weights("own-2").keys() == runs.weights("full").keys()


def assert_in_groups(runs: Runs, name: str, groups: dict[str, list[int]]) -> None:
    lines = list(read_lines(runs.folder / name / "timings.jsonl"))
    assert lines
    for line in lines:
        assert line["processes"] == sum(map(len, groups.values()))
        assert line["groups"] == groups


def test_a_process_for_each_teacher_gives_the_losses_of_one_process(runs: Runs) -> None:
    assert_in_groups(runs, "full-groups-2", {"sorting": [0], "addition": [1]})
    assert_same_training(runs, "full", "full-groups-2")


def test_groups_of_two_beside_a_student_in_shards_give_the_losses_of_one_process(runs: Runs) -> None:
    assert_in_groups(runs, "full-groups-4", {"sorting": [0, 2], "addition": [1, 3]})
    assert_in_shards(runs, "full-groups-4", 4)
    assert_same_training(runs, "full", "full-groups-4")


@pytest.mark.parametrize(
    ("kind", "name", "processes"),
    [("full", "full-context-2", 2), ("lora", "lora-context-2", 2), ("full", "full-context-4", 4)],
)
def test_rows_that_two_processes_share_give_the_losses_of_one_process(
    runs: Runs, kind: str, name: str, processes: int
) -> None:
    """A student that is whole, one in shards with layers that are computed again, and two pairs in shards."""
    lines = list(read_lines(runs.folder / name / "timings.jsonl"))
    assert [(line["processes"], line["context"]) for line in lines] == [(processes, 2)] * 5
    if name != "full-context-2":
        assert_in_shards(runs, name, processes)
    assert_same_training(runs, kind, name)


def test_a_run_in_groups_measures_what_one_process_does(runs: Runs) -> None:
    """Its evaluations of teachers are made where they are, and KL to them by way of their groups."""
    assert_in_groups(runs, "own-groups-2", {"sorting": [0], "addition": [1]})
    found, expected = (
        json.loads((runs.folder / name / "evaluation.json").read_text()) for name in ("own-groups-2", "full")
    )
    for domain, scores in expected["domains"].items():
        assert found["domains"][domain]["specialist"] == scores["specialist"]
        assert found["kl"][domain] == pytest.approx(expected["kl"][domain], rel=1e-3)


def test_teachers_in_groups_write_what_a_baseline_learns(runs: Runs) -> None:
    """Each where it is: all prompts are answered, those of either domain by its own teacher."""
    folder = runs.folder / "own-groups-2" / "compare" / "sft_on_teacher_samples"
    samples = list(read_lines(folder / "samples.jsonl"))
    assert {line["writer"] for line in samples} <= set(DOMAINS)
    assert all(line["writer"] == line["domain"] for line in samples)
    assert [line["rows"] for line in read_lines(folder / "metrics.jsonl")] == [7] * len(samples)
    assert {line["processes"] for line in read_lines(folder / "timings.jsonl")} == {2}


def test_what_is_exported_is_what_was_trained(runs: Runs) -> None:
    checkpoint = runs.weights("own-2", "checkpoints/step-000005/weights.safetensors")
    exported = runs.weights("own-2")
    named = {name.removeprefix("model."): value for name, value in checkpoint.items()}
    for name, value in exported.items():
        assert torch.equal(named[name], value)
