"""Whole runs at a tiny size, for tests: a recipe on disk, run in this process or by the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.models import Architecture, save_tiny

DOMAINS = ("sorting", "addition")

Settings = dict[str, Any]


def distill_settings(folder: Path, architecture: Architecture = "qwen3") -> Settings:
    """A student and two teachers of random weights, two domains, three steps of four prompts."""
    student = save_tiny(folder / "student", architecture, seed=0)
    teachers = {
        domain: {
            "kind": "transformers",
            "model": save_tiny(folder / domain, architecture, seed=7 + n),
            "dtype": "float32",
        }
        for n, domain in enumerate(DOMAINS)
    }
    return {
        "method": "distill",
        "output": str(folder / "run"),
        "threads": 1,
        "student": {"model": student},
        "teachers": teachers,
        "data": {
            "held_out": 4,
            "sources": {domain: {"kind": "tasks", "task": domain, "count": 30} for domain in DOMAINS},
        },
        "rollout": {"max_new_tokens": 6, "rows": 4},
        "training": {
            "steps": 3,
            "prompts_per_step": 4,
            "learning_rate": 1e-3,
            "tokens_per_forward": 120,
            "checkpoint_every": 2,
        },
        "evaluation": {"prompts_per_domain": 2},
    }


def sft_settings(folder: Path) -> Settings:
    """The same student on the data's references."""
    settings = distill_settings(folder)
    del settings["teachers"]
    return {**settings, "method": "sft"}


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """A copy with values set by dotted key; None removes the key."""
    result: Settings = {**settings}
    for dotted, value in changes.items():
        first, _, rest = dotted.partition(".")
        if rest:
            result[first] = changed(result.get(first, {}), {rest: value})
        elif value is None:
            result.pop(first, None)
        else:
            result[first] = value
    return result


def write_recipe(path: Path, settings: Settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        YAML().dump(settings, file)
    return path


def run_here(path: Path, *overrides: str, resume: bool = False, extend: bool = False) -> Path:
    """Runs a recipe in this process, saying nothing. Returns the run's directory."""
    from rich.console import Console

    from pipeline.display import Display
    from pipeline.recipe_file import load_recipe
    from pipeline.run import run

    loaded = load_recipe(path, overrides)
    return run(loaded, resume=resume, extend=extend, display=Display(Console(quiet=True)))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def in_processes(count: int) -> list[str]:
    """The beginning of a command that runs a file, or `-m` a module, in so many. The port is torchrun's own choice: one
    that was found free before it starts may be taken by then."""
    words = ["--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", str(count)]
    return [sys.executable, "-m", "torch.distributed.run", *words]


def environment() -> dict[str, str]:
    """One thread, no network, and this checkout first on the path."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def tutelage(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The real command, to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, env=environment(), check=False
    )
