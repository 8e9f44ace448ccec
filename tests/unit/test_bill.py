"""What a cascade saved, and what is said of it."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.bill import Saving, saving_of
from pipeline.recipe import RecipeBase
from pipeline.recipe_file import load_recipe
from teachers.journal import FILE, Journal
from teachers.ledger import Ledger
from teachers.prices import Rates, Tariff
from teachers.records import records
from teachers.types import Answer, Judgment, TeacherFailure, Usage
from tests.runs import changed, distill_settings, write_recipe

# By teacher, dollars per million output tokens.
PRICES = {"cheap": 1, "middle": 10, "dear": 100}
TARIFFS = {name: Tariff(Rates(Decimal(0), Decimal(price))) for name, price in PRICES.items()}


def cascade(folder: Path) -> RecipeBase:
    chat = {"kind": "chat", "model": "m", "url": "http://127.0.0.1:9/v1"}
    changes = {"routing": {"kind": "cascade", "order": list(PRICES)}, "objective.grades.baseline": "running"}
    settings = changed(distill_settings(folder), {"teachers": dict.fromkeys(PRICES, chat), **changes})
    return load_recipe(write_recipe(folder / "recipe.yaml", settings)).recipe


def asked(ledger: Ledger, journal: Journal, teacher: str, step: int, row: int, tokens: int | None) -> None:
    """A question that took so many tokens; None: that failed and cost nothing."""
    place = ledger.reserve(teacher, Usage(0, 0, tokens or 1))
    key = f"{teacher}/{step}/{row}"
    attempt = journal.intend(key, teacher=teacher, request_id=f"r/{row}", step=step, dollars=Decimal(1), tokens=9)
    result: Answer | TeacherFailure = TeacherFailure(teacher, "unavailable", True)
    if tokens is not None:
        result = Answer(Judgment(0.5), Usage(0, 0, tokens))
    spent = ledger.settle(place, Usage(0, 0, tokens or 0))  # type: ignore[arg-type]
    journal.settle(attempt, result, spent)


def test_a_saving_is_what_asking_the_dearest_about_all_would_have_cost_more(tmp_path: Path) -> None:
    rng = random.Random(2)
    journal = Journal(tmp_path / FILE)
    ledger = Ledger(journal, TARIFFS, {})
    spent, questions, by_dear = Decimal(0), 0, []
    for step in (1, 2):
        for row in range(20):
            questions += 1
            for name in PRICES:
                tokens = rng.randint(100, 1000)
                if rng.random() < 0.2:  # an attempt that fails, and another one
                    asked(ledger, journal, name, step, row, None)
                asked(ledger, journal, name, step, row, tokens)
                spent += Decimal(tokens) * PRICES[name] / 1_000_000
                if name == "dear":
                    by_dear.append(Decimal(tokens) * 100 / 1_000_000)
                if rng.random() < 0.5:
                    break
    with records(tmp_path / FILE) as found:
        saving = saving_of(cascade(tmp_path), ledger, found)
    journal.close()
    assert saving is not None
    assert (saving.dearest, saving.questions, saving.reached) == ("dear", questions, len(by_dear))
    assert saving.dollars is not None
    assert abs(saving.dollars - (sum(by_dear) / len(by_dear) * questions - spent)) < Decimal("1e-12")
    assert 0 < len(by_dear) < questions


def test_nobody_knows_what_a_dearest_that_was_never_asked_would_have_cost(tmp_path: Path) -> None:
    journal = Journal(tmp_path / FILE)
    ledger = Ledger(journal, TARIFFS, {})
    asked(ledger, journal, "cheap", 1, 0, 10)
    with records(tmp_path / FILE) as found:
        saving = saving_of(cascade(tmp_path), ledger, found)
    journal.close()
    assert saving == Saving("dear", 1, 0, None)
    assert str(saving) == "the cascade went on to dear for 0 of 1 answers"


@pytest.mark.parametrize(
    ("dollars", "said"), [("1.5", "saved $1.50 against"), ("-0.25", "cost $0.25 more than"), ("0", "saved $0.00")]
)
def test_a_cascade_may_also_cost_more(dollars: str, said: str) -> None:
    text = str(Saving("dear", 1_000, 10, Decimal(dollars)))
    assert text.startswith("the cascade went on to dear for 10 of 1,000 answers, and ")
    assert said in text


def test_another_routing_saves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / FILE)
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))).recipe
    with records(tmp_path / FILE) as found:
        assert saving_of(recipe, Ledger(journal, {}, {}), found) is None
    journal.close()
