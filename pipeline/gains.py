"""What the student gained on the recipe's codebase, and what it kept elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluate import BASE, STUDENT, Score, measured_mean
from pipeline.recipe import CodebaseSource, RecipeBase
from pipeline.statistics import ratio_of_means

SIDES = ("codebase", "elsewhere")
Sides = Mapping[str, Mapping[str, Mapping[str, float]]]  # side -> score, loss or similarity -> model -> mean
Changes = Mapping[str, Mapping[str, tuple[float, float, float]]]  # side -> what -> share of the base's, low, high


def codebase_domains(recipe: RecipeBase) -> set[str]:
    """The domains of the sources that read the recipe's own codebase."""
    return {
        source.domain or name
        for name, source in recipe.data.sources.items()
        if isinstance(source, CodebaseSource) and source.of is None
    }


def sides_of(models: Mapping[str, Mapping[str, Score]], inside: Collection[str], measures: Sequence[str]) -> Sides:
    """Every model's mean over the domains of each side; a model that was not judged in all of a side's has none there.

    models: name -> domain -> score. inside: the codebase's domains. measures: beside the score.
    """
    of_side = _domains_of(models, inside)
    return {
        side: {
            what: {
                model: sum(values) / len(values)
                for model, scores in models.items()
                if (values := list(_values(scores, of_side[side], what))) and len(values) == len(of_side[side])
            }
            for what in ("score", *measures)
        }
        for side in SIDES
    }


def changes_of(models: Mapping[str, Mapping[str, Score]], inside: Collection[str], measures: Sequence[str]) -> Changes:
    """How much of the base's mean the student has gained (−1 to ∞) on each side, with its 95% interval.

    The means are those of `sides_of`; the interval is the paired bootstrap's over the prompts that both were judged in,
    so it says how much of a change may be chance. Nothing where one of the two was not judged in all of a side's
    domains, or the base has nothing.
    """
    found: dict[str, dict[str, tuple[float, float, float]]] = {side: {} for side in SIDES}
    for side, domains in _domains_of(models, inside).items():
        for what in ("score", *measures):
            student, base = (
                {domain: _judged(models, name, domain, what) for domain in domains} for name in (STUDENT, BASE)
            )
            both = {domain: [prompt for prompt in base[domain] if prompt in student[domain]] for domain in domains}
            if not both or not all(both.values()):
                continue
            pairs = [{d: [of[d][prompt] for prompt in both[d]] for d in domains} for of in (student, base)]
            if (ratio := ratio_of_means(*pairs)) is not None:
                found[side][what] = (ratio[0] - 1, ratio[1] - 1, ratio[2] - 1)
    return found


def _domains_of(models: Mapping[str, Mapping[str, Score]], inside: Collection[str]) -> dict[str, list[str]]:
    domains = list(dict.fromkeys(domain for scores in models.values() for domain in scores))
    return {
        "codebase": [domain for domain in domains if domain in inside],
        "elsewhere": [domain for domain in domains if domain not in inside],
    }


def _judged(models: Mapping[str, Mapping[str, Score]], name: str, domain: str, what: str) -> Mapping[str, float]:
    """By prompt id; empty where the model was not judged there."""
    score = models.get(name, {}).get(domain)
    if score is None:
        return {}
    return score.scores if what == "score" else score.measures.get(what, {})


def _values(scores: Mapping[str, Score], domains: Sequence[str], what: str) -> Iterator[float]:
    for domain in domains:
        score = scores.get(domain)
        value = measured_mean(score, what) if what != "score" else score.mean if score else None
        if value is not None:
            yield value


def gains_table(sides: Sides) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows): a row per side and measure, a column per model."""
    models = list(dict.fromkeys(model for of_side in sides.values() for means in of_side.values() for model in means))
    rows = [
        [side, what, *(means.get(model) for model in models)]
        for side, of_side in sides.items()
        for what, means in of_side.items()
        if means
    ]
    return ["where", "what", *models], rows


def gains_line(sides: Sides, changes: Changes) -> str:
    """One line of what changed between the base and the student, on either side, and how far that may be chance."""
    parts = []
    for side, of_side in sides.items():
        told = [
            f"{what} {means[BASE]:.3f} → {means[STUDENT]:.3f}{_relative(changes[side].get(what))}"
            for what, means in of_side.items()
            if BASE in means and STUDENT in means
        ]
        if told:
            parts.append(f"{'on the codebase' if side == 'codebase' else side}: {', '.join(told)}")
    return "; ".join(parts)


def _relative(change: tuple[float, float, float] | None) -> str:
    return "" if change is None else f" ({change[0]:+.1%} [{change[1]:+.1%}, {change[2]:+.1%}])"
