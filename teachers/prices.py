"""What tokens cost, in exact decimals: rates, tiers, the most a question can cost, when a student has paid back.

Money is `decimal.Decimal` dollars everywhere; floats would not add up to the bill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from teachers.config import Price
from teachers.types import Finding, Usage

MILLION = Decimal(1_000_000)
FREE = Decimal(0)


@dataclass(frozen=True)
class Rates:
    """US dollars per million tokens. cached: of input tokens that the server had in its cache; None: as `input`."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None

    def cost(self, usage: Usage) -> Decimal:
        """Dollars. `cached` tokens are a part of `input`, `reasoning` tokens a part of `output`."""
        cached = min(usage.cached, usage.input)
        fresh = usage.input - cached
        rate = self.input if self.cached is None else self.cached
        return (fresh * self.input + cached * rate + usage.output * self.output) / MILLION


@dataclass(frozen=True)
class Tariff:
    """Rates, and other rates for long requests. tiers: (more input tokens than this, the whole request's rates)."""

    rates: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()

    def cost(self, usage: Usage) -> Decimal:
        """Dollars for one request."""
        reached = [(above, rates) for above, rates in self.tiers if usage.input > above]
        return max(reached, key=lambda tier: tier[0])[1].cost(usage) if reached else self.rates.cost(usage)

    def most(self, usage: Usage) -> Decimal:
        """Dollars that a request of at most so many tokens cannot exceed: nothing cached, the dearest tier in reach."""
        within = [self.rates, *(rates for above, rates in self.tiers if usage.input > above)]
        return max(_uncached(rates, usage) for rates in within)


def _uncached(rates: Rates, usage: Usage) -> Decimal:
    dearest_input = max(rates.input, rates.input if rates.cached is None else rates.cached)
    return (usage.input * dearest_input + usage.output * rates.output) / MILLION


def tariff_of(price: Price) -> Tariff:
    """A recipe's price. Its floats become the decimals that were written."""
    cached = None if price.cached is None else Decimal(str(price.cached))
    return Tariff(Rates(Decimal(str(price.input)), Decimal(str(price.output)), cached))


@dataclass(frozen=True)
class Payback:
    """When a student that is served instead of a teacher has paid back what its teachers cost.

    tokens: output tokens until then; None where the student is not cheaper. Dollars a day and days: at the number of
    output tokens a day that was asked about; None without one.
    """

    teacher: str
    tokens: int | None
    teacher_a_day: Decimal | None = None
    student_a_day: Decimal | None = None
    days: Decimal | None = None

    def __str__(self) -> str:
        text = f"served instead of {self.teacher}, the student"
        if self.tokens is None:
            return f"{text} saves nothing: its output tokens are not cheaper"
        text = f"{text} has paid its teachers back after {self.tokens:,} output tokens"
        if self.days is None or self.saved_a_year is None:
            return text
        return f"{text}, in {self.days:.1f} days, and then saves {money(self.saved_a_year)} a year"

    @property
    def saved_a_year(self) -> Decimal | None:
        """Dollars in 365 days, what the teachers cost not taken off."""
        if self.teacher_a_day is None or self.student_a_day is None:
            return None
        return 365 * (self.teacher_a_day - self.student_a_day)


def payback(spent: Decimal, name: str, teacher: Tariff, student: Tariff, *, output_a_day: int | None = None) -> Payback:
    """spent: dollars for all teachers. teacher: whom the student is served instead of. Only output tokens count."""
    saved = teacher.rates.output - student.rates.output  # per million
    tokens = int((spent * MILLION / saved).to_integral_value(ROUND_CEILING)) if saved > 0 else None
    if output_a_day is None:
        return Payback(name, tokens)
    a_day = Usage(output=output_a_day)
    theirs, ours = teacher.rates.cost(a_day), student.rates.cost(a_day)
    return Payback(name, tokens, theirs, ours, spent / (theirs - ours) if theirs > ours else None)


def cascade_saving(spent: Sequence[Decimal], dearest: int, answered: int, questions: int) -> Decimal | None:
    """Dollars that a cascade saved against asking its dearest teacher everything, at what an answer of its cost.

    spent: by each of its teachers, their failures included. dearest: which of them. answered: by the dearest.
    questions: of the cascade in all. None where the dearest was never asked, so that nobody knows.
    """
    if not answered:
        return None
    return spent[dearest] / answered * questions - sum(spent, FREE)


def money(dollars: Decimal) -> str:
    """For people: two decimals, or up to three significant digits where those say nothing."""
    sign, amount = "-" if dollars < 0 else "", abs(dollars)
    if amount == 0 or amount >= Decimal("0.1"):
        return f"{sign}${amount:,.2f}"
    digits = f"{amount.quantize(Decimal(1).scaleb(amount.adjusted() - 2)):f}"
    return f"{sign}${digits.rstrip('0').ljust(4, '0')}"


def price_finding(name: str, *, known: bool, here: bool) -> Finding:
    """What preflight says about a teacher's price. here: whether its server is this machine."""
    if known:
        return Finding("price", True, "known")
    if here:
        return Finding("price", None, "none: nothing is charged")
    where = f"teachers.{name}.price"
    return Finding("price", None, f"not known: its dollars are not counted, and no budget holds them; set {where}")
