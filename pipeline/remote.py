"""A run's journal, ledger and courier: what is needed where some teacher is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.recipe import RecipeBase
from teachers.catalog import lookup
from teachers.config import Budget, ChatTeacher, Limits, ProvidedBase, RemoteBase, ServedTeacher
from teachers.courier import Courier
from teachers.journal import FILE, Journal
from teachers.ledger import Ledger
from teachers.prices import Tariff, tariff_of
from teachers.types import RemoteTeacher


@dataclass(eq=False)
class Desk:
    """What the run's first process asks remote teachers with. It is opened by the first pool that has any.

    folder: the run's directory; scratch runs have their own.
    """

    recipe: RecipeBase
    folder: Path
    ledger: Ledger | None = None
    journal: Journal | None = None

    def courier(self, teachers: Mapping[str, RemoteTeacher]) -> Courier:
        recipe = self.recipe
        remote = {name: recipe.teachers[name] for name in teachers}
        self.journal = Journal(self.folder / FILE, shared=recipe.pool.journal)
        self.ledger = Ledger(self.journal, tariffs(recipe), budgets(recipe), recipe.pool.budget)
        limits = {name: c.limits if isinstance(c, RemoteBase) else Limits() for name, c in remote.items()}
        return Courier(
            teachers,
            limits,
            self.journal,
            self.ledger,
            model_change=recipe.pool.model_change,
            models=self.journal.models(),
            seed=recipe.seed,
        )

    def close(self) -> None:
        """To be called after the courier was closed, who writes down what was still under way."""
        if self.journal is not None:
            self.journal.close()


def tariffs(recipe: RecipeBase) -> dict[str, Tariff]:
    """Teacher -> what it costs: the recipe's price, else the catalog's; none for what costs nothing that is known."""
    found: dict[str, Tariff] = {}
    for name, config in recipe.teachers.items():
        if not isinstance(config, ProvidedBase):
            continue
        entry = lookup(config.model, config.url) if isinstance(config, ChatTeacher | ServedTeacher) else None
        if config.price is not None:
            found[name] = tariff_of(config.price)
        elif entry is not None:
            found[name] = entry.tariff
    return found


def budgets(recipe: RecipeBase) -> dict[str, Budget]:
    return {n: c.budget for n, c in recipe.teachers.items() if isinstance(c, ProvidedBase) and c.budget is not None}
