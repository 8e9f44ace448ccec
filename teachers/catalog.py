"""Known API models: address, key variable, prices with their history, and what their terms say. Imports no torch.

The data is `catalog.yaml` beside this file. Where a recipe has a price or a provider of its own, that counts.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import Field, TypeAdapter
from ruamel.yaml import YAML

from teachers.config import KeyVariable, Price, Provider, Section, Url
from teachers.prices import Rates, Tariff

Dollars = Annotated[Decimal, Field(ge=0)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]  # the day, or the month where no more is known


class Tier(Section):
    """The rates of a whole request whose input is longer than `tokens`."""

    tokens: Annotated[int, Field(gt=0)]
    input: Dollars
    output: Dollars
    cached: Dollars | None = None


class DatedPrice(Section):
    """US dollars per million tokens, from `since` on, as read on the day `read`."""

    input: Dollars
    output: Dollars
    cached: Dollars | None = None
    above: tuple[Tier, ...] = ()
    since: Day | None = None
    read: Day
    source: str = Field(min_length=1)

    @property
    def tariff(self) -> Tariff:
        tiers = tuple((tier.tokens, Rates(tier.input, tier.output, tier.cached)) for tier in self.above)
        return Tariff(Rates(self.input, self.output, self.cached), tiers)


class Entry(Section):
    """One model. model: its name as it is sent. key: the environment variable with the key. prices: oldest first."""

    model: str = Field(min_length=1)
    url: Url
    key: KeyVariable
    note: str | None = None
    prices: tuple[DatedPrice, ...] = Field(min_length=1)
    provider: Provider

    @property
    def price(self) -> Price:
        """The last price, for requests of common length."""
        last = self.prices[-1]
        cached = None if last.cached is None else float(last.cached)
        return Price(
            input=float(last.input), output=float(last.output), cached=cached, date=last.read, source=last.source
        )

    @property
    def tariff(self) -> Tariff:
        """The last price with its tiers."""
        return self.prices[-1].tariff

    def price_in(self, month: str) -> DatedPrice:
        """The price that was read in a month, such as 2026-04. Raises LookupError where none was."""
        for price in reversed(self.prices):
            if price.read.startswith(month):
                return price
        raise LookupError(f"{self.model}: no price was read in {month}")


@cache
def catalog() -> dict[str, Entry]:
    """Every known model by its name in a recipe."""
    text = files("teachers").joinpath("catalog.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Entry]).validate_python(YAML(typ="safe", pure=True).load(text))


def lookup(model: str, url: str | tuple[str, ...] | None = None) -> Entry | None:
    """The entry of a model, by its name in the catalog or as it is sent.

    url: where a recipe says that it is. At another address than the catalog's it is another server, whose prices and
    terms are not these: None.
    """
    known = catalog()
    entry = known.get(model) or next((entry for entry in known.values() if entry.model == model), None)
    if entry is None or url is None:
        return entry
    return entry if (url if isinstance(url, str) else url[0]).rstrip("/") == entry.url.rstrip("/") else None
