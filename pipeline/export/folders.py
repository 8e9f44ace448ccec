"""Folders with a student in them, whole or not there: a run's own result, and what is exported from it later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.checkpoint import whole_folder
from pipeline.errors import RunError
from pipeline.export.form import Form
from pipeline.export.weights import kinds_of, write_weights
from pipeline.privacy import MARK, is_marked, mark
from pipeline.recipe import RecipeBase
from pipeline.student import Student

EXPORTS = "export"  # in a run's directory


def write_folder(
    student: Student, folder: Path, form: Form, recipe: RecipeBase, run: Path, prepared: Mapping[str, Path]
) -> None:
    """Weights and all that belongs to them, with the mark that says what they were trained on. An older `folder` is
    replaced. run, prepared: the student's run and those whose results it was made with. Raises as `write_weights`."""
    with whole_folder(folder) as whole:
        write_weights(student, whole, form, recipe.rollout.stop_token_ids)
        mark(recipe, whole, prepared, run=run)
        if is_marked(whole):
            whole.chmod(0o700)  # as the run's own directory


def write_result(student: Student, recipe: RecipeBase, run: Path, prepared: Mapping[str, Path]) -> None:
    """A run's result, as its end leaves it: `model`, and for a LoRA student `adapter`."""
    for kind in kinds_of(student):
        write_folder(student, run / kind, Form(kind), recipe, run, prepared)


def require_place(folder: Path, run: Path) -> None:
    """Raises RunError where nothing may be exported to: a file, a run, a folder with something else in it.

    A folder that was exported to before may be written again: it is what a push goes on with.
    """
    where, own = folder.resolve(), run.resolve()
    inside = where == own or own in where.parents
    if inside and own / EXPORTS not in where.parents:
        raise RunError(f"{folder}: it is a part of the run itself; name another folder with --to")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise RunError(f"{folder}: something else than a folder is there; name another one with --to")
    exported = (folder / MARK).exists() and not (folder / "run.json").exists()
    if folder.is_dir() and any(folder.iterdir()) and not exported:
        raise RunError(f"{folder}: it is there already, and not an export; name another folder with --to")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: it cannot be made ({error.strerror}); name another folder with --to") from error
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise RunError(f"{folder.parent}: it may not be written to; name another folder with --to")
