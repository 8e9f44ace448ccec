"""Recipes: every kind of mistake is named with its line, all at once, and a good recipe survives being written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import DistillRecipe, LoraTuning, SftRecipe
from pipeline.recipe_asking import AllTeachers
from pipeline.recipe_file import changed_keys, dump_resolved, load_recipe, prepared_name
from pipeline.recipe_losses import TopKWithTail

GOOD = """\
# a header
method: distill
student:
  model: {hidden_size: 64}
data:
  sources:
    sorting: {kind: tasks, task: sorting}
    division: {kind: tasks, task: division}
teachers:
  sorting: {kind: transformers, model: org/sorter}
  division: {kind: transformers, model: org/divider}
training:
  steps: 20
"""

SFT = """\
method: sft
student: {model: {}}
data: {sources: {sorting: {kind: tasks, task: sorting}}}
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "r.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text), overrides)
    assert caught.value.exit_status == 2
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


# what replaces what in GOOD; the line and the key of the problem, words that must be in it
MISTAKES = {
    "unknown key": ("steps: 20", "stepps: 20", "13: training.stepps", ["did you mean steps?", "learning_rate"]),
    "unknown section": ("training:", "trainning:", "12: trainning", ["did you mean training?", "student"]),
    "another method's key": ("training:", "answers: teachers\ntraining:", "12: answers", ["method: sft"]),
    "another kind's key": (
        "task: sorting}",
        "task: sorting, path: x}",
        "7: data.sources.sorting.path",
        ["kind: dataset"],
    ),
    "wrong number": ("steps: 20", "steps: many", "13: training.steps", ["whole number", "'many'", "100"]),
    "number as text": ("steps: 20", "steps: '20'", "13: training.steps", ["whole number", "'20'"]),
    "boolean as number": ("steps: 20", "steps: true", "13: training.steps", ["whole number", "not true"]),
    "fraction": ("steps: 20", "steps: 2.5", "13: training.steps", ["whole number", "2.5"]),
    "not above": ("steps: 20", "steps: 0", "13: training.steps", ["above 0"]),
    "infinite": ("steps: 20", "learning_rate: .inf", "13: training.learning_rate", ["finite"]),
    "section is a value": ("training:\n  steps: 20", "training: 20", "12: training", ["mapping", "20"]),
    "section is empty": ("  steps: 20", "", "12: training", ["mapping", "empty"]),
    "choice": ("steps: 20", "schedule: cosin", "13: training.schedule", ["did you mean cosine?", "linear"]),
    "kind missing": (
        "{kind: tasks, task: sorting}",
        "{task: sorting}",
        "7: data.sources.sorting.kind",
        ["missing", "dataset, tasks or codebase"],
    ),
    "kind unknown": (
        "kind: tasks, task: sorting",
        "kind: task",
        "7: data.sources.sorting.kind",
        ["did you mean tasks?"],
    ),
    "teacher kind": (
        "kind: transformers, model: org/sorter",
        "kind: gguf",
        "10: teachers.sorting.kind",
        ["transformers, adapter, self, served"],
    ),
    "divergence": (
        "training:",
        "objective: {divergence: reverse}\ntraining:",
        "12: objective.divergence.kind",
        ["did you mean reverse_kl?"],
    ),
    "jsd at its limit": (
        "training:",
        "objective: {divergence: {kind: jsd, beta: 0}}\ntraining:",
        "12: objective.divergence.beta",
        ["above 0"],
    ),
    "tail and penalty": (
        "training:",
        "objective: {divergence: {kind: top_k_reverse_kl, tail: true, mass_penalty: 1}}\ntraining:",
        "12: objective.divergence.mass_penalty",
        [],
    ),
    "student in float16": (
        "{hidden_size: 64}",
        "x\n  dtype: float16",
        "5: student.dtype",
        ["did you mean bfloat16?", "float32 or bfloat16"],
    ),
    "a moment that never forgets": (
        "steps: 20",
        "optimizer: {kind: adamw, betas: [0.9, 1.0]}",
        "13: training.optimizer.betas.1",
        ["below 1"],
    ),
    "another optimizer": ("steps: 20", "optimizer: moun", "13: training.optimizer.kind", ["did you mean muon?"]),
    "another optimizer's key": (
        "steps: 20",
        "optimizer: {kind: adamw, momentum: 0.9}",
        "13: training.optimizer.momentum",
        ["kind: muon"],
    ),
    "tune": ("{hidden_size: 64}", "x\n  tune: lorra", "5: student.tune.kind", ["did you mean lora?"]),
    "model is a number": ("{hidden_size: 64}", "5", "4: student.model", ["text or a mapping"]),
    "method": ("method: distill", "method: distil", "2: method", ["did you mean distill?"]),
    "no method": ("method: distill", "seed: 1", "2: method", ["missing", "sft or distill"]),
    "missing key": (
        "kind: transformers, model: org/sorter",
        "kind: transformers",
        "10: teachers.sorting.model",
        ["missing", "hub name"],
    ),
    "name": ("    sorting: {", "    so rt: {", "7: data.sources.so rt", ["not a name"]),
    "task": ("task: sorting", "task: sortin", "7: data.sources.sorting.task", ["did you mean sorting?"]),
    "checker": (
        "task: sorting",
        "task: sorting, checker: nummeric",
        "7: data.sources.sorting.checker",
        ["numeric", "checks.py:judge"],
    ),
    "who writes": ("training:", "rollout: {kind: vlm}\ntraining:", "12: rollout.kind", ["did you mean vllm?"]),
    "a server that is nowhere": (
        "training:",
        "rollout: {kind: vllm}\ntraining:",
        "12: rollout.server",
        ["missing"],
    ),
    "a server without an address": (
        "training:",
        "rollout: {kind: vllm, server: {kind: at}}\ntraining:",
        "12: rollout.server.url",
        ["missing"],
    ),
    "what a run says itself to vLLM": (
        "training:",
        "rollout: {kind: vllm, server: {kind: inside, options: {max_num_seqs: 8}}}\ntraining:",
        "12: rollout.server.options.max_num_seqs",
        ["use rollout.rows"],
    ),
    "how long an engine inside is waited for": (
        "training:",
        "rollout: {kind: vllm, server: {kind: inside, silence: 3}}\ntraining:",
        "12: rollout.server.silence",
        [],
    ),
    "a key of the other kind": (
        "training:",
        "rollout: {server: start}\ntraining:",
        "12: rollout.server",
        [],
    ),
    "list": ("training:", "rollout: {stop: abc}\ntraining:", "12: rollout.stop", ["list"]),
    "list item": ("training:", "compare: [averages]\ntraining:", "12: compare.0", ["parameter_average"]),
    "too many in a list": (
        "steps: 20",
        "optimizer: {kind: adamw, betas: [0.1, 0.2, 0.3]}",
        "13: training.optimizer.betas",
        ["3", "2"],
    ),
    "duplicate key": ("steps: 20", "steps: 20\n  steps: 30", "14: training.steps", ["twice", "line 13"]),
    "duplicate teacher": (
        "  division: {kind: transformers",
        "  sorting: {kind: transformers",
        "11: teachers.sorting",
        ["twice", "line 10"],
    ),
    "routing to nobody": (
        "training:",
        "routing: {table: {sorting: sorte}}\ntraining:",
        "12: routing.table.sorting",
        ["did you mean sorting?", "division"],
    ),
    "share of nobody": (
        "training:",
        "routing:\n  kind: mixture\n  shares:\n    sorting: 1\n    me: 1\ntraining:",
        "16: routing.shares.me",
        ["'me'", "sorting, division"],
    ),
    "default is nobody": ("training:", "routing: {default: x}\ntraining:", "12: routing.default", ["'x'"]),
    "share is zero": (
        "training:",
        "routing: {table: {sorting: {sorting: 0}}}\ntraining:",
        "12: routing.table.sorting.sorting",
        ["above 0"],
    ),
    "routed to a number": (
        "training:",
        "routing: {table: {sorting: 3}}\ntraining:",
        "12: routing.table.sorting",
        ["text or a mapping"],
    ),
    "no such domain": (
        "training:",
        "routing: {table: {sortin: sorting}}\ntraining:",
        "12: routing.table.sortin",
        ["did you mean sorting?"],
    ),
    "domain without teacher": (
        "  division: {kind: transformers, model: org/divider}\n",
        "",
        "8: data.sources.division.task",
        ["'division'", "routing.default"],
    ),
    "not prepared": ("org/sorter", "prepared:base", "10: teachers.sorting.model", ["'base'", "prepare.base"]),
    "student not prepared": ("{hidden_size: 64}", "prepared:base", "4: student.model", ["'base'", "prepare.base"]),
    "data file": (
        "kind: tasks, task: sorting",
        "kind: dataset, path: no.jsonl",
        "7: data.sources.sorting.path",
        ["no.jsonl"],
    ),
    "data folder": (
        "kind: tasks, task: sorting",
        "kind: dataset, path: ./no",
        "7: data.sources.sorting.path",
        ["./no"],
    ),
    "template file": ("{hidden_size: 64}", "x\n  chat_template: t.jinja", "5: student.chat_template", ["t.jinja"]),
    "template is a folder": ("{hidden_size: 64}", "x\n  chat_template: .", "5: student.chat_template", ["folder"]),
    "model folder": ("org/sorter", "../models/sorter", "10: teachers.sorting.model", ["../models/sorter"]),
    "model is a file": ("org/sorter", "r.yaml", "10: teachers.sorting.model", ["file"]),
    "checker file": ("task: sorting", "task: sorting, checker: c.py:f", "7: data.sources.sorting.checker", ["c.py"]),
    "prepare file": (
        "training:",
        "prepare: {base: {recipe: no.yaml}}\ntraining:",
        "12: prepare.base.recipe",
        ["no.yaml"],
    ),
    "no such rubric": (
        "kind: transformers, model: org/sorter",
        "kind: chat, model: deepseek-v4-pro, rubric: maths",
        "10: teachers.sorting.rubric",
        ["did you mean math?", "chat, math or code"],
    ),
    "feedback that nobody gives": (
        "{kind: transformers, model: org/sorter}",
        "{kind: chat, model: m, url: 'http://127.0.0.1:8', gives: score}\n"
        "  own: {kind: self, sees: 'feedback:sorting'}",
        "11: teachers.own.sees",
        ["teachers.sorting.gives"],
    ),
    "full support": (
        "training:",
        "objective: {divergence: policy_gradient}\nrollout:\n  top_p: 0.9\ntraining:",
        "14: rollout.top_p",
        ["policy_gradient", "to 1"],
    ),
}


def test_a_teacher_that_only_rewrites_needs_no_second_sample_and_no_ratio() -> None:
    def asked(gives: str) -> str:
        chat = f"kind: chat, model: deepseek-v4-pro, gives: {gives}"
        return GOOD.replace("kind: transformers, model: org/sorter", chat)

    assert load_recipe(write(asked("[rewrite, feedback]")), ["rollout.top_p=0.9"]).recipe.rollout.top_p == 0.9
    for said in ("score", "[rewrite, score]"):
        (one,) = problems(asked(said))
        assert "grades are compared" in one
        assert any("ratio is undefined" in problem for problem in problems(asked(said), "rollout.top_p=0.9"))


def test_a_rubric_of_several_lines_is_no_file() -> None:
    text = GOOD.replace(
        "  sorting: {kind: transformers, model: org/sorter}",
        "  sorting:\n    kind: chat\n    model: deepseek-v4-pro\n    rubric: |\n      Only rhymes count.\n",
    ).replace("training:", "rollout: {samples_per_prompt: 2}\ntraining:")
    teacher = load_recipe(write(text), []).recipe.teachers["sorting"]
    assert teacher.rubric == "Only rhymes count.\n"  # type: ignore[union-attr]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_its_line(case: str) -> None:
    before, after, where, words = MISTAKES[case]
    assert before in GOOD
    found = problems(GOOD.replace(before, after, 1))
    line = next((problem for problem in found if problem.startswith(f"r.yaml:{where}: ")), None)
    assert line is not None, found
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "case", ["unknown key", "wrong number", "kind unknown", "routed to a number", "task", "method"]
)
def test_a_mistake_is_named_once(case: str) -> None:
    before, after, *_ = MISTAKES[case]
    assert len(problems(GOOD.replace(before, after, 1))) == 1


SYNTAX = {
    "a: b: c\n": (1, "colon"),
    "a: 1\nb:\n\tc: 1\n": (3, "tab"),
    "a: 1\nb: [1, 2\n": (2, "bracket"),
    "a: 1\nb: 'x\n": (2, "quote"),
    "a: *x\n": (1, "alias"),
    "a: 1\n---\nb: 1\n": (2, "second document"),
    "a: 1\nb: @x\n": (2, "quotes"),
    "a: 1\nb: \x01\n": (2, "control character"),
    "- a\nb: 1\n": (2, "indentation"),
    "a: 1\nb: !!python/object:os.system 3\n": (2, "tag"),
    "a: &x\n  b: *x\n": (1, "part of"),
    "[" * 3000: (1, "nested"),
    "": (1, "empty"),
    "# only a comment\n": (1, "empty"),
    "- a\n- b\n": (1, "mapping"),
    "just text\n": (1, "mapping"),
}


@pytest.mark.parametrize("text", SYNTAX, ids=[repr(text[:12]) for text in SYNTAX])
def test_what_is_no_yaml_mapping(text: str) -> None:
    line, word = SYNTAX[text]
    found = problems(text)
    assert any(problem.startswith(f"r.yaml:{line}: ") and word in problem for problem in found), found


def test_no_teacher_and_too_many() -> None:
    head, tail = GOOD.split("teachers:\n")
    rest = "training:" + tail.split("training:")[1]
    assert any(p.startswith("r.yaml:2: teachers: is missing") for p in problems(head + rest))
    assert any(
        p.startswith("r.yaml:9: teachers: ") and "add" not in p for p in problems(head + "teachers: {}\n" + rest)
    )
    pool = "teachers:\n" + "".join(f"  t{i}: {{kind: transformers, model: x}}\n" for i in range(11))
    found = problems(head + pool + "routing: all\n" + rest)
    assert found == ["r.yaml:9: teachers: holds 11 entries, 10 is the most; remove the others"]
    load_recipe(write(head + pool.replace("  t10: {kind: transformers, model: x}\n", "") + "routing: all\n" + rest))


def test_all_mistakes_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("hidden_size: 64", "hidden_sise: 64").replace("task: division", "task: dvision")
    text = text.replace("model: org/sorter", "model: prepared:x") + "  steps: 30\n  stepps: 3\n"
    lines = [int(problem.split(":")[1]) for problem in problems(text)]
    assert lines == sorted(lines)
    assert {4, 8, 10, 14, 15} <= set(lines)


@pytest.mark.parametrize(
    ("content", "word"), [(None, "no such file"), ("folder", "folder"), (b"method: \xff\n", "UTF-8")]
)
def test_a_file_that_cannot_be_read(content: str | bytes | None, word: str) -> None:
    path = Path("x.yaml")
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=word) as caught:
        load_recipe(path)
    assert caught.value.problems[0].startswith("x.yaml")


# ---- overrides ----


def test_overrides_replace_add_and_make_mappings() -> None:
    overrides = [
        "training.steps=7",
        "teachers.sorting.weight=0.5",
        "data.sources.sorting.count=10",
        "output=out/x",
        "objective.divergence.kind=forward_kl",
        "student.tune.kind=lora",
        "student.tune.rank=4",
        "compare=[parameter_average]",
        "routing=all",
    ]
    loaded = load_recipe(write(GOOD), overrides)
    recipe = loaded.recipe
    assert isinstance(recipe, DistillRecipe)
    assert recipe.training.steps == 7
    assert recipe.teachers["sorting"].weight == 0.5
    assert recipe.data.sources["sorting"].count == 10  # type: ignore[union-attr]
    assert loaded.output == Path("out/x")
    assert recipe.objective.divergence.kind == "forward_kl"
    assert isinstance(recipe.student.tune, LoraTuning)
    assert recipe.student.tune.rank == 4
    assert recipe.compare == ("parameter_average",)
    assert isinstance(recipe.routing, AllTeachers)
    assert loaded.where("training", "steps") == "command line: training.steps=7"
    assert loaded.where("teachers", "division") == "r.yaml:11: teachers.division"


def test_an_override_opens_a_short_form() -> None:
    text = GOOD.replace("{hidden_size: 64}", "x\n  tune: lora")
    tune = load_recipe(write(text), ["student.tune.rank=8"]).recipe.student.tune
    assert isinstance(tune, LoraTuning)
    assert tune.rank == 8


@pytest.mark.parametrize(
    ("override", "start", "word"),
    [
        ("training.steps=many", "command line: training.steps=many: ", "whole number"),
        ("training.stepps=3", "command line: training.stepps=3: ", "did you mean steps?"),
        ("trainin.steps=3", "command line: trainin.steps=3: trainin: ", "did you mean training?"),
        ("training={steps: many}", "command line: training={steps: many}: training.steps: ", "whole number"),
        ("seed", "command line: seed: ", "key=value"),
        ("=3", "command line: =3: ", "key=value"),
        ("training..steps=3", "command line: training..steps=3: ", "key=value"),
        ("training.steps=[1", "command line: training.steps=[1: ", "bracket"),
        ("training.steps.x=1", "command line: training.steps.x=1: ", "training.steps is a single value"),
        ("teachers.sorting.model=./no", "command line: teachers.sorting.model=./no: ", "no model folder"),
        ("teachers={}", "command line: teachers={}: ", "0 entries"),
    ],
)
def test_a_wrong_override_points_to_the_command_line(override: str, start: str, word: str) -> None:
    found = problems(GOOD, override)
    assert any(problem.startswith(start) and word in problem for problem in found), found


# ---- paths ----


def test_paths_are_looked_for_beside_the_recipe_first_then_here(tmp_path: Path) -> None:
    text = GOOD.replace("{kind: tasks, task: sorting}", "{kind: dataset, path: d.jsonl, checker: 'c.py:judge'}")
    text = text.replace("org/sorter", "models/sorter")
    path = write(text, "recipes/r.yaml")
    write("", "recipes/d.jsonl"), write("", "d.jsonl"), write("def judge(a, b):\n    return 1\n", "c.py")
    (tmp_path / "models/sorter").mkdir(parents=True)
    data = load_recipe(path).data
    assert data["data"]["sources"]["sorting"]["path"] == str(tmp_path / "recipes/d.jsonl")
    assert data["data"]["sources"]["sorting"]["checker"] == f"{tmp_path}/c.py:judge"
    assert data["teachers"]["sorting"]["model"] == str(tmp_path / "models/sorter")
    assert data["teachers"]["division"]["model"] == "org/divider"
    data = load_recipe(path, ["data.sources.sorting.path=d.jsonl"]).data
    assert data["data"]["sources"]["sorting"]["path"] == str(tmp_path / "d.jsonl")


def test_a_checker_needs_its_function() -> None:
    write("def other(): ...\n", "c.py")
    assert "def judge" in problems(GOOD.replace("task: sorting", "task: sorting, checker: c.py:judge"))[0]


def test_the_output_is_named_after_the_file() -> None:
    assert load_recipe(write(GOOD, "recipes/some-name.yaml")).output == Path("runs/some-name")


# ---- recipes that are prepared first ----

PREPARES = GOOD.replace("{hidden_size: 64}", "prepared:base") + dedent("""\
prepare:
  base: {recipe: recipes/sft.yaml}
  sorter:
    recipe: recipes/sft.yaml
    set:
      student.model: prepared:base
      training.steps: 5
""")


def test_prepared_recipes_are_loaded_with_their_settings() -> None:
    write(SFT, "recipes/sft.yaml")
    loaded = load_recipe(write(PREPARES), ["prepare.base.set.training.steps=3"])
    assert {name: inner.recipe.training.steps for name, inner in loaded.prepared.items()} == {"base": 3, "sorter": 5}
    assert isinstance(loaded.prepared["base"].recipe, SftRecipe)
    assert loaded.prepared["sorter"].recipe.student.model == "prepared:base"


def test_a_prepared_recipe_sees_only_what_stands_before_it() -> None:
    write(SFT, "recipes/sft.yaml")
    found = problems(PREPARES.replace("model: prepared:base\n      tr", "model: prepared:sorter\n      tr"))
    assert found[0].startswith("r.yaml:19: prepare.sorter.set.student.model: student.model: nothing called 'sorter'")


def test_problems_inside_carry_their_own_file_and_line() -> None:
    write(SFT + "sead: 3\n", "recipes/sft.yaml")
    found = problems(PREPARES.replace("steps: 5", "steps: -5").replace("training:", "trainng:", 1))
    assert [problem.split(": ")[:2] for problem in found] == [
        ["r.yaml:12", "trainng"],
        ["recipes/sft.yaml:4", "sead"],
        ["r.yaml:20", "prepare.sorter.set.training.steps"],
    ]


def test_recipes_in_a_circle() -> None:
    write(SFT + "prepare: {again: {recipe: ../r.yaml}}\n", "recipes/sft.yaml")
    assert "r.yaml -> recipes/sft.yaml -> r.yaml" in problems(PREPARES)[0]


def test_paths_in_settings_are_those_of_the_recipe_that_sets_them(tmp_path: Path) -> None:
    write(SFT, "deep/sft.yaml")
    write("", "d.jsonl")
    setting = "prepare: {base: {recipe: deep/sft.yaml, set: {data.sources.sorting: {kind: dataset, path: d.jsonl}}}}\n"
    loaded = load_recipe(write(GOOD + setting))
    source = loaded.prepared["base"].data["data"]["sources"]["sorting"]
    assert source["path"] == str(tmp_path / "d.jsonl")
    assert loaded.data["prepare"]["base"]["set"]["data.sources.sorting"]["path"] == str(tmp_path / "d.jsonl")


# ---- written and read again ----


def test_a_resolved_recipe_reads_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(SFT, "recipes/sft.yaml")
    write("{{ messages }}", "t.jinja")
    text = PREPARES.replace(
        "training:", "rollout: {stop: ['yes', '1e-3', 'null', 'a: b', \"x\\ny\", '#', 'é', '012']}\ntraining:", 1
    )
    text = text.replace("student:\n", "student:\n  tune: {kind: lora, targets: [q_proj]}\n  chat_template: t.jinja\n")
    text += "objective: {divergence: {kind: top_k_reverse_kl, tail: true}}\n"
    loaded = load_recipe(write(text), ["training.learning_rate=1e-5", "seed=12345678901"])
    assert isinstance(loaded.recipe, DistillRecipe)
    assert isinstance(loaded.recipe.objective.divergence, TopKWithTail)
    dump_resolved(loaded.recipe, tmp_path / "runs/x/recipe.yaml")
    monkeypatch.chdir("recipes")
    again = load_recipe(tmp_path / "runs/x/recipe.yaml")
    assert again.recipe == loaded.recipe
    assert again.data == loaded.data
    assert list(again.data["data"]["sources"]) == ["sorting", "division"]
    assert again.data["training"]["optimizer"]["betas"] == [0.9, 0.95]  # a default, spelled out


@pytest.mark.parametrize(
    ("server", "meant"),
    [
        ("start", {"kind": "start"}),
        ("inside", {"kind": "inside", "sleep": True, "options": {}}),
        ("{kind: inside, memory: 0.5, options: {enforce_eager: true}}", {"options": {"enforce_eager": True}}),
        ("http://10.0.0.5:8000/v1", {"kind": "at", "url": "http://10.0.0.5:8000/v1"}),
        ("{kind: start, python: /opt/bin/python, flags: [--enforce-eager], environment: {A: '1'}}", {"kind": "start"}),
    ],
)
def test_a_server_that_writes(server: str, meant: dict[str, str], tmp_path: Path) -> None:
    text = GOOD.replace("training:", f"rollout: {{kind: vllm, server: {server}, stop: [x]}}\ntraining:", 1)
    loaded = load_recipe(write(text))
    found = loaded.recipe.rollout.model_dump()
    assert found["kind"] == "vllm"
    assert meant.items() <= found["server"].items()
    dump_resolved(loaded.recipe, tmp_path / "runs/x/recipe.yaml")
    assert load_recipe(tmp_path / "runs/x/recipe.yaml").recipe == loaded.recipe


def test_anchors_and_merges_are_plain_yaml() -> None:
    text = GOOD.replace("model: org/sorter}", "model: org/sorter, dtype: float32}").replace(
        "sorting: {kind: transf", "sorting: &t {kind: transf"
    )
    recipe = load_recipe(write(text.replace("{kind: transformers, model: org/div", "{<<: *t, model: org/div"))).recipe
    assert recipe.teachers["division"].model_dump() == {
        **recipe.teachers["sorting"].model_dump(), "model": "org/divider",
    }  # fmt: skip


def test_changed_keys_are_dotted() -> None:
    old = load_recipe(write(GOOD)).data
    new = load_recipe(
        write(GOOD), ["training.steps=21", "teachers.third={kind: transformers, model: x}", "seed=1"]
    ).data
    assert sorted(changed_keys(old, new)) == ["seed", "teachers.third", "training.steps"]
    assert sorted(changed_keys(new, old)) == ["seed", "teachers.third", "training.steps"]
    assert changed_keys(old, old) == []


def test_prepared_name() -> None:
    assert prepared_name("prepared:base") == "base"
    assert prepared_name("org/prepared") is None


def test_sections_are_checked_against_each_other_without_a_file_too() -> None:
    data = load_recipe(write(GOOD)).data
    with pytest.raises(ValueError, match="no teacher is called 'x'"):
        DistillRecipe.model_validate({**data, "routing": {"kind": "mixture", "shares": {"x": 1.0}}})


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    path = write(GOOD)
    code = (
        "import sys; from pathlib import Path; from pipeline.recipe_file import load_recipe;"
        f"load_recipe(Path({str(path)!r}));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy', 'accelerate', 'peft') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
