"""recipes/REFERENCE.md against the schema: it is what the schema gives, every key is in it, every example is valid."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML

from pipeline.recipe import DistillRecipe, Recipe, SftRecipe
from pipeline.reference import recipe_schema, reference
from teachers.config import Section, example

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "recipes/REFERENCE.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_program_prints() -> None:
    command = [sys.executable, "-m", "pipeline.reference"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed == PAGE, "run: python -m pipeline.reference > recipes/REFERENCE.md"


# ---- every key ----


def tables(page: str) -> list[list[list[str]]]:
    """Every table's rows, each as its cells."""
    found = re.findall(r"^\| key \|.*\n\|---.*\n((?:\|.*\n)*)", page, flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table.splitlines()] for table in found
    ]


def test_every_key_of_every_section_is_there() -> None:
    keys = {row[0].strip("`") for table in tables(PAGE) for row in table}
    definitions = recipe_schema()["$defs"]
    assert len(definitions) > 40
    assert {key for model in definitions.values() for key in model.get("properties", {})} - {"kind"} <= keys


def test_every_row_has_four_cells() -> None:
    rows = [row for table in tables(PAGE) for row in table]
    assert len(rows) > 150
    assert [row for row in rows if len(row) != 4 or not all(row[:3])] == []


def test_links_lead_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)
    places = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]*)\)", PAGE)
    assert len(links) > 20
    assert set(links) <= places


NAMES_SAY_IT = {  # what nothing need be said of, beside the value and the default
    *("architecture", "hidden_size", "layers", "rank", "dropout", "prompts_per_step", "requests_per_minute"),
    *("tokens_per_minute", "memory_megabytes", "processes", "input", "output", "question", "split", "kind", "shares"),
}


def test_what_a_name_does_not_say_is_said() -> None:
    silent = {row[0].strip("`") for table in tables(PAGE) for row in table if not row[3]}
    assert silent <= NAMES_SAY_IT


# ---- examples ----

SERVED = {"kind": "served", "url": ["http://127.0.0.1:8000/v1"], "model": "m"}
DATASET = {"kind": "dataset", "path": "p"}
BASE: dict[str, Any] = {
    "method": "distill",
    "student": {"model": "prepared:one"},
    "teachers": {"math": {"kind": "transformers", "model": "m"}, "code": {"kind": "transformers", "model": "m"}},
    "data": {"sources": {"math": DATASET}},
}
HOSTS: list[dict[str, Any]] = [  # where an example of a section within a section can stand
    {},
    {"source": {"path": "."}},
    {"teachers": {"mine": SERVED}, "routing": {"kind": "all"}},
    {"teachers": {"mine": {"kind": "program"}}, "routing": {"kind": "all"}, "rollout": {"samples_per_prompt": 4}},
    {"routing": {"kind": "all"}, "rollout": {"samples_per_prompt": 4}},
    {"data": {"sources": {"mine": DATASET}}, "routing": {"kind": "all"}},
    {"source": {"path": "."}, "routing": {"kind": "all"}},
    {"student": {"model": {"layers": 1}}},
    {"rollout": {"kind": "vllm", "max_new_tokens": 4}, "routing": {"kind": "all"}},
    {
        "teachers": {"mine": {"kind": "program"}},
        "routing": {"kind": "all"},
        "rollout": {"samples_per_prompt": 4},
        "source": {"path": ".", "tests": {}},
        "data": {"sources": {"body": {"kind": "codebase", "task": "body"}}},
    },
]


def joined(base: Any, more: Any) -> Any:
    """`more` over `base`; a section that says its kind is taken as it is."""
    if isinstance(base, Mapping) and isinstance(more, Mapping) and "kind" not in more:
        return {**base, **{key: joined(base.get(key), value) for key, value in more.items()}}
    return more


def problem(text: str) -> str:
    """Why an example is no part of a recipe, "" where it is."""
    said: list[str] = []
    for host in HOSTS:
        data = joined(joined(BASE, host), YAML(typ="safe").load(text))
        if isinstance(data.get("routing"), str):
            data["routing"] = {"kind": data["routing"]}
        try:
            TypeAdapter[Any](Recipe).validate_json(json.dumps(data), strict=True, context={"prepared": ["one"]})
        except ValidationError as error:
            said.append(str(error))
        else:
            return ""
    return "\n".join(said)


EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_valid(text: str) -> None:
    assert problem(text) == ""
    assert problem(text.replace(":", "_unknown:", 1)) != ""


def test_every_section_and_kind_has_an_example() -> None:
    parts = re.split(r"^#{2,4} .+$", PAGE, flags=re.MULTILINE)[2:]
    assert [part for part in parts if "```yaml" not in part and "One of these kinds" not in part] == []
    top = {key for text in EXAMPLES for key in YAML(typ="safe").load(text)}
    sections = {*DistillRecipe.model_fields, *SftRecipe.model_fields}
    assert sections - top == {
        "method",
        "output",
        "seed",
        "threads",
        "answers",
        "average",
        "tokens",
        "compare",
        "tracking",
    }


# ---- a schema that grows ----


class Bright(Section):
    """A lamp that is on."""

    kind: Literal["bright"]
    watts: int = Field(5, ge=1, le=60, description="of it")


class Dark(Section):
    """One that is off."""

    model_config = example("{kind: dark, until: 7}")

    kind: Literal["dark"]
    until: int
    names: tuple[str, ...] = ("a", "b")


class Lamps(Section):
    """How bright it is."""

    count: int = 3
    each: dict[str, Bright | Dark] = Field(default_factory=dict)


class Lit(Section):
    """With lamps."""

    method: Literal["lit"]
    seed: int
    lamps: Lamps = Lamps()


class Unlit(Section):
    """Without."""

    method: Literal["unlit"]
    seed: int = 0


def test_new_sections_are_picked_up() -> None:
    page = reference(TypeAdapter[Any](Lit | Unlit).json_schema() | methods(Lit, Unlit))
    assert "| `lamps` | [section](#lamps) | its defaults | only with `method: lit`: How bright it is. |" in page
    assert "| `seed` | whole number | none | required with `method: lit`:" in page
    assert "## `lamps`\n\nHow bright it is.\n" in page
    assert "```yaml\nlamps: {count: 3}\n```" in page
    assert "### `lamps.each.NAME`\n\nOne of these kinds: `bright`, `dark`." in page
    assert "| `watts` | whole number from 1 to 60 | `5` | of it |" in page
    assert "```yaml\nlamps:\n  each:\n    mine: {kind: dark, until: 7}\n```" in page
    assert "| `names` | list: text | `[a, b]` |" in page


def methods(*models: type[Section]) -> dict[str, Any]:
    names = {str(model.model_fields["method"].annotation.__args__[0]): model.__name__ for model in models}  # type: ignore[union-attr]
    return {"discriminator": {"mapping": {name: f"#/$defs/{model}" for name, model in names.items()}}}
