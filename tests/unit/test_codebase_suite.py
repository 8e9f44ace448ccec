"""Which tests judge a place of a codebase: found by names, held against running them all."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.codebase.reach import reach
from pipeline.codebase.results import Results
from pipeline.codebase.suite import EMPTY, Told, clear, tellable
from pipeline.codebase.types import Code
from pipeline.errors import DataError, RunError
from teachers.config import RepositorySuite, Sandbox
from teachers.repository_run import Trial, ran
from teachers.repository_tests import Grading, grade
from teachers.types import Judgment
from tests.suites import FILES, code_of, make, place_of

walled = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

LIMITS = Sandbox(seconds=3, memory_megabytes=256, processes=24)
SUITE = RepositorySuite(sandbox=LIMITS)
CORE = "calc/core.py"


def told_of(
    root: Path,
    symbols: Sequence[str] = ("total",),
    suite: RepositorySuite = SUITE,
    **rest: Any,
) -> tuple[Code, Told]:
    code = code_of(root)
    places = [place_of(code, CORE, symbol) for symbol in symbols]
    return code, tellable(code, places, suite, rest.pop("results", None) or Results(), **rest)


def only(told: Told) -> Grading:
    ((_, text),) = told.gradings.items()
    return Grading.from_json(text)


def why(told: Told) -> str:
    ((_, text),) = told.left_out.items()
    assert "\n" not in text
    return text


# ---- by names ----


def test_what_reaches_a_function(tmp_path: Path) -> None:
    code = code_of(make(tmp_path))
    assert set(reach(code, CORE, "total")) == {
        "tests/test_core.py::test_total", "tests/test_core.py::test_empty", "tests/test_case.py::TestTotal::test_many",
    }  # fmt: skip
    assert reach(code, CORE, "total", most=1) == reach(code, CORE, "total")[:1]
    assert reach(code, CORE, "nothing") == ()
    assert reach(code, "calc/helpers.py", "same") == ("tests/test_core.py::test_empty",)


@pytest.mark.parametrize(
    ("imports", "reached"),
    [
        ("from calc.core import total", True),
        ("from calc import core", True),
        ("import calc.core", True),
        ("import calc", True),
        ("from calc import *", True),
        ("from ..core import total", True),
        ("from .. import core", True),
        ("from other import total", False),
        ("import calculus", False),
        ("from calc.helpers import total", False),  # what a module beside it hands on is not followed
    ],
)
def test_what_imports_a_module(imports: str, reached: bool, tmp_path: Path) -> None:
    files = {"calc/tests/test_x.py": f"{imports}\n\n\ndef test_x():\n    assert total\n", CORE: FILES[CORE]}
    assert reach(code_of(make(tmp_path, files)), CORE, "total") == (("calc/tests/test_x.py::test_x",) * reached)


def test_helpers_and_classes_lead_to_their_tests(tmp_path: Path) -> None:
    files = {
        CORE: """
            class Sum:
                def __init__(self, items):
                    self.items = items

                def value(self):
                    return _add(self.items)


            def _add(items):
                return _plus(items)


            def _plus(items):
                return sum(items)
        """,
        "tests/test_a.py": """
            from calc.core import Sum

            class TestSum:
                def setup_method(self):
                    self.sum = Sum([1])

                def test_it(self):
                    assert self.sum.value() == 1
        """,
        "tests/test_b.py": """
            import calc.core
            import pytest

            @pytest.fixture
            def made():
                return calc.core.Sum([1])

            def test_made(made):
                assert made.items
        """,
    }
    code = code_of(make(tmp_path, files))
    assert reach(code, CORE, "Sum.__init__") == ("tests/test_a.py::TestSum::test_it", "tests/test_b.py")
    assert reach(code, CORE, "Sum.value") == ("tests/test_a.py::TestSum::test_it",)
    assert reach(code, CORE, "_plus") == ("tests/test_a.py::TestSum::test_it",)  # by _add, by value


@walled
def test_names_find_what_running_all_tests_finds(tmp_path: Path) -> None:
    """The naive way: empty each function, run everything, see what fails."""
    root = make(tmp_path)
    code = code_of(root)
    tests = tuple(file.path for file in code.files if file.is_test)
    for symbol in ("total", "mean"):
        place = place_of(code, CORE, symbol)
        text = code.files[place.file].text
        emptied = text[: place.span.start] + EMPTY + text[place.span.end :]
        found = asyncio.run(ran(Trial(root, CORE, emptied, (1, 1), tests, None, SUITE, clear)))
        failed = {name for name, result in found.tests.items() if result == "failed"}
        assert failed <= set(reach(code, CORE, symbol))
        assert bool(failed) == (symbol == "total")


# ---- by running ----


@walled
def test_a_place_is_told_by_tests_that_fail_without_it(tmp_path: Path) -> None:
    root = make(tmp_path, git=True)
    done: list[int] = []
    _, told = told_of(root, ("total", "mean"), advance=done.append)
    assert done == [1, 1]
    found = only(told)
    assert set(found.tests) == set(reach(code_of(root), CORE, "total"))
    assert why(told) == "no test reaches it"
    assert asyncio.run(grade(found.to_json(), "return sum(items)", clear)) == Judgment(1.0)
    assert asyncio.run(grade(found.to_json(), EMPTY, clear)).score == 0.0


@walled
def test_tests_that_pass_without_it_tell_nothing(tmp_path: Path) -> None:
    tests = (
        "from calc import total\n\n\ndef test_it():\n    assert callable(total)\n\n\ndef test_call():\n    total([1])\n"
    )
    _, told = told_of(make(tmp_path, {**FILES, "tests/test_core.py": tests, "tests/test_case.py": ""}))
    assert why(told) == "its tests pass without it"


BAD = {
    "fails": ("assert total([1]) == 2", "no test that reaches it passes on the unchanged code"),
    "is skipped": ("import pytest; pytest.skip('no'); total", "no test that reaches it passes on the unchanged code"),
    "hangs": ("total([])\n    while True:\n        pass", "do not end by themselves: .*longer than 3 s"),
    "sleeps": ("import time; total([]); time.sleep(1000)", "do not end by themselves: .*longer than 3 s"),
    "forks": ("import os; total([])\n    while True:\n        os.fork()", "do not end by themselves: .*processes"),
    "eats memory": (
        "total([])\n    x = [bytearray(1 << 20) for _ in range(4000)]",
        "do not end by themselves: .*memory|MemoryError|used more than",
    ),
    "prints without end": (
        "total([])\n    while True:\n        print('x' * 100_000)",
        "do not end by themselves|No space|Error",
    ),
    "ends all": ("import os; total([]); os._exit(0)", "the process of the tests ended"),
    "writes beside itself": ("total([]); open(__file__ + '.new', 'w')", "Read-only file system"),
    "writes outside": ("total([]); open('/usr/x', 'w')", "Read-only|Permission"),
    "connects": ("import socket; total([]); socket.create_connection(('1.1.1.1', 53), 1)", "unreachable"),
}


@walled
@pytest.mark.parametrize("name", BAD)
def test_a_test_that_cannot_run_here_is_left_out(name: str, tmp_path: Path) -> None:
    """And another one beside it is not."""
    text, said = BAD[name]
    bad = f"from calc import total\n\n\ndef test_bad():\n    {text}\n"
    alone = make(tmp_path / "alone", {**FILES, "tests/test_core.py": bad, "tests/test_case.py": ""})
    _, told = told_of(alone)
    assert re.search(said, why(told)), why(told)
    if name == "ends all":
        return  # with what runs beside it
    both = make(tmp_path / "both", {**FILES, "tests/test_bad.py": bad})
    before = sorted(both.rglob("*"))
    _, told = told_of(both)
    found = only(told)
    assert not any("test_bad" in test for test in found.tests)
    assert len(found.tests) == 3
    assert sorted(both.rglob("*")) == before
    assert all("test_bad" in test for test in told.hung)
    assert bool(told.hung) or not said.startswith("do not end by themselves: .*longer")


@walled
def test_of_tests_that_take_too_long_together_some_are_chosen(tmp_path: Path) -> None:
    """Each is within the limit by itself, and all but the first few are not together."""
    slow = "import time\nfrom calc import total\n" + "".join(
        f"\n\ndef test_{n}():\n    end = time.process_time() + 0.8\n    while time.process_time() < end:\n"
        f"        pass\n    assert total([{n}]) == {n}\n"
        for n in range(9)
    )
    found = only(told_of(make(tmp_path, {**FILES, "tests/test_core.py": slow, "tests/test_case.py": ""}))[1])
    assert 0 < len(found.tests) < 9
    assert asyncio.run(grade(found.to_json(), "return sum(items)", clear)) == Judgment(1.0)


@walled
def test_a_file_that_cannot_be_imported_is_left_out_alone(tmp_path: Path) -> None:
    bad = "import nothing_of_the_kind\nfrom calc import total\n\n\ndef test_bad():\n    assert total([1]) == 1\n"
    alone = make(tmp_path / "alone", {**FILES, "tests/test_core.py": bad, "tests/test_case.py": ""})
    assert why(told_of(alone)[1]).endswith("ModuleNotFoundError: No module named 'nothing_of_the_kind'")
    found = only(told_of(make(tmp_path / "both", {**FILES, "tests/test_bad.py": bad}))[1])
    assert len(found.tests) == 3
    assert not any("test_bad" in test for test in found.tests)


@walled
def test_a_command_is_believed_by_its_status(tmp_path: Path) -> None:
    checks = "import sys\nfrom calc import total\nopen('built', 'w').write('x')\nsys.exit(total([1, 2]) != 3)\n"
    root = make(tmp_path, {**FILES, "check.py": checks})
    suite = RepositorySuite(run=("python", "check.py"), runner="command", sandbox=LIMITS)
    _, told = told_of(root, ("total", "mean"), suite)
    assert why(told) == "its tests pass without it"  # mean
    assert asyncio.run(grade(only(told).to_json(), "return sum(items)", clear)) == Judgment(1.0)
    assert asyncio.run(grade(only(told).to_json(), "return 4", clear)).score == 0.0
    for ends in ("sys.exit(0)", "raise SystemExit", "exit()", "os.execvp('true', ['true'])"):
        assert asyncio.run(grade(only(told).to_json(), ends, clear)).score == 0.0
    assert not (root / "built").exists()


@walled
def test_what_is_not_on_disk_as_it_was_read_is_not_judged(tmp_path: Path) -> None:
    root = make(tmp_path)
    code = code_of(root)
    (root / CORE).write_text((root / CORE).read_text() + "x = 1\n")
    told = tellable(code, [place_of(code, CORE, "total")], SUITE, Results())
    assert "not on disk as it was read" in why(told)


@walled
def test_what_a_recipe_got_wrong_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"source.tests.run: `make test` does not name pytest"):
        told_of(make(tmp_path), suite=RepositorySuite(run=("make", "test")))
    _, told = told_of(make(tmp_path), suite=RepositorySuite(run=("python", "-m", "pytest", "--no-such-option")))
    assert "no-such-option" in why(told)


@walled
def test_a_repository_s_own_settings_hold(tmp_path: Path) -> None:
    settings = "[pytest]\naddopts = -n 4 --dist loadfile\nmarkers =\n    slow: x\npythonpath = lib\n"
    tests = "import calc, own\nfrom calc import total\n\n\ndef test_it(given):\n    assert total(given) == own.three\n"
    conftest = "import pytest\n\n\n@pytest.fixture\ndef given():\n    return [1, 2]\n"
    files = {**FILES, "pytest.ini": settings, "lib/own.py": "three = 3\n", "tests/conftest.py": conftest}
    _, told = told_of(make(tmp_path, {**files, "tests/test_core.py": tests, "tests/test_case.py": ""}))
    assert only(told).tests == ("tests/test_core.py::test_it",)


# ---- remembered ----


@walled
def test_the_same_is_never_run_twice(tmp_path: Path) -> None:
    root, kept = make(tmp_path / "code"), tmp_path / "run" / "results.sqlite"
    first = Results(kept)
    _, told = told_of(root, results=first)
    assert first.runs == 2
    again = Results(kept)
    assert told_of(root, results=again)[1] == told
    assert again.runs == 0
    words = " ".join(str(row) for row in sqlite3.connect(kept).execute("SELECT * FROM results"))
    assert "test_total" in words
    assert "result += item" not in words
    other = Results(kept)
    told_of(root, suite=RepositorySuite(sandbox=LIMITS.model_copy(update={"seconds": 4})), results=other)
    assert other.runs == 2


def test_what_is_no_file_of_results_is_said(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    path.write_text("not a database, and long enough to be told from one" * 9)
    with pytest.raises(DataError, match="delete it"):
        Results(path)


# ---- a real one ----


@walled
@pytest.mark.skipif(find_spec("networkx") is None, reason="networkx is not installed")
def test_networkx() -> None:
    spec = find_spec("networkx")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    code = code_of(root, keep="algorithms/dag.py")
    place = place_of(code, "algorithms/dag.py", "topological_sort")
    told = tellable(code, [place], RepositorySuite(sandbox=Sandbox(seconds=30)), Results())
    found = only(told)
    assert any("test_topological_sort1" in test for test in found.tests)
    honest = "for generation in nx.topological_generations(G):\n        yield from generation"
    assert asyncio.run(grade(found.to_json(), honest, clear)) == Judgment(1.0)
    assert asyncio.run(grade(found.to_json(), "yield from G", clear)).score == 0.0
    installed = str(root / "algorithms/dag.py")
    looks = f"import os\n    assert os.path.exists({installed!r})\n    {honest}"
    assert asyncio.run(grade(found.to_json(), looks, clear)).score == 0.0
    looks = looks.replace("assert os", "assert not os")
    assert asyncio.run(grade(found.to_json(), looks, clear)) == Judgment(1.0)
