"""Every run ends with its report, and the report of a real run says what its files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.report.page import run_page
from tests.runs import changed, distill_settings, run_here, sft_settings, write_recipe


def test_a_run_ends_with_its_report(tmp_path: Path) -> None:
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path)))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page == run_page(folder)
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    found = json.loads(data)
    kept = json.loads((folder / "evaluations" / "student-000003.samples.jsonl").read_text().splitlines()[0])
    assert kept["prompt"] in {pair["prompt"] for pair in found["answers"]}
    assert {chart["id"] for chart in found["charts"]} >= {"kl_teacher", "loss", "entropy", "tokens", "seconds"}
    assert '<span class="pill finished">finished</span>' in page
    assert len(found["rollouts"]) == 3


def test_so_do_the_runs_inside_and_one_without_teachers(tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), {"compare": ["sft_on_teacher_samples"]})
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings))
    assert (folder / "compare" / "sft_on_teacher_samples" / "report.html").is_file()
    assert "fine-tuned on the teachers" in (folder / "report.html").read_text(encoding="utf-8")
    alone = run_here(
        write_recipe(tmp_path / "sft.yaml", changed(sft_settings(tmp_path), {"output": str(tmp_path / "b")}))
    )
    assert "This run had no teachers" in (alone / "report.html").read_text(encoding="utf-8")
