"""The page: what the other modules found, in HTML and as data for its scripts; one file, nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.files import write_text
from pipeline.report.curves import Chart, Event, charts_of, events_of, gathered
from pipeline.report.provenance import provenance_of, taken_of
from pipeline.report.read import read_run
from pipeline.report.strips import SHAPES, Scale, estimate, scale_of, strip
from pipeline.report.teachers import asked_of, staff_of
from pipeline.report.tokens import Views, answers_of, views_of
from pipeline.report.verdict import percent, verdict_of

REPORT = "report.html"
ASSETS = Path(__file__).parent / "assets"
STYLES = ("vendor/uPlot-1.6.32.min.css", "report.css", "tokens.css")
SCRIPTS = ("vendor/uPlot-1.6.32.iife.min.js", "dom.js", "charts.js", "tokens.js", "answers.js", "report.js")


def write_report(folder: Path, output: Path | None = None, *, with_texts: bool = False) -> Path:
    """Writes the page of the run in `folder`, by default beside its files, and returns where it is.

    with_texts: of a private run too. Raises RunError where no run is.
    """
    path = output or folder / REPORT
    write_text(path, run_page(folder, with_texts=with_texts))
    return path


def run_page(folder: Path, *, with_texts: bool = False, live: bool = False) -> str:
    """The whole page. live: it asks its server again now and then. Raises RunError where no run is."""
    run = read_run(folder)
    shown = with_texts or not run.private
    asked = asked_of(run)
    views = views_of(run) if shown else Views((), (), run.samples_in_all)
    answers, counts = answers_of(run)
    verdict = verdict_of(run)
    events = gathered(events_of(run), run.steps)
    data = {
        "name": run.name,
        **curves_data(charts_of(run, {name: one.dollars for name, one in asked.items() if one.dollars}), events),
        "words": views.words,
        "rollouts": views.rollouts,
        "answers": answers if shown else [],
    }
    return render(
        "run.html",
        data,
        live=live,
        run=run,
        shown=shown,
        verdict=verdict,
        taken=taken_of(run, sum(sum(one.dollars.values()) for one in asked.values()) if asked else None),
        scale=scale_of(model.score for domain in verdict.domains for model in domain.models),
        events=[event for event in events if event.what != "checkpoint"],
        views=views,
        counts=counts,
        staff=staff_of(run, asked, run.samples),
        provenance=provenance_of(run),
    )


def curves_data(charts: Sequence[Chart], events: Iterable[Event]) -> dict[str, Any]:
    """Charts as the scripts read them; steps that several charts share stand once."""
    steps: dict[tuple[int, ...], int] = {}
    return {
        "charts": [{**asdict(chart), "x": steps.setdefault(chart.x, len(steps))} for chart in charts],
        "steps": list(steps),
        "events": [[event.step, event.what, event.name, event.said, event.count] for event in events],
    }


def render(template: str, data: Mapping[str, Any], **values: Any) -> str:
    """A page from a template in assets/: styles, scripts and data are put into it.

    The page's policy lets no script run but ours, by their hashes, and nothing be fetched but from where it came.
    """
    styles, scripts = [_asset(name) for name in STYLES], [_asset(name) for name in SCRIPTS]
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {_hashes(scripts)}; "
        f"style-src {_hashes(styles)}; base-uri 'none'; form-action 'none'"
    )
    return _environment().get_template(template).render(
        **values, styles=styles, scripts=scripts, policy=policy, data=script_json(data)
    )  # fmt: skip


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", errors="replace").decode()  # half of a split character cannot be written


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hashes(texts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "estimate": estimate, "count": lambda value: f"{value:,}"}
    environment.globals |= {"strip": strip, "SHAPES": SHAPES, "OUTCOMES": OUTCOMES, "GAVE": GAVE, "Scale": Scale}
    return environment


GAVE = {"distribution": "distributions", "top_k": "lists of likely tokens", "judgment": "judgments"}
OUTCOMES = {
    "beyond": ("▲", "past its teacher", "good"),
    "matched": ("✓", "as good as its teacher", "good"),
    "partly": ("◐", "on its way", "half"),
    "unmoved": ("○", "did not work", "bad"),
    "untold": ("?", "cannot be told", "open"),
    "lost": ("▼", "got worse", "bad"),
    "kept": ("=", "kept", "good"),
    "gained": ("▲", "better", "good"),
    "open": ("…", "not judged yet", "open"),
}
