"""A run's directory as whoever comes later reads it: its recipe, its status, the runs that it stands on.

Nothing that the recipe names has to be there still: neither the file it came from nor those that it prepared. Imports
no torch, so that a sealed run's commands can seal themselves first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import RecipeError, RunError
from pipeline.files import read_json
from pipeline.privacy import MARK, is_marked
from pipeline.recipe import DistillRecipe, SftRecipe
from pipeline.recipe_checks import model_keys, prepared_name, section_of
from pipeline.recipe_file import validated
from pipeline.sealed import allowed_addresses, seal


@dataclass(frozen=True)
class RecordedRun:
    """status: starting, running or finished. prepared: name -> the run whose result `prepared:NAME` is, of those that
    the recipe uses and that are still there. private: whether it learned from private data; one that does not say
    counts as one that did."""

    folder: Path
    recipe: SftRecipe | DistillRecipe
    status: str
    prepared: Mapping[str, Path]
    private: bool

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def resolve(self, model: str, what: str = "model") -> str:
        """A hub name or a folder as it is; prepared:NAME -> the folder with its `what`: model or adapter.

        Raises RunError where that run, or its result, is gone.
        """
        name = prepared_name(model)
        if name is None:
            return model
        if name not in self.prepared:
            raise RunError(f"{self.folder}: {model} is not there any more; put {self.folder / 'prepared' / name} back")
        path = self.prepared[name] / what
        if not path.is_dir():
            raise RunError(f"{path}: it is not there, and this run stands on it; put it back")
        return str(path)


def read_run(folder: Path) -> RecordedRun:
    """Raises RunError: no folder, no run in it, a recipe that cannot be read."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise RunError(f"{folder}: {what}; name a run's directory, such as runs/quickstart")
    if not (folder / "run.json").exists():
        found = next((path for path in sorted(folder.iterdir()) if (path / "run.json").exists()), None)
        hint = f"did you mean {found}?" if found else "name the directory that `tutelage run` wrote"
        raise RunError(f"{folder}: there is no run in it; {hint}")
    data, status = _read(folder)
    wanted = {name for _, model in model_keys(data) if (name := prepared_name(model)) is not None}
    try:
        recipe = validated(data, wanted)
    except RecipeError as error:
        raise RunError(
            f"{folder / 'recipe.yaml'}: {error.problems[0]}; it was written by another version, or changed since"
        ) from error
    places = {name: place for name in sorted(wanted) if (place := _prepared_run(folder, data, name)) is not None}
    private = is_marked(folder) or not (folder / MARK).exists()
    return RecordedRun(folder, recipe, status, places, private)


def seal_like(run: RecordedRun) -> None:
    """Takes this process's network away as the run had it taken away; to be called before anything heavy."""
    if run.recipe.privacy.mode == "sealed":
        seal(allowed_addresses(run.recipe))


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    try:
        data = YAML(typ="safe").load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        status = read_json(folder / "run.json")["status"]
    except (OSError, YAMLError, JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise RunError(f"{folder}: its recipe.yaml and run.json cannot be read ({why}); put them back") from error
    if not isinstance(data, dict):
        raise RunError(f"{folder / 'recipe.yaml'}: it is empty; put it back")
    plain: dict[str, Any] = json.loads(json.dumps(data))  # no types of the YAML reader's own
    return plain, str(status)


# ---- what it stands on ----


def _prepared_run(folder: Path, data: Mapping[str, Any], name: str) -> Path | None:
    return next((place for place in _places(folder, data, name) if (place / "run.json").exists()), None)


def _places(folder: Path, data: Mapping[str, Any], name: str) -> Iterator[Path]:
    """Where the run of a prepared recipe may be: an output of its own, inside this run, beside it in one that needed
    both."""
    entry = section_of(data, "prepare", name)
    own = section_of(entry, "set").get("output") or _output_of(entry.get("recipe"))
    if isinstance(own, str):
        yield Path(own)
    yield folder / "prepared" / name
    outer = folder.resolve().parent
    if outer.name in ("prepared", "compare"):
        yield outer.parent / "prepared" / name


def _output_of(recipe: Any) -> Any:
    """The `output` of a prepared recipe's file, if that is still there."""
    try:
        text = Path(recipe).read_text(encoding="utf-8") if isinstance(recipe, str) else ""
        return section_of(YAML(typ="safe").load(text)).get("output")
    except (OSError, YAMLError, UnicodeDecodeError):
        return None
