"""Muon beside AdamW: recipes/muon.yaml by both, at equal steps, each at the learning rate that suits it best.

    python -m tests.benchmark.optimizers [--folder runs/optimizers] [--rates 5e-4 1e-3 2e-3 4e-3] [--seeds 1 2 3]
        [--set training.steps=20 ...]

Every run starts from the same base and has the same teacher. Rates are tried with seed 0, and the one that leaves the
least KL to the teacher on held-out prompts is the optimizer's own; what is compared are other seeds at that rate.
Printed are means over them with the smallest and the largest, and the milliseconds of an optimizer's step alone on this
student, the fastest of many. Runs that are finished in the folder are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import NamedTuple

from pipeline.evaluate import SPECIALIST
from pipeline.files import read_json
from tests.benchmark.corrections import finished

RECIPE = Path(__file__).parents[2] / "recipes" / "muon.yaml"
OPTIMIZERS = ("adamw", "muon")
PREPARED = ("base", "specialist")
TRIED = 0  # the seed that rates are tried with


class Outcome(NamedTuple):
    """On held-out prompts, means over the domains: scores of base, teacher and student, and the KL that is left to the
    teacher in nats per token."""

    base: float
    teacher: float
    student: float
    kl: float


def run(folder: Path, optimizer: str, rate: float, seed: int, changes: Sequence[str]) -> Outcome:
    place = folder / f"{optimizer}-{rate:g}-{seed}"
    settings = [f"training.optimizer={optimizer}", f"training.learning_rate={rate!r}", f"seed={seed}"]
    settings += [f"prepare.{name}.set.output={folder / 'prepared' / name}" for name in PREPARED]
    return outcome(finished(RECIPE, place, f"{optimizer} at {rate:g}, seed {seed}", (*settings, *changes)))


def outcome(place: Path) -> Outcome:
    found = read_json(place / "evaluation.json")
    means = found["means"]
    return Outcome(
        means["base"],
        means[SPECIALIST],
        means["student"],
        fmean(left for teachers in found["kl"].values() for left in teachers.values()),
    )


def fastest(model: Path, optimizer: str, times: int = 50) -> float:
    """Seconds of one step over all of the model's weights, with gradients that are there already, on one thread."""
    import torch

    from pipeline.optim import build_optimizer
    from pipeline.recipe import Student, Training
    from pipeline.student import load_student

    torch.set_num_threads(1)
    config = Student(model=str(model))
    student = load_student(config, model_path=str(model), seed=0, chunk_bytes=1 << 20, device=torch.device("cpu"))
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    steps = build_optimizer(student, Training.model_validate({"optimizer": optimizer}))
    taken = []
    for _ in range(times):
        start = perf_counter()
        steps.step()
        taken.append(perf_counter() - start)
    return min(taken)


def spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{fmean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/optimizers"))
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run")
    given = parser.parse_args()
    folder = given.folder.absolute()
    best = {}
    print("| optimizer | rate | KL left | score |\n|---|---|---|---|")
    for optimizer in OPTIMIZERS:
        tried = {rate: run(folder, optimizer, rate, TRIED, given.set) for rate in given.rates}
        best[optimizer] = min(tried, key=lambda rate: tried[rate].kl)
        for rate, found in tried.items():
            print(f"| {optimizer} | {rate:g} | {found.kl:.4f} | {found.student:.3f} |", flush=True)
    print("\n| optimizer | rate | KL left | score | its step, ms |\n|---|---|---|---|---|")
    for optimizer, rate in best.items():
        runs = [run(folder, optimizer, rate, seed, given.set) for seed in given.seeds]
        kl, scores = spread([each.kl for each in runs], 4), spread([each.student for each in runs])
        milliseconds = 1000 * fastest(folder / "prepared" / "base" / "model", optimizer)
        print(f"| {optimizer} | {rate:g} | {kl} | {scores} | {milliseconds:.1f} |", flush=True)
    print(f"\nThe base has {runs[0].base:.3f}, the teacher {runs[0].teacher:.3f}.")


if __name__ == "__main__":
    main()
