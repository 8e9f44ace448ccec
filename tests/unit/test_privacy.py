"""What is refused before anything is loaded, what is said of terms, and the mark that a model carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import privacy
from pipeline.cli import app
from pipeline.errors import RunError
from pipeline.privacy import MARK, Findings, examine, examine_all, is_marked, mark, provider_of, terms
from pipeline.recipe_file import LoadedRecipe, load_recipe
from teachers.catalog import catalog
from teachers.config import ProvidedBase
from teachers.guard import host_of
from tests.runs import Settings, changed, run_here, sft_settings, write_recipe

FAR = "http://192.0.2.7:8000/v1"
NEAR = "http://127.0.0.1:8000/v1"


def chat(url: str = FAR, **more: Any) -> dict[str, Any]:
    return {"kind": "chat", "url": url, "model": "grader", **more}


def served(*urls: str) -> dict[str, Any]:
    return {"kind": "served", "url": list(urls), "model": "scorer"}


def recipe(folder: Path, changes: dict[str, Any] | None = None, **teachers: dict[str, Any]) -> LoadedRecipe:
    """One private source of the name `notes`, one public one, a student that is nowhere."""
    task = {"kind": "tasks", "task": "sorting", "count": 10}
    settings: Settings = {
        "method": "distill",
        "output": str(folder / "run"),
        "student": {"model": "nobody/nothing"},
        "teachers": teachers,
        "routing": "all",
        "rollout": {"samples_per_prompt": 2},
        "data": {"sources": {"open": task, "notes": {**task, "task": "addition", "private": True}}},
    }
    return load_recipe(write_recipe(folder / "recipe.yaml", changed(settings, changes or {})))


def found(loaded: LoadedRecipe) -> Findings:
    return examine_all(loaded)


def public(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"data.sources.notes.private": False, **(changes or {})}


# ---- private prompts ----


def test_a_private_source_and_a_teacher_elsewhere_are_named_in_one_line(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, far=chat(), near=chat(NEAR), scorer=served(NEAR, "http://10.0.0.9:8001"))
    problems = found(loaded).problems
    assert [problem.partition(": ")[2].partition(":")[0] for problem in problems] == ["teachers.far", "teachers.scorer"]
    for problem, host in zip(problems, ("192.0.2.7", "10.0.0.9"), strict=True):
        assert f"data.sources.notes is private and {host} is not this machine" in problem
        assert f"privacy.allowed=[{host}]" in problem
        assert "\n" not in problem
    assert found(recipe(tmp_path, public(), far=chat(), near=chat(NEAR))).problems == ()


def test_a_server_that_writes_the_answers_is_shown_the_prompts_too(tmp_path: Path) -> None:
    far = {"rollout.kind": "vllm", "rollout.server": "http://192.0.2.7:8000/v1"}
    (problem,) = found(recipe(tmp_path, far, near=chat(NEAR))).problems
    assert "rollout.server: data.sources.notes is private and 192.0.2.7 is not this machine" in problem
    for server in ("start", "http://127.0.0.1:8000/v1"):
        assert not found(recipe(tmp_path, {**far, "rollout.server": server}, near=chat(NEAR))).problems
    assert not found(recipe(tmp_path, {**far, "privacy.allowed": ["192.0.2.7"]}, near=chat(NEAR))).problems


@pytest.mark.parametrize("allowed", ["192.0.2.7", "192.0.2.7:8000"])
def test_an_address_that_is_allowed_by_name_is_not_refused(tmp_path: Path, allowed: str) -> None:
    assert found(recipe(tmp_path, {"privacy.allowed": [allowed]}, far=chat())).problems == ()
    assert found(recipe(tmp_path, {"privacy.allowed": ["192.0.2.7:8001"]}, far=chat())).problems


def test_a_model_of_the_catalog_is_where_the_catalog_says(tmp_path: Path) -> None:
    name, entry = next(iter(catalog().items()))
    teacher = {"kind": "chat", "model": name, "key": "SOME_KEY"}
    host = host_of(entry.url)
    assert any(f"{host} is not this machine" in line for line in found(recipe(tmp_path, far=teacher)).problems)


def test_a_server_here_that_passes_its_questions_on_is_elsewhere(tmp_path: Path) -> None:
    """A gateway on this machine, by what the recipe says of it."""
    gateway = chat(NEAR, provider={"region": "us"})
    (problem,) = found(recipe(tmp_path, gateway=gateway)).problems
    assert "teachers.gateway" in problem
    assert "provider.region: us" in problem
    assert not found(recipe(tmp_path, gateway=chat(NEAR, provider={"region": "local"}))).problems
    assert not found(recipe(tmp_path, {"privacy.allowed": ["127.0.0.1:8000"]}, gateway=gateway)).problems


def test_a_plugin_has_to_say_that_it_stays_here(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    plugin = {"kind": "plugin", "use": "mine.py:Mine"}
    (problem,) = found(recipe(tmp_path, mine=plugin)).problems
    assert "teachers.mine" in problem
    assert "provider.region=local" in problem
    assert not found(recipe(tmp_path, mine={**plugin, "provider": {"region": "local"}})).problems


def test_a_program_without_walls_may_not_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "missing_protection", lambda: "bubblewrap is not installed")
    program = {"kind": "program", "check": "python_tests", "sandbox": {"required": False}}
    (problem,) = found(recipe(tmp_path, tests=program)).problems
    assert "teachers.tests" in problem
    assert "bubblewrap is not installed" in problem
    assert not found(recipe(tmp_path, {"privacy.mode": "sealed"}, tests=program)).problems
    assert not found(recipe(tmp_path, tests={"kind": "program", "check": "python_tests"})).problems
    assert not found(recipe(tmp_path, tests={**program, "check": "answer"})).problems, "no code of the answer's runs"


@pytest.mark.parametrize("words", [("run",), ("check",), ("check", "--offline")])
def test_the_commands_refuse_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    """The student is on no disk: that is not even looked at."""
    loaded = recipe(tmp_path, far=chat())
    result = CliRunner().invoke(app, [*words, str(loaded.path)])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "teachers.far: data.sources.notes is private and 192.0.2.7 is not this machine" in line


# ---- models that were trained on private data ----


def marked(folder: Path, *, private: bool = True) -> str:
    folder.mkdir(parents=True)
    (folder / MARK).write_text(json.dumps({"private": private}))
    return str(folder)


def test_what_a_marked_student_writes_is_private(tmp_path: Path) -> None:
    model = marked(tmp_path / "before")
    loaded = recipe(tmp_path, public({"student.model": model}), far=chat(), near=chat(NEAR))
    (problem,) = found(loaded).problems
    assert f"teachers.far: student.model was trained on private data ({model}) and 192.0.2.7 is not" in problem
    unmarked = marked(tmp_path / "other", private=False)
    assert not found(recipe(tmp_path, public({"student.model": unmarked}), far=chat())).problems


@pytest.mark.parametrize(
    ("key", "teacher"),
    [
        ("model", {"kind": "transformers"}),
        ("base", {"kind": "adapter", "adapter": "nobody/adapter"}),
        ("adapter", {"kind": "adapter", "base": "nobody/nothing"}),
    ],
)
def test_so_is_what_a_student_learns_from_a_marked_teacher(tmp_path: Path, key: str, teacher: dict[str, Any]) -> None:
    model = marked(tmp_path / "before")
    loaded = recipe(tmp_path, public(), ours={**teacher, key: model}, far=chat())
    (problem,) = found(loaded).problems
    assert f"teachers.far: teachers.ours.{key} was trained on private data" in problem
    mark(loaded.recipe, tmp_path)
    assert is_marked(tmp_path)


def test_prepared_recipes_are_examined_and_hand_their_privacy_on(tmp_path: Path) -> None:
    """The second recipe's student is what the first makes of private notes; the third's is what the second makes."""
    task = {"kind": "tasks", "task": "sorting", "count": 10}
    first = {
        "method": "sft",
        "student": {"model": "nobody/nothing"},
        "data": {"sources": {"notes": {**task, "private": True}}},
    }
    write_recipe(tmp_path / "first.yaml", first)
    second = {"method": "sft", "student": {"model": "prepared:first"}, "data": {"sources": {"open": task}}}
    write_recipe(tmp_path / "second.yaml", second)
    prepare = {"first": {"recipe": "first.yaml"}, "second": {"recipe": "second.yaml"}}
    changes = public({"prepare": prepare, "student.model": "prepared:second"})
    (problem,) = found(recipe(tmp_path, changes, far=chat())).problems
    assert "teachers.far: student.model was trained on private data (prepared:second)" in problem
    write_recipe(tmp_path / "first.yaml", changed(first, {"data.sources.notes.private": False}))
    assert not found(recipe(tmp_path, changes, far=chat())).problems
    pool = {"teachers": {"away": chat()}, "routing": "all", "rollout": {"samples_per_prompt": 2}}
    write_recipe(tmp_path / "first.yaml", {**changed(first, {"method": "distill"}), **pool})
    problems = found(recipe(tmp_path, changes, far=chat())).problems
    assert problems[0].startswith(str(tmp_path / "first.yaml") + ":")
    assert "teachers.away: data.sources.notes is private" in problems[0]


def test_a_mark_stays_is_inherited_and_counts_when_in_doubt(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, near=chat(NEAR, provider={"region": "eu", "training": "allowed", "date": "2026-11-01"}))
    folder = tmp_path / "run" / "model"
    mark(loaded.recipe, folder)
    said = json.loads((folder / MARK).read_text())
    assert (said["private"], said["private_sources"]) == (True, ["notes"])
    assert said["teachers"]["near"] == {
        "kind": "chat", "training": "allowed", "region": "eu", "date": "2026-11-01", "source": None,
    }  # fmt: skip
    innocent = recipe(tmp_path, public(), near=chat(NEAR)).recipe
    mark(innocent, folder)
    assert is_marked(folder), "a source that is called public later does not take it back"
    mark(innocent, tmp_path / "else" / "model")
    assert not is_marked(tmp_path / "else" / "model")
    for text in ('{"teachers": {}}', '{"private": "yes"}', "[]"):
        (folder / MARK).write_text(text)
        assert is_marked(folder), text
    (folder / MARK).write_text("{")
    with pytest.raises(RunError, match=r"tutelage\.json: cannot be read"):
        is_marked(folder)


def test_a_run_on_private_data_marks_what_it_exports(tmp_path: Path) -> None:
    """And a run that begins from that model marks its own, with public data alone."""
    settings = changed(sft_settings(tmp_path), {"student.tune": "lora", "data.sources.sorting.private": True})
    first = run_here(write_recipe(tmp_path / "first.yaml", changed(settings, {"training.steps": 1})))
    assert is_marked(first / "model")
    assert json.loads((first / "adapter" / MARK).read_text())["private_sources"] == ["sorting"]
    following = {"student.model": str(first / "model"), "data.sources.sorting.private": False, "training.steps": 1}
    second = run_here(
        write_recipe(tmp_path / "second.yaml", changed(settings, {**following, "output": str(tmp_path / "second")}))
    )
    said = json.loads((second / "model" / MARK).read_text())
    assert (said["private"], said["private_models"]) == (True, {"student.model": str(first / "model")})


def test_what_is_made_of_a_prepared_private_model_is_marked_and_an_extended_run_stays_so(tmp_path: Path) -> None:
    settings = changed(sft_settings(tmp_path), {"output": None, "training.steps": 1})
    write_recipe(tmp_path / "first.yaml", changed(settings, {"data.sources.sorting.private": True}))
    prepare = {"prepare": {"first": {"recipe": "first.yaml"}}, "student.model": "prepared:first"}
    output = {"output": str(tmp_path / "second")}
    second = run_here(write_recipe(tmp_path / "second.yaml", changed(settings, {**prepare, **output})))
    said = json.loads((second / "model" / MARK).read_text())
    assert (said["private"], said["private_models"]) == (True, {"student.model": "prepared:first"})
    path = write_recipe(tmp_path / "third.yaml", changed(settings, {"output": str(tmp_path / "third")}))
    third = run_here(path, "data.sources.sorting.private=true")
    assert is_marked(third / "model")
    run_here(path, "training.steps=2", extend=True)
    assert json.loads((third / "model" / MARK).read_text())["private"]


def test_check_shows_the_terms_and_warns_once(tmp_path: Path) -> None:
    said = {"region": "eu", "source": "example.com/terms", "date": "2026-11-01"}
    loaded = recipe(tmp_path, public(), unclear=chat(provider=said))
    result = CliRunner().invoke(app, ["check", "--offline", str(loaded.path)])
    assert result.exit_code == 0, result.output
    assert result.output.count("it is not known whether its terms allow training") == 1
    (row,) = [line.split() for line in result.stdout.splitlines() if line.split()[:2] == ["unclear", "192.0.2.7"]]
    assert row == ["unclear", "192.0.2.7", "eu", "unknown", "example.com/terms,", "2026-11-01"]


# ---- terms ----


def provided(loaded: LoadedRecipe, name: str) -> ProvidedBase:
    config = loaded.recipe.teachers[name]
    assert isinstance(config, ProvidedBase)
    return config


def test_terms_that_forbid_stop_and_unknown_ones_warn_once(tmp_path: Path) -> None:
    said = {"date": "2026-11-01", "source": "example.com/terms"}
    loaded = recipe(
        tmp_path,
        public(),
        bad=chat(provider={"training": "forbidden", **said}),
        bad_here=chat(NEAR, provider={"training": "forbidden"}),
        unclear=chat(provider={"training": "unknown", **said}),
        silent=chat(),
        silent_here=chat(NEAR),
        good=chat(provider={"training": "allowed"}),
    )
    findings = found(loaded)
    assert ["teachers.bad:" in line or "teachers.bad_here:" in line for line in findings.problems] == [True, True]
    assert "forbid training on its outputs (example.com/terms, 2026-11-01)" in findings.problems[0]
    unclear, silent = findings.warnings
    assert "teachers.unclear: it is not known" in unclear
    assert "(example.com/terms, 2026-11-01)" in unclear
    assert "teachers.silent: it is not known" in silent
    assert "teachers.silent.provider.training" in silent


def test_what_the_recipe_says_comes_before_the_catalog(tmp_path: Path) -> None:
    name, entry = next((name, entry) for name, entry in catalog().items() if entry.provider.source)
    silent = {"kind": "chat", "model": name}
    loaded = recipe(
        tmp_path,
        public(),
        silent=silent,
        elsewhere={**silent, "url": FAR},
        agreed={**silent, "provider": {"training": "allowed", "source": "a letter"}},
    )
    assert provider_of(provided(loaded, "silent")) == entry.provider
    elsewhere = provider_of(provided(loaded, "elsewhere"))
    assert (elsewhere.training, elsewhere.source) == (None, None), "another server's terms are not these"
    agreed = provider_of(provided(loaded, "agreed"))
    assert (agreed.region, agreed.training, agreed.source) == (entry.provider.region, "allowed", "a letter")
    assert agreed.date is None, "the catalog's date is of the catalog's terms"
    rows = {str(row[0]): row for row in terms(loaded.recipe)}
    assert rows["silent"][1:4] == [
        host_of(entry.url),
        entry.provider.region,
        entry.provider.training or "unknown",
    ]
    assert rows["agreed"][4] == "a letter"


def test_one_recipe_by_itself_is_examined_as_in_the_whole(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, far=chat())
    here = [line.partition("teachers.")[2] for line in examine(loaded.recipe).problems]
    assert here == [line.partition("teachers.")[2] for line in found(loaded).problems]
    assert here
