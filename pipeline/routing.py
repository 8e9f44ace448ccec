"""A recipe's routing, fallbacks and feedback as a plan: who is asked about which prompt. Imports no torch."""

from __future__ import annotations

from pipeline.recipe import RecipeBase
from pipeline.recipe_asking import AllTeachers, ByDomain, Mixture
from pipeline.recipe_asking import Cascade as CascadeRouting
from teachers.config import RemoteBase, SelfTeacher
from teachers.plan import Cascade, Plan, PromptChecker, Routes

FEEDBACK = "feedback:"


def plan_of(recipe: RecipeBase, check: PromptChecker) -> Plan:
    """The recipe's routing, fallbacks and feedback. `recipe_checks` has made sure that every name exists.

    check: the prompts' own checkers, which a cascade holds its teachers' judgments against.
    """
    teachers = recipe.teachers.items()
    fallback = {name: t.fallback for name, t in teachers if isinstance(t, RemoteBase) and t.fallback}
    needs = {
        name: t.sees.removeprefix(FEEDBACK)
        for name, t in teachers
        if isinstance(t, SelfTeacher) and t.sees.startswith(FEEDBACK)
    }
    return Plan(routes_of(recipe, check), fallback, needs)


def routes_of(recipe: RecipeBase, check: PromptChecker | None = None) -> Routes | Cascade:
    """The recipe's routing as shares by domain, or as a cascade."""
    routing = recipe.routing
    if isinstance(routing, AllTeachers):
        return Routes({}, dict.fromkeys(recipe.teachers, 1.0))
    if isinstance(routing, Mixture):
        return Routes({}, routing.shares)
    if isinstance(routing, CascadeRouting):
        return Cascade(
            routing.order,
            routing.unsure,
            routing.disagreement,
            routing.entropy,
            check if routing.checker else None,
            recipe.rollout.temperature,
        )
    assert isinstance(routing, ByDomain)
    table = {name: {name: 1.0} for name in recipe.teachers}
    table |= {
        domain: {share: 1.0} if isinstance(share, str) else dict(share) for domain, share in routing.table.items()
    }  # fmt: skip
    return Routes(table, {routing.default: 1.0} if routing.default else {})
