"""Whatever stands at whatever key of a recipe, it is either accepted or named: with its key, in our words, once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.recipe_problems import problems_of

RICH = """\
method: distill
student:
  model: {hidden_size: 8}
  tune: {kind: lora, targets: [q_proj]}
data:
  sources:
    sorting: {kind: tasks, task: sorting}
    web: {kind: dataset, path: org/data}
teachers:
  sorting: {kind: transformers, model: org/a}
  web: {kind: adapter, base: org/b, adapter: org/c}
routing: {table: {sorting: {sorting: 1, web: 2}, web: web}}
rollout: {stop: [x], stop_token_ids: [3]}
objective: {divergence: {kind: top_k_reverse_kl, tail: true}}
compare: [parameter_average]
"""
WRONG: list[Any] = [None, True, 0, -1, 5, 2.5, "", "x", [], ["x"], [[1]], {}, {"x": 1}, {"kind": "x"}, {"kind": 3}]
JARGON = ("input", "valid ", "discriminator", "tag", "pydantic", "extra")


def _keys(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _keys(inner, (*path, key))


def _with(data: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    changed: Any = deepcopy(data)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return dict(changed)


def test_every_wrong_value_at_every_key_is_named_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RICH, encoding="utf-8")
    data = load_recipe(path).data
    adapter: TypeAdapter[Any] = TypeAdapter(Recipe)
    named = 0
    for key in _keys(data):
        for value in WRONG:
            try:
                adapter.validate_json(json.dumps(_with(data, key, value)), strict=True)
            except ValidationError as error:
                found = problems_of(error, Recipe)
            else:
                continue
            named += len(found)
            places = [problem.path for problem in found]
            assert len(places) == len(set(places)), found
            for problem in found:
                shorter = min(len(problem.path), len(key))
                assert problem.path[:shorter] == key[:shorter] or problem.path[:1] == ("method",), (key, value, problem)
                assert not any(word in problem.text.lower().split() for word in JARGON), problem
    assert named > 500


def test_a_mangled_file_is_refused_in_lines_or_read_but_never_breaks_the_reader(tmp_path: Path) -> None:
    random, path = Random(0), tmp_path / "r.yaml"
    lines: list[str] = []
    for _ in range(150):
        text = RICH
        for _ in range(random.randint(1, 4)):
            at, other = random.randrange(len(text)), random.randrange(len(text))
            piece = random.choice([*"abc:{}[]'\",-#&*!|>%@`\n\t ~é\0", text[other : other + 30], ""])
            text = text[:at] + piece + text[at + random.randint(0, 12) :]
        path.write_text(text, encoding="utf-8")
        try:
            load_recipe(path)
        except RecipeError as error:
            lines += error.problems
    assert all(len(line.splitlines()) == 1 for line in lines)
    assert len(lines) > 50


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("{hidden_size: 8}", "3", "must be text or a mapping, not 3"),
        ("web: web}}", "web: 3}}", "must be text or a mapping, not 3"),
        ("[q_proj]", "3", "must be text or a list in [ ], not 3; the default is all-linear"),
        ("tail: true", "tail: 3", "3 is not known"),
        ("sorting: {kind: transformers", "sorting: {kind: 3", "3 is not known; write transformers, adapter"),
    ],
)  # fmt: skip
def test_the_words(old: str, new: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RICH.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert text in str(caught.value)


@pytest.mark.parametrize("url", ["http://ada:hunter2@10.0.0.1/v1", "https://hunter2@api.example.com"])
def test_a_password_in_an_address_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    """A recipe is kept in the run's directory, where no secret may be."""
    teacher = f"  web: {{kind: chat, model: m, url: '{url}'}}"
    (tmp_path / "r.yaml").write_text(RICH.replace("  web: {kind: adapter, base: org/b, adapter: org/c}", teacher))
    with pytest.raises(RecipeError, match=r"no name and no password; export the key, and set `key`") as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "teachers.web" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_entry_of_a_list_is_named_with_its_line(tmp_path: Path) -> None:
    teacher = "  web: {kind: chat, model: m, url: 'http://10.0.0.1/v1?to=a@b'}"
    (tmp_path / "r.yaml").write_text(RICH.replace("  web: {kind: adapter, base: org/b, adapter: org/c}", teacher))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert any(
        re.search(r"r\.yaml:15: compare\.0: .*teachers\.web is of kind chat", line) for line in caught.value.problems
    )
    assert "address" not in str(caught.value)
