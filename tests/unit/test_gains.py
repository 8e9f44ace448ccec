"""What a student gained on its codebase and kept elsewhere: means per side against plain sums."""

from __future__ import annotations

from pathlib import Path

from pipeline.evaluate import Score
from pipeline.gains import codebase_domains, gains_line, gains_table, sides_of
from pipeline.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]


def score(mean: float | None, **measures: float) -> Score:
    kept = {name: {"one": value - 1, "two": value + 1} for name, value in measures.items()}
    return Score(mean, mean, mean, {}, 2, 1.0, 0.0, measures=kept)


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


def test_the_line_names_both_sides_and_what_changed() -> None:
    line = gains_line(sides_of(MODELS, {"line", "body"}, ["loss"]))
    assert line == (
        "on the codebase: score 0.375 → 0.625 (+66.7%), loss 3.500 → 2.500 (-28.6%); "
        "elsewhere: score 0.500 → 0.490 (-2.0%), loss 2.000 → 2.100 (+5.0%)"
    )


def test_what_nobody_could_judge_is_on_no_side() -> None:
    sides = sides_of({"base": {"files": score(None)}, "student": {"files": score(None)}}, {"files"}, [])
    assert sides == {"codebase": {"score": {}}, "elsewhere": {"score": {}}}
    assert gains_line(sides) == ""
    assert gains_table(sides) == (["where", "what"], [])


def test_domains_of_the_recipes_own_codebase_only() -> None:
    assert codebase_domains(load_recipe(ROOT / "recipes/codebase.yaml").recipe) == {"line", "body"}
    assert codebase_domains(load_recipe(ROOT / "recipes/quickstart.yaml").recipe) == set()
