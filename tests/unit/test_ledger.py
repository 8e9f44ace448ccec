"""Prices, budgets and totals, in exact decimals; the worked example of the prices this project started from."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from teachers.catalog import lookup
from teachers.config import Budget, Price
from teachers.errors import TeacherError
from teachers.journal import Journal, Totals
from teachers.ledger import COLUMNS, RUN, Ledger, OverBudget, Reservation
from teachers.prices import FREE, Rates, Tariff, cascade_saving, money, payback, tariff_of
from teachers.types import Answer, Judgment, TeacherFailure, Usage

PRO = Tariff(Rates(Decimal("1.74"), Decimal("3.48"), Decimal("0.1")))
DOLLAR_A_TOKEN = Tariff(Rates(Decimal(1_000_000), Decimal(1_000_000)))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def ask(ledger: Ledger, journal: Journal, teacher: str, most: Usage, took: Usage | None) -> Decimal | OverBudget:
    """A whole question, as the courier does it. took: None where it ends in doubt."""
    place = ledger.reserve(teacher, most)
    if isinstance(place, OverBudget):
        return place
    attempt = journal.intend("k", teacher=teacher, request_id="r", step=1, dollars=place.dollars, tokens=place.tokens)
    dollars = ledger.settle(place, place.estimate if took is None else took)
    doubt = TeacherFailure(teacher, "timeout", True, in_doubt=True)
    journal.settle(attempt, doubt if took is None else Answer(Judgment(), took, latency=0.5), dollars)
    return dollars


# ---- the worked example ----


def test_the_worked_example() -> None:
    """1,000 tasks a day × 10,000 output tokens: $750 at $75 and $34.80 at $3.48, over $260,000 a year."""
    opus, pro = lookup("claude-opus-4.6"), lookup("deepseek-v4-pro")
    assert opus is not None
    assert pro is not None
    teacher, student = opus.price_in("2026-04").tariff, pro.price_in("2026-04").tariff
    found = payback(Decimal(7152), "opus", teacher, student, output_a_day=1_000 * 10_000)
    assert found.teacher_a_day == Decimal(750)
    assert found.student_a_day == Decimal("34.80")
    assert found.saved_a_year == Decimal("261048.00")
    assert found.days == 10  # 7152 / (750 - 34.80)
    assert found.tokens == 100_000_000
    assert money(found.teacher_a_day) == "$750.00"
    assert money(found.student_a_day) == "$34.80"
    assert found.saved_a_year > 260_000
    assert str(found) == (
        "served instead of opus, the student has paid its teachers back after 100,000,000 output tokens, "
        "in 10.0 days, and then saves $261,048.00 a year"
    )


def test_a_runs_own_payback_is_of_all_its_teachers(journal: Journal) -> None:
    ledger = Ledger(journal, {"dear": DOLLAR_A_TOKEN, "cheap": PRO}, {})
    ask(ledger, journal, "dear", Usage(output=30), Usage(output=20))
    ask(ledger, journal, "cheap", Usage(output=1_000_000), Usage(output=1_000_000))
    dear, cheap = ledger.payback(Tariff(Rates(Decimal(1), Decimal("3.48"))), output_a_day=10)
    assert dear.teacher == "dear"
    saved_a_token = Fraction(1) - Fraction(348, 100_000_000)
    assert dear.tokens == -((-Fraction(2348, 100) / saved_a_token) // 1)
    assert cheap.tokens is None  # a student at the teacher's price never pays it back
    assert cheap.days is None
    assert "saves nothing" in str(cheap)
    assert str(ledger.payback(PRO)[0]).endswith("output tokens")


# ---- exactness ----


def test_cost_is_the_exact_sum(journal: Journal) -> None:
    rng = random.Random(1)
    prices = {
        f"t{n}": Tariff(Rates(*(Decimal(rng.randrange(1, 10**7)).scaleb(-6) for _ in range(3)))) for n in range(3)
    }
    ledger = Ledger(journal, prices, {})
    expected: dict[str, Fraction] = {}
    for _ in range(300):
        name = rng.choice(list(prices))
        read, written = rng.randrange(10_000), rng.randrange(10_000)
        usage = Usage(read, rng.randrange(read + 1), written, rng.randrange(written + 1))
        rates = prices[name].rates
        assert rates.cached is not None
        exact = (
            Fraction(rates.input) * (usage.input - usage.cached)
            + Fraction(rates.cached) * usage.cached
            + Fraction(rates.output) * usage.output
        ) / 10**6
        expected[name] = expected.get(name, Fraction(0)) + exact
        assert Fraction(ask(ledger, journal, name, usage, usage)) == exact  # type: ignore[arg-type]
    assert {name: Fraction(found.dollars) for name, found in ledger.totals().items()} == expected


def test_a_recipes_price_is_what_was_written() -> None:
    tariff = tariff_of(Price(input=0.1, output=0.003625, cached=1e-3))
    assert tariff.rates == Rates(Decimal("0.1"), Decimal("0.003625"), Decimal("0.001"))
    assert tariff_of(Price(input=1, output=2)).rates.cached is None


def test_cached_tokens_without_a_price_cost_as_input() -> None:
    rates = Rates(Decimal(2), Decimal(0))
    assert rates.cost(Usage(input=10, cached=10)) == rates.cost(Usage(input=10))
    assert replace(rates, cached=Decimal(1)).cost(Usage(input=10, cached=99)) == Decimal("0.00001")


def test_nothing_costs_more_than_the_most() -> None:
    rng = random.Random(2)
    for _ in range(500):
        rates = [Rates(*(Decimal(rng.randrange(10)) for _ in range(3))) for _ in range(3)]
        tariff = Tariff(rates[0], ((rng.randrange(100), rates[1]), (rng.randrange(100), rates[2])))
        most = Usage(input=rng.randrange(200), output=rng.randrange(200))
        took = Usage(rng.randrange(most.input + 1), rng.randrange(most.input + 1), rng.randrange(most.output + 1))
        assert tariff.cost(took) <= tariff.most(most)


def test_the_highest_tier_that_is_reached_counts() -> None:
    tariff = Tariff(
        Rates(Decimal(1), Decimal(0)), ((20, Rates(Decimal(3), Decimal(0))), (10, Rates(Decimal(2), Decimal(0))))
    )
    assert [tariff.cost(Usage(input=n)) * 10**6 / n for n in (10, 11, 20, 21)] == [1, 2, 2, 3]


# ---- budgets ----


def test_a_question_that_might_exceed_a_budget_is_refused_before_it_is_sent(journal: Journal) -> None:
    ledger = Ledger(journal, {"a": DOLLAR_A_TOKEN}, {"a": Budget(dollars=10, then="drop")})
    first = ledger.reserve("a", Usage(output=6))
    assert isinstance(first, Reservation)
    assert (first.dollars, first.tokens) == (6, 6)
    refused = ledger.reserve("a", Usage(output=5))
    assert isinstance(refused, OverBudget)
    assert (refused.who, refused.then) == ("a", "drop")
    assert str(refused) == (
        "the budget of a is too small for the next question: $6.00 of $10.00 are spent or under way, "
        "and it can cost $5.00"
    )
    assert isinstance(ledger.reserve("a", Usage(output=4)), Reservation)  # exactly full
    assert ledger.settle(first, Usage(output=1)) == 1
    assert isinstance(ledger.reserve("a", Usage(output=5)), Reservation)  # what was not used is free again
    assert isinstance(ledger.reserve("a", Usage(output=1)), OverBudget)


def test_budgets_in_tokens_and_for_all_together(journal: Journal) -> None:
    ledger = Ledger(journal, {}, {"a": Budget(tokens=10)}, Budget(tokens=15))
    assert isinstance(ledger.reserve("a", Usage(input=8, output=2)), Reservation)
    own = ledger.reserve("a", Usage(input=1))
    assert isinstance(own, OverBudget)
    assert (own.who, own.then) == ("a", "stop")
    assert "10 of 10 tokens" in own.message
    assert isinstance(ledger.reserve("b", Usage(input=5)), Reservation)
    whole = ledger.reserve("b", Usage(input=1))
    assert isinstance(whole, OverBudget)
    assert whole.who == RUN


def test_what_is_in_doubt_stays_charged(journal: Journal) -> None:
    ledger = Ledger(journal, {"a": DOLLAR_A_TOKEN}, {"a": Budget(dollars=10)})
    assert ask(ledger, journal, "a", Usage(output=6), None) == 6
    assert isinstance(ledger.reserve("a", Usage(output=5)), OverBudget)
    found = ledger.totals()["a"]
    assert (found.doubtful, found.doubtful_dollars, found.dollars, found.output, found.tokens) == (1, 6, 6, 0, 6)


def test_what_was_never_sent_is_given_back(journal: Journal) -> None:
    ledger = Ledger(journal, {"a": DOLLAR_A_TOKEN}, {"a": Budget(dollars=10)})
    place = ledger.reserve("a", Usage(output=10))
    assert isinstance(place, Reservation)
    ledger.release(place)
    assert isinstance(ledger.reserve("a", Usage(output=10)), Reservation)


def test_a_server_that_counts_wrong_gives_no_budget_back(journal: Journal) -> None:
    ledger = Ledger(journal, {"a": DOLLAR_A_TOKEN}, {"a": Budget(dollars=10, tokens=10)})
    place = ledger.reserve("a", Usage(output=10))
    assert isinstance(place, Reservation)
    assert ledger.settle(place, Usage(output=-1_000)) == 0
    assert isinstance(ledger.reserve("a", Usage(output=11)), OverBudget)
    more = ledger.reserve("a", Usage(output=10))
    assert isinstance(more, Reservation)
    assert ledger.settle(more, Usage(output=25)) == 25  # it is what will be on the bill
    assert isinstance(ledger.reserve("a", Usage()), OverBudget)


def test_a_resumed_run_starts_with_what_was_spent(journal: Journal, tmp_path: Path) -> None:
    ledger = Ledger(journal, {"a": DOLLAR_A_TOKEN}, {})
    ask(ledger, journal, "a", Usage(output=9), Usage(output=4))
    journal.intend("k2", teacher="a", request_id="r", step=2, dollars=Decimal(3), tokens=3)  # and is killed
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    resumed = Ledger(again, {"a": DOLLAR_A_TOKEN}, {"a": Budget(dollars=10)}, Budget(tokens=10))
    assert resumed.totals()["a"].dollars == 7
    assert isinstance(resumed.reserve("a", Usage(output=4)), OverBudget)
    assert isinstance(resumed.reserve("a", Usage(output=3)), Reservation)
    without = Ledger(again, {}, {}, Budget(tokens=10))  # a teacher that is no longer there was paid all the same
    assert isinstance(without.reserve("b", Usage(output=4)), OverBudget)
    again.close()


def test_no_budget_is_exceeded_by_many_threads(journal: Journal) -> None:
    ledger = Ledger(journal, {"a": DOLLAR_A_TOKEN, "b": DOLLAR_A_TOKEN}, {"a": Budget(dollars=60)}, Budget(dollars=100))
    spent: list[tuple[str, Decimal]] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(200):
            name = rng.choice("ab")
            most = rng.randrange(1, 6)
            place = ledger.reserve(name, Usage(output=most))
            if isinstance(place, Reservation):
                spent.append((name, ledger.settle(place, Usage(output=rng.randrange(most + 1)))))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_a = sum(dollars for name, dollars in spent if name == "a")
    assert by_a <= 60
    assert 95 < sum(dollars for _, dollars in spent) <= 100


def test_a_budget_in_dollars_needs_a_price(journal: Journal) -> None:
    with pytest.raises(TeacherError, match=r"teachers\.a: a budget in dollars, and no price"):
        Ledger(journal, {}, {"a": Budget(dollars=1)})
    Ledger(journal, {}, {"a": Budget(tokens=1), "b": None}, Budget(dollars=1))


# ---- for people ----


def test_the_table_has_a_row_per_teacher_and_one_for_all(journal: Journal) -> None:
    ledger = Ledger(journal, {"a": DOLLAR_A_TOKEN, "b": PRO}, {"a": None, "c": None})
    ask(ledger, journal, "a", Usage(output=9), Usage(1, 0, 2, 1))
    ask(ledger, journal, "b", Usage(output=9), None)
    ledger.replayed("a", Usage(output=2))
    rows = {row.teacher: row for row in ledger.table()}
    assert list(rows) == ["a", "c", "b", "all"]
    assert rows["a"].cells == ("a", 1, 1, 0, 2, 1, 0.5, "$3.00", "0", 1, "$2.00")
    assert rows["b"].cells == ("b", 1, 0, 0, 0, 0, 0.0, "$0.0000313", "1 ($0.0000313)", 0, "$0.00")
    assert rows["c"].totals == Totals()
    assert rows["all"].totals == rows["a"].totals + rows["b"].totals
    assert rows["all"].saved == 2
    assert all(len(row.cells) == len(COLUMNS) for row in rows.values())


def test_one_teacher_needs_no_row_for_all(journal: Journal) -> None:
    assert [row.teacher for row in Ledger(journal, {"a": PRO}, {}).table()] == ["a"]
    assert Ledger(journal, {}, {}).table() == ()


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        ("0", "$0.00"),
        ("261048", "$261,048.00"),
        ("0.1", "$0.10"),
        ("0.0348", "$0.0348"),
        ("0.0700", "$0.07"),
        ("0.09999", "$0.10"),
        ("-0.02", "-$0.02"),
        ("-1234.5", "-$1,234.50"),
        ("0.000000313", "$0.000000313"),
    ],
)
def test_money_says_something_at_every_size(dollars: str, text: str) -> None:
    assert money(Decimal(dollars)) == text


def test_what_a_cascade_saved() -> None:
    # 100 questions, 20 of them went on to the dearest, which took $10 for those: $50 for all of them.
    assert cascade_saving([Decimal(2), Decimal(10)], dearest=1, answered=20, questions=100) == 38
    assert cascade_saving([Decimal(2), FREE], dearest=1, answered=0, questions=100) is None
