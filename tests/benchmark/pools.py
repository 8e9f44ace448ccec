"""What more teachers cost: steps with ten of them, ten adapters, or three on every prompt, beside steps with one.

    python -m tests.benchmark.pools [--quick] [--steps 5] [--prompts 32]

Models and prompts are those of `shapes.py`, with bf16 teachers; every prompt has one teacher, but for the three that
answer all of them. Each pool is a process of its own, and they take turns. Printed are medians of seconds, the most
memory above what stood before the first step, and both against the pool of one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmark import shapes
from tests.benchmark.shapes import FULL, QUICK, Shape
from tests.benchmark.turns import PHASES, Found, in_turn, print_row, say_load, step_when_told

MOST = 10
LORA = {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}
# Pool -> the pool of one that it is compared with.
POOLS = {
    "one teacher": "one teacher",
    "ten teachers, one for each prompt": "one teacher",
    "three teachers, all on every prompt": "one teacher",
    "one adapter": "one adapter",
    "ten adapters of one base": "one adapter",
}


def prepare(shape: Shape, folder: Path) -> None:
    shapes.prepare(shape, folder, MOST, dtype="bfloat16")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for number in range(MOST):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(folder / "teacher-0", dtype=torch.bfloat16)
        config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **LORA)  # type: ignore[arg-type]
        get_peft_model(base, config).save_pretrained(str(folder / f"adapter-{number}"))


def teachers_of(pool: str, folder: Path) -> dict[str, Any]:
    def model(number: int) -> dict[str, str]:
        return {"kind": "transformers", "model": str(folder / f"teacher-{number}"), "dtype": "bfloat16"}

    def adapter(number: int) -> dict[str, str]:
        own = str(folder / f"adapter-{number}")
        return {"kind": "adapter", "base": str(folder / "teacher-0"), "adapter": own, "dtype": "bfloat16"}

    count = {"one": 1, "ten": MOST, "three": 3}[pool.split()[0]]
    kind = adapter if "adapter" in pool else model
    return {f"t{number}": kind(number) for number in range(count)}


def measure(shape: Shape, folder: Path, pool: str, prompts: int) -> None:
    recipe = shapes.recipe_of(
        folder,
        teachers_of(pool, folder),
        prompts=prompts,
        completion=shape.completion,
        routing="all" if "every prompt" in pool else "domain",
    )
    step_when_told(recipe, folder)


COLUMNS = (
    *("pool", *(f"{phase} s" for phase in PHASES), "step s", "against one"),
    *("GB before", "MB more at most", "peak against one"),
)


def row_of(pool: str, found: Mapping[str, Found]) -> list[str]:
    own, one = found[pool], found[POOLS[pool]]
    peak, peak_of_one = (each.before + each.extra for each in (own, one))
    return [
        pool,
        *(f"{own.phases[name]:.2f}" for name in PHASES),
        f"{own.seconds:.2f}",
        f"{own.seconds / one.seconds:.2f}×",
        f"{own.before / 1e9:.2f}",
        f"{own.extra / 1e6:,.0f}",
        f"{peak / peak_of_one:.2f}×",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that it works")
    parser.add_argument("--steps", type=int, default=5, help="steps that are counted")
    parser.add_argument("--prompts", type=int, default=32, help="prompts of a step")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pool", nargs=2, metavar=("FOLDER", "POOL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = QUICK if given.quick else FULL
    if given.prepare:
        prepare(shape, given.prepare)
        return
    if given.pool:
        measure(shape, Path(given.pool[0]), given.pool[1], given.prompts)
        return
    say_load()
    here = ("-m", "tests.benchmark.pools", *sys.argv[1:])
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, *here, "--prepare", made], check=True, stdout=subprocess.DEVNULL)
        found = in_turn({pool: (*here, "--pool", made, pool) for pool in POOLS}, given.steps)
    print_row(COLUMNS)
    print("|---|" + "---:|" * (len(COLUMNS) - 1))
    for pool in POOLS:
        print_row(row_of(pool, found))


if __name__ == "__main__":
    main()
