"""What the student gained on the recipe's codebase, and what it kept elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluate import BASE, STUDENT, Score, measured_mean
from pipeline.recipe import CodebaseSource, RecipeBase

SIDES = ("codebase", "elsewhere")
Sides = Mapping[str, Mapping[str, Mapping[str, float]]]  # side -> score, loss or similarity -> model -> mean


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
    domains = list(dict.fromkeys(domain for scores in models.values() for domain in scores))
    of_side = {
        "codebase": [domain for domain in domains if domain in inside],
        "elsewhere": [domain for domain in domains if domain not in inside],
    }
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


def gains_line(sides: Sides) -> str:
    """One line of what changed between the base and the student, on either side."""
    parts = []
    for side, of_side in sides.items():
        changes = [
            f"{what} {means[BASE]:.3f} → {means[STUDENT]:.3f}{_relative(means[BASE], means[STUDENT])}"
            for what, means in of_side.items()
            if BASE in means and STUDENT in means
        ]
        if changes:
            parts.append(f"{'on the codebase' if side == 'codebase' else side}: {', '.join(changes)}")
    return "; ".join(parts)


def _relative(before: float, after: float) -> str:
    return f" ({(after - before) / before:+.1%})" if before > 0 else ""
