"""The report while a run goes on: it refreshes itself, and the reader keeps their place."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.report.page import run_page
from pipeline.report.serve import Page, server_of
from tests.browser.conftest import Opened
from tests.run_directories import Size, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", Size(steps=40, rollouts=10))


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    page = Page(run, partial(run_page, run, live=True), clock=lambda: 0.0)
    with server_of(page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def go_on(run: Path, step: int) -> None:
    """One more step is done."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**lines[-1], "step": step, "loss": 0.125}) + "\n")
    (run / "run.new").write_text(json.dumps({"status": "running"}))
    (run / "run.new").rename(run / "run.json")  # whole, as a run writes it: the server reads while this goes on


def test_it_follows_the_run_and_keeps_the_readers_place(opened: Callable[..., Opened], run: Path, address: str) -> None:
    page = opened(address).page
    expect(page.locator(".pill").first).to_have_text("finished")
    page.get_by_role("tab", name="Curves").click()
    page.locator('[data-chart="loss"] .plot').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    zoomed = page.locator("#charts").get_attribute("data-range")
    page.get_by_role("tab", name="Tokens").click()
    page.locator("#rollout-3").click()
    page.locator("#token-7").click()
    page.evaluate("scrollTo(0, 150)")
    expect(page.locator("#live")).to_contain_text("Up to date")
    go_on(run, 41)
    expect(page.locator(".pill").first).to_have_text("running")
    assert page.evaluate("data.charts.find((c) => c.id === 'loss').curves[0].values.at(-1)") == 0.125
    expect(page.locator("#tokens")).to_be_visible()
    expect(page.locator("#rollout-3")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#choices")).to_contain_text("token 8 of")
    assert page.evaluate("scrollY") == 150
    page.get_by_role("tab", name="Curves").click()
    assert page.locator("#charts").get_attribute("data-range") == zoomed


def test_the_command_serves_until_ctrl_c(opened: Callable[..., Opened], run: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "report", str(run), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        (address,) = re.findall(r"http://127\.0\.0\.1:\d+/", line)
        found = opened(address)
        expect(found.page.locator("#live")).to_contain_text("Up to date")
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(timeout=60) == 0
    found.page.evaluate("live.ask()")
    expect(found.page.locator("#live")).to_contain_text("The server is gone")
    found.page.close()  # which would ask again and again
    found.errors.clear()  # the browser says itself that nobody answered
    assert not (run / "report.html").exists()
