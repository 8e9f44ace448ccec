"""Quality for money: recipes/cascade.yaml, and its teachers asked in other ways, at equal student tokens, as a table.

    python -m tests.benchmark.cascade [--folder runs/cascade] [--seeds 0 1 2] [--only cascade ...] [--errs 1]
        [--among PATTERN] [--set training.steps=20 ...]

Every variant starts from the same base and trains on as many answers to as many prompts. The teachers are servers on
this machine: `pro` is never wrong; `flash` does not know the hard questions (tests/servers/grader.py): of half of them
it says so, in the others it takes a wrong answer for the right one. Dollars are what each run's ledger charges at
DeepSeek's prices of April 2026; beside them stands what the same tokens came to where the dear teacher cost what Claude
Opus 4.6 did then. Variants that are finished in the folder are not run again.

A second table needs no training: from the answers that both gave to everything, recorded in the journal of the variant
that asks both, what other rules would have cost, and how often the answer that counts is the dear teacher's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.files import read_json
from teachers.catalog import lookup
from teachers.journal import FILE, Totals
from teachers.prices import Tariff
from teachers.records import records
from teachers.types import Usage
from tests.benchmark.corrections import Scores, difference, finished, mean, scores_in
from tests.servers.chat_server import ChatServer, Manners
from tests.servers.grader import Weakness

RECIPE = Path(__file__).parents[2] / "recipes" / "cascade.yaml"
CHEAP, DEAR = "flash", "pro"
REFERENCE = f"{DEAR} alone"
BOTH = "both, always"
HARD = "[a-z]{10}"  # ten letters or more to sort: six in ten of these questions, three in ten of all
VARIANTS: Mapping[str, tuple[str, ...]] = {
    REFERENCE: (f"routing={{kind: mixture, shares: {{{DEAR}: 1}}}}",),
    f"{CHEAP} alone": (f"routing={{kind: mixture, shares: {{{CHEAP}: 1}}}}",),
    BOTH: ("routing=all",),
    "cascade": (),
    "cascade without checker": (f"routing={{kind: cascade, order: [{CHEAP}, {DEAR}], checker: false}}",),
}
COLUMNS = (
    *("asked", "score", "by seed", f"above {REFERENCE}", "student tokens", f"answered by {DEAR}"),
    *("dollars", "saved", "with Opus 4.6", "saved"),
)


class Outcome(NamedTuple):
    """What a run came to. tokens: of answers that were trained on. took: by teacher."""

    base: Scores
    student: Scores
    tokens: int
    took: Mapping[str, Totals]

    @property
    def dollars(self) -> Decimal:
        return sum((each.dollars for each in self.took.values()), Decimal(0))

    @property
    def dear_share(self) -> float:
        """Of all questions, those that the dear teacher was asked."""
        asked = {name: each.requests for name, each in self.took.items()}
        return asked.get(DEAR, 0) / max(asked.values())

    def with_another(self, tariff: Tariff) -> Decimal:
        """The dollars, had the dear teacher cost so much."""
        return sum(
            (repriced(each, tariff) if name == DEAR else each.dollars for name, each in self.took.items()), Decimal(0)
        )


def repriced(took: Totals, tariff: Tariff) -> Decimal:
    """Dollars for the same tokens. None of these prices has tiers, so the sum of all questions is as good as each."""
    assert not tariff.tiers
    return tariff.cost(Usage(took.input, took.cached, took.output, took.reasoning))


def place_of(folder: Path, variant: str, seed: int) -> Path:
    return folder / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"


def run(folder: Path, variant: str, seed: int, urls: Mapping[str, str], changes: Sequence[str]) -> Path:
    settings = [f"seed={seed}", f"prepare.base.set.output={folder / 'prepared'}"]
    settings += [f"teachers.{name}.url={url}" for name, url in urls.items()]
    title = f"{variant}, seed {seed}"
    return finished(RECIPE, place_of(folder, variant, seed), title, (*settings, *VARIANTS[variant], *changes))


def outcome(place: Path) -> Outcome:
    with records(place / FILE) as found:
        took = found.totals()
    evaluations = place / "evaluations"
    return Outcome(
        scores_in(evaluations / "base.json"),
        scores_in(max(evaluations.glob("student-??????.json"))),
        read_json(place / "evaluation.json")["tokens_trained"]["student"],
        took,
    )


def row(variant: str, found: Sequence[Outcome], reference: Sequence[Outcome] | None, opus: Tariff) -> tuple[str, ...]:
    """Costs are means over the runs; what is saved is against those of the reference."""
    students = [one.student for one in found]
    score, low, high = mean(students)
    by_seed = ", ".join(f"{mean([student])[0]:.3f}" for student in students)
    count = len(found)
    share = sum(one.dear_share for one in found) / count
    tokens = sum(one.tokens for one in found) // count
    costs = _costs(found, opus)
    above, saved = "–", ["–", "–"]
    if reference is not None and reference is not found:
        above = "{:+.3f} [{:+.2f}, {:+.2f}]".format(*difference(students, [one.student for one in reference]))
        saved = [f"{1 - cost / all_of_it:.0%}" for cost, all_of_it in zip(costs, _costs(reference, opus), strict=True)]
    return (
        *(variant, f"{score:.3f} [{low:.2f}, {high:.2f}]", by_seed, above, f"{tokens:,}", f"{share:.0%}"),
        *(f"{costs[0]:.2f}", saved[0], f"{costs[1]:.2f}", saved[1]),
    )


def _costs(found: Sequence[Outcome], opus: Tariff) -> tuple[Decimal, Decimal]:
    """Mean dollars of a run, and had the dear teacher cost what Opus 4.6 did."""
    dollars = sum((one.dollars for one in found), Decimal(0))
    return dollars / len(found), sum((one.with_another(opus) for one in found), Decimal(0)) / len(found)


# ---- from recorded answers ----


class Recorded(NamedTuple):
    """What both teachers said of one of the student's answers: scores, corrections, and the dollars for each."""

    scores: tuple[float | None, float | None]
    rewrites: tuple[str | None, str | None]
    dollars: tuple[Decimal, Decimal]

    @property
    def agree(self) -> bool:
        return self.scores[0] == self.scores[1] and self.rewrites[0] == self.rewrites[1]


class Simulated(NamedTuple):
    """reached: the share of answers that the dear teacher is asked about. right: where what counts is what it says."""

    reached: float
    right: float
    dollars: Decimal


def recorded(path: Path) -> list[Recorded]:
    """Pairs in a journal, of all answers about which both teachers said something."""
    said: dict[tuple[int, str], dict[str, Mapping[str, Any]]] = {}
    with records(path) as found:
        for line in found.lines():
            if line["state"] == "answered" and "answer" in line:
                said.setdefault((line["step"], line["request_id"]), {})[line["teacher"]] = line
    pairs = [(both[CHEAP], both[DEAR]) for both in said.values() if {CHEAP, DEAR} <= both.keys()]
    return [
        Recorded(
            (one["answer"]["score"], other["answer"]["score"]),
            (one["answer"]["rewrite"], other["answer"]["rewrite"]),
            (Decimal(one["dollars"]), Decimal(other["dollars"])),
        )
        for one, other in pairs
    ]


def simulated(pairs: Sequence[Recorded], goes_on: Callable[[Recorded], bool]) -> Simulated:
    """A cascade that asks the dear teacher where `goes_on` says so, and takes what it is told last."""
    reached = [goes_on(pair) for pair in pairs]
    dollars = sum(
        (p.dollars[0] + (p.dollars[1] if on else 0) for p, on in zip(pairs, reached, strict=True)), Decimal(0)
    )
    right = sum(on or pair.agree for pair, on in zip(pairs, reached, strict=True))
    return Simulated(sum(reached) / len(pairs), right / len(pairs), dollars)


def unsure(pair: Recorded) -> bool:
    """As `unsure: [0.25, 0.75]`."""
    return pair.scores[0] is None or 0.25 < pair.scores[0] < 0.75


RULES: Mapping[str, Callable[[Recorded], bool]] = {
    "never": lambda pair: False,
    "where it is unsure": unsure,
    "where it is unsure, or a checker contradicts it": lambda pair: unsure(pair) or not pair.agree,
    "always": lambda pair: True,
}


def show_recorded(path: Path) -> None:
    pairs = recorded(path)
    alone = sum((pair.dollars[1] for pair in pairs), Decimal(0))
    print(f"\n{len(pairs):,} recorded answers; {DEAR} about all of them ${alone:.2f}\n")
    print(f"| {DEAR} is asked after {CHEAP} | of the answers | what counts is what {DEAR} says | dollars | saved |")
    print("|---|---|---|---|---|")
    for name, rule in RULES.items():
        found = simulated(pairs, rule)
        saved = f"{1 - found.dollars / alone:.0%}"
        print(f"| {name} | {found.reached:.0%} | {found.right:.1%} | {found.dollars:.2f} | {saved} |")


def opus_tariff() -> Tariff:
    known = lookup("claude-opus-4.6")
    assert known is not None
    return known.price_in("2026-04").tariff


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/cascade"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--errs", type=float, default=1.0, help="the share of hard questions that flash does not know")
    parser.add_argument("--among", default=HARD, metavar="PATTERN", help="what a hard question is known by")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every variant")
    given = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {}
    with (
        ChatServer(Manners(CHEAP, weakness=Weakness(given.errs, given.among))) as cheap,
        ChatServer(Manners(DEAR)) as dear,
    ):
        urls = {CHEAP: cheap.url, DEAR: dear.url}
        for seed in given.seeds:
            for variant in given.only:
                place = run(given.folder.absolute(), variant, seed, urls, given.set)
                outcomes.setdefault(variant, []).append(outcome(place))
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    first = outcomes[given.only[0]]
    print("| nobody: the base | {:.3f} [{:.2f}, {:.2f}] |".format(*mean([one.base for one in first])) + " |" * 8)
    for variant, found in outcomes.items():
        print("| " + " | ".join(row(variant, found, outcomes.get(REFERENCE), opus_tariff())) + " |")
    if BOTH in outcomes:
        show_recorded(place_of(given.folder.absolute(), BOTH, given.seeds[0]) / FILE)


if __name__ == "__main__":
    main()
