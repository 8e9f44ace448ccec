"""What teachers cost, live: a place in the budget before each question, the real amount after it.

The journal counts what was charged; here are prices, budgets, and what is under way.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from teachers.config import Budget
from teachers.errors import TeacherError
from teachers.journal import Journal, Totals
from teachers.prices import FREE, Payback, Tariff, money, payback
from teachers.types import Usage

RUN = "run"  # whose budget: all teachers'
COLUMNS = (
    *("teacher", "requests", "input", "cached", "output", "reasoning", "seconds", "cost", "in doubt", "replayed"),
    "saved",
)


@dataclass(frozen=True)
class Reservation:
    """A question's place in the budgets: the most that it can cost."""

    teacher: str
    estimate: Usage
    dollars: Decimal
    tokens: int


@dataclass(frozen=True)
class OverBudget:
    """A question that might exceed a budget. who: a teacher's, or RUN's. then: what the recipe says comes next."""

    who: str
    then: Literal["stop", "drop"]
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Row:
    """A teacher in the table. saved: dollars that answers from the journal did not cost again."""

    teacher: str
    totals: Totals
    replayed: int
    saved: Decimal

    @property
    def cells(self) -> tuple[str | int | float, ...]:
        """In the order of COLUMNS."""
        t = self.totals
        tokens = (t.input, t.cached, t.output, t.reasoning)
        doubt = f"{t.doubtful} ({money(t.doubtful_dollars)})" if t.doubtful else "0"
        return (
            *(self.teacher, t.requests, *tokens, round(t.seconds, 1), money(t.dollars), doubt),
            *(self.replayed, money(self.saved)),
        )


@dataclass
class _Account:
    """What a budget has to cover. spent: settled, what is in doubt at its estimate; reserved: under way."""

    spent_dollars: Decimal = FREE
    spent_tokens: int = 0
    reserved_dollars: Decimal = FREE
    reserved_tokens: int = 0
    replayed: int = 0
    saved: Decimal = FREE

    def refusal(self, who: str, budget: Budget | None, dollars: Decimal, tokens: int) -> OverBudget | None:
        """Why a question that can take so much may not be sent, or None."""
        if budget is None:
            return None
        said = f"the budget of {who} is too small for the next question: "
        held = self.spent_dollars + self.reserved_dollars
        if budget.dollars is not None and held + dollars > (limit := Decimal(str(budget.dollars))):
            said += f"{money(held)} of {money(limit)} are spent or under way, and it can cost {money(dollars)}"
            return OverBudget(who, budget.then, said)
        used = self.spent_tokens + self.reserved_tokens
        if budget.tokens is not None and used + tokens > budget.tokens:
            said += f"{used:,} of {budget.tokens:,} tokens are spent or under way, and it can take {tokens:,}"
            return OverBudget(who, budget.then, said)
        return None

    def hold(self, dollars: Decimal, tokens: int) -> None:
        self.reserved_dollars += dollars
        self.reserved_tokens += tokens


class Ledger:
    """The accounts of one run's teachers. Every method may be called from any thread."""

    def __init__(
        self,
        journal: Journal,
        prices: Mapping[str, Tariff],
        budgets: Mapping[str, Budget | None],
        whole: Budget | None = None,
    ) -> None:
        """Starts with what the journal says was charged.

        prices: by teacher; one that is not there costs nothing, and its tokens are counted all the same.
        budgets: by teacher. whole: of all teachers together, those that a resumed run no longer has included.
        Raises TeacherError for a teacher with a budget in dollars and no price.
        """
        for name, budget in budgets.items():
            if budget is not None and budget.dollars is not None and name not in prices:
                raise TeacherError(
                    f"teachers.{name}: a budget in dollars, and no price is known; add `price`, or a budget in tokens"
                )
        self._journal, self._prices, self._budgets, self._whole = journal, prices, budgets, whole
        self._lock = threading.Lock()
        charged = self.totals(*budgets, *prices)
        self._accounts = {name: _opened(found) for name, found in charged.items()}
        self._run = _opened(sum(charged.values(), Totals()))

    def reserve(self, teacher: str, estimate: Usage) -> Reservation | OverBudget:
        """A place for a question that takes at most `estimate`. Every reservation is settled or released, once."""
        tariff = self._prices.get(teacher)
        dollars = tariff.most(estimate) if tariff else FREE
        tokens = estimate.input + estimate.output
        with self._lock:
            own = self._account(teacher)
            refusal = own.refusal(teacher, self._budgets.get(teacher), dollars, tokens)
            refusal = refusal or self._run.refusal(RUN, self._whole, dollars, tokens)
            if refusal is not None:
                return refusal
            own.hold(dollars, tokens)
            self._run.hold(dollars, tokens)
        return Reservation(teacher, estimate, dollars, tokens)

    def settle(self, reservation: Reservation, usage: Usage) -> Decimal:
        """What a question took: its estimate, where that is in doubt. Returns the dollars, for the journal."""
        tariff = self._prices.get(reservation.teacher)
        # A server may count wrong; it cannot give a budget back.
        dollars = max(tariff.cost(usage), FREE) if tariff else FREE
        self._end(reservation, dollars, max(usage.input + usage.output, 0))
        return dollars

    def release(self, reservation: Reservation) -> None:
        """The question was never sent."""
        self._end(reservation, FREE, 0)

    def replayed(self, teacher: str, usage: Usage) -> None:
        """An answer came from the journal and cost nothing."""
        tariff = self._prices.get(teacher)
        with self._lock:
            account = self._account(teacher)
            account.replayed += 1
            account.saved += tariff.cost(usage) if tariff else FREE

    def totals(self, *more: str) -> dict[str, Totals]:
        """What each teacher came to so far, by name; questions under way are not in it. more: names to include."""
        return {name: self._journal.charged(name) for name in dict.fromkeys((*more, *self._journal.teachers()))}

    def table(self) -> tuple[Row, ...]:
        """A row per teacher, and where there are several, one for all."""
        with self._lock:
            seen = {name: (account.replayed, account.saved) for name, account in self._accounts.items()}
        rows = tuple(Row(name, found, *seen.get(name, (0, FREE))) for name, found in self.totals(*seen).items())
        if len(rows) < 2:
            return rows
        whole = sum((row.totals for row in rows), Totals())
        return (*rows, Row("all", whole, sum(row.replayed for row in rows), sum((row.saved for row in rows), FREE)))

    def payback(self, student: Tariff, *, output_a_day: int | None = None) -> tuple[Payback, ...]:
        """For each teacher with a price: when a student served at that price in its place has paid back all teachers.

        output_a_day: the output tokens that are served a day.
        """
        spent = sum(self.totals().values(), Totals()).dollars
        return tuple(
            payback(spent, name, tariff, student, output_a_day=output_a_day) for name, tariff in self._prices.items()
        )

    def _end(self, reservation: Reservation, dollars: Decimal, tokens: int) -> None:
        with self._lock:
            for account in (self._accounts[reservation.teacher], self._run):
                account.hold(-reservation.dollars, -reservation.tokens)
                account.spent_dollars += dollars
                account.spent_tokens += tokens

    def _account(self, teacher: str) -> _Account:
        return self._accounts.setdefault(teacher, _Account())


def _opened(found: Totals) -> _Account:
    return _Account(found.dollars, found.tokens)
