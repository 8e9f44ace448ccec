"""How the cost of a step grows with the tokens of an answer, with the vocabulary, and with the teachers.

    pip install -e ".[bench]"
    python -m tests.benchmark.growth [--quick] [--steps 5] [--plot growth.svg]

One of the three grows, the others stay: 64 new tokens, a vocabulary of 6,400, one teacher for each prompt; 8 prompts a
step, 20 where teachers grow. Models as in `shapes.py`, a LoRA student in fp32. Each point is a process of its own, and
the points of a line take turns. Memory is the most that a process takes above what stood before its first step. In it
are the gradients and moments of the adapter, which grow with none of the three, and the weights of the teacher whose
turn it is, which come from their file and whose head grows with the vocabulary.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmark import shapes
from tests.benchmark.shapes import FULL, QUICK, Shape
from tests.benchmark.turns import Found, in_turn, print_row, say_load, step_when_told

LORA = {"kind": "lora", "rank": 32, "alpha": 64}
TEACHERS = 10


@dataclass(frozen=True)
class Point:
    tokens: int
    vocabulary: int
    teachers: int
    prompts: int


def lines_of(shape: Shape) -> dict[str, list[Point]]:
    """What grows -> its points, smallest first."""
    small, tokens = shape.vocabulary // 5, shape.completion
    start = Point(tokens, small, 1, 8)
    return {
        "new tokens": [replace(start, tokens=tokens * factor) for factor in (1, 2, 4, 8)],
        "vocabulary": [replace(start, vocabulary=small * factor) for factor in (1, 2, 5)],
        "teachers": [replace(start, teachers=count, prompts=20) for count in (1, 2, 5, 10)],
    }


NAMES = {"new tokens": "tokens", "vocabulary": "vocabulary", "teachers": "teachers"}


def prepare(shape: Shape, folder: Path) -> None:
    for vocabulary in sorted({point.vocabulary for line in lines_of(shape).values() for point in line}):
        place = folder / str(vocabulary)
        place.mkdir()
        shapes.prepare(replace(shape, vocabulary=vocabulary), place, TEACHERS, dtype="bfloat16")


def measure(folder: Path, point: Point) -> None:
    place = folder / str(point.vocabulary)
    teachers = {
        f"t{number}": {"kind": "transformers", "model": str(place / f"teacher-{number}"), "dtype": "bfloat16"}
        for number in range(point.teachers)
    }
    recipe = shapes.recipe_of(place, teachers, prompts=point.prompts, completion=point.tokens, tune=LORA)
    step_when_told(recipe, place)


COLUMNS = ("what grows", "to", "times", "step s", "time, times", "MB more at most", "memory, times")


def rows_of(name: str, points: Sequence[Point], found: Mapping[Point, Found]) -> list[list[str]]:
    first = found[points[0]]
    sizes = [getattr(point, NAMES[name]) for point in points]
    return [
        [
            name,
            f"{size:,}",
            f"{size / sizes[0]:g}",
            f"{found[point].seconds:.2f}",
            f"{found[point].seconds / first.seconds:.2f}",
            f"{found[point].extra / 1e6:,.0f}",
            f"{found[point].extra / first.extra:.2f}",
        ]
        for size, point in zip(sizes, points, strict=True)
    ]


def plot(lines: Mapping[str, Sequence[Point]], found: Mapping[str, Mapping[Point, Found]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(lines), figsize=(10, 3.2), sharey=True)
    for panel, (name, points) in zip(panels, lines.items(), strict=True):
        sizes = [getattr(point, NAMES[name]) for point in points]
        times = [size / sizes[0] for size in sizes]
        own = found[name]
        panel.plot(times, times, color="0.7", linestyle=":", label="in proportion")
        for label, marker, values in (
            ("seconds", "o", [own[point].seconds for point in points]),
            ("memory above the start", "s", [own[point].extra for point in points]),
        ):
            panel.plot(times, [value / values[0] for value in values], marker=marker, label=label)
        panel.set_title(f"{name}: {sizes[0]:,} to {sizes[-1]:,}")
        panel.set_xlabel("times as many")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("times the cost of a step")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that it works")
    parser.add_argument("--steps", type=int, default=5, help="steps that are counted")
    parser.add_argument("--plot", type=Path, help="where to draw it, as SVG; needs matplotlib")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--point", nargs=5, metavar=("FOLDER", "T", "V", "TEACHERS", "PROMPTS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = QUICK if given.quick else FULL
    if given.prepare:
        prepare(shape, given.prepare)
        return
    if given.point:
        folder, *numbers = given.point
        measure(Path(folder), Point(*map(int, numbers)))
        return
    say_load()
    print_row(COLUMNS)
    print("|---|" + "---:|" * (len(COLUMNS) - 1), flush=True)
    here = ("-m", "tests.benchmark.growth")
    quick = ("--quick",) if given.quick else ()
    found: dict[str, dict[Point, Found]] = {}
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, *here, *quick, "--prepare", made], check=True, stdout=subprocess.DEVNULL)
        for name, points in lines_of(shape).items():
            arguments = {
                str(point): (
                    *here,
                    "--point",
                    made,
                    *map(str, (point.tokens, point.vocabulary, point.teachers, point.prompts)),
                )
                for point in points
            }
            measured = in_turn(arguments, given.steps)
            found[name] = {point: measured[str(point)] for point in points}
            for cells in rows_of(name, points, found[name]):
                print_row(cells)
    if given.plot:
        plot(lines_of(shape), found, given.plot)


if __name__ == "__main__":
    main()
