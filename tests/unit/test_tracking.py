"""Trackers: real event files, real trackio rows, numbers alone; what would leave a private run's machine is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.recipe_file import load_recipe
from pipeline.tracking import leaks, numbers, open_tracking, unusable, where
from tests.runs import changed, distill_settings, run_here, write_recipe

LINE = {"step": 3, "loss": 0.5, "kl": {"domain": {"a": 1.0, "b": 2}}, "failures": {}, "note": "text", "good": True}


def test_every_number_has_its_path_and_nothing_else_goes() -> None:
    assert dict(numbers(LINE)) == {"loss": 0.5, "kl/domain/a": 1.0, "kl/domain/b": 2}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    for name in ("WANDB_MODE", "WANDB_BASE_URL", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    return distill_settings(tmp_path)


def test_tensorboard_has_every_number_of_every_step_once_also_after_a_resumption(
    settings: dict[str, object], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = write_recipe(tmp_path / "r.yaml", changed(settings, {"tracking": "tensorboard"}))
    folder = run_here(recipe)
    run_here(recipe, "training.steps=5", extend=True)
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for name in ("loss", "kl/domain/sorting", "length/mean"):
        events = found.Scalars(name)
        expected = [(line["step"], dict(numbers(line))[name]) for line in lines if name in dict(numbers(line))]
        assert [event.step for event in events] == [step for step, _ in expected]
        assert [event.value for event in events] == pytest.approx([value for _, value in expected])


def test_trackio_keeps_the_numbers_on_this_machine(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which is read when it is imported
    pytest.importorskip("trackio")
    folder = run_here(write_recipe(tmp_path / "r.yaml", changed(settings, {"tracking": ["trackio"]})))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as rows:
        kept = rows.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for step, _ in kept] == [line["step"] for line in lines]


def test_where_each_sends() -> None:
    assert where("tensorboard", {}) is None
    assert where("trackio", {}) is None
    assert where("trackio", {"TRACKIO_SPACE_ID": "me/space"}) == "https://huggingface.co"
    assert where("trackio", {"TRACKIO_SERVER_URL": "http://10.0.0.9:7860"}) == "http://10.0.0.9:7860"
    assert where("wandb", {}) == "https://api.wandb.ai"
    assert where("wandb", {"WANDB_BASE_URL": "http://127.0.0.1:8080"}) == "http://127.0.0.1:8080"
    assert where("wandb", {"WANDB_MODE": "offline", "WANDB_BASE_URL": "https://x"}) is None


@pytest.mark.parametrize("private", [{"data.sources.sorting.private": True}, {"privacy.mode": "sealed"}])
def test_a_private_or_sealed_run_refuses_a_tracker_elsewhere(
    private: dict[str, object], settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path / "r.yaml", changed(settings, {"tracking": ["tensorboard", "wandb"], **private}))
    (line,) = leaks(load_recipe(path))
    assert "wandb sends to api.wandb.ai; set WANDB_MODE=offline, leave it out, or allow it by" in line
    assert leaks(load_recipe(path, ["privacy.allowed=[api.wandb.ai]"])) == []
    assert leaks(load_recipe(path, ["tracking=trackio"])) == []
    with pytest.raises(RunError, match="sends to api"):
        run_here(path)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert leaks(load_recipe(path)) == []


def test_an_open_run_may_send(settings: dict[str, object], tmp_path: Path) -> None:
    assert leaks(load_recipe(write_recipe(tmp_path / "r.yaml", changed(settings, {"tracking": "wandb"})))) == []


def test_a_missing_package_is_one_line_that_names_the_extra() -> None:
    assert unusable("not_there") == (
        'not_there is not installed; pip install -e ".[not_there]", or leave not_there out of tracking'
    )


def test_no_tracker_is_imported_unless_asked(settings: dict[str, object], tmp_path: Path) -> None:
    import sys

    before = {name for name in sys.modules if name.split(".")[0] in ("wandb", "trackio", "tensorboard")}
    run_here(write_recipe(tmp_path / "r.yaml", settings))
    after = {name for name in sys.modules if name.split(".")[0] in ("wandb", "trackio", "tensorboard")}
    assert after == before


def test_steps_that_are_made_again_after_a_kill_are_there_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from accelerate import PartialState
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    PartialState(cpu=True)
    for after, value in ((0, 1.0), (2, 9.0)):
        tracking = open_tracking(["tensorboard"], tmp_path, after)
        for step in range(after + 1, 5):
            tracking.log({"step": step, "loss": value})
        tracking.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 9.0), (4, 9.0)]
