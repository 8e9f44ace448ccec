"""A headless Chromium for the tests beside this file: /usr/bin/chromium, as Debian's package has it.

Skipped where it is not installed, but never in CI. So is what needs axe-core, which .ci/axe fetches.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
AXE = "TUTELAGE_AXE"  # the variable that names axe-core's script
SECONDS = 100.0  # after which something is stuck
expect.set_options(timeout=1000 * SECONDS)


def missing(what: str) -> None:
    """Skips the test, but fails it in CI."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{what}; CI has to have it")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed before the next file's tests: while it is open a loop runs in this thread, where others start theirs."""
    path = shutil.which("chromium")
    if path is None:
        missing("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and what it did that it should not: errors, and requests to anywhere but itself."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Opens a file or an address: `opened(path, dark=True, phone=True)`. What went wrong fails the test at its end."""
    contexts, pages = [], []

    def open_(where: Path | str, *, dark: bool = False, phone: bool = False) -> Opened:
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        settings: dict[str, Any] = {"has_touch": True, "is_mobile": True} if phone else {}
        context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", **settings)
        context.set_default_timeout(1000 * SECONDS)
        page = context.new_page()
        found = Opened(page)
        address = where.resolve().as_uri() if isinstance(where, Path) else where
        page.on("console", lambda said: found.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        page.on("request", lambda asked: found.requests.append(asked.url))
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        contexts.append(context)
        pages.append((found, address))
        return found

    yield open_
    for context in contexts:
        context.close()
    for found, address in pages:
        assert found.errors == []
        assert [url for url in found.requests if not url.startswith((address, "data:"))] == []


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source."""
    named = os.environ.get(AXE, "")
    if not named:
        missing(f"no axe-core: set {AXE} to what .ci/axe prints")
    return Path(named).read_text(encoding="utf-8")
