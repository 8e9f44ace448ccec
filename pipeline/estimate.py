"""What a run's remote teachers may take, before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from pipeline.asking import Asking
from pipeline.recipe import DistillRecipe, SftRecipe
from pipeline.remote import tariffs
from teachers.config import ProvidedBase
from teachers.plan import Plan
from teachers.types import ScoreRequest


@dataclass(frozen=True)
class Estimate:
    """What one teacher may take over a whole run. questions: how often it is asked, if nobody else fails.

    tokens, dollars: at most. dollars: None where no price is known, 0 for what nobody charges for.
    """

    teacher: str
    questions: int
    tokens: int
    dollars: Decimal | None


def estimates(
    recipe: DistillRecipe | SftRecipe, asking: Asking, requests: Sequence[ScoreRequest]
) -> Iterator[Estimate]:
    """Of each remote teacher, from the most that a question about one of these few completions can take."""
    prices = tariffs(recipe)
    rows = recipe.training.steps * recipe.training.prompts_per_step * recipe.rollout.samples_per_prompt
    asked = _asked(asking.plan, [request.domain for request in requests])
    for name, teacher in asking.pool.remote.items():
        usages = [teacher.estimate(request) for request in requests]
        questions = round(rows * asked[name] / len(requests))
        tokens = sum(usage.input + usage.output for usage in usages) / len(usages)
        price = prices.get(name)
        dollars = None if isinstance(recipe.teachers[name], ProvidedBase) else Decimal(0)
        if price is not None:
            dollars = questions * sum((price.most(usage) for usage in usages), Decimal(0)) / len(usages)
        yield Estimate(name, questions, round(questions * tokens), dollars)


def _asked(plan: Plan, domains: list[str]) -> Mapping[str, int]:
    """Teacher -> in how many of these domains it may be asked, feedback for others included."""
    counts: Counter[str] = Counter()
    for domain in domains:
        names = set(plan.routes.everyone(domain))
        counts.update(names | {plan.needs[name] for name in names if name in plan.needs})
    return counts
