"""What a run's remote teachers came to, as a person reads it and as `ledger.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from pipeline.display import Display
from pipeline.files import write_json
from pipeline.recipe import RecipeBase
from pipeline.remote import Desk
from teachers.journal import FILE, Doubtful
from teachers.ledger import COLUMNS, Ledger, Row
from teachers.prices import FREE, Payback, cascade_saving, money, tariff_of
from teachers.records import Records, records

LEDGER = "ledger.json"


@dataclass(frozen=True)
class Saving:
    """What a cascade saved against asking its dearest teacher about everything, at what an answer of that one cost.

    questions: completions that the cascade was asked about. reached: of them, answered by the dearest.
    dollars: below 0 where asking the others first cost more than it saved; None where nobody knows what an answer of
    the dearest costs.
    """

    dearest: str
    questions: int
    reached: int
    dollars: Decimal | None

    def __str__(self) -> str:
        text = f"the cascade went on to {self.dearest} for {self.reached:,} of {self.questions:,} answers"
        if self.dollars is None:
            return text
        difference = money(abs(self.dollars))
        if self.dollars < 0:
            return f"{text}, and cost {difference} more than asking {self.dearest} about all"
        return f"{text}, and saved {difference} against asking {self.dearest} about all"


def conclude(desk: Desk, display: Display) -> None:
    """Prints what the teachers took, and writes `ledger.json`; nothing where nobody was ever asked."""
    ledger, journal = desk.ledger, desk.journal
    if ledger is None or journal is None or not (rows := ledger.table()):
        return
    doubtful = journal.doubtful()
    price = desk.recipe.pool.student_price
    paybacks = ledger.payback(tariff_of(price)) if price is not None else ()
    with records(desk.folder / FILE) as found:
        saving = saving_of(desk.recipe, ledger, found)
    display.table("what the teachers took", list(COLUMNS), [list(row.cells) for row in rows])
    for line in (*_in_doubt(doubtful), *([str(saving)] if saving else []), *map(str, paybacks)):
        display.note(line)
    write_json(desk.folder / LEDGER, as_json(rows, doubtful, saving, paybacks))


def saving_of(recipe: RecipeBase, ledger: Ledger, found: Records) -> Saving | None:
    """None where the recipe's routing is no cascade."""
    routing = recipe.routing
    if routing.kind != "cascade":
        return None
    totals = ledger.totals(*routing.order)
    answered = sum(n for who, state, _, n in found.outcomes() if who == routing.order[-1] and state == "answered")
    questions = found.questions(routing.order)
    spent = [totals[name].dollars for name in routing.order]
    dollars = cascade_saving(spent, len(spent) - 1, answered, questions) if any(spent) else None
    return Saving(routing.order[-1], questions, answered, dollars)


def as_json(
    rows: tuple[Row, ...], doubtful: tuple[Doubtful, ...], saving: Saving | None, paybacks: tuple[Payback, ...]
) -> dict[str, Any]:
    """Dollars are text: a float would not add up to the bill."""
    own = rows[:-1] if len(rows) > 1 else rows  # without the row for all
    return {
        "teachers": {
            row.teacher: _plain({**asdict(row.totals), "replayed": row.replayed, "saved": row.saved}) for row in own
        },
        "dollars": str(sum((row.totals.dollars for row in own), FREE)),
        "in_doubt": [_plain(asdict(one)) for one in doubtful],
        "cascade": _plain(asdict(saving)) if saving else None,
        "payback": [_plain(asdict(one)) for one in paybacks],
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Decimal) else value for name, value in values.items()}


def _in_doubt(doubtful: tuple[Doubtful, ...]) -> list[str]:
    """One line per teacher."""
    lines = []
    for teacher in dict.fromkeys(one.teacher for one in doubtful):
        own = [one for one in doubtful if one.teacher == teacher]
        reasons = ", ".join(sorted({one.reason for one in own}))
        dollars = money(sum((one.dollars for one in own), FREE))
        lines.append(
            f"in doubt: {len(own)} of the questions to {teacher} ({reasons}); perhaps charged, and counted with the "
            f"most that they can have cost, {dollars}"
        )
    return lines
