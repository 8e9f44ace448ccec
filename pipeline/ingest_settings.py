"""What the command line of `tutelage ingest` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from pipeline.codebase.types import TaskName
from pipeline.errors import RecipeError
from pipeline.recipe import Codebase
from pipeline.recipe_problems import problems_of
from pipeline.yaml_lines import read_yaml


def settings_of(path: str, overrides: Sequence[str]) -> Codebase:
    """The `source` section for `path`, with keys of it set. Raises RecipeError, one line per mistake."""
    data: dict[str, object] = {"path": path}
    problems = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if separator:
            read = read_yaml(text)
            problems += [f"command line: {key}: {said}" for _, _, said in read.problems]
            if not read.problems:
                data[key] = read.data
        else:
            problems.append(f"command line: {override}: write KEY=VALUE, such as commits=200")
    adapter: TypeAdapter[Codebase] = TypeAdapter(Codebase)
    try:
        found = adapter.validate_python(data)
    except ValidationError as error:
        problems += [
            f"command line: {'.'.join(map(str, each.path))}: {each.text}" for each in problems_of(error, Codebase)
        ]
    if problems:
        raise RecipeError(problems)
    return found


def tasks_of(names: Sequence[str]) -> tuple[TaskName, ...]:
    """All of them where none is named. Raises RecipeError for a name that no task has."""
    known = get_args(TaskName)
    if wrong := [name for name in names if name not in known]:
        raise RecipeError([f"command line: --task {name}: the tasks are {', '.join(known)}" for name in wrong])
    return tuple(task for task in known if task in names or not names)
