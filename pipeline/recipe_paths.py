"""The paths in a recipe: made absolute, and looked up, so that a missing file is named before anything is loaded.

A relative path is looked for beside the recipe first, then in the current directory. Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.recipe_checks import Finding, model_keys, prepared_name, section_of
from pipeline.recipe_problems import any_of, did_you_mean
from pipeline.yaml_lines import Key
from teachers.config import RUBRICS, is_text

PACKAGE = "package:"  # an installed Python package instead of a folder
_DATA_FILE = re.compile(r"\.(jsonl|json|parquet|csv)(\.gz)?$")
_IN_FILE = re.compile(r"(.+\.py):(\w+)$")
# What a name in a file is, how it is defined, and what to write.
_DEFINED = {
    "checker": ("checker", r"^def {name}\(", "def {name}(...)"),
    "use": ("plugin", r"^class {name}\b", "class {name}"),
}

Folders = tuple[Path, ...]


def resolve_paths(data: dict[str, Any], folders_of: Callable[[Key], Folders]) -> list[Finding]:
    """Make every path in `data` absolute, in place; what is wrong with those where nothing is.

    folders_of: where the relative paths in a key's value are looked for, in this order.
    """
    problems: list[Finding] = []
    for key, value in list(_paths(data)):
        resolved, problem = _resolved(key, value, folders_of(key))
        if problem:
            problems.append((key, problem))
        holder: Any = data
        for part in key[:-1]:
            holder = holder[part]
        holder[key[-1]] = resolved
    return problems


def shown(path: Path) -> str:
    """The path as a person would write it from here."""
    absolute, here = os.path.abspath(path), os.path.abspath(".")
    return os.path.relpath(absolute, here) if absolute.startswith(here + os.sep) else str(path)


def _paths(data: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """Every key that may name a file or a folder."""
    yield from ((key, value) for key, value in model_keys(data) if prepared_name(value) is None)
    keys: list[Key] = [("student", "chat_template")]
    keys += [("prepare", name, "recipe") for name in section_of(data, "prepare")]
    keys += [("source", "path"), ("student", "model", "tokenizer", "of", "path")]
    for name in section_of(data, "data", "sources"):
        keys += [("data", "sources", name, *key) for key in (("path",), ("checker",), ("of", "path"))]
    for name in section_of(data, "teachers"):
        keys += [("teachers", name, key) for key in ("instructions", "rubric", "use")]
        keys += [("teachers", name, "check", key) for key in ("file", "files", "checker")]
    for path in (("source",), *(("data", "sources", name, "of") for name in section_of(data, "data", "sources"))):
        packages = section_of(data, *path, "tests").get("packages")
        for number, value in enumerate(packages if isinstance(packages, list) else ()):
            if isinstance(value, str):
                yield (*path, "tests", "packages", number), value
    for *above, key in keys:
        value = section_of(data, *map(str, above)).get(str(key))
        if isinstance(value, str) and value:
            yield (*above, key), value


def _resolved(key: Key, value: str, folders: Folders) -> tuple[str, str]:
    """(the absolute path, "") | (the value, what is wrong) | (the value, "") for what is not a path at all."""
    if key[-1] in ("checker", "use"):
        return _in_file(value, folders, *_DEFINED[str(key[-1])])
    if key[-1] in ("rubric", "instructions") and is_text(value):
        return value, ""
    found = _find(value, folders)
    if key[-2] == "packages":
        return (str(found), "") if found is not None and found.is_dir() else (value, _absent("folder", value, folders))
    match key[-1]:
        case "path" if key[-2] in ("source", "of"):
            what, wanted = "folder", not value.startswith(PACKAGE)
            if found is not None and not found.is_dir():
                return value, f"{value} is a file; name the folder of the code"
        case "path":
            what, wanted = "data file", _looks_local(value) or _DATA_FILE.search(value) is not None
        case "rubric" if value in RUBRICS:
            return value, ""
        case "chat_template" | "recipe" | "instructions" | "rubric" | "file" as name:
            what, wanted = name.replace("_", " "), True
            if found is not None and found.is_dir():
                return value, f"{value} is a folder; name a file"
        case "files":
            what, wanted = "folder", True
            if found is not None and not found.is_dir():
                return value, f"{value} is a file; name the folder that it is in"
        case _:
            what, wanted = "model folder", _looks_local(value)
            if found is not None and not found.is_dir():
                return value, f"{value} is a file; name the model's folder"
    if found is not None:
        return str(found), ""
    if key[-1] == "rubric":
        hint = did_you_mean(value, RUBRICS)
        return value, f"{_absent(what, value, folders)}{hint}, or write {any_of(RUBRICS)}"
    return value, _absent(what, value, folders) if wanted else ""


def _in_file(value: str, folders: Folders, what: str, pattern: str, written: str) -> tuple[str, str]:
    """file.py:name, where the file defines the name; anything else is not a path."""
    match = _IN_FILE.match(value)
    if match is None:
        return value, ""
    file, name = match.groups()
    found = _find(file, folders)
    if found is None or found.is_dir():
        return value, _absent(what, file, folders)
    text = found.read_text(encoding="utf-8", errors="replace")
    if re.search(pattern.format(name=name), text, re.MULTILINE) is None:
        kind = written.split()[0].replace("def", "function")
        return value, f"{file} has no {kind} {name}; write {written.format(name=name)} in it, or name another"
    return f"{found}:{name}", ""


def _looks_local(value: str) -> bool:
    return value.startswith(("./", "../", "/", "~")) or value in (".", "..")


def _find(value: str, folders: Folders) -> Path | None:
    """The first place where something is, as an absolute path with its symbolic links kept."""
    # os.path, not pathlib: for names that no file can have it says no where pathlib raises.
    places = (os.path.abspath(folder / os.path.expanduser(value)) for folder in folders)
    return next((Path(place) for place in places if os.path.exists(place)), None)


def _absent(what: str, value: str, folders: Folders) -> str:
    places = " or ".join(dict.fromkeys(shown(folder) for folder in folders))
    looked = "" if os.path.isabs(os.path.expanduser(value)) else f" in {places}"
    return f"there is no {what} {value}{looked}; correct the path"
