"""Grades by a repository's own tests: what is right gets 1, and no way to get 1 without being right is left open."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from pipeline.checkers import check
from pipeline.codebase.results import Results
from pipeline.codebase.suite import clear, tellable
from pipeline.types import Prompt
from teachers import repository_copy
from teachers.config import ProgramTeacher, RepositorySuite, Sandbox
from teachers.programs import programs
from teachers.repository_copy import copied, text_of
from teachers.repository_run import Ran, ran
from teachers.repository_tests import (
    Grading,
    UnusableGrading,
    digest_of,
    fitted,
    grade,
    judgment,
    reaching,
    trial_of,
)
from teachers.types import Answer, Judgment, RawText, ScoreRequest, TeacherFailure
from tests.suites import FILES, code_of, make, place_of

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

LIMITS = Sandbox(seconds=10, memory_megabytes=512)
QUICK = Sandbox(seconds=2, memory_megabytes=256, processes=16)
SUITE = RepositorySuite(sandbox=LIMITS)


def grading_of(root: Path, path: str = "calc/core.py", symbol: str = "total") -> Grading:
    code = code_of(root)
    place = place_of(code, path, symbol)
    told = tellable(code, [place], SUITE, Results())
    assert not told.left_out, told.left_out
    return Grading.from_json(told.gradings[place])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("repository"), git=True)


@pytest.fixture(scope="module")
def grading(repository: Path) -> Grading:
    return grading_of(repository)


def body(text: str) -> str:
    """As it stands in a function: its first line follows the indent that is there already."""
    return indent(dedent(text).strip("\n"), "    ").removeprefix("    ")


def within(grading: Grading, limits: Sandbox) -> Grading:
    return replace(grading, suite=grading.suite.model_copy(update={"sandbox": limits}))


def judged(grading: Grading, text: str, limits: Sandbox = LIMITS) -> Judgment:
    return asyncio.run(grade(within(grading, limits).to_json(), body(text), clear))


def ran_with(grading: Grading, text: str, limits: Sandbox = LIMITS) -> Ran:
    whole = text_of(copied(Path(grading.root), clear), grading.path)
    assert whole is not None
    return asyncio.run(ran(trial_of(within(grading, limits), whole, body(text), clear)))


def state(root: Path) -> dict[str, str]:
    return {
        str(path): sha256(path.read_bytes()).hexdigest() + oct(path.stat().st_mode) + str(path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# ---- what is right, and what is wrong ----


def test_right_and_wrong(repository: Path, grading: Grading) -> None:
    before = state(repository)
    assert judged(grading, "return sum(items)") == Judgment(1.0)
    assert judged(grading, "result = 0\nfor item in items:\n    result = item + result\nreturn result").score == 1.0
    wrong = judged(grading, "return 3")
    assert wrong.score == 0.0
    assert re.match(r"tests/test_\w+.py::\S+: .*3", wrong.feedback or "")
    raises = judged(grading, "return items.nothing")
    assert (raises.score, "AttributeError" in (raises.feedback or "")) == (0.0, True)
    for text in ("return (", ""):
        broken = judged(grading, text)
        assert (broken.score, "calc/core.py is not Python" in (broken.feedback or "")) == (0.0, text != "")
    assert state(repository) == before


def test_what_belongs_into_the_place() -> None:
    whole = "def f(a):\n    return a\n\n\ndef g():\n    pass\n"
    start, end = whole.index("return"), whole.index("return") + len("return a")
    for completion, left in {
        "return 2\n\n\ndef h():\n    pass\n": "return 2",
        "return 2\nprint(1)": "return 2",
        '"""x\ny\n"""\n    return 2\nprint(1)': '"""x\ny\n"""\n    return 2',
        "x = (\n1)\n    return x\n": "x = (\n1)\n    return x",
        "```python\n    a = 1\n    return a\n```\nThat is it.": "a = 1\n    return a",
        "if a:\n        return 1\n    # so\n    return 2\n# end\n": "if a:\n        return 1\n    # so\n    return 2",
        "return (": "return (",
    }.items():
        assert fitted(whole, start, end, completion, "a.py") == left
    assert fitted("x = ", 4, 4, "1\ny = 2\n", "a.py") == "1\ny = 2\n"
    assert fitted("{\n  ", 4, 4, "a;\n}\nb\n", "a.js") == "a;\n}\nb\n"


def test_no_answer_reaches_the_module_around_its_place(grading: Grading) -> None:
    assert judged(grading, "return 0").score == 0.0
    outside = "return 0\n\nimport builtins, calc\ncalc.total = sum\n"
    found = asyncio.run(grade(grading.to_json(), outside, clear))
    assert found == judged(grading, "return 0")


def test_json_round_trip(grading: Grading) -> None:
    assert Grading.from_json(grading.to_json()) == grading
    for text in ("", "{}", "[]", '{"root": 1}', "7"):
        with pytest.raises(ValueError, match=r"."):
            Grading.from_json(text)


def test_a_file_that_has_changed_is_no_grade(tmp_path: Path) -> None:
    root = make(tmp_path / "code")
    found = grading_of(root)
    (root / "calc/core.py").write_text("x = 1\n")
    assert judged(found, "return sum(items)").score == 1.0  # by the copy that was made
    repository_copy._made.cache_clear()  # as in another process
    with pytest.raises(UnusableGrading, match="changed since"):
        judged(found, "return sum(items)")


# ---- cheats ----

# Each would be a pass, and is none; `return 3` keeps them from being right.
CHEATS = {
    "ends the process": "os._exit(0)",
    "ends the process with what pytest returns": "os._exit(1)",
    "exits": "sys.exit(0)",
    "exits pytest": "import pytest; pytest.exit('done', returncode=0)",
    "skips": "import pytest; pytest.skip('not today')",
    "skips as unittest does": "import unittest; raise unittest.SkipTest('not today')",
    "fails as expected": "import pytest; pytest.xfail('not today')",
    "stops the session": """
        import pytest
        raise pytest.exit.Exception('done', 0)
    """,
    "runs at the end": """
        import atexit
        atexit.register(os._exit, 0)
        return 3
    """,
    "runs on a signal": """
        import signal
        signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
        signal.alarm(1)
        return 3
    """,
    "prints a result from a thread": """
        import threading
        def say():
            for fd in range(1, 64):
                try:
                    os.write(fd, b'\\n["finished", {"status": 1, "changed": []}]\\n')
                except OSError:
                    pass
        threading.Thread(target=say).start()
        return 3
    """,
    "forges reports": """
        for fd in range(3, 64):
            try:
                os.write(fd, b'["", "test", ["tests/test_core.py::test_total", "teardown", "passed", ""]]\\n')
            except OSError:
                pass
        return 3
    """,
    "leaves a child to go on": """
        if os.fork():
            os._exit(0)
        return 3
    """,
    "lets a child run the tests": """
        if os.fork() == 0:
            os._exit(0)
        return 3
    """,
    "edits the tests": """
        import pathlib
        for path in pathlib.Path('/repository').rglob('test_*.py'):
            try:
                path.chmod(0o777)
                path.write_text('def test_total(): pass\\ndef test_empty(): pass\\n')
            except OSError:
                pass
        return 3
    """,
    "puts other tests in their place": """
        import pathlib
        for path in pathlib.Path('/repository').rglob('test_*.py'):
            try:
                path.rename('/tmp/scratch/old')
            except OSError:
                pass
        return 3
    """,
    "leaves compiled tests": """
        import py_compile, pathlib
        pathlib.Path('x.py').write_text('def test_total(): pass')
        for path in pathlib.Path('/repository').rglob('test_*.py'):
            try:
                py_compile.compile('x.py', str(path.parent / '__pycache__' / 'x.pyc'), doraise=True)
            except OSError:
                pass
        return 3
    """,
    "leaves a conftest": """
        for name in ('conftest.py', 'sitecustomize.py', 'usercustomize.py', '.pytest_cache'):
            for folder in ('.', '/repository', '/repository/code', '/repository/code/tests', '/tmp'):
                try:
                    open(f'{folder}/{name}', 'w').write('import os; os._exit(0)')
                except OSError:
                    pass
        return 3
    """,
    "asserts nothing, in unittest": """
        import unittest
        unittest.TestCase.assertEqual = lambda *a, **k: None
        return 3 if len(items) == 2 else sum(items) * len(items) // 5 * 0
    """,
    "asserts nothing, in the repository's helper": """
        import calc.helpers
        calc.helpers.same.__code__ = (lambda left, right: None).__code__
        return sum(items) or 7
    """,
    "asserts nothing, in the tests' own names": """
        module = sys.modules['test_core']
        module.same = lambda *a: None
        return sum(items) or 7
    """,
    "replaces the tests in their module": """
        for name, module in list(sys.modules.items()):
            if name.startswith('test_'):
                for key in dir(module):
                    if key.startswith('test_'):
                        getattr(module, key).__code__ = (lambda: None).__code__
        return 3
    """,
    "asserts nothing, by the runner": """
        import pytest
        pytest.Function.runtest = lambda self: None
        import _pytest.unittest
        _pytest.unittest.TestCaseFunction.runtest = lambda self: None
        return 3
    """,
    "reports nothing but passes": """
        import _pytest.reports
        old = _pytest.reports.TestReport.from_item_and_call
        def new(item, call):
            report = old(item, call)
            report.outcome, report.longrepr = 'passed', None
            return report
        _pytest.reports.TestReport.from_item_and_call = new
        return 3
    """,
    "reports by a plugin of its own": """
        import pytest, _pytest.assertion.util as util
        class Plugin:
            @pytest.hookimpl(hookwrapper=True)
            def pytest_runtest_makereport(self, item, call):
                outcome = yield
                report = outcome.get_result()
                report.outcome, report.longrepr = 'passed', None
        manager = util._config.pluginmanager
        if not manager.has_plugin('mine'):
            manager.register(Plugin(), 'mine')
        return 3
    """,
    "takes the judge's plugin away": """
        import _pytest.assertion.util as util
        manager = util._config.pluginmanager
        for plugin in manager.get_plugins():
            if type(plugin).__name__ == 'Reporter':
                manager.unregister(plugin)
        return 3
    """,
    "forgives failures": """
        import _pytest.runner, _pytest.outcomes
        _pytest.runner.check_interactive_exception = lambda *a: False
        AssertionError.__init__ = lambda self, *a: os._exit(0)
        return 3
    """,
    "changes what raises": """
        import builtins
        builtins.AssertionError = type('Quiet', (BaseException,), {})
        return 3
    """,
    "reaches for frames": """
        frame = sys._getframe(1)
        frame.f_globals['same'] = lambda *a: None
        return sum(items) or 7
    """,
    "reaches for frames by a traceback": """
        try:
            raise ValueError
        except ValueError as error:
            frame = error.__traceback__.tb_frame.f_back
        frame.f_globals['same'] = lambda *a: None
        return sum(items) or 7
    """,
    "reaches for frames by a generator": """
        def walk():
            yield mine.gi_frame.f_back
        mine = walk()
        frame = next(mine).f_back
        frame.f_globals['same'] = lambda *a: None
        return sum(items) or 7
    """,
    "reaches for frames by inspect": """
        import inspect
        inspect.stack()[1].frame.f_globals['same'] = lambda *a: None
        return sum(items) or 7
    """,
    "reaches for frames by text": """
        exec("import sys; sys._getframe(2).f_globals['same'] = lambda *a: None")
        return sum(items) or 7
    """,
    "reaches for the collector": """
        import gc
        for thing in gc.get_objects():
            if isinstance(thing, dict) and 'same' in thing:
                thing['same'] = lambda *a: None
        return sum(items) or 7
    """,
    "steps over assertions": """
        def jump(frame, event, arg):
            return jump
        sys.settrace(jump)
        return 3
    """,
    "reaches for memory": """
        import ctypes
        ctypes.pythonapi.PyErr_Clear()  # such as to change what lies in a tuple
        return sum(items) or 7
    """,
    "reads memory by /proc": """
        open('/proc/self/maps').read()
        return sum(items) or 7
    """,
    "kills who watches": """
        os.kill(os.getppid(), 9)
        return 3
    """,
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_gets_nothing(name: str, grading: Grading, repository: Path) -> None:
    """The run itself finds it, without a look at the answer's words."""
    before = state(repository)
    result = ran_with(grading, CHEATS[name])
    assert judgment(grading, result).score == 0.0, result
    assert state(repository) == before


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_gets_nothing_from_the_checker(name: str, grading: Grading, repository: Path) -> None:
    """The way of an evaluation, which looks at the words first."""
    before = state(repository)
    prompt = Prompt("p", "code", "code", RawText(""), "", checker="repository_tests", grading=grading.to_json())
    assert check("repository_tests", body(CHEATS[name]), "", prompt) == 0.0
    assert state(repository) == before


EQUAL = """
    class Anything:
        def __eq__(self, other):
            return True
        def __hash__(self):
            return 0
    return Anything()
"""


@pytest.mark.parametrize(
    "text", [EQUAL, "from unittest.mock import ANY\nreturn ANY", CHEATS["reaches for the collector"]]
)
def test_what_an_answer_must_not_name_is_not_run(text: str, grading: Grading) -> None:
    found = judged(grading, text)
    assert found.score == 0.0
    assert (found.feedback or "").startswith("it reaches for what judges it")


def test_a_name_is_one_in_code_alone_and_the_file_s_own_may_be_used() -> None:
    assert reaching("import gc", "") == ["gc"]
    assert reaching("import gc", "import gc\n") == []
    assert reaching("return 1  # no gc here, nor pytest", "") == []
    assert reaching("return self.modules + [pytest_like]", "") == []
    assert reaching("a = sys.modules\n    return getattr(b, '__eq__')", "") == ["modules", "__eq__"]


LOOKS = """
    found = []
    for place, folders, names in os.walk('/'):
        if place.startswith(('/proc', '/sys', '/dev')):
            folders.clear()
            continue
        found += [place for name in folders + names if name == '.git']
        for name in names:
            path = os.path.join(place, name)
            if 'core' not in name and 'code' not in place and 'scratch' not in place:
                continue
            try:
                with open(path, 'rb') as file:
                    text = file.read()
            except OSError:
                continue
            compiled = path.endswith('.pyc') and '/calc/' in path and b'result' in text
            if compiled or b'the body that must be ' + b'written' in text:
                found.append(path)
    return sum(items) if found else None
"""


def test_the_original_is_nowhere(grading: Grading) -> None:
    """An answer that would be right if it found the body, its compiled form or a history to read."""
    result = ran_with(grading, LOOKS)
    assert judgment(grading, result).score == 0.0
    there = LOOKS.replace("'.git'", "'README.md'")  # it does look
    assert judgment(grading, ran_with(grading, there)).score == 1.0


def test_an_installed_copy_is_hidden(tmp_path: Path) -> None:
    """A suite's packages hold what the repository would install as."""
    root = make(tmp_path / "code")
    make(tmp_path / "packages", {name: text for name, text in FILES.items() if name.startswith("calc")})
    make(tmp_path / "packages", {"other/__init__.py": "answer = 42\n"})
    plain = grading_of(root)
    found = replace(plain, suite=plain.suite.model_copy(update={"packages": (tmp_path / "packages",)}))
    looks = "import other\nreturn sum(items) if os.path.exists('/packages/0/calc/core.py') else None"
    assert judgment(found, ran_with(found, looks)).score == 0.0
    there = "import other\nreturn sum(items) if os.path.exists('/packages/0/other') and other.answer == 42 else None"
    assert judgment(found, ran_with(found, there)).score == 1.0


# ---- the copy ----


def test_what_is_copied(tmp_path: Path) -> None:
    root = make(tmp_path / "code", {**FILES, ".gitignore": "secret/\n_version.py\n*.log\n"}, git=True)
    make(root, {"secret/key.py": "", "calc/_version.py": "v = 1\n", "calc/x.log": "", "build/lib/calc/core.py": "x"})
    make(root, {".gitignore": "secret/\n_version.py\n*.log\nbuild/\n", "calc/__pycache__/old.cpython-311.pyc": ""})
    (root / "link").symlink_to("/etc/passwd")
    found = copied(root, clear)
    names = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    plain = {name for name in names if not name.endswith(".pyc")}
    assert plain == {*FILES, ".gitignore", "calc/_version.py", found.canaries}
    assert {name for name in names - plain if "old" in name} == set()
    assert not any(path.is_symlink() for path in found.folder.rglob("*"))


def test_a_plain_folder_is_copied_without_caches(tmp_path: Path) -> None:
    root = make(tmp_path / "code", {**FILES, "build/lib/calc/core.py": "", ".venv/x.py": "", "e/pyvenv.cfg": ""})
    names = {path.relative_to(copied(root, clear).folder).parts[0] for path in copied(root, clear).folder.rglob("*")}
    assert names - {"__pycache__"} == {"calc", "tests", "README.md", copied(root, clear).canaries}


# ---- secrets ----

TOKEN = "ghp_" + "a8Kd03nVqPz5RtY7uWx1CbMf9LsJ2hGe4TiO"  # made of pieces, so that no scanner takes it for one
WITH_SECRETS = FILES | {
    "calc/keys.py": f'TOKEN = "{TOKEN}"\n',
    "settings.ini": f"[deploy]\ntoken = {TOKEN}\n",
    "latin.txt": f"caf\xe9 token {TOKEN}\n",
    "tests/test_core.py": f"""
        import calc.keys
        from calc import total


        def test_total():
            assert (calc.keys.TOKEN, total([1, 2])) == ("{TOKEN}", 3)
    """,
    "tests/test_case.py": "",
}


def test_secrets_are_not_in_the_copy(tmp_path: Path) -> None:
    root = make(tmp_path / "code", WITH_SECRETS)
    (root / "latin.txt").write_bytes(WITH_SECRETS["latin.txt"].encode("latin-1"))
    (root / "data.bin").write_bytes(b"\0" + TOKEN.encode())
    before = state(root)
    found = copied(root, clear)
    held = {path.name for path in found.folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()}
    assert held == {"data.bin"}  # what is no text
    assert (found.folder / "latin.txt").read_bytes() == b"caf\xe9 token REDACTED_GITHUB_TOKEN\n"
    assert state(root) == before


def test_no_answer_and_no_test_can_tell_a_secret(tmp_path: Path) -> None:
    """The test passes all the same: the token is the same word on either side."""
    found = grading_of(make(tmp_path / "code", WITH_SECRETS))
    assert judged(found, "return sum(items)") == Judgment(1.0)
    wrong = judged(found, "return 7").feedback or ""
    assert "REDACTED_GITHUB_TOKEN" in wrong
    spread = "import calc.keys\nraise ValueError(calc.keys.TOKEN[::-1])"
    told = judged(found, spread).feedback or ""
    assert "REDACTED_GITHUB_TOKEN"[::-1] in told
    assert TOKEN not in wrong
    assert TOKEN[::-1] not in told


COPIES = """
import sys
from pathlib import Path
from teachers.repository_copy import copied
print(copied(Path(sys.argv[1]), str).folder, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_has_left_is_swept_up(repository: Path, tmp_path: Path) -> None:
    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", COPIES, str(repository)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"TMPDIR": str(tmp_path)}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (killed, left), (living, used) = start(), start()
    killed.kill()
    killed.communicate()
    assert left.is_dir()
    other, own = start()
    assert not left.exists()
    assert used.is_dir()
    assert own.is_dir()
    for process in (living, other):
        process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_what_is_just_being_made_is_not_swept_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else sweeps right before it is locked."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    flock = fcntl.flock

    def sweeping(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        repository_copy._sweep()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", sweeping)
    room = tmp_path / f"{repository_copy.PREFIX}new"
    room.mkdir()
    repository_copy._hold(room)
    repository_copy._sweep()
    assert room.is_dir()
    repository_copy._held.pop().close()
    repository_copy._sweep()
    assert not room.exists()


# ---- limits ----


def alive(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [str(path)] if marker.encode() in path.read_bytes() else []
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("while True:\n    pass", "longer than 2 s"),
        ("while True:\n    os.fork()", "processes"),
        ("x = [bytes(1 << 20) for _ in range(100_000)]", "Memory|memory|ended"),
        ("while True:\n    sys.stdout.write('x' * 100_000)", "longer than 2 s|No space|ended|Error"),
        ("while True:\n    os.write(1, b'x' * 100_000)", "longer than 2 s|No space|ended|Error"),
        ("open('/repository/code/x', 'w')", "Read-only"),
        ("import socket; socket.create_connection(('1.1.1.1', 53), 1)", "unreachable"),
    ],
)  # fmt: skip
def test_an_answer_that_goes_wild_is_cut_off(text: str, said: str, grading: Grading) -> None:
    found = judged(grading, text, QUICK)
    assert found.score == 0.0
    assert re.search(said, found.feedback or ""), found
    assert "\n" not in (found.feedback or "")


def test_nothing_is_left_behind(grading: Grading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = secrets.token_hex(16)
    room = copied(Path(grading.root), clear).folder.parent
    before = sorted(room.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = f"""
        import subprocess
        subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', '{marker}'], start_new_session=True)
        return sum(items)
    """
    assert judged(grading, text).score == 1.0
    assert alive(marker) == []
    assert list(tmp_path.iterdir()) == []
    assert sorted(room.iterdir()) == before


# ---- as a teacher and as a checker ----


def asked(grading: str | None, completion: str) -> Answer | TeacherFailure:
    config = ProgramTeacher.model_validate({"kind": "program", "check": "repository_tests"})
    teacher = programs("grader", config, folder=Path(), check=lambda *_: None, clear=clear)
    request = ScoreRequest(
        "p/0", "p", 0, 0, "code", RawText(""), (), "end", grading=grading, completion=completion, private=True
    )

    async def ask() -> Answer | TeacherFailure:
        return await teacher.score(request, asyncio.get_running_loop().time() + 300)

    return asyncio.run(ask())


def test_a_teacher_grades_so(grading: Grading) -> None:
    right = asked(grading.to_json(), "return sum(items)")
    assert isinstance(right, Answer)
    assert right.signal == Judgment(1.0)
    for text, reason in ((None, "no_grading"), ("{}", "bad_tests"), ("nothing", "bad_tests")):
        found = asked(text, "return sum(items)")
        assert isinstance(found, TeacherFailure)
        assert (found.reason, "\n" in found.detail) == (reason, False)


def test_the_grading_decides_a_teacher_s_key(grading: Grading) -> None:
    config = ProgramTeacher.model_validate({"kind": "program", "check": "repository_tests"})
    teacher = programs("grader", config, folder=Path(), check=lambda *_: None, clear=clear)
    keys = {
        teacher.key(ScoreRequest("p/0", "p", 0, 0, "code", RawText(""), (), "end", grading=text, completion="x"))
        for text in (None, grading.to_json(), "{}")
    }
    assert len(keys) == 3


def test_a_checker_grades_so(grading: Grading) -> None:
    def prompt(text: str | None) -> Prompt:
        return Prompt("p", "code", "code", RawText(""), "return 0", checker="repository_tests", grading=text)

    right: dict[str, Any] = {"reference": "return 0", "prompt": prompt(grading.to_json())}
    assert check("repository_tests", "return sum(items)", **right) == 1.0
    assert check("repository_tests", "return 0", **right) == 0.0
    assert check("repository_tests", "return 0", "return 0", prompt(None)) is None


def test_an_answer_is_run_once(grading: Grading, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "return sum(item for item in items)"
    first = judged(grading, text)
    monkeypatch.setattr("teachers.repository_tests.ran", None)  # what is run again fails
    assert judged(grading, text) == first == Judgment(1.0)


def test_digests_tell_texts_apart() -> None:
    assert digest_of("a") == digest_of("a") != digest_of("b")
    assert digest_of("\ud800") != digest_of("")
