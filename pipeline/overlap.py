"""What it brings to write, score and train at the same time: a simulation from a run's recorded seconds.

    python -m pipeline.overlap RUN [--engines 0 1 2 4] [--staleness 0 1 2 4]

Every step has three stages: the student writes, the teachers answer, the student is updated. With staleness s step n is
written by the weights after n - 1 - s updates, so that up to s + 1 steps are under way. Simulated is the program's own
order of events (`trainer.take_off`), and the same with the writing on engines of their own. Where it ends: no step is
shorter than its slowest stage, and none than the way through all stages over s + 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.files import read_lines

LONG = 32  # steps after which a run goes on as it has gone on


@dataclass(frozen=True)
class Phases:
    """Seconds of one step.

    writing: of all its answers, by one engine. near: of teachers in the training process. far: from the last answer
    written to the last one that teachers elsewhere have scored. early, late: of the update, before and after that.
    """

    writing: float
    near: float
    far: float
    early: float
    late: float

    @property
    def training(self) -> float:
        """What only the training process can do, one step after the other."""
        return self.near + self.early + self.late

    @property
    def answered(self) -> float:
        """From the last answer written to the last score."""
        return max(self.far, self.near + self.early)


@dataclass(frozen=True)
class Layout:
    """staleness: steps that are written ahead. engines: that write, each an equal share of every step; 0: the training
    process writes. scorers: steps that teachers elsewhere work on at once; None: any number, they only take their time.
    """

    staleness: int
    engines: int
    scorers: int | None = 1


@dataclass(frozen=True)
class Bound:
    """The fewest seconds that a step can take in the long run, and what sets them."""

    seconds: float
    by: str


def phases_of(line: dict[str, Any]) -> Phases:
    """Of a line of `timings.jsonl`. How long teachers elsewhere took is known where they were waited for, as they are
    with staleness 0; else it is taken to be no longer than what was done meanwhile."""
    seconds = line["seconds"]
    waiting, early = seconds.get("waiting", 0.0), seconds.get("early", 0.0)
    near = max(0.0, seconds["teachers"] - waiting)
    far = near + early + waiting if waiting > 0 else 0.0
    return Phases(seconds["rollout"], near, far, early, max(0.0, seconds["update"] - early))


def ends(steps: Sequence[Phases], layout: Layout) -> list[float]:
    """When each step's update is done, in seconds from the start."""
    written, scored, done = [0.0] * len(steps), [0.0] * len(steps), [0.0] * len(steps)
    now = 0.0  # the training process is busy until then
    begun = 0  # steps that were written, or are being

    def score(n: int) -> None:
        free = scored[n - layout.scorers] if layout.scorers is not None and n >= layout.scorers else 0.0
        scored[n] = max(written[n], free) + steps[n].far

    for n, step in enumerate(steps):
        while begun < min(n + 1 + layout.staleness, len(steps)):
            if layout.engines:
                weights = done[n - 1] if n else 0.0  # of the update that lets this one begin
                free = written[begun - 1] if begun else 0.0
                written[begun] = max(weights, free) + steps[begun].writing / layout.engines
            else:
                now += steps[begun].writing
                written[begun] = now
            score(begun)
            begun += 1
        now = max(now, written[n]) + step.near + step.early
        now = max(now, scored[n]) + step.late
        done[n] = now
    return done


def seconds_per_step(steps: Sequence[Phases], layout: Layout) -> float:
    """In the long run: the steps are gone through again and again, and neither the beginning is counted nor the end,
    where nothing is left to be written ahead."""
    often = (layout.staleness + 1) * max(1, LONG // len(steps))  # what repeats does so after s + 1 steps
    count = often * len(steps)
    done = ends(list(steps) * (3 * often), layout)
    return (done[2 * count - 1] - done[count - 1]) / count


def bound(step: Phases, layout: Layout) -> Bound:
    """For steps that are all alike. In one process writing and training take turns, so they are one stage."""
    ahead = layout.staleness + 1
    writing = step.writing / max(1, layout.engines)
    way = (writing + step.answered + step.late) / ahead
    found = [Bound(way, "one step after the other" if ahead == 1 else f"the way through a step, over {ahead}")]
    if layout.scorers is not None:
        found.append(Bound(step.far / layout.scorers, "the teachers"))
    if layout.engines:
        found += [Bound(writing, "the engines"), Bound(step.training, "the training process")]
    else:
        found.append(Bound(step.writing + step.training, "the training process, which writes as well"))
    return max(reversed(found), key=lambda each: each.seconds)


def mean_of(steps: Sequence[Phases]) -> Phases:
    names = ("writing", "near", "far", "early", "late")
    return Phases(*(fmean(getattr(step, name) for step in steps) for name in names))


def read_phases(run: Path) -> list[Phases]:
    """Of all steps but the first, in which all things are slower. Raises SystemExit where there are none."""
    path = run / "timings.jsonl" if run.is_dir() else run
    steps = [phases_of(line) for line in read_lines(path)][1:] if path.is_file() else []
    if not steps:
        raise SystemExit(f"{path}: no steps after the first; name the directory of a run that has made two or more")
    return steps


# ---- the table ----

COLUMNS = ("engines", "staleness", "step s", "speed-up", "at least s", "because of")


def rows_of(
    steps: Sequence[Phases], engines: Sequence[int], staleness: Sequence[int], scorers: int | None
) -> list[list[str]]:
    """A row for each number of engines and each staleness, against one process that does one after the other."""
    base = seconds_per_step(steps, Layout(0, 0, scorers))
    rows = []
    for count in engines:
        for ahead in staleness:
            layout = Layout(ahead, count, scorers)
            seconds, least = seconds_per_step(steps, layout), bound(mean_of(steps), layout)
            numbers = [f"{seconds:.2f}", f"{base / seconds:.2f}", f"{least.seconds:.2f}"]
            rows.append([str(count or "none"), str(ahead), *numbers, least.by])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.overlap", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run's directory, best one with staleness 0")
    parser.add_argument("--engines", type=int, nargs="+", default=[0, 1, 2, 4], help="that write; 0: this process")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--scorers", type=int, default=1, help="steps that the teachers score at once; 0: any number")
    given = parser.parse_args()
    steps = read_phases(given.run)
    mean = mean_of(steps)
    print(
        f"{len(steps)} steps: writing {mean.writing:.2f} s, teachers here {mean.near:.2f} s, teachers elsewhere "
        f"{mean.far:.2f} s after the last answer, update {mean.early + mean.late:.2f} s\n"
    )
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows_of(steps, given.engines, given.staleness, given.scorers or None):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
