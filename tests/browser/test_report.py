"""The report in a browser: it opens clean, its views work by mouse and by keyboard, and everybody can read it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from pipeline.report.compare import write_comparison
from pipeline.report.page import write_report
from tests.browser.conftest import Opened
from tests.run_directories import HOSTILE, Size, make_run, write

TABS = ("verdict", "curves", "tokens", "answers", "teachers", "provenance")
Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "made", Size(steps=90, rollouts=15))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    return run / "report.html"


def samples(run: Path) -> list[dict[str, Any]]:
    lines = (run / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    return [line for line in map(json.loads, filter(None, lines)) if "tokens" in line]


def go(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=False).first.click()
    expect(page.locator(f"#{tab.lower()}")).to_be_visible()


# ---- it opens ----


def test_every_part_opens_without_errors_or_requests(opened: Open, report: Path) -> None:
    page = opened(report).page
    for tab in TABS:
        go(page, tab.capitalize())
        assert page.locator("main > section:visible").count() == 1
    assert page.locator(".chart canvas").count() > 15


def test_so_do_a_run_that_has_just_begun_one_without_teachers_and_several(
    opened: Open, run: Path, tmp_path: Path
) -> None:
    write(tmp_path / "new" / "run.json", {"status": "starting"})
    sft = make_run(tmp_path / "sft", Size(steps=5, rollouts=2), method="sft", teachers={})
    other = make_run(tmp_path / "other", Size(steps=30), seed=1, seed_of="another")
    pages = [write_report(tmp_path / "new"), write_report(sft), write_comparison([run, other], tmp_path / "two.html")]
    for path in pages:
        page = opened(path).page
        for tab in page.get_by_role("tab").all():
            tab.click()


def test_text_stays_text(opened: Open, report: Path) -> None:
    """A completion that ends the script element or brings markup is shown as it is, and nothing of it runs."""
    page = opened(report).page
    assert "owned" not in page.title()
    assert page.locator("img").count() == 0
    go(page, "Tokens")
    expect(page.locator("#rollout pre").first).to_contain_text(HOSTILE)
    expect(page.locator("#answer-tokens")).to_contain_text(HOSTILE)


def test_no_other_script_may_run(opened: Open, report: Path) -> None:
    found = opened(report)
    found.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'x = 1'}))")
    assert found.page.evaluate("typeof x") == "undefined"
    assert "Content Security Policy" in found.errors.pop()


# ---- tabs ----


def test_tabs_by_keyboard(opened: Open, report: Path) -> None:
    page = opened(report).page
    page.bring_to_front()
    page.keyboard.press("Tab")  # skips to the content
    page.keyboard.press("Tab")
    expect(page.get_by_role("tab", name="Verdict")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Curves")).to_be_focused()
    expect(page.locator("#curves")).to_be_visible()
    expect(page.locator("#verdict")).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Provenance")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Home")
    expect(page.locator("#verdict")).to_be_visible()


def test_the_address_keeps_the_tab(opened: Open, report: Path) -> None:
    page = opened(report).page
    go(page, "Teachers")
    page.reload()
    expect(page.locator("#teachers")).to_be_visible()


# ---- curves ----


def ranges(page: Page) -> set[tuple[float, float]]:
    """Of steps, of all charts."""
    found = page.evaluate("curves.plots.map(({u}) => [u.scales.x.min, u.scales.x.max])")
    return {(low, high) for low, high in found}


def test_zoom_by_mouse_moves_every_chart(opened: Open, report: Path) -> None:
    page = opened(report).page
    go(page, "Curves")
    before = ranges(page)
    box = page.locator('[data-chart="kl_teacher"] .u-over').bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=4)
    page.mouse.up()
    ((low, high),) = ranges(page)
    assert 20 < low < 26
    assert 43 < high < 48
    page.mouse.dblclick(box["x"] + box["width"] * 0.5, box["y"] + 60)
    assert ranges(page) == before


def test_hover_tells_the_values_of_that_step_in_every_chart(opened: Open, run: Path, report: Path) -> None:
    page = opened(report).page
    go(page, "Curves")
    page.locator('[data-chart="kl_teacher"] .u-over').hover(position={"x": 120, "y": 60})
    expect(page.locator('[data-chart="kl_teacher"]')).to_have_attribute("data-step", re.compile(r"\d+"))
    step = int(page.locator('[data-chart="kl_teacher"]').get_attribute("data-step") or 0)
    assert 20 < step < 60
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[step - 1])
    key = page.locator('[data-chart="kl_teacher"] .keys button', has_text="python").locator("b")
    assert float(key.text_content() or "") == pytest.approx(line["kl"]["teacher"]["python"], rel=1e-3)
    entropy = page.locator('[data-chart="entropy"] .keys b').first
    assert float(entropy.text_content() or "") == pytest.approx(line["entropy"], rel=1e-3)


def test_curves_by_keyboard(opened: Open, report: Path) -> None:
    page = opened(report).page
    go(page, "Curves")
    plot = page.locator('[data-chart="loss"] .plot')
    plot.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#spoken")).to_contain_text("step 3: loss")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#spoken")).to_contain_text("step 13: loss")
    page.keyboard.press("+")
    ((low, high),) = ranges(page)
    assert high - low < 50
    page.keyboard.press("0")
    assert (1, 90) in ranges(page)


def test_a_curve_is_hidden_and_shown_again(opened: Open, report: Path) -> None:
    page = opened(report).page
    go(page, "Curves")
    key = page.locator('[data-chart="score"] .keys button').first
    shown = "curves.plots.find((p) => p.chart.id === 'score').u.series.map((s) => s.show)"
    assert page.evaluate(shown) == [True] * 7
    key.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(shown) == [True, False, True, True, False, True, True]
    key.click()
    assert page.evaluate(shown) == [True] * 7


def test_smoothing_and_a_logarithmic_scale(opened: Open, report: Path) -> None:
    page = opened(report).page
    go(page, "Curves")
    rough = "(() => { const v = curves.plots.find((p) => p.chart.id === 'entropy').u.data.at(-1);"
    rough += " return v.slice(1).reduce((sum, x, i) => sum + Math.abs(x - v[i]), 0); })()"
    before = page.evaluate(rough)
    page.get_by_label("Smoothing").fill("0.9")
    assert page.evaluate(rough) < before / 2
    page.get_by_label("logarithmic").check()
    assert page.evaluate("curves.plots.find((p) => p.chart.id === 'loss').u.scales.y.distr") == 3


def test_an_event_leads_to_its_step(opened: Open, report: Path) -> None:
    page = opened(report).page
    go(page, "Curves")
    page.locator("tr", has_text="the rate was halved").get_by_role("button").click()
    ((low, high),) = ranges(page)
    assert low < 54 < high
    assert high - low < 20


# ---- tokens ----


def test_a_token_by_mouse_shows_both_sides(opened: Open, run: Path, report: Path) -> None:
    page = opened(report).page
    go(page, "Tokens")
    kept = samples(run)
    index = next(n for n, line in enumerate(kept) if line["domain"] == "math")
    page.locator(f"#rollout-{index}").click()
    line = kept[index]
    teacher = line["teachers"]["algebra"]
    place = max(range(len(line["tokens"])), key=lambda n: teacher["divergence"][n])
    page.locator(f"#token-{place}").hover()
    choices = page.locator("#choices")
    expect(choices).to_contain_text("algebra")
    expect(choices).to_contain_text("arithmetic")
    expect(choices).to_contain_text(f"token {place + 1} of {len(line['tokens'])}")
    table = choices.locator("table", has_text="algebra")
    text, probability = teacher["top"][place][0]
    own = dict(line["top"][place])
    first = table.locator("tbody tr").first
    expect(first.locator("td").nth(1)).to_contain_text(text.replace(" ", "␣").replace("\n", "⏎"))
    expect(first.locator("td").nth(0)).to_contain_text(f"{probability:.0%}")
    expect(first.locator("td").nth(2)).to_contain_text(f"{own[text]:.0%}" if own.get(text, 0) > 0.01 else "–")
    expect(table.locator("tr.taken")).to_have_count(1)


def test_tokens_by_keyboard(opened: Open, report: Path) -> None:
    page = opened(report).page
    go(page, "Tokens")
    page.locator("#answer-tokens").focus()
    page.keyboard.press("Home")
    expect(page.locator("#choices")).to_contain_text("token 1 of")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#choices")).to_contain_text("token 2 of")
    expect(page.locator("#token-1")).to_have_attribute("aria-selected", "true")
    page.locator("#rollout-list").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#rollout-1")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("End")
    expect(page.locator("#rollout .meta")).to_contain_text("step 85")


def test_colours_follow_the_disagreement(opened: Open, run: Path, report: Path) -> None:
    page = opened(report).page
    go(page, "Tokens")
    line = samples(run)[0]
    given = line["teachers"].values()
    worst = [max(values) for values in zip(*(said["divergence"] for said in given), strict=True)]
    for place in (worst.index(max(worst)), worst.index(min(worst))):
        level = sum(worst[place] >= least for least in (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 4))
        classes = (page.locator(f"#token-{place}").get_attribute("class") or "").split()
        assert (f"d{level}" in classes) or level == 0
        others = [said["top"][place][0][0] for said in given if said["top"][place]]
        assert ("other" in classes) == any(text != line["tokens"][place] for text in others)


def test_rollouts_are_filtered_and_sorted(opened: Open, run: Path, report: Path) -> None:
    page = opened(report).page
    go(page, "Tokens")
    page.locator("#rollout-domain").select_option("math")
    steps = [line["step"] for line in samples(run) if line["domain"] == "math"]
    expect(page.locator("#rollout-list [role=option]")).to_have_count(len(steps))
    page.locator("#rollout-sort").select_option("score")
    expect(page.locator("#rollout .meta")).to_contain_text("math")


def test_a_correction_is_a_diff_with_feedback_and_grade(opened: Open, run: Path, report: Path) -> None:
    page = opened(report).page
    go(page, "Tokens")
    index = next(n for n, line in enumerate(samples(run)) if line["domain"] == "chat")
    page.locator(f"#rollout-{index}").click()
    judgment = page.locator(".judgment", has_text="editor said")
    expect(judgment).to_contain_text("0.5")
    expect(judgment.locator("blockquote")).to_contain_text("Say it shorter.")
    line = samples(run)[index]
    kept = judgment.locator("pre").evaluate(
        "(pre) => [...pre.children].filter((e) => e.tagName !== 'DEL').map((e) => e.textContent).join('')"
    )
    assert kept == line["judgments"]["editor"]["rewrite_text"]
    assert judgment.locator("del").count() > 0


def test_conflicts_lead_to_the_token(opened: Open, report: Path) -> None:
    page = opened(report).page
    go(page, "Teachers")
    expect(page.locator(".matrix")).to_contain_text("%")
    page.get_by_role("button", name="see it").first.click()
    expect(page.locator("#tokens")).to_be_visible()
    expect(page.locator("#answer-tokens")).to_be_focused()
    rows = page.locator("#choices table")
    expect(rows).to_have_count(2)


# ---- answers ----


def test_answers_at_the_start_and_now(opened: Open, report: Path) -> None:
    page = opened(report).page
    row = page.locator(".counts tr", has_text="chat")
    row.locator("button[data-answers=lost]").click()
    expect(page.locator("#answers")).to_be_visible()
    expect(page.locator("#answer")).to_contain_text("worse now")
    expect(page.locator("#answer .then")).to_contain_text("the right answer")
    expect(page.locator("#answer .then")).to_contain_text("score 1")
    expect(page.locator("#answer .now")).to_contain_text("score 0")
    expect(page.locator("#answer-count")).to_have_text("1 of 18")
    page.locator("#answer-next").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#answer-count")).to_have_text("2 of 18")


# ---- everybody ----


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["screen", "phone"])
def test_axe_finds_nothing_serious(opened: Open, report: Path, axe: str, dark: bool, phone: bool) -> None:
    page = opened(report, dark=dark, phone=phone).page
    page.evaluate(axe)
    for tab in TABS:
        go(page, tab.capitalize())
        found = page.evaluate("axe.run()")["violations"]
        bad = [
            (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert bad == [], tab


def test_axe_finds_what_is_wrong(opened: Open, report: Path, axe: str) -> None:
    page = opened(report).page
    page.evaluate(axe)
    page.evaluate("document.querySelector('h1').style.color = '#eeeeee'")
    assert "color-contrast" in {one["id"] for one in page.evaluate("axe.run()")["violations"]}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_a_phone(opened: Open, report: Path, tmp_path: Path, dark: bool) -> None:
    page = opened(report, dark=dark, phone=True).page
    for tab in TABS:
        go(page, tab.capitalize())
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, tab
        assert page.screenshot(path=tmp_path / f"{tab}.png")


def test_on_paper_everything_is_there(opened: Open, report: Path, tmp_path: Path) -> None:
    page = opened(report, dark=True).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    for part in ("verdict", "curves", "teachers", "provenance"):
        expect(page.locator(f"#{part}")).to_be_visible()
    expect(page.locator(".tabs")).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".chart canvas").count() > 15
    page.pdf(path=tmp_path / "report.pdf")
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(page.locator("#verdict")).to_be_visible()
    expect(page.locator("#teachers")).to_be_hidden()


def test_without_scripts_the_verdict_is_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    expect(page.locator("#verdict h2")).to_contain_text("The student has")
    expect(page.locator("#provenance")).to_contain_text("fingerprint")
    context.close()


def test_a_long_run_fits_into_a_page(opened: Open, tmp_path: Path) -> None:
    """10,000 steps, 500 rollouts of 256 tokens with every choice that a run keeps."""
    path = write_report(make_run(tmp_path / "long", Size(steps=10_000, rollouts=500, tokens=256, prompts=300)))
    assert path.stat().st_size < 10_000_000
    page = opened(path).page
    go(page, "Tokens")
    expect(page.locator("#rollout-list [role=option]")).to_have_count(500)
    go(page, "Curves")
    assert page.evaluate("Math.max(...curves.plots.map(({u}) => u.data[0].length))") <= 1000
    highest = page.evaluate("Math.max(...curves.plots.find((p) => p.chart.id === 'grad_norm').u.data[1])")
    assert highest == 60  # the one spike is not lost
