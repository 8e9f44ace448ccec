"""Checkpoints are whole or not there; line files and manifests give the same bits back."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint as checkpoints
from pipeline import manifest
from pipeline.errors import RunError
from pipeline.files import append_line, cut_back, read_lines
from pipeline.types import Prompt, Rollout
from teachers.types import RawText, Segment


def make_checkpoint(step: int) -> checkpoints.Checkpoint:
    weights = {"w": torch.full((3, 2), float(step)), "half": torch.ones(2, dtype=torch.bfloat16)}
    optimizer = {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.randn(3, 2)}}, "param_groups": []}
    return checkpoints.Checkpoint(step, weights, optimizer, {"tokens": 7, "mix": {"credit": 0.1}})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = make_checkpoint(3)
    loaded = checkpoints.load(checkpoints.save(tmp_path, saved, keep=2))
    assert loaded.step == 3
    assert loaded.progress == saved.progress
    assert all(torch.equal(loaded.weights[name], saved.weights[name]) for name in saved.weights)
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], saved.optimizer["state"][0]["exp_avg"])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoints.save(tmp_path, make_checkpoint(step), keep=2)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["step-000010", "step-000015"]
    assert checkpoints.newest_step(tmp_path) == 15


def test_a_failed_write_leaves_no_checkpoint(tmp_path: Path) -> None:
    class Full:
        def __reduce__(self) -> object:
            raise OSError(28, "No space left on device")

    broken = checkpoints.Checkpoint(4, {"w": torch.ones(1)}, {"state": Full()}, {})
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, broken, keep=2)
    assert list(tmp_path.iterdir()) == []


def test_a_partial_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-000009.partial").mkdir()
    assert checkpoints.list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "progress.json"])
def test_a_damaged_checkpoint_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    path = checkpoints.save(tmp_path, make_checkpoint(2), keep=1)
    (path / name).write_bytes((path / name).read_bytes()[:10])
    with pytest.raises(RunError, match="step-000002") as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value)


def test_lines_are_cut_back_to_a_step_and_a_torn_last_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step, "loss": 0.1 * step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    before = path.read_bytes().splitlines(keepends=True)
    cut_back(path, 2)
    assert path.read_bytes() == b"".join(before[:2])
    assert [line["step"] for line in read_lines(path)] == [1, 2]


def make_rollout(prompt: Prompt) -> Rollout:
    values = tuple(struct.unpack("f", struct.pack("f", value))[0] for value in (-0.1, -math.pi, -1e-20))
    segments = (Segment("assistant", "answer", (1, 2), True), Segment("assistant", "end", (3,), True))
    return Rollout(prompt, 1, (9, 8), segments, "end", values, values, (4, 4, 4))


def test_recorded_rollouts_come_back_bit_by_bit(tmp_path: Path) -> None:
    prompts = [Prompt("p0", "s", "d", RawText("ä\n")), Prompt("p1", "s", "d", RawText("b"))]
    rollouts = [make_rollout(prompt) for prompt in prompts]
    manifest.save_rollouts(tmp_path, 12, rollouts)
    assert manifest.load_rollouts(tmp_path, 12, prompts) == rollouts
    assert manifest.load_rollouts(tmp_path, 13, prompts) is None


def test_rollouts_of_other_prompts_are_refused(tmp_path: Path) -> None:
    prompt = Prompt("p0", "s", "d", RawText("a"))
    manifest.save_rollouts(tmp_path, 1, [make_rollout(prompt)])
    with pytest.raises(RunError, match="other prompts"):
        manifest.load_rollouts(tmp_path, 1, [Prompt("p1", "s", "d", RawText("a"))])


def test_pruning_keeps_what_no_checkpoint_holds(tmp_path: Path) -> None:
    prompt = Prompt("p0", "s", "d", RawText("a"))
    for step in (1, 2, 3):
        manifest.save_rollouts(tmp_path, step, [make_rollout(prompt)])
    manifest.prune(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003.jsonl"]
