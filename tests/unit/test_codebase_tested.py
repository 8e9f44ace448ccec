"""Examples that a codebase's own tests judge: how many are tried, which are kept, what is said of the rest."""

from __future__ import annotations

import io
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.codebase.source import Examples, Reader, Shelf, examples_of, open_codebase
from pipeline.codebase.tested import Bench, reasons
from pipeline.codebase.types import Place, Span
from pipeline.display import Display
from pipeline.errors import DataError, RecipeError
from pipeline.prompts import load_prompts
from pipeline.recipe import Codebase, CodebaseSource, Data
from pipeline.recipe_file import load_recipe
from teachers.config import ProgramTeacher, RepositorySuite
from teachers.errors import TeacherError
from teachers.programs import programs
from teachers.repository_tests import Grading
from tests.codes import count
from tests.runs import changed, write_recipe
from tests.workshop import make_workshop, workshop_settings

walled = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

TESTS = RepositorySuite.model_validate({"sandbox": {"seconds": 5.0}, "places": 6})
UNTOLD = """
    def audited(entries):
        \"\"\"Entries that nobody has signed.\"\"\"
        unsigned = [entry for entry in entries if not entry.get("signed")]
        return sorted(unsigned, key=lambda entry: entry["number"])
"""
NEEDS = """
    import nothing_of_the_kind
    from workshop import ledger


    def test_audited():
        assert ledger.audited([]) == []
"""


class Read:
    """A workshop as a source of prompts, with what was shown."""

    def __init__(self, folder: Path, tests: RepositorySuite | None, more: Mapping[str, str] | None = None) -> None:
        from textwrap import dedent

        files = {name: dedent(text).lstrip("\n") for name, text in (more or {}).items()}
        self.root = make_workshop(folder / "workshop", files)
        self.config = Codebase(path=str(self.root), held_out=0.3, tests=tests)
        self.heard = io.StringIO()
        self.results = folder / "cache" / "tests.sqlite"
        display = Display(Console(file=self.heard, width=200))
        self.reader = Reader(self.config, Shelf(folder), count, 800, None, Bench(self.results, display))

    def examples(self, task: str, held_out: int = 2, **rest: Any) -> Examples:
        settings = {"kind": "codebase", "task": task, "reference_tokens": 300, **rest}
        return examples_of(CodebaseSource.model_validate(settings), "code", held_out, self.reader)

    @property
    def runs(self) -> int:
        if not self.results.exists():
            return 0
        with sqlite3.connect(self.results) as base:
            return int(base.execute("SELECT count(*) FROM results").fetchone()[0])


@walled
def test_no_more_are_run_than_are_wanted(tmp_path: Path) -> None:
    read = Read(tmp_path, TESTS)
    found = read.examples("feature", count=3)
    assert (len(found.held_out), len(found.train), found.checker) == (2, 3, "repository_tests")
    assert 2 * 5 <= read.runs <= 2 * (TESTS.places + 2)
    gradings = [Grading.from_json(each.grading or "") for each in (*found.train, *found.held_out)]
    assert len({(grading.path, grading.start) for grading in gradings}) == 5
    sides = open_codebase(read.config, read.reader.shelf).split
    assert {grading.path for grading in gradings[:3]} <= sides.train
    assert {grading.path for grading in gradings[3:]} <= sides.held_out
    more = Read(tmp_path / "more", TESTS).examples("feature", count=100)
    assert 3 < len(more.train) <= TESTS.places
    assert more.train[:3] == tuple(
        type(each)(**{**vars(each), "grading": other.grading})
        for each, other in zip(found.train, more.train, strict=False)
    )


@walled
def test_bodies_beyond_those_are_kept_and_not_judged(tmp_path: Path) -> None:
    tests = TESTS.model_copy(update={"places": 2})
    read = Read(tmp_path, tests)
    plain = Read(tmp_path / "plain", None).examples("body")
    found = read.examples("body")
    assert [each.reference for each in found.train] == [each.reference for each in plain.train]
    assert [each.grading is not None for each in found.train].count(True) == 2
    assert {each.grading for each in (*plain.train, *plain.held_out)} == {None}
    assert (found.checker, plain.checker) == ("repository_tests", "similarity")
    assert read.examples("body", checker="similarity").checker == "similarity"


@pytest.mark.parametrize("task", ["feature", "body", "line"])
def test_nothing_is_run_where_the_recipe_does_not_say_so(task: str, tmp_path: Path) -> None:
    read = Read(tmp_path, None)
    found = read.examples(task)
    assert {each.grading for each in (*found.train, *found.held_out)} == {None}
    assert found.checker != "repository_tests"
    assert not read.results.exists()
    assert read.heard.getvalue() == ""


def test_nothing_is_run_for_other_tasks(tmp_path: Path) -> None:
    read = Read(tmp_path, TESTS)
    assert read.examples("line").checker == "first_line"
    assert not read.results.exists()


@walled
def test_what_no_test_tells_is_counted_and_shown(tmp_path: Path) -> None:
    more = {"workshop/ledger.py": UNTOLD, "tests/test_ledger.py": NEEDS}
    read = Read(tmp_path, RepositorySuite.model_validate({"sandbox": {"seconds": 5.0}}), more)
    found = read.examples("feature", held_out=100)
    kept = {Grading.from_json(each.grading or "").symbol for each in (*found.train, *found.held_out)}
    assert "audited" not in kept
    said = read.heard.getvalue()
    assert "its tests cannot be run here: ModuleNotFoundError: No module named 'nothing_of_the_kind'" in said
    assert "workshop/ledger.py::audited" in said
    assert "audited(" not in said


def test_reasons_tell_nothing_that_a_test_printed(tmp_path: Path) -> None:
    code = open_codebase(Codebase(path=str(make_workshop(tmp_path / "workshop"))), Shelf(tmp_path)).code
    number = next(number for number, file in enumerate(code.files) if file.path == "workshop/coins.py")
    places = [Place(number, Span(start, start + 1), 0) for start in range(4)]
    assert reasons(
        {
            places[0]: "no test that reaches it passes on the unchanged code: assert secret == plan",
            places[1]: "its tests pass without it",
            places[2]: "no test that reaches it passes on the unchanged code: ValueError: plan",
            places[3]: "its tests do not end by themselves: the tests ran longer than 5 s; plan",
        },
        code,
    ) == [
        ("no test that reaches it passes on the unchanged code", 2, "workshop/coins.py::change"),
        ("its tests pass without it", 1, "workshop/coins.py::change"),
        ("its tests do not end by themselves: the tests ran longer than 5 s", 1, "workshop/coins.py::change"),
    ]


@walled
def test_feature_without_a_test_that_tells_is_said(tmp_path: Path) -> None:
    nothing = {f"tests/test_{name}.py": f"from workshop import {name}\n\n\ndef test_it():\n    assert {name}\n"
               for name in ("stock", "words", "grid", "clockwork", "tree", "route", "coins", "queue")}  # fmt: skip
    with pytest.raises(DataError, match="no place for the task feature is to train on or held out"):
        Read(tmp_path, TESTS, nothing).examples("feature")


@walled
def test_prompts_carry_their_grading(tmp_path: Path) -> None:
    read = Read(tmp_path, TESTS)
    source = {"kind": "codebase", "task": "feature", "count": 2, "reference_tokens": 300}
    data = Data.model_validate({"held_out": 1, "sources": {"code": source}})
    sets = load_prompts(data, folder=tmp_path, seed=0, code=read.reader)
    for prompt in (*sets.train["code"][:], *sets.held_out["code"]):
        assert (prompt.checker, prompt.private) == ("repository_tests", True)
        assert Grading.from_json(prompt.grading or "").root == str(read.root)
    other = Read(tmp_path, None).reader
    assert load_prompts(data, folder=tmp_path, seed=0, code=other).fingerprint != sets.fingerprint


# ---- what a recipe got wrong ----


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source.tests": None}, "teachers.tests.check: no source has tests to be judged by"),
        ({"data.sources.code.task": "line"}, "teachers.tests.check: no source has tests to be judged by"),
        (
            {"data.sources.more": {"kind": "codebase", "task": "line", "checker": "repository_tests"}},
            "data.sources.more.checker: no tests are run for this source",
        ),
        ({"source.tests": {"sandbox": {"seconds": 40}}}, "teachers.tests.limits.timeout: tests may take 120 s"),
        ({"source.tests": {"packages": ["vendored"]}}, "source.tests.packages.0: there is no folder vendored"),
    ],
)
def test_what_a_recipe_got_wrong(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    settings = workshop_settings(tmp_path, make_workshop(tmp_path / "workshop"))
    assert load_recipe(write_recipe(tmp_path / "r.yaml", settings)).recipe.source is not None
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path / "r.yaml", changed(settings, changes)))
    assert words in str(caught.value)


def test_packages_lie_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "vendored").mkdir()
    settings = workshop_settings(tmp_path, make_workshop(tmp_path / "workshop"))
    path = write_recipe(tmp_path / "r.yaml", changed(settings, {"source.tests": {"packages": ["vendored"]}}))
    source = load_recipe(path).recipe.source
    assert source is not None
    assert source.tests is not None
    assert source.tests.packages == (tmp_path / "vendored",)


def test_a_teacher_has_no_limits_of_its_own_for_them() -> None:
    config = ProgramTeacher.model_validate(
        {"kind": "program", "check": "repository_tests", "sandbox": {"seconds": 5.0}}
    )
    with pytest.raises(TeacherError, match=r"under source.tests.sandbox"):
        programs("grader", config, folder=Path(), check=lambda *_: None, clear=str)
