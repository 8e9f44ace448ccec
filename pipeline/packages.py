"""Packages that only some recipes need: whether they are there, said before anything runs, not when one is first used.

Of a recipe and of all that it prepares first. Nothing is imported that is only looked for. Imports no torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from pipeline.codebase.grammars import RULES
from pipeline.codebase.reading import languages_of
from pipeline.codebase.types import Language
from pipeline.privacy import parts_of
from pipeline.recipe import Codebase, CodebaseSource
from pipeline.recipe_file import LoadedRecipe
from pipeline.recipe_optimizer import AdamW8bit
from pipeline.recipe_rollouts import EngineInside, ServerStarted, VllmRollouts
from pipeline.tracking import unusable

_HAS_VLLM = "from importlib.util import find_spec; print(find_spec('vllm') is not None)"
_PATIENCE = 60.0  # seconds for another python to say that


def missing_packages(loaded: LoadedRecipe) -> list[str]:
    """A line for each package that a run of the recipe would come to need, and that is not here."""
    return list(dict.fromkeys(line for part, _ in parts_of(loaded, {}) for line in _missing(part)))


def _missing(part: LoadedRecipe) -> Iterator[str]:
    recipe = part.recipe
    if isinstance(recipe.training.optimizer, AdamW8bit) and not is_installed("torchao"):
        where = part.where("training", "optimizer")
        yield f'{where}: adamw_8bit needs torchao, which is not installed; pip install -e ".[quantize]", or write adamw'
    for name in recipe.tracking:
        if problem := unusable(name):
            yield f"{part.where('tracking')}: {problem}"
    server = recipe.rollout.server if isinstance(recipe.rollout, VllmRollouts) else None
    if isinstance(server, ServerStarted) and (problem := _without_vllm(server.python, server.environment)):
        yield f"{part.where('rollout', 'server', 'python')}: {problem}; name one that has vLLM"
    if isinstance(server, EngineInside) and not is_installed("vllm"):
        yield (
            f"{part.where('rollout', 'server')}: vllm is not installed here; pip install vllm beside tutelage, or let "
            "a server write by another environment's: rollout.server={kind: start, python: PYTHON}"
        )
    if recipe.source is not None and any(isinstance(each, CodebaseSource) for each in recipe.data.sources.values()):
        yield from _without_grammar(recipe.source, part)


def is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _without_vllm(python: str | None, environment: Mapping[str, str]) -> str | None:
    if python is None:
        return None if is_installed("vllm") else f"{sys.executable}, which runs this, has no vLLM"
    try:
        said = subprocess.run(
            [python, "-c", _HAS_VLLM],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        ).stdout
    except OSError as error:
        return f"{python} cannot be started ({error.strerror})"
    except subprocess.TimeoutExpired:
        return None  # no plain python: it will be seen what it does
    return f"{python} has no vLLM" if said.strip() == "False" else None


def _without_grammar(source: Codebase, part: LoadedRecipe) -> Iterator[str]:
    """Files are looked into only where a grammar is missing, and then of its language alone. Raises DataError where
    there is no such codebase."""
    missing: dict[Language, str] = {}
    for language, rules in RULES.items():
        absent = [name for name in ("tree_sitter", *(module for module, _ in rules.parsers)) if not is_installed(name)]
        if absent:
            missing[language] = absent[0]
    for language in languages_of(source, Path(part.path).parent, missing) if missing else ():
        yield (
            f"{part.where('source', 'path')}: {language} is read by {missing[language]}, which is not installed; "
            'pip install -e ".[code]", or set source.languages=[python]'
        )
