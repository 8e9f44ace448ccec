"""Memory on paper: counted sizes are those of real models, shares add up, and the command says it for a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pipeline import recipe
from pipeline.cli import app
from pipeline.errors import RecipeError
from pipeline.footprint import SPEEDS, Shape, footprint, measured, seconds
from pipeline.recipe_file import load_recipe
from pipeline.student import load_student
from tests.models import ARCHITECTURES, Architecture, save_tiny, tiny_model
from tests.runs import Settings, changed, distill_settings, sft_settings, write_recipe

FULL = recipe.FullTuning()
LORA = recipe.LoraTuning(kind="lora", rank=4)
IN_SHARDS = {"sharding.student": True, "sharding.teachers": "shards"}


def loaded(folder: Path, changes: Settings) -> recipe.DistillRecipe:
    found = load_recipe(write_recipe(folder / "recipe.yaml", changed(distill_settings(folder), changes))).recipe
    assert isinstance(found, recipe.DistillRecipe)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_counted_weights_are_a_models_own(architecture: Architecture) -> None:
    model = tiny_model(architecture)
    shape = measured(model, FULL)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert shape.numbers == shape.trained == numbers
    assert 0 < shape.root < numbers
    assert (shape.numbers - shape.root) / shape.layers <= shape.layer
    assert shape.saved > shape.layers * shape.hidden * shape.item
    assert not any(parameter.requires_grad for parameter in measured_teacher(model))


def measured_teacher(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Measuring leaves what is trained as it is."""
    model.requires_grad_(False)
    measured(model, FULL)
    return list(model.parameters())


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma2"])
def test_counted_adapters_are_pefts_own(architecture: Architecture, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model", architecture)
    config = recipe.Student(model=path, tune=LORA)
    student = load_student(config, model_path=path, seed=0, chunk_bytes=1 << 20, device=torch.device("cpu"))
    trained = sum(parameter.numel() for parameter in student.trained_parameters().values())
    assert measured(tiny_model(architecture), LORA).trained == trained


def test_what_a_token_leaves_does_not_depend_on_the_weights_being_there() -> None:
    real = tiny_model("qwen3")
    with torch.device("meta"):
        paper = type(real)(real.config)
    found, expected = measured(paper, FULL), measured(real, FULL)
    assert found.saved == pytest.approx(expected.saved, rel=0.05)  # attention has another kernel there
    assert replace(found, saved=0.0, saved_layer=0.0) == replace(expected, saved=0.0, saved_layer=0.0)


def test_shares_add_up(tmp_path: Path) -> None:
    wanted = loaded(tmp_path, {**IN_SHARDS, "rollout.rows": 1})
    model = tiny_model()
    student, teacher = measured(model, FULL), measured(model, None)
    one, four = (footprint(wanted, student, [teacher], processes) for processes in (1, 4))
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert (one.weights, one.gradients, one.optimizer) == (4 * numbers, 4 * numbers, 8 * numbers)
    assert (four.weights, four.gradients, four.optimizer) == (numbers, numbers, 2 * numbers)
    assert four.teachers == 4 * (teacher.root + (numbers - teacher.root) / 4)
    assert four.writing - one.writing == 4 * numbers
    assert one.rest == one.weights + one.optimizer + one.teachers
    assert one.peak == one.rest + max(one.writing, one.scoring, one.gradients + one.update)


def test_without_shards_every_process_holds_everything(tmp_path: Path) -> None:
    student = measured(tiny_model(), FULL)
    wanted = loaded(tmp_path, {})
    one, four = (footprint(wanted, student, [], processes) for processes in (1, 4))
    assert (four.weights, four.optimizer) == (one.weights, one.optimizer)
    assert four.update > one.update  # data parallelism copies gradients into its buckets


def test_groups_hold_a_teacher_each_and_every_head(tmp_path: Path) -> None:
    wanted = loaded(tmp_path, {"sharding.teachers": "groups"})
    student, teacher, small = measured(tiny_model(), FULL), measured(tiny_model(), None), measured(tiny_model(), None)
    small = replace(small, numbers=small.numbers // 2, root=small.root // 2)
    one, two, eight = (footprint(wanted, student, [teacher, small], processes, gpu=True) for processes in (1, 2, 8))
    assert one.teachers == 4 * (teacher.numbers + small.numbers)
    assert two.teachers == eight.teachers == 4 * (teacher.numbers + small.head)
    copy = footprint(wanted, student, [teacher, small, student.kept_whole()], 2, gpu=True)  # the student's former self
    assert copy.teachers == two.teachers + 4 * student.numbers


def test_whole_teachers_are_in_a_cpus_memory_in_their_turns_alone(tmp_path: Path) -> None:
    student, teacher = measured(tiny_model(), FULL), measured(tiny_model(), None)
    for teachers, heads in (("whole", 0), ("groups", teacher.head)):
        wanted = loaded(tmp_path, {"sharding.teachers": teachers})
        here, there = (footprint(wanted, student, [teacher, teacher], 2, gpu=gpu) for gpu in (False, True))
        assert here.teachers == 4 * heads
        assert here.scoring == there.scoring + 4 * teacher.numbers


def test_processes_that_share_rows_have_a_part_of_what_is_kept_for_the_backward(tmp_path: Path) -> None:
    student = measured(tiny_model(), FULL)
    one, two = (
        footprint(loaded(tmp_path, {"sharding.context": n, "training.tokens_per_forward": 10_000}), student, [], 2)
        for n in (1, 2)
    )
    keys = 2 * 10_000 * student.cache / student.layers
    assert one.update - two.update == pytest.approx(10_000 * student.saved / 2 - keys)


def test_writing_on_a_cpu_has_copies_in_its_own_order(tmp_path: Path) -> None:
    student = measured(tiny_model(), FULL)
    here, there = (footprint(loaded(tmp_path, {}), student, [], 1, gpu=gpu) for gpu in (False, True))
    assert here.writing == there.writing + 4 * student.numbers


def test_half_precision_has_copies_in_the_optimizer(tmp_path: Path) -> None:
    student = measured(tiny_model().bfloat16(), FULL)
    found = footprint(loaded(tmp_path, {}), student, [], 1)
    assert found.weights == 2 * student.numbers
    assert found.optimizer == 16 * student.numbers  # two moments, a copy, its gradient


def test_twice_the_processes_take_half_of_the_time(tmp_path: Path) -> None:
    wanted = loaded(tmp_path, {"training.prompts_per_step": 64, "rollout.rows": 8})
    student: Shape = measured(tiny_model(), FULL)
    one, two = (seconds(wanted, student, [student], processes, SPEEDS["h100"]) for processes in (1, 2))
    assert two.update == pytest.approx(one.update / 2)
    assert two.scoring == pytest.approx(one.scoring / 2)
    assert two.writing == pytest.approx(one.writing / 2)


def test_the_command_says_it_of_a_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", changed(distill_settings(tmp_path), IN_SHARDS))
    result = CliRunner().invoke(app, ["check", "--processes", "4", str(path)])
    assert result.exit_code == 0, result.output
    assert "GB in one process, on paper" in result.output
    assert "4 x h100: at most about" in result.output
    assert not (tmp_path / "run").exists()
    refused = CliRunner().invoke(app, ["check", "--processes", "4", "--gpu", "abacus", str(path)])
    assert refused.exit_code == 1
    assert "abacus" in refused.output


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"teachers.me": {"kind": "self", "weights": "average"}, "routing": "all"}, "teachers.me.weights"),
        ({"compare": ["parameter_average"]}, "compare"),
    ],
)
def test_what_needs_whole_weights_is_refused(changes: Settings, key: str, tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), changes)
    load_recipe(write_recipe(tmp_path / "whole.yaml", settings))
    with pytest.raises(RecipeError, match=key):
        load_recipe(write_recipe(tmp_path / "shards.yaml", changed(settings, IN_SHARDS)))


def test_baselines_are_held_as_the_student_is(tmp_path: Path) -> None:
    """A comparison at equal tokens would not fit where its student only fits in shards."""
    from pipeline.comparisons import sft_recipes

    wanted = loaded(tmp_path, {**IN_SHARDS, "compare": ["sft_on_teacher_samples"]})
    (made,) = sft_recipes(wanted, 100, {"sorting": 5, "addition": 5}).values()
    assert made.sharding == wanted.sharding
    assert load_recipe(write_recipe(tmp_path / "sft.yaml", sft_settings(tmp_path))).recipe.sharding == recipe.Sharding()
