"""How long `tutelage run` takes to its first training step, beside importing the libraries and loading the models.

    python -m tests.benchmark.startup [--quick] [--repeats 5]

Models of `shapes.py` on local disk. Sides are whole processes, in turn; printed are medians. The evaluation of the
base that a run makes before it trains is work that was asked for, and is not counted: the side of the run ends where it
would begin its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmark import shapes
from tests.benchmark.shapes import FULL, QUICK, Shape
from tests.benchmark.turns import say_load

LEAST = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    AutoTokenizer.from_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
"""
RUN = """
import sys
import pipeline.run as run
run.assess.before = lambda job, parts: {}
def first_step(*_): raise SystemExit(0)
run.train = first_step
sys.argv = ["tutelage", "run", *sys.argv[1:]]
from pipeline.cli import main
main()
"""


def prepare(shape: Shape, folder: Path) -> None:
    shapes.prepare(shape, folder, teachers=1)
    teacher = {"kind": "transformers", "model": str(folder / "teacher-0")}
    recipe = shapes.recipe_of(folder, {"teacher": teacher}, prompts=8, completion=shape.completion)
    (folder / "recipe.yaml").write_text(json.dumps(recipe))


def seconds(code: str, *arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that it works")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = QUICK if given.quick else FULL
    if given.prepare:
        prepare(shape, given.prepare)
        return
    say_load()
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "tests.benchmark.startup", "--prepare", made, *sys.argv[1:]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        least, run = [], []
        for number in range(given.repeats + 1):
            least.append(seconds(LEAST, os.path.join(made, "student"), os.path.join(made, "teacher-0")))
            run.append(seconds(RUN, os.path.join(made, "recipe.yaml"), f"output={made}/run-{number}"))
    known, own = (statistics.median(each[1:]) for each in (least, run))  # the first pair warms the disk's cache up
    print(f"imports and models: {known:.2f} s; tutelage run to its first step: {own:.2f} s; {own / known:.2f}×")


if __name__ == "__main__":
    main()
