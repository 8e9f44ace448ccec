"""Sides that are compared take turns: each is a process that makes one step when it is told to.

So none computes while another is measured, and what slows the machine down for a while slows all of them. What is
printed of a side are medians over its steps after the first two. Linux only: it reads /proc/self/status.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

WARM_UP = 2
PHASES = ("rollout", "teachers", "update")  # of a step; what is waited for is a part of `teachers`
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Found:
    """Medians over the steps that count. phases: seconds of each. before: bytes that stood before the first step;
    extra: the most that the process had above them."""

    seconds: float
    tokens: float
    phases: Mapping[str, float]
    before: int
    extra: int


# ---- one side ----


def told() -> bool:
    """Waits for the next word on standard input; False at its end."""
    return bool(sys.stdin.readline())


def say(**value: Any) -> None:
    print(json.dumps(value), flush=True)


def say_ready() -> None:
    """Says what stands in memory now; peaks are counted from here, where the system lets them."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")
    say(before=memory("VmRSS"))


def memory(name: str) -> int:
    """Bytes of a line in /proc/self/status. VmHWM starts anew with a program, which getrusage's peak does not."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def step_when_told(recipe: Mapping[str, Any], folder: Path) -> None:
    """Our side: the program's own pieces, `pipeline.job` and `pipeline.trainer.advance`."""
    from pipeline.cli import set_environment

    set_environment(0, offline=True)
    from rich.console import Console

    from pipeline.display import Display
    from pipeline.files import read_lines
    from pipeline.job import Job, build_loop, load_parts
    from pipeline.loop import State
    from pipeline.mixing import MixState
    from pipeline.ranks import world_of
    from pipeline.recipe_file import load_recipe
    from pipeline.sharding import make_accelerator
    from pipeline.trainer import advance

    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        loaded = load_recipe(path)
        accelerator = make_accelerator(loaded.recipe)
        job = Job(loaded, Path(place), {}, accelerator, world_of(accelerator), Display(Console(quiet=True)))
        loop = build_loop(job, load_parts(job))
        say_ready()
        state, flights = State(0, MixState()), {}
        while told():
            start = time.perf_counter()
            state = advance(loop, state, flights)
            seconds = time.perf_counter() - start
            tokens = list(read_lines(Path(place) / "metrics.jsonl"))[-1]["tokens"]
            phases = list(read_lines(Path(place) / "timings.jsonl"))[-1]["seconds"]
            say(seconds=seconds, tokens=tokens, peak=memory("VmHWM"), phases={name: phases[name] for name in PHASES})


# ---- all of them ----


def in_turn(sides: Mapping[str, Sequence[str]], steps: int) -> dict[str, Found]:
    """sides: what to call each, and the arguments to python that start it."""
    workers = {name: _started(arguments) for name, arguments in sides.items()}
    try:
        before = {name: _heard(worker)["before"] for name, worker in workers.items()}
        lines: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(WARM_UP + steps):
            for name, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write("step\n")
                worker.stdin.flush()
                lines[name].append(_heard(worker))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return {name: _found(found[WARM_UP:], before[name]) for name, found in lines.items()}


def _found(lines: Sequence[Mapping[str, Any]], before: int) -> Found:
    return Found(
        statistics.median(line["seconds"] for line in lines),
        statistics.median(line["tokens"] for line in lines),
        {name: statistics.median(line["phases"][name] for line in lines) for name in lines[0].get("phases", {})},
        before,
        lines[-1]["peak"] - before,
    )


def _started(arguments: Sequence[str]) -> subprocess.Popen[str]:
    quiet = os.environ | {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)


def _heard(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """The next thing that a side says of itself; a library may print other lines."""
    output: IO[str] | None = worker.stdout
    assert output is not None
    for line in output:
        if line.startswith("{"):
            try:
                value: dict[str, Any] = json.loads(line)
            except json.JSONDecodeError:
                continue
            return value
    raise SystemExit(f"a side ended: {worker.args!r}")


def say_load() -> None:
    print(f"In turn, on {os.cpu_count()} cores. Load of the machine before: {os.getloadavg()[0]:.1f}\n")


def print_row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)
