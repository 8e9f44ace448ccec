"""What a step really takes in one of several CPU processes, beside what `tutelage check --processes` says on paper.

    python -m tests.benchmark.footprint [--hidden 768] [--layers 12] [--ways 1,2:shards,4:shards,2:groups,4:groups]

A student of random weights in fp32, all of them trained and in shards, and two teachers of the same size, in shards or
in groups, where there are several processes. What is freed goes back to the kernel at once: by itself glibc keeps
holes of up to 32 MB, which belong to nothing. Resident memory of the process that holds most, after a step (at rest)
and at its highest in one, each above what it held before it loaded anything. Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmark.context import MALLOC
from tests.benchmark.turns import memory
from tests.runs import environment

ROOT = Path(__file__).parents[2]
STEPS = 3  # the first makes the optimizer's state
TASKS = ("addition", "sorting")


def settings_of(folder: Path, hidden: int, layers: int, teachers: str) -> dict[str, Any]:
    new = {"architecture": "qwen3", "hidden_size": hidden, "layers": layers, "heads": 8, "context": 128}
    return {
        "method": "distill",
        "output": str(folder / "run"),
        "threads": 1,
        "student": {"model": new},
        "teachers": {task: {"kind": "transformers", "model": str(folder / task), "dtype": "float32"} for task in TASKS},
        "data": {
            "held_out": 2,
            "max_prompt_tokens": 64,
            "sources": {task: {"kind": "tasks", "task": task, "count": 40} for task in TASKS},
        },
        "rollout": {"max_new_tokens": 16, "rows": 8},
        "objective": {"chunk_megabytes": 8},
        "training": {"steps": STEPS, "prompts_per_step": 8, "tokens_per_forward": 256},
        "sharding": {"student": True, "teachers": teachers},
    }


def inside(folder: Path) -> None:
    """One of the processes: its steps, and the numbers into a file of its own."""
    from rich.console import Console

    from pipeline.display import Display
    from pipeline.job import Job, build_loop, load_parts
    from pipeline.loop import State
    from pipeline.mixing import MixState
    from pipeline.ranks import leave, world_of
    from pipeline.recipe_file import load_recipe
    from pipeline.sharding import make_accelerator
    from pipeline.trainer import advance

    loaded = load_recipe(folder / "recipe.json", [f"output={folder / 'run'}"])
    accelerator = make_accelerator(loaded.recipe)
    world = world_of(accelerator)
    job = Job(loaded, folder / "run", {}, accelerator, world, Display(Console(quiet=True)))
    (folder / "run").mkdir(exist_ok=True)
    world.wait()
    before = settled()
    loop = build_loop(job, load_parts(job))
    state, highest = State(0, MixState()), 0
    for step in range(STEPS):
        settled()
        Path("/proc/self/clear_refs").write_text("5")  # the highest is counted anew
        state = advance(loop, state, {})
        highest = memory("VmHWM") if step else 0
    found = {"rest": settled() - before, "peak": highest - before}
    (folder / f"found-{world.size}-{world.rank}.json").write_text(json.dumps(found))
    leave()


def settled() -> int:
    """Resident bytes, once what is free has gone back to the kernel."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


def measured(folder: Path, processes: int) -> dict[str, int]:
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1")
    command = [
        sys.executable,
        *((*torchrun, "--master_port", str(29_400 + processes)) if processes > 1 else ()),
        *("-m", "tests.benchmark.footprint", "--inside", str(folder)),
    ]
    settings = environment() | MALLOC | {"ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, env=settings, check=True, cwd=ROOT, timeout=1800)
    found = [json.loads(path.read_text()) for path in folder.glob(f"found-{processes}-*.json")]
    assert len(found) == processes
    return {name: max(each[name] for each in found) for name in ("rest", "peak")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--ways", default="1,2:shards,4:shards,2:groups,4:groups")
    parser.add_argument("--inside", type=Path)
    wanted = parser.parse_args()
    if wanted.inside:
        inside(wanted.inside)
        return
    from pipeline.footprint import footprint, shape_of
    from pipeline.new_model import create_model, model_config
    from pipeline.recipe import FullTuning, NewModel
    from pipeline.recipe_file import load_recipe

    shape = NewModel.model_validate(settings_of(Path(), wanted.hidden, wanted.layers, "whole")["student"]["model"])
    config = model_config(shape, 358)
    student, teacher = (shape_of(config, "float32", tune) for tune in (FullTuning(), None))
    print(f"{student.numbers / 1e6:.0f} million weights in fp32; MB in one process, measured / on paper")
    print("| processes | teachers | at rest | on paper | peak | on paper |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for seed, task in enumerate(TASKS):
            create_model(shape, seed, folder / task, ())
        for way in wanted.ways.split(","):
            count, _, teachers = way.partition(":")
            settings = settings_of(folder, wanted.hidden, wanted.layers, teachers or "whole")
            (folder / "recipe.json").write_text(json.dumps(settings))
            recipe, processes = load_recipe(folder / "recipe.json").recipe, int(count)
            found, paper = measured(folder, processes), footprint(recipe, student, [teacher, teacher], processes)
            cells = (found["rest"], paper.rest, found["peak"], paper.peak)
            row = " | ".join(f"{value / 1e6:,.0f}" for value in cells)
            print(f"| {processes} | {recipe.sharding.teachers} | {row} |", flush=True)
            for left in (*folder.glob("found-*.json"), *folder.glob("run/*")):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


if __name__ == "__main__":
    main()
