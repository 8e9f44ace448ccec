"""README held against the program: its commands, recipes, keys, tables and file map."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import transformers
import typer
from pydantic import TypeAdapter
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline import run_directory
from pipeline.cli import app
from pipeline.guards import RECENT, WINDOW
from pipeline.lookout import QUIET
from pipeline.recipe import DistillRecipe, NewModel, Recipe, SftRecipe
from pipeline.recipe_file import load_recipe
from pipeline.recipe_guards import NAMES, Action, Guards
from pipeline.rollout.lean import LeanEngine, engine_for
from pipeline.run_directory import EXTENDABLE
from pipeline.tasks import DOMAINS
from pipeline.types import DivergenceKind
from teachers.causal_lm import CausalLM
from teachers.heads import find_head
from teachers.pool import KINDS
from teachers.probe import probe
from tests.models import ALL_ARCHITECTURES, CONTEXT, Architecture, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP = """\
    pip install -c constraints.txt -e .  &&  tutelage run recipes/quickstart.yaml
    pip install -c constraints.txt -e ".[dev]"  &&  pytest
"""
HELP = tuple(
    f"tutelage{command} --help"
    for command in ("", " run", " check", " ingest", " journal", " report", " compare", " export", " chat")
)


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_column(text: str) -> list[str]:
    """What stands in backticks, or plainly, at the start of each row of a Markdown table."""
    rows = re.findall(r"^\| ?(.*?) ?\|", text, flags=re.MULTILINE)
    return [row.strip("` ") for row in rows if not row.startswith("-")]


# ---- commands ----


def commands() -> list[str]:
    """Every call of the program: in indented blocks and in backticks, comments and other commands left out."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^    (.+)$", prose, flags=re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", prose)
    calls = [part.strip() for text in (*blocks, *spans) for part in text.split("&&")]
    found = [call.replace("-m pipeline.cli", "&& tutelage").rpartition("&& ")[2] for call in calls]
    return [re.split(r" {3,}", call)[0] for call in found if re.match(r"tutelage [a-z]", call)]


def parsed(call: str) -> Mapping[str, Any]:
    """The parameters of the command that a call names. Ends in a usage error where the program would."""
    group: Any = typer.main.get_command(app)
    name, *arguments = shlex.split(call)[1:]
    with group.make_context("tutelage", [name, *arguments]) as context:
        command = group.get_command(context, name)
        if command is None:
            raise LookupError(f"there is no command {name}")
        values: Mapping[str, Any] = command.make_context(name, arguments, parent=context).params
    return values


@pytest.fixture(autouse=True)
def _a_team_with_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home/code/our-repo").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("call", commands())
def test_a_command_parses_and_its_recipe_takes_the_overrides(call: str) -> None:
    values = parsed(call)
    recipe = values.get("recipe")
    if recipe is not None and recipe.parts[0] == "recipes":
        load_recipe(ROOT / recipe, values["overrides"] or ())


def test_commands_are_found_and_wrong_ones_refused() -> None:
    assert {call.split()[1] for call in commands()} == {
        *("run", "check", "ingest", "recipes", "journal", "init", "watch", "report", "compare", "export", "chat"),
    }
    assert any("threads=1" in call for call in commands())  # the one behind torchrun
    with pytest.raises(Exception, match="No such option"):
        parsed("tutelage run recipes/quickstart.yaml --resumee")
    with pytest.raises(Exception, match="no command train"):
        parsed("tutelage train recipes/quickstart.yaml")


def test_the_two_set_up_lines_come_first() -> None:
    title, sentence, rest = README.split("\n\n", 2)
    assert title == "# tutelage"
    assert "\n" not in sentence
    assert rest.startswith(SET_UP + "\n")
    assert README.count("pip install -c constraints.txt -e") == 2


@pytest.mark.parametrize("call", HELP)
def test_help_is_what_the_program_prints(call: str) -> None:
    printed = CliRunner().invoke(app, call.split()[1:], prog_name="tutelage", env={"COLUMNS": "100"}).stdout
    shown = {text.partition("\n")[0]: text.partition("\n")[2].strip() for text in fenced("text")}
    assert shown[f"$ {call}"] == printed.strip()


# ---- recipes ----


def test_recipes_named_exist_and_all_are_in_the_table() -> None:
    named = set(re.findall(r"recipes/[\w./-]+\.yaml", README))
    assert [name for name in named if not (ROOT / name).is_file()] == []
    listed = [name for name in first_column(README) if name.startswith("recipes/")]
    assert sorted(listed) == sorted(f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml"))


def joined(base: Any, more: Any) -> Any:
    if isinstance(base, Mapping) and isinstance(more, Mapping):
        return {**base, **{key: joined(base.get(key), value) for key, value in more.items()}}
    return more


YAML_BLOCKS = [YAML(typ="safe").load(text) for text in fenced("yaml")]


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: "-".join(block))
def test_yaml_is_a_recipe_or_fits_into_the_first(block: dict[str, Any], tmp_path: Path) -> None:
    whole = block if "method" in block else joined(YAML_BLOCKS[0], block)
    for place in re.findall(r"'(\./[^':]+)", str(whole)):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("def judge(completion, reference, prompt): ...\nclass Citations: ...\n", encoding="utf-8")
        else:
            path.mkdir()
    with (tmp_path / "recipe.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(whole, file)
    loaded = load_recipe(tmp_path / "recipe.yaml")
    assert set(block) <= set(type(loaded.recipe).model_fields)


def test_there_is_a_whole_recipe_and_a_teacher_of_three_lines() -> None:
    assert "method" in YAML_BLOCKS[0]
    teacher = next(text for text in fenced("yaml") if text.startswith("teachers:"))
    assert len(teacher.splitlines()) == 2 + 2  # `teachers:` and its name, then kind and model


def keys_of(schema: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key that some recipe may have, names of teachers and sources left out."""
    definitions = schema.get("$defs", {})

    def walk(node: Any, prefix: str) -> Iterator[str]:
        node = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for choice in (*node.get("anyOf", ()), *node.get("oneOf", ())):
            yield from walk(choice, prefix)
        for name, value in node.get("properties", {}).items():
            yield f"{prefix}{name}"
            yield from walk(value, f"{prefix}{name}.")

    yield from walk(schema, prefix)


def test_keys_exist() -> None:
    known = set(keys_of(TypeAdapter(Recipe).json_schema()))
    sections = {*DistillRecipe.model_fields, *SftRecipe.model_fields}
    spans = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:[=:] ?[^`]*)?`", README)
    keys = [span for span in spans if span.partition(".")[0] in sections and not span.endswith((".json", ".py"))]
    assert len(keys) > 20
    assert [key for key in keys if key not in known] == []
    named = first_column(section("What a recipe says").partition("\n\n")[0])[1:]
    assert sections ^ set(named) == {*["output", "seed", "threads", "answers", "average", "tokens"]}
    assert {"training.steps", "student.tune", "output", "data.held_out"} <= known
    assert not {"training.no_such_key", "steps"} & known


# ---- tables and lists ----


def test_objectives_are_all_that_there_are() -> None:
    assert first_column(section("Objectives"))[1:] == list(get_args(DivergenceKind))


def test_kinds_of_teachers_and_tasks_are_named() -> None:
    assert set(re.findall(r"the kinds? `(\w+)`", section("The files, in the order data flows"))) == set(KINDS)
    assert set(first_column(section("Every kind of teacher"))[1:]) == set(KINDS)
    says = " ".join(section("What a recipe says").split())
    assert f": {', '.join(DOMAINS)}. " in says


def rows_of(table: str) -> list[list[str]]:
    """The cells of each row of a Markdown table, its heading left out."""
    lines = re.findall(r"^\|(.*)\|$", table, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines][2:]


def test_every_cell_of_the_comparison_says_where_it_was_seen() -> None:
    heading = re.findall(r"^\| \| tutelage \|(.*)\|$", README, flags=re.MULTILINE)
    peers = [name.strip() for name in heading[0].split("|")]
    rows = rows_of(section("How it compares"))
    seen = (ROOT / "tests/benchmark/PEERS.md").read_text(encoding="utf-8")
    assert len(rows) > 20
    assert {len(row) for row in rows} == {2 + len(peers)}
    for column, peer in enumerate(peers, start=2):
        lines = rows_of(seen.partition(f"\n## {peer}\n")[2].partition("\n## ")[0])
        assert [[row[0], row[column]] for row in rows] == [line[:2] for line in lines]
        assert all(len(line) == 3 and len(line[2]) > 20 for line in lines)


def test_guards_are_as_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (\S+) \| `(\w+)` \|$", section("Guards"), flags=re.MULTILINE)
    fields = {name: Guards.model_fields[name] for name in NAMES}
    assert rows == [
        (name, str(field.description).removesuffix("; off: none"), f"{field.default.threshold:g}", field.default.action)
        for name, field in fields.items()
    ]
    says = section("Guards")
    assert re.findall(r"^- `(\w+)`", says, flags=re.MULTILINE) == list(get_args(Action))
    assert f"the last {RECENT} steps with the first {RECENT} of the last {WINDOW}" in says
    assert f"every {QUIET} steps at most" in " ".join(says.split())


def test_what_extend_may_change() -> None:
    assert EXTENDABLE == ("training.steps", "teachers.", "data.sources.", "routing", "prepare.", "evaluation.")
    says = " ".join(section("Resume and faults").split())
    assert "may change the steps, teachers, sources, routing, what is prepared and the evaluation" in says


def test_files_of_a_run_are_those_that_it_documents() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("What a run leaves"), flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) == len(set(named)) > 10
    documented = set(re.findall(r"[a-z]+(?:\.[a-z]+|/)", run_directory.__doc__ or ""))
    assert set(named) == documented


def architectures() -> dict[str, list[str]]:
    rows = re.findall(r"^\| (\w+) \|(.*)\|$", section("Architectures"), flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows if name != "architecture"}


def test_every_architecture_that_can_be_made_is_in_the_table() -> None:
    assert tuple(architectures()) == ALL_ARCHITECTURES == get_args(NewModel.model_fields["architecture"].annotation)


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_architectures_are_as_found(architecture: Architecture) -> None:
    (said,) = re.findall(r"[Ff]ound with transformers (\d+\.\d+)", " ".join(README.split()))
    if not transformers.__version__.startswith(f"{said}."):
        pytest.skip(f"README says what was found with transformers {said}")
    size = len(tiny_tokenizer())
    model = tiny_model(architecture)
    tolerance, head = probe(model, size), find_head(model, size, key=architecture)
    found = ["yes" if holds else "no" for holds in (tolerance.left_padding, tolerance.packing, tolerance.row_removal)]
    capped = f"capped at {head.softcap:g}" if head.softcap else "plain" if head.scale == 1 else "scaled"
    lm = CausalLM("student", model, tiny_tokenizer(), size, frozenset([1]), CONTEXT, lambda: tolerance)
    decoded = "our own operations" if isinstance(engine_for(lm), LeanEngine) else "transformers"
    assert architectures()[architecture] == [decoded, model.config._attn_implementation, *found, capped]


def test_what_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:pipeline|teachers|tests|recipes|\.github)/[\w./-]*[\w/]", text)) - {
        "teachers/mine.py"
    }
    assert len(named) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []
    tests = set(re.findall(r"`(test_\w+\.py)", text))
    assert [name for name in tests if not list((ROOT / "tests").rglob(name))] == []


def test_the_file_map_is_every_module_once() -> None:
    mapped = re.findall(r"^    ((?:pipeline|teachers)/\S+\.py) +\S", README, flags=re.MULTILINE)
    files = [path for package in ("pipeline", "teachers") for path in (ROOT / package).rglob("*.py")]
    there = [path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"]
    assert sorted(mapped) == sorted(there)


def test_links_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    places = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", README) if link not in places] == []
    files = re.findall(r"`((?:pipeline|teachers|tests)/[\w/.]*)`|((?:\w+/)*\b[A-Z]+\.md|constraints\.txt)\b", README)
    assert [name for pair in files for name in pair if name and not (ROOT / name).exists()] == []
    linked = re.findall(r"\]\(([^#)][^)]*)\)", README)
    assert ".github/flow.svg" in linked
    local = [name for name in linked if not name.startswith("https://")]
    assert [name for name in local if not (ROOT / name).exists()] == []
