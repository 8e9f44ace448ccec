"""The page as text: nothing escapes its data, a private run's texts stay out, and it is the same each time."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import ASSETS, STYLES, run_page, script_json, write_report
from tests.run_directories import HOSTILE, SENTENCES, Size, make_run


class Outline(HTMLParser):
    """Every tag, and the addresses in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action", "data")]


def data_in(page: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", Size(steps=30, rollouts=9))


def test_data_come_back_as_they_were_and_end_nothing() -> None:
    value = {"text": HOSTILE + "\u2029\ud83d", "n": [1.5, None, True]}
    text = script_json(value)
    assert not {"<", ">", "&", "\u2028", "\u2029"} & set(text)
    assert json.loads(text)["n"] == value["n"]
    assert json.loads(text)["text"] == HOSTILE + "\u2029?"
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def test_hostile_text_makes_no_element(run: Path) -> None:
    page = run_page(run)
    assert HOSTILE in data_in(page)["words"]
    found = Outline(page)
    assert "img" not in found.tags
    assert found.tags.count("script") == 1 + 6
    assert "owned'</script>" not in page


def test_names_are_escaped_in_the_page_itself(tmp_path: Path) -> None:
    teachers = {"<b>bold</b>": {"kind": "chat", "model": '"><script>alert(1)</script>'}}
    page = run_page(make_run(tmp_path / "run", Size(steps=3, rollouts=1), teachers=teachers))
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert "<script>alert" not in page


def test_nothing_is_fetched(run: Path) -> None:
    addresses = Outline(run_page(run)).addresses
    assert [one for one in addresses if not one.startswith(("#", "data:"))] == []
    for name in STYLES:
        assert not re.search(r"url\(|@import", (ASSETS / name).read_text(encoding="utf-8"))


def test_the_same_run_is_the_same_page(run: Path) -> None:
    assert run_page(run) == run_page(run)


def test_a_private_runs_texts_stay_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", Size(steps=30, rollouts=9), private=True)
    page = run_page(folder)
    texts = [*SENTENCES, "Say it shorter", "Question 1", "Question math", "the right answer", "basket", "kilometres"]
    assert [text for text in texts if text.strip() in page] == []
    assert data_in(page)["rollouts"] == data_in(page)["answers"] == data_in(page)["words"] == []
    assert "without its texts" in page
    assert re.search(r"class=\"a\d\"", page)  # how far teachers agree is no text
    shown = run_page(folder, with_texts=True)
    assert len(data_in(shown)["rollouts"]) == 8
    assert "Say it shorter" in shown


def test_it_is_written_beside_the_run_or_elsewhere(run: Path, tmp_path: Path) -> None:
    assert write_report(run) == run / "report.html"
    assert write_report(run, tmp_path / "deep" / "page.html").read_text() == (run / "report.html").read_text()


def test_the_vendored_library_stands_with_its_licence() -> None:
    script = next((ASSETS / "vendor").glob("uPlot-*.iife.min.js"))
    version = script.name.removeprefix("uPlot-").removesuffix(".iife.min.js")
    assert f"v{version}" in script.read_text(encoding="utf-8")[:100]
    assert "MIT License" in (ASSETS / "vendor" / "uPlot-LICENSE.txt").read_text(encoding="utf-8")
    assert f"uPlot](https://github.com/leeoniya/uPlot) {version}" in (ASSETS.parents[2] / "README.md").read_text()
