"""How large a long run's report is, and how long it takes to make and to open.

    python -m tests.benchmark.page [--steps 10000] [--rollouts 500] [--tokens 256] [--times 5]

The run's files are made up (tests/run_directories.py), as long as real ones. The page is opened in headless Chromium,
from a file and each time in a browser that has seen nothing; seconds are the browser's own, from the navigation's start
to the first text on the screen and to the end of loading, with all that its scripts draw at first. Medians.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

from pipeline.report.page import write_report
from tests.browser.conftest import ARGUMENTS
from tests.run_directories import Size, make_run

TIMES = """() => [
    performance.getEntriesByName('first-contentful-paint')[0].startTime,
    performance.getEntriesByType('navigation')[0].loadEventEnd,
]"""


def opened(page: Path, times: int) -> list[tuple[float, float]]:
    """Seconds to the first text, and to the end of loading, of each time that it is opened."""
    found = []
    with sync_playwright() as playwright:
        for _ in range(times):
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            tab = browser.new_page()
            tab.goto(page.as_uri(), wait_until="load")
            tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            first, loaded = tab.evaluate(TIMES)
            found.append((first / 1000, loaded / 1000))
            browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rollouts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = Size(steps=given.steps, rollouts=given.rollouts, tokens=given.tokens, prompts=300)
        run = make_run(Path(folder) / "run", size)
        start = time.perf_counter()
        page = write_report(run)
        made = time.perf_counter() - start
        first, loaded = zip(*opened(page, given.times), strict=True)
        print(f"{given.steps:,} steps, {given.rollouts:,} rollouts of {given.tokens:,} tokens")
        print(f"{page.stat().st_size / 1e6:.2f} MB, made in {made:.1f} s")
        print(
            f"first text after {median(first):.2f} s, loaded after {median(loaded):.2f} s, at most {max(loaded):.2f} s"
        )


if __name__ == "__main__":
    main()
