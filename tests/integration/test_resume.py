"""A run that was killed and resumed ends as one that never stopped: the same bits in weights, metrics and samples."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint import list_checkpoints
from tests.killing import kill_when, nursery
from tests.runs import Settings, changed, distill_settings, run_here, write_recipe

SAME = ("metrics.jsonl", "samples.jsonl", "evaluation.json", "model/model.safetensors")


def settings_for(folder: Path) -> Settings:
    """Eleven steps over 30 prompts per domain, mixed by the KL that is left: past the first epoch, with a prepared
    model and a supervised baseline, so that a kill can fall into any stage."""
    settings = changed(
        distill_settings(folder),
        {
            "output": None,
            "training.steps": 11,
            "training.prompts_per_step": 8,
            "training.checkpoint_every": 4,
            "data.mixing": "remaining_kl",
            "data.sources.sorting.count": 12,
            "student.tune": "lora",
            "compare": ["sft_on_teacher_samples"],
        },
    )
    first = {key: value for key, value in settings.items() if key not in ("teachers", "compare")}
    write_recipe(folder / "first.yaml", changed({**first, "method": "sft"}, {"training.steps": 3}))
    return {
        **settings,
        "prepare": {"first": {"recipe": "first.yaml"}},
        "student": {"model": "prepared:first", "tune": "lora"},
    }


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SAME}


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", settings_for(tmp_path))
    whole = run_here(recipe, f"output={tmp_path / 'whole'}")
    expected = files_of(whole)
    folder = tmp_path / "killed"
    generator, born = random.Random(7), nursery()
    lines = folder / "metrics.jsonl"
    # Moments by what is on the disk: inside the prepared run, in the first steps, while a checkpoint is written, after
    # the last update, inside the baseline; each with a random delay of up to a few steps on top.
    # The two last are followed by little, so there the kill comes at once.
    moments: list[tuple[Callable[[], bool], float]] = [
        (lambda: size(folder / "prepared" / "first" / "metrics.jsonl") > 0, 0.1),
        (lambda: size(lines) > 0, 0.1),
        (
            lambda: (
                any((folder / "checkpoints").glob("*.partial")) or (folder / "checkpoints" / "step-000004").exists()
            ),
            0.1,
        ),
        # What is written for step 7 goes with the checkpoint of step 8, and who looks may be late.
        (
            lambda: (
                (folder / "journal" / "step-000007.jsonl").exists() or (folder / "checkpoints" / "step-000008").exists()
            ),
            0.1,
        ),
        (lambda: (folder / "checkpoints" / "step-000011").exists(), 0.0),
        (lambda: (folder / "compare" / "sft_on_teacher_samples" / "run.json").exists(), 0.0),
    ]
    for reached, longest in moments:
        kill_when(born, recipe, folder, reached, lambda longest=longest: generator.random() * longest)  # type: ignore[misc]
    run_here(recipe, f"output={folder}", resume=True)
    assert files_of(folder) == expected
    inner = Path("prepared") / "first" / "model" / "model.safetensors"
    assert (folder / inner).read_bytes() == (whole / inner).read_bytes()
    assert not list(folder.rglob("*.partial"))


def test_recorded_rollouts_are_replayed_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop when a step's rollouts have reached the disk, mark them, resume: the mark is in the metrics."""
    from pipeline import trainer

    recipe = write_recipe(tmp_path / "recipe.yaml", changed(distill_settings(tmp_path), {"training.steps": 2}))
    whole = run_here(recipe, f"output={tmp_path / 'whole'}")

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "update", stop)
        with pytest.raises(Stop):
            run_here(recipe, f"output={folder}")
    assert [path.name for path in (folder / "journal").iterdir()] == ["step-000001.jsonl"]
    recorded = (folder / "journal" / "step-000001.jsonl").read_text()
    (folder / "journal" / "step-000001.jsonl").write_text(
        recorded.replace('"finish_reason": "length"', '"finish_reason": "stop"')
    )
    run_here(recipe, f"output={folder}", resume=True)
    first, expected = (json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (folder, whole))
    assert first["truncated"] == 0.0 < expected["truncated"]
    assert {**first, "truncated": 0} == {**expected, "truncated": 0}


def test_an_extended_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    constant = changed(distill_settings(tmp_path), {"training.schedule": "constant", "output": None})
    recipe = write_recipe(tmp_path / "recipe.yaml", constant)
    whole = run_here(recipe, f"output={tmp_path / 'whole'}", "training.steps=7")
    folder = run_here(recipe, f"output={tmp_path / 'more'}", "training.steps=3")
    run_here(recipe, f"output={tmp_path / 'more'}", "training.steps=7", extend=True)
    assert files_of(folder)["model/model.safetensors"] == files_of(whole)["model/model.safetensors"]
    assert files_of(folder)["metrics.jsonl"] == files_of(whole)["metrics.jsonl"]
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step-000006", "step-000007"]
