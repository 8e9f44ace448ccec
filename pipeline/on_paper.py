"""`tutelage check --processes N`: what one of N processes would hold, and how long a step would take.

Before anything is loaded: the models' configs are all that is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.footprint import COLUMNS, SPEEDS, Shape, footprint, seconds, shape_of, table
from pipeline.new_model import model_config
from pipeline.recipe import DistillRecipe, NewModel, SftRecipe
from pipeline.recipe_file import LoadedRecipe, prepared_name
from teachers.config import AdapterTeacher, SelfTeacher, TransformersTeacher

if TYPE_CHECKING:
    from pipeline.display import Display

_CHARACTERS = 358  # entries of the tokenizer of characters


def show(loaded: LoadedRecipe, processes: int, gpu: str, display: Display) -> None:
    """Prints both, for one process and for `processes` of them. gpu: whose speed is assumed, a key of SPEEDS.

    Raises ModelError where a config cannot be had, or the gpu is not known.
    """
    if gpu not in SPEEDS:
        raise ModelError(f"--gpu {gpu}: not known; known: {', '.join(SPEEDS)}")
    recipe = loaded.recipe
    student = shape_of(_config(recipe), recipe.student.dtype, recipe.student.tune)
    teachers = list(_teachers(recipe).values())
    numbers = dict.fromkeys((1, processes))
    found = {count: footprint(recipe, student, teachers, count, gpu=True) for count in numbers}
    display.table("GB in one process, on paper", list(COLUMNS), list(table(found)))
    for count in numbers:
        taken = seconds(recipe, student, teachers, count, SPEEDS[gpu])
        total = taken.writing + taken.scoring + taken.update
        display.note(
            f"{count} x {gpu}: at most about {total:,.0f} s a step (writing {taken.writing:,.0f}, teachers "
            f"{taken.scoring:,.0f}, update {taken.update:,.0f}), {total * recipe.training.steps / 3600:,.1f} hours for "
            f"{recipe.training.steps} steps; evaluations and what processes send each other are not counted"
        )


def _teachers(recipe: SftRecipe | DistillRecipe) -> Mapping[str, Shape]:
    """Models in this process, each base once."""
    found: dict[str, Shape] = {}
    for config in recipe.teachers.values():
        if isinstance(config, TransformersTeacher | AdapterTeacher):
            path = config.model if isinstance(config, TransformersTeacher) else config.base
            lent = path == recipe.student.model and recipe.student.tune.kind == "lora" and not recipe.sharding.student
            if not lent:
                found[f"{path} {config.dtype}"] = shape_of(_read(path, config.revision), config.dtype, None)
        elif isinstance(config, SelfTeacher) and (recipe.student.tune.kind == "full" or recipe.sharding.student):
            # A copy, whole in every process: its layers count as what is not spread.
            found["self"] = shape_of(_config(recipe), recipe.student.dtype, None).kept_whole()
    return found


def _config(recipe: SftRecipe | DistillRecipe) -> Any:
    model = recipe.student.model
    if isinstance(model, NewModel):
        entries = _CHARACTERS if model.tokenizer == "characters" else model.tokenizer.size
        return model_config(model, entries)
    return _read(model, recipe.student.revision)


def _read(path: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    if prepared_name(path) is not None:
        raise ModelError(f"{path}: what another recipe makes has no size before it is made; name a model or a folder")
    try:
        return AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: its config.json cannot be read; check the name, or fetch the model") from error
