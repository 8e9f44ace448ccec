"""What corrections add: recipes/corrections.yaml with some of its teachers, at equal student tokens, as a table.

    python -m tests.benchmark.corrections [--folder runs/corrections] [--seeds 0 1 2] [--only distributions ...]
        [--set training.steps=20 ...]

Every variant starts from the same base and trains on as many completions of as many prompts; what differs is who is
asked, and for what. The chat teacher is a server on this machine that is never wrong (tests/servers/grader.py), and its
dollars are what the run's ledger charges for its tokens. Variants that are finished in the folder are not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.files import read_json
from pipeline.statistics import percentiles, resampled_means
from teachers.journal import FILE
from teachers.records import records
from tests.runs import command, environment
from tests.servers.chat_server import ChatServer, Manners

RECIPE = Path(__file__).parents[2] / "recipes" / "corrections.yaml"
PREPARED = ("base", "specialist")
REFERENCE = "distributions"


def _asked(*names: str) -> str:
    return f"routing={{kind: mixture, shares: {{{', '.join(f'{name}: 1' for name in names)}}}}}"


# What is asked of whom. A teacher that is asked for less costs less.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    REFERENCE: (_asked("specialist"),),
    "distributions + grades": ("teachers.critic.gives=score",),
    "distributions + grades + rewrites": (),
    "grades + rewrites": (_asked("critic", "checker"),),
    "grades": (_asked("critic", "checker"), "teachers.critic.gives=score"),
    "rewrites": (_asked("critic"), "teachers.critic.gives=rewrite"),
}
COLUMNS = ("teaching", "score", f"above {REFERENCE}", "student tokens", "chat tokens in / out", "dollars")

Scores = Mapping[str, Mapping[str, float]]  # domain -> question -> score


class Outcome(NamedTuple):
    """What a run came to. base, student: on held-out questions. tokens: of completions that were trained on."""

    base: Scores
    student: Scores
    tokens: int
    read: int
    written: int
    dollars: Decimal


def run(folder: Path, variant: str, seed: int, url: str, changes: Sequence[str]) -> Path:
    place = folder / f"{variant.replace(' + ', '-')}-{seed}"
    settings = [f"teachers.critic.url={url}"]
    settings += [f"prepare.{name}.set.output={folder / 'prepared' / name}" for name in PREPARED]
    return finished(RECIPE, place, f"{variant}, seed {seed}", (f"seed={seed}", *settings, *VARIANTS[variant], *changes))


def finished(recipe: Path, place: Path, title: str, settings: Sequence[str]) -> Path:
    """The directory of a finished run; it is run where it is not there yet. Ends the program where that fails."""
    if not (place / "evaluation.json").is_file():
        print(title, file=sys.stderr, flush=True)
        call = command("run", str(recipe), f"output={place}", "threads=1", *settings)
        ended = subprocess.run(call, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ended.returncode:
            raise SystemExit(ended.stdout)
    return place


def outcome(place: Path) -> Outcome:
    totals = {}
    if (place / FILE).is_file():
        with records(place / FILE) as found:
            totals = found.totals()
    evaluations = place / "evaluations"
    return Outcome(
        scores_in(evaluations / "base.json"),
        scores_in(max(evaluations.glob("student-??????.json"))),
        read_json(place / "evaluation.json")["tokens_trained"]["student"],
        sum(each.input for each in totals.values()),
        sum(each.output for each in totals.values()),
        sum((each.dollars for each in totals.values()), Decimal(0)),
    )


def scores_in(path: Path) -> Scores:
    return {domain: found["scores"] for domain, found in read_json(path).items()}


# ---- the table ----


def mean(runs: Sequence[Scores]) -> tuple[float, float, float]:
    """The mean over the domains, each over the questions of all runs, and its 95% interval by the bootstrap."""
    return _interval([[score for run in runs for score in run[domain].values()] for domain in runs[0]])


def difference(runs: Sequence[Scores], others: Sequence[Scores]) -> tuple[float, float, float]:
    """The same of what `runs` score above `others`, question by question."""
    return _interval(
        [
            [
                score - other[domain][name]
                for run, other in zip(runs, others, strict=True)
                for name, score in run[domain].items()
            ]
            for domain in runs[0]
        ]
    )


def _interval(domains: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    drawn = [resampled_means(np.array([scores]), stream=n)[:, 0] for n, scores in enumerate(domains)]
    return float(np.mean([np.mean(scores) for scores in domains])), *percentiles(np.mean(drawn, axis=0))


def row(variant: str, found: Sequence[Outcome], reference: Sequence[Outcome] | None) -> tuple[str, ...]:
    """Costs are means over the runs."""
    students = [one.student for one in found]
    score, low, high = mean(students)
    above = "–"
    if reference is not None and reference is not found:
        above = "{:+.3f} [{:+.2f}, {:+.2f}]".format(*difference(students, [one.student for one in reference]))
    tokens, read, written = (sum(counts) // len(found) for counts in zip(*(one[2:5] for one in found), strict=True))
    dollars = sum((one.dollars for one in found), Decimal(0)) / len(found)
    chat = f"{read:,} / {written:,}" if read else "–"
    return variant, f"{score:.3f} [{low:.2f}, {high:.2f}]", above, f"{tokens:,}", chat, f"{dollars:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/corrections"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every variant")
    given = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {}
    with ChatServer(Manners(partial=True)) as server:
        for seed in given.seeds:
            for variant in given.only:
                place = run(given.folder.absolute(), variant, seed, server.url, given.set)
                outcomes.setdefault(variant, []).append(outcome(place))
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    print(
        "| the base | {:.3f} [{:.2f}, {:.2f}] |".format(*mean([one.base for one in outcomes[given.only[0]]])) + " |" * 4
    )
    for variant, found in outcomes.items():
        print("| " + " | ".join(row(variant, found, outcomes.get(REFERENCE))) + " |")


if __name__ == "__main__":
    main()
