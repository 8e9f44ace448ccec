"""A recipe's YAML file -> a validated `Recipe`, or every mistake in it at once, one line each with file and line.

Read before anything heavy: imports no torch. The words for mistakes are in `recipe_problems`, what sections must agree
on in `recipe_checks`; here are files, overrides, and the recipes that a recipe prepares first.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from pipeline.errors import RecipeError
from pipeline.files import write_text
from pipeline.recipe import DistillRecipe, Recipe, RecipeBase, SftRecipe
from pipeline.recipe_checks import disagreements, prepared_name, section_of
from pipeline.recipe_paths import resolve_paths, shown
from pipeline.recipe_problems import problems_of
from pipeline.yaml_lines import Key, read_yaml

__all__ = ["LoadedRecipe", "Position", "changed_keys", "dump_resolved", "load_recipe", "prepared_name", "validated"]

_ADAPTER: TypeAdapter[SftRecipe | DistillRecipe] = TypeAdapter(Recipe)
_SHORT_FOR_KIND = (("student", "tune"), ("routing",), ("objective", "divergence"))


@dataclass(frozen=True)
class Position:
    """Where a key was written. `folders`: where relative paths in its value are looked for, in this order."""

    where: str  # `recipes/x.yaml:12`, or `command line: key=value`
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that holds together.

    data: the recipe as plain values, every default spelled out and every path absolute (but `output`).
    positions: by path of keys, () for the file itself. prepared: the recipes under `prepare`, loaded the same way.
    """

    recipe: SftRecipe | DistillRecipe
    path: Path
    data: dict[str, Any]
    positions: Mapping[Key, Position] = field(repr=False)
    prepared: Mapping[str, LoadedRecipe]

    @property
    def output(self) -> Path:
        """The run directory: the recipe's own, else runs/<the file's name>. Relative to the current directory."""
        return self.recipe.output or Path("runs") / self.path.stem

    def where(self, *key: str) -> str:
        """`recipes/x.yaml:12: data.sources.a`, to begin the message of an error that only shows later."""
        return _located(self.positions, key)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, override (`key=value`, the value as YAML), and validate a recipe and all it prepares.

    Raises RecipeError with one line per mistake, all of them.
    """
    command_line = [(f"command line: {override}", override, (Path.cwd(), path.parent)) for override in overrides]
    reading = _read(path, [_parsed(*item) for item in command_line], (), ())
    if reading.problems or reading.loaded is None:
        one_line_each = ("\\n".join(problem.splitlines()) for problem in reading.problems)  # a key may hold a newline
        raise RecipeError(list(dict.fromkeys(one_line_each)))
    return reading.loaded


def validated(data: Mapping[str, Any], prepared: Collection[str]) -> SftRecipe | DistillRecipe:
    """A recipe from what `dump_resolved` wrote, by itself. prepared: names of results that it may use.

    Raises RecipeError with one line per mistake.
    """
    try:
        return _ADAPTER.validate_json(json.dumps(data), strict=True, context={"prepared": tuple(prepared)})
    except ValidationError as error:
        lines = [_line(".".join(map(str, problem.path)), (), problem.text) for problem in problems_of(error, Recipe)]
        raise RecipeError(lines or [str(error)]) from error


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ, in the order of `new`, then what only `old` has. Lists count as one value."""
    changed: list[str] = []
    for key in [*new, *(key for key in old if key not in new)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += [f"{key}.{deeper}" for deeper in changed_keys(before, after)]
        elif before != after or (key in old) != (key in new):
            changed.append(key)
    return changed


def dump_resolved(recipe: RecipeBase, path: Path) -> None:
    """Write the recipe with every default spelled out. `load_recipe` reads it back to an equal recipe."""
    yaml = YAML()
    yaml.width = 1 << 20  # no folded lines
    text = StringIO()
    yaml.dump(recipe.model_dump(mode="json"), text)
    write_text(path, text.getvalue())


# ---- one file ----


@dataclass(frozen=True)
class _Override:
    """A key set from outside the file. `problem`: why it cannot be read."""

    key: Key
    value: Any
    position: Position
    problem: str = ""


@dataclass(frozen=True)
class _Reading:
    """What a file came to: the loaded recipe where nothing is wrong, its data after overrides, the problem lines."""

    loaded: LoadedRecipe | None
    data: Any
    problems: list[str]


def _read(
    path: Path,
    overrides: Sequence[_Override],
    above: tuple[Path, ...],
    known: tuple[str, ...],
    source: _Override | None = None,
) -> _Reading:
    """above: the recipes that prepare this one, outermost first. known: what they have prepared before it. source:
    their codebase, which is this recipe's too unless it is set for it."""
    file = Path(os.path.abspath(path))
    name = shown(path)
    text = _text(path)
    if isinstance(text, _Unreadable):
        return _Reading(None, None, [f"{name}: {text.why}"])
    document = read_yaml(text)
    folders = (file.parent, Path.cwd())
    positions = {key: Position(f"{name}:{line}", folders) for key, line in document.lines.items()}
    problems = [_line(f"{name}:{line}", key, text) for line, key, text in document.problems]
    if not isinstance(document.data, dict):
        if not problems:
            what = "the file is empty" if document.data is None else "must be a mapping of keys to values"
            problems = [_line(f"{name}:1", (), f"{what}; begin with method: distill, student: and data:")]
        return _Reading(None, None, problems)
    data = document.data
    if source is not None and _reads_code(data):
        overrides = [source, *overrides]
    for override in overrides:
        problem = override.problem or _set(data, positions, override)
        problems += [_line(override.position.where, (), problem)] if problem else []
    found = [*resolve_paths(data, lambda key: _position(positions, key).folders), *disagreements(data, known)]
    own = _Override(("source",), data["source"], _position(positions, ("source",))) if data.get("source") else source
    prepared, inner = _prepare(data, positions, (*above, file), known, own)
    recipe: SftRecipe | DistillRecipe | None = None
    try:
        recipe = _ADAPTER.validate_json(json.dumps(data), strict=True, context={"prepared": known})
    except ValidationError as error:
        found += [(problem.path, problem.text) for problem in problems_of(error, Recipe)]
    problems += [_line(_located(positions, key), (), text) for key, text in found]
    problems = [*sorted(problems, key=_line_number), *inner]
    if problems or recipe is None:
        return _Reading(None, data, problems)
    return _Reading(LoadedRecipe(recipe, path, recipe.model_dump(mode="json"), positions, prepared), data, [])


def _reads_code(data: Mapping[str, Any]) -> bool:
    """Whether a source reads the recipe's own codebase."""
    sources = section_of(data, "data", "sources").values()
    return any(section_of(source).get("kind") == "codebase" and not section_of(source).get("of") for source in sources)


@dataclass(frozen=True)
class _Unreadable:
    why: str


def _text(path: Path) -> str | _Unreadable:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return _Unreadable("there is no such file; `tutelage recipes` lists those that come with it")
    except IsADirectoryError:
        return _Unreadable("is a folder; name a YAML file in it")
    except UnicodeDecodeError as error:
        return _Unreadable(f"is not UTF-8 text (byte {error.start}); save it as UTF-8")
    except OSError as error:
        return _Unreadable(f"cannot be read ({error.strerror}); check the path and its permissions")


def _position(positions: Mapping[Key, Position], key: Key) -> Position:
    """Of the key, or of the nearest one above it that was written."""
    while key not in positions:
        key = key[:-1]
    return positions[key]


def _located(positions: Mapping[Key, Position], key: Key) -> str:
    where, dotted = _position(positions, key).where, ".".join(map(str, key))
    return where if where.startswith(f"command line: {dotted}=") or not dotted else f"{where}: {dotted}"


def _line(where: str, key: Key, text: str) -> str:
    dotted = ".".join(map(str, key))
    return f"{where}: {dotted}: {text}" if dotted else f"{where}: {text}"


def _line_number(problem: str) -> int:
    """Sorts a file's problems by line; those of the command line come last."""
    match = re.match(r"[^:]+:(\d+):", problem)
    return int(match[1]) if match else 1 << 30


# ---- overrides ----


def _parsed(where: str, override: str, folders: tuple[Path, ...]) -> _Override:
    """`a.b=value`, with the value read as YAML."""
    key, separator, text = override.partition("=")
    position = Position(where, folders)
    parts = tuple(key.strip().split("."))
    if not separator or not all(parts):
        return _Override(parts, None, position, "is not an override; write key=value, such as training.steps=10")
    if parts[0] == "prepare" and parts[2:3] == ("set",) and len(parts) > 3:
        parts = (*parts[:3], ".".join(parts[3:]))  # what stands under `set` is itself a dotted key
    document = read_yaml(text)
    problem = "; ".join(text for _, _, text in document.problems)
    return _Override(parts, document.data, position, problem)


def _set(data: dict[str, Any], positions: dict[Key, Position], override: _Override) -> str:
    """Put the value in its place, making the mappings on the way. Returns what is wrong, or nothing."""
    *way, last = override.key
    here: Any = data
    for depth, part in enumerate(way, start=1):
        path = override.key[:depth]
        below = here.get(part)
        if below is None:
            positions[path] = override.position
            below = {}
        elif isinstance(below, str) and path in _SHORT_FOR_KIND:
            below = {"kind": below}
        elif not isinstance(below, dict):
            kind = "a list" if isinstance(below, list) else "a single value"
            return f"{'.'.join(map(str, path))} is {kind}; set it as a whole"
        here[part] = below
        here = below
    here[last] = override.value
    for path in [path for path in positions if path[: len(override.key)] == override.key]:
        del positions[path]
    positions[override.key] = override.position
    return ""


# ---- recipes that a recipe prepares ----


def _prepare(
    data: dict[str, Any],
    positions: Mapping[Key, Position],
    chain: tuple[Path, ...],
    known: tuple[str, ...],
    source: _Override | None,
) -> tuple[dict[str, LoadedRecipe], list[str]]:
    """Load what stands under `prepare`, each with the names of those before it; paths in `set` become absolute."""
    prepared: dict[str, LoadedRecipe] = {}
    problems: list[str] = []
    entries = data.get("prepare")
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        file = entry.get("recipe") if isinstance(entry, dict) else None
        settings = entry.get("set", {}) if isinstance(entry, dict) else {}
        if not isinstance(file, str) or not Path(file).is_file() or not isinstance(settings, dict):
            continue  # reported already, with the key
        key = ("prepare", name)
        if Path(file) in chain:
            names = " -> ".join(map(shown, [*chain[chain.index(Path(file)) :], Path(file)]))
            problems.append(_line(_located(positions, (*key, "recipe")), (), f"recipes in a circle: {names}; break it"))
            continue
        overrides = [_setting(positions, (*key, "set", dotted), value) for dotted, value in settings.items()]
        passed_on = None if source is None else replace(source, value=deepcopy(source.value))
        reading = _read(Path(file), overrides, chain, known, passed_on)
        problems += reading.problems
        known = (*known, name)
        if reading.loaded is not None:
            prepared[name] = reading.loaded
            for override, dotted in zip(overrides, settings, strict=True):
                settings[dotted] = _value_at(reading.data, override.key)
    return prepared, problems


def _setting(positions: Mapping[Key, Position], path: Key, value: Any) -> _Override:
    """One entry of `set` as an override; the value copied, since the inner recipe's paths are resolved in place."""
    position = Position(_located(positions, path), _position(positions, path).folders)
    return _Override(tuple(str(path[-1]).split(".")), deepcopy(value), position)


def _value_at(data: Any, key: Key) -> Any:
    for part in key:
        data = data[part]
    return data
