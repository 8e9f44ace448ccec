"""The catalog: every entry is whole, dated and sourced; the figures are those that are documented."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from teachers.catalog import Entry, catalog, lookup
from teachers.config import ProvidedBase
from teachers.types import Usage

ROOT = Path(__file__).parents[2]
# Name in a recipe, as sent, input, output, cached: US dollars per million tokens, the last known.
KNOWN = [
    ("deepseek-v4-pro", "deepseek-v4-pro", "1.32", "3.96", "0.044"),
    ("deepseek-v4-flash", "deepseek-v4-flash", "0.3", "1.2", "0.006"),
    ("deepseek-flash", "deepseek-flash", "0.3", "1.2", "0.006"),
    ("claude-opus-4.6", "claude-opus-4-6", "5", "25", "0.5"),
    ("claude-opus-4.7", "claude-opus-4-7", "5", "25", None),
    ("claude-opus-5.5", "claude-opus-5-5", "4", "20", None),
    ("gpt-5.4", "gpt-5.4", "2.5", "15", "0.25"),
    ("gpt-5.5", "gpt-5.5", "5", "30", "0.5"),
    ("gemini-3.1-pro", "gemini-3.1-pro-preview", "2", "12", None),
]
APRIL = [
    ("deepseek-v4-pro", "1.74", "3.48"),
    ("deepseek-v4-flash", "0.14", "0.28"),
    ("claude-opus-4.6", "15", "75"),
]


def entry(name: str) -> Entry:
    found = lookup(name)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "sent", "read", "written", "cached"), KNOWN)
def test_the_last_price_counts(name: str, sent: str, read: str, written: str, cached: str | None) -> None:
    found = entry(name)
    rates = found.tariff.rates
    assert found.model == sent
    assert (rates.input, rates.output) == (Decimal(read), Decimal(written))
    assert rates.cached == (None if cached is None else Decimal(cached))
    assert found.price.input == float(read)
    assert found.price.date == found.prices[-1].read


def test_all_that_are_known_are_tested() -> None:
    assert [name for name, *_ in KNOWN] == list(catalog())


@pytest.mark.parametrize(("name", "read", "written"), APRIL)
def test_the_prices_of_april_2026_stay(name: str, read: str, written: str) -> None:
    rates = entry(name).price_in("2026-04").tariff.rates
    assert (rates.input, rates.output) == (Decimal(read), Decimal(written))
    with pytest.raises(LookupError, match="2020-01"):
        entry(name).price_in("2020-01")


@pytest.mark.parametrize("name", [name for name, *_ in KNOWN])
def test_every_entry_is_dated_sourced_and_safe(name: str) -> None:
    found = entry(name)
    assert found.url.startswith("https://")
    assert found.provider.region
    assert found.provider.training in ("allowed", "forbidden", "unknown")
    assert found.provider.date
    assert found.provider.source
    read = [price.read for price in found.prices]
    assert read == sorted(read)
    for price in found.prices:
        assert price.cached is None or price.cached <= price.input
        assert all(tier.input >= price.input and tier.output >= price.output for tier in price.above)
        assert [tier.tokens for tier in price.above] == sorted(tier.tokens for tier in price.above)


def test_a_model_is_found_by_both_names_and_only_at_its_own_address() -> None:
    assert lookup("claude-opus-4-6") is lookup("claude-opus-4.6") is not None
    assert lookup("no-such-model") is None
    pro = entry("deepseek-v4-pro")
    assert lookup("deepseek-v4-pro", "https://api.deepseek.com/") is pro
    assert lookup("deepseek-v4-pro", "http://127.0.0.1:8000/v1") is None
    assert lookup("deepseek-v4-pro", ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1")) is None


def test_a_long_request_is_dearer_as_a_whole() -> None:
    tariff = entry("gpt-5.5").tariff
    assert tariff.cost(Usage(input=272_000, output=1_000)) == Decimal("1.36") + Decimal("0.03")
    assert tariff.cost(Usage(input=272_001, output=1_000)) == Decimal("2.72001") + Decimal("0.045")


def test_a_mistake_in_the_file_is_refused() -> None:
    whole = entry("gpt-5.4").model_dump()
    adapter = TypeAdapter(Entry)
    adapter.validate_python(whole)
    for key, value in (("url", "api.openai.com"), ("key", "sk-123"), ("prices", []), ("extra", 1)):
        with pytest.raises(ValueError, match=key):
            adapter.validate_python(whole | {key: value})


def test_it_is_in_what_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "catalog.yaml" in project["tool"]["setuptools"]["package-data"]["teachers"]


def test_it_reads_without_torch_and_holds_no_keys() -> None:
    code = "import sys; sys.modules['torch'] = None; from teachers.catalog import catalog; print(len(catalog()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(found.stdout) == len(KNOWN)
    text = (ROOT / "teachers/catalog.yaml").read_text(encoding="utf-8")
    assert not re.search(r"sk-[A-Za-z0-9]{8}", text)


def test_what_a_recipe_says_of_a_provider_has_the_same_fields() -> None:
    assert ProvidedBase.model_fields["provider"].annotation is Entry.model_fields["provider"].annotation
