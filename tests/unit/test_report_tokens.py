"""Rollouts in few bytes, corrections as changes, answers before and now."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.read import read_run
from pipeline.report.tokens import Words, answers_of, changes, cut, rollout_view, views_of
from tests.run_directories import Size, evaluate, make_run, write, write_lines

LINE: dict[str, Any] = {
    "step": 3, "domain": "math", "prompt": "1+1", "completion": "it is 2", "reference": "2", "finish_reason": "end",
    "writer": "student", "score": 1.0, "tokens": ["it", " is", " 2"], "logprobs": [-0.5, None, -0.0004],
    "segments": [["answer", 0, 3]], "top": [[["it", 0.6], ["so", 0.4]], None, [[" 2", 0.9]]],
    "teachers": {
        "t": {"divergence": [0.0, None, 1.2345], "logprobs": [-1.0, None, -3.0], "top": [None, None, [[" 3", 0.75]]]}
    },
    "judgments": {"j": {"score": 0.5, "feedback": "short", "rewrite": "it was 2", "rewrite_text": "it was 2"}},
}  # fmt: skip


def test_a_rollout_in_whole_numbers() -> None:
    words = Words()
    view = rollout_view(LINE, words, 64)
    text = words.list()
    assert [text[n] for n in view["tokens"]] == ["it", " is", " 2"]
    assert view["logprobs"] == [500, -1, 0]
    assert view["teachers"]["t"]["divergence"] == [0, -1, 1234]
    assert view["teachers"]["t"]["top"] == [[2, text.index(" 3"), 750]]
    assert view["top"] == [[0, text.index("it"), 600, text.index("so"), 400], [2, text.index(" 2"), 900]]
    assert view["judgments"]["j"]["changes"] == (("same", "it "), ("gone", "is"), ("new", "was"), ("same", " 2"))


def test_choices_are_kept_where_the_divergence_is_largest() -> None:
    view = rollout_view(LINE, Words(), 1)
    assert [row[0] for row in view["top"]] == [2]


def test_an_older_line_keeps_its_text() -> None:
    old = {key: LINE[key] for key in ("step", "domain", "prompt", "completion", "reference", "finish_reason", "writer")}
    view = rollout_view(old, Words(), 64)
    assert view["completion"] == "it is 2"
    assert "tokens" not in view


@pytest.mark.parametrize(
    ("before", "after"),
    [("a b c<|end|>", "a c"), ("", "new"), ("x = 1\n", "x = 2\n"), ("same", "same"), ("one", ""), ("ä ö", "ö ü")],
)
def test_changes_make_one_text_of_the_other(before: str, after: str) -> None:
    found = changes(before, after)
    assert "".join(text for kind, text in found if kind != "gone") == after
    assert "".join(text for kind, text in found if kind != "new") == before.removesuffix("<|end|>")


def test_very_long_texts_are_not_compared_word_by_word() -> None:
    assert [kind for kind, _ in changes("a " * 50_000, "b " * 50_000)] == ["gone", "new"]
    assert len(cut("x" * 100_000) or "") < 9_000


def test_views_fit_and_all_of_the_run_stays_in_sight(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", Size(steps=60, rollouts=60, tokens=80)))
    whole = views_of(run)
    assert len(whole.rollouts) == 60
    half = views_of(run, budget=150_000)
    assert len(half.rollouts) == 60  # fewer choices first
    assert len(half.rollouts[0]["top"]) < len(whole.rollouts[0]["top"])
    few = views_of(run, budget=40_000)
    steps = [rollout["step"] for rollout in few.rollouts]
    assert 0 < len(steps) < 60
    assert steps[-1] > 40
    assert few.in_all == 60
    assert views_of(run, budget=10).rollouts == ()


def test_answers_are_paired_by_prompt_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "run.json", {})
    evaluate(tmp_path, "base", {"math": 0.5}, 10, random.Random(0))
    evaluate(tmp_path, "student-000005", {"math": 0.8}, 10, random.Random(1))
    evaluate(tmp_path, "teacher-t", {"math": 1.0}, 10, random.Random(2))
    pairs, counts = answers_of(read_run(tmp_path))
    assert counts == {"math": {"gained": 3, "lost": 0, "wrong": 2, "right": 5, "same": 0}}
    assert len(pairs) == 10
    gained = next(pair for pair in pairs if pair["kind"] == "gained")
    assert gained["base"][1] == 0.0
    assert gained["now"] == ["the right answer", 1.0]
    assert gained["teacher"] == "the right answer"
    assert gained["prompt"].startswith("Question math-")
    assert pairs[0]["kind"] == "gained"
    few, counts = answers_of(read_run(tmp_path), budget=900)
    assert {pair["kind"] for pair in few} == {"right", "gained", "wrong"}  # of each some
    assert sum(counts["math"].values()) == 10


def test_where_scores_are_grades_there_is_no_right_and_wrong(tmp_path: Path) -> None:
    write(tmp_path / "run.json", {})
    for name, scores in (("base", [0.2, 0.6, 0.4]), ("student-000005", [0.5, 0.3, 0.4])):
        write(tmp_path / "evaluations" / f"{name}.json", {})
        lines = [
            {"domain": "d", "prompt_id": str(n), "completion": "", "score": score} for n, score in enumerate(scores)
        ]
        write_lines(tmp_path / "evaluations" / f"{name}.samples.jsonl", lines)
    _, counts = answers_of(read_run(tmp_path))
    assert counts == {"d": {"gained": 1, "lost": 1, "wrong": 0, "right": 0, "same": 1}}
