"""Every recipe that comes with the project is valid, and its header says what a reader needs before running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.recipe import DistillRecipe
from pipeline.recipe_file import dump_resolved, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.glob("*.yaml"))  # what lies deeper is validated where these prepare it


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_how_to_run_it(path: Path, tmp_path: Path) -> None:
    loaded = load_recipe(path)
    header = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert header.startswith("# ")
    assert f"tutelage run recipes/{path.name}" in header
    assert all(word in header.lower() for word in ("hardware", "time", "expected"))
    dump_resolved(loaded.recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml").recipe == loaded.recipe


def test_local_data_for_gsm8k_is_one_override_for_each_recipe(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k.jsonl"
    file.touch()
    key = "data.sources.gsm8k.path"
    prefixes = ("", "prepare.base.set.", "prepare.specialist.set.")
    loaded = load_recipe(RECIPES / "gsm8k.yaml", [f"{prefix}{key}={file}" for prefix in prefixes])
    for one in (loaded, *loaded.prepared.values()):
        assert one.data["data"]["sources"]["gsm8k"]["path"] == str(file)


@pytest.mark.parametrize("name", ["qwen3-1.7b-lora.yaml", "qwen3-1.7b-full.yaml"])
def test_full_size_recipes_keep_to_what_worked_for_others(name: str) -> None:
    """One rollout per prompt, 50 to 150 steps, 1e-6 to 1e-5 for all weights and 1e-4 for LoRA, means per trajectory."""
    recipe = load_recipe(RECIPES / name).recipe
    assert isinstance(recipe, DistillRecipe)
    assert recipe.rollout.samples_per_prompt == 1
    assert 50 <= recipe.training.steps <= 150
    low, high = (1e-6, 1e-5) if recipe.student.tune.kind == "full" else (1e-4, 1e-4)
    assert low <= recipe.training.learning_rate <= high
    assert recipe.objective.average == "trajectory"
    assert set(recipe.teachers) == {"math", "code", "chat"}
