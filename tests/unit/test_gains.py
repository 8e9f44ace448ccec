"""What a student gained on its codebase and kept elsewhere: means per side against plain sums."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluate import Score
from pipeline.gains import changes_of, codebase_domains, gains_line, gains_table, sides_of
from pipeline.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]


def score(mean: float | None, **measures: float) -> Score:
    """Of two prompts, one a tenth above the mean and one below; for a measure, one nat."""
    kept = {name: {"one": value - 1, "two": value + 1} for name, value in measures.items()}
    scores = {} if mean is None else {"one": mean - 0.1, "two": mean + 0.1}
    return Score(mean, mean, mean, scores, 2, 1.0, 0.0, measures=kept)


MODELS = {
    "base": {"line": score(0.25, loss=4.0), "body": score(0.5, loss=3.0), "general": score(0.5, loss=2.0)},
    "base_with_context": {"line": score(0.5, loss=3.5), "general": score(0.75, loss=2.5)},
    "student": {"line": score(0.5, loss=3.0), "body": score(0.75, loss=2.0), "general": score(0.49, loss=2.1)},
}


def test_each_side_is_the_mean_over_its_domains() -> None:
    sides = sides_of(MODELS, {"line", "body"}, ["loss"])
    assert sides["codebase"]["score"] == {"base": 0.375, "student": 0.625}
    assert sides["codebase"]["loss"] == {"base": 3.5, "student": 2.5}
    assert sides["elsewhere"]["score"] == {"base": 0.5, "base_with_context": 0.75, "student": 0.49}
    columns, rows = gains_table(sides)
    assert columns == ["where", "what", "base", "student", "base_with_context"]
    assert rows[0] == ["codebase", "score", 0.375, 0.625, None]
    assert rows[3] == ["elsewhere", "loss", 2.0, 2.1, 2.5]


def test_the_line_names_both_sides_and_how_far_a_change_may_be_chance() -> None:
    inside = {"line", "body"}
    line = gains_line(sides_of(MODELS, inside, ["loss"]), {"codebase": {}, "elsewhere": {"loss": (0.05, -0.01, 0.1)}})
    assert line == (
        "on the codebase: score 0.375 → 0.625, loss 3.500 → 2.500; "
        "elsewhere: score 0.500 → 0.490, loss 2.000 → 2.100 (+5.0% [-1.0%, +10.0%])"
    )


def test_a_change_is_of_the_sides_means_and_its_interval_of_paired_prompts() -> None:
    found = changes_of(MODELS, {"line", "body"}, ["loss"])
    assert found["codebase"]["score"][0] == pytest.approx(0.625 / 0.375 - 1)
    assert found["elsewhere"]["score"][0] == pytest.approx(-0.02)
    # Each prompt has lost a hundredth: drawn anew, only what it is a share of differs, 0.4 to 0.6.
    assert found["elsewhere"]["score"][1:] == pytest.approx((-0.01 / 0.4, -0.01 / 0.6))
    assert found["elsewhere"]["loss"] == pytest.approx((0.05, 0.1 / 3, 0.1 / 1))


def test_what_only_one_of_the_two_was_judged_in_changes_nothing() -> None:
    base = Score(0.5, 0.5, 0.5, {"one": 0.2, "two": 0.8}, 2, 1.0, 0.0)
    student = Score(0.4, 0.4, 0.4, {"two": 0.4}, 1, 1.0, 0.0)
    pairs = {"base": {"line": base}, "student": {"line": student}}
    assert changes_of(pairs, {"line"}, ["loss"])["codebase"] == {"score": pytest.approx((-0.5, -0.5, -0.5))}
    assert changes_of({"base": {"line": base}}, {"line"}, []) == {"codebase": {}, "elsewhere": {}}
    assert changes_of({**pairs, "student": {}}, {"line"}, []) == {"codebase": {}, "elsewhere": {}}


def test_what_nobody_could_judge_is_on_no_side() -> None:
    sides = sides_of({"base": {"files": score(None)}, "student": {"files": score(None)}}, {"files"}, [])
    assert sides == {"codebase": {"score": {}}, "elsewhere": {"score": {}}}
    assert gains_line(sides, {}) == ""
    assert gains_table(sides) == (["where", "what"], [])


def test_domains_of_the_recipes_own_codebase_only() -> None:
    assert codebase_domains(load_recipe(ROOT / "recipes/codebase.yaml").recipe) == {"line", "body"}
    assert codebase_domains(load_recipe(ROOT / "recipes/quickstart.yaml").recipe) == set()
