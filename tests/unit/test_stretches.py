"""Rows that processes share: what is refused before any of them is laid out. That losses are those of one process is
held by tests/integration/test_sharding.py, with real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelError, RecipeError, RunError
from pipeline.ranks import world_of
from pipeline.recipe_file import load_recipe
from pipeline.stretches import share_rows
from pipeline.types import Stretch
from teachers.causal_lm import load_causal_lm
from tests.models import Architecture, save_tiny
from tests.runs import Settings, changed, distill_settings, write_recipe


@pytest.mark.parametrize("architecture", ["gemma2", "mistral", "deepseek_v4"])
def test_what_is_not_plain_causal_attention_is_refused(architecture: Architecture, tmp_path: Path) -> None:
    lm = load_causal_lm(save_tiny(tmp_path / "model", architecture), name="student", dtype="float32")
    if architecture == "mistral":
        lm.model.config.sliding_window = 64  # type: ignore[union-attr]
    before = lm.model.config._attn_implementation  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"^sharding\.context: rows of \w+ cannot be shared out: .*write 1$"):
        share_rows(lm, Stretch(0, 2, None))
    assert lm.model.config._attn_implementation == before  # type: ignore[union-attr]


def test_processes_that_do_not_come_out_even_are_refused() -> None:
    class Three:
        process_index, num_processes, device = 0, 3, torch.device("cpu")

    with pytest.raises(RunError, match="3 processes cannot share rows 2 at a time"):
        world_of(Three(), 2)  # type: ignore[arg-type]


def test_a_single_process_shares_with_nobody() -> None:
    class One:
        process_index, num_processes, device = 0, 1, torch.device("cpu")

    world = world_of(One(), 2)  # type: ignore[arg-type]
    assert (world.processes, world.stretch, world.is_main) == (1, None, True)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sharding.teachers": "groups"}, r"sharding\.teachers"),
        ({"rollout.kind": "vllm", "rollout.rows": None, "rollout.url": "http://127.0.0.1:1/v1"}, r"sharding\.context"),
    ],
)
def test_what_does_not_go_with_shared_rows_is_refused(changes: Settings, key: str, tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), changes | {"sharding.context": 2})
    with pytest.raises(RecipeError, match=rf"{key}: .*share rows"):
        load_recipe(write_recipe(tmp_path / "recipe.yaml", settings))
