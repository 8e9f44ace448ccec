"""What a cascade costs: the arithmetic of recorded answers by hand, and a price put in another's place."""

from __future__ import annotations

from decimal import Decimal

import pytest

from teachers.catalog import lookup
from teachers.journal import Totals
from teachers.prices import Rates, Tariff
from tests.benchmark.cascade import RULES, Recorded, opus_tariff, repriced, simulated

CENT = Decimal("0.01")


def pair(cheap: float | None, dear: float, rewrite: str | None = None) -> Recorded:
    """The cheap teacher's answer is a cent, the dear one's twelve."""
    return Recorded((cheap, dear), (rewrite, None), (CENT, 12 * CENT))


def test_rules_by_hand() -> None:
    """Of ten answers the cheap teacher knows seven, is unsure about one, wrong about one, and corrects one wrongly."""
    pairs = [*[pair(1.0, 1.0)] * 4, *[pair(0.0, 0.0)] * 3, pair(0.5, 1.0), pair(1.0, 0.0), pair(0.0, 0.0, "?")]
    found = {name: simulated(pairs, rule) for name, rule in RULES.items()}
    never, where_unsure, checked, always = found.values()
    assert never == (0.0, 0.7, 10 * CENT)
    assert where_unsure == (0.1, 0.8, 22 * CENT)
    assert checked == (pytest.approx(0.3), 1.0, 46 * CENT)  # of 120 cents for the dear one about all
    assert always == (1.0, 1.0, 130 * CENT)


def test_who_says_nothing_is_asked_no_longer() -> None:
    assert simulated([pair(None, 1.0)], RULES["where it is unsure"]).reached == 1.0


def test_the_worked_example_and_its_prices() -> None:
    """1,000 tasks a day of 10,000 output tokens: $750 at Opus 4.6's price, $34.80 at V4-Pro's, over $260,000 a year
    apart; and V4-Flash's, 268 times cheaper than Opus."""
    pro, flash = lookup("deepseek-v4-pro"), lookup("deepseek-v4-flash")
    assert pro is not None
    assert flash is not None
    a_day = Totals(requests=1_000, output=1_000 * 10_000)
    tariffs = (opus_tariff(), pro.price_in("2026-04").tariff, flash.price_in("2026-04").tariff)
    opus, middle, cheap = (repriced(a_day, tariff) for tariff in tariffs)
    assert (opus, middle, cheap) == (Decimal(750), Decimal("34.80"), Decimal("2.80"))
    assert 365 * (opus - middle) == Decimal(261_048)
    assert round(opus / cheap) == 268
    assert repriced(Totals(input=1_000_000), Tariff(Rates(Decimal(15), Decimal(75)))) == 15
