"""Programs as teachers: what is graded how, what is no grade, and that no answer can grade itself."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pipeline.checkers import check as recipe_check
from teachers.config import ProgramTeacher
from teachers.errors import TeacherError
from teachers.programs import Programs, programs
from teachers.python_tests import fenced, parts_of, read_tests
from teachers.types import (
    Answer,
    Chat,
    Conversation,
    Judgment,
    Message,
    RawText,
    RemoteTeacher,
    ScoreRequest,
    SignalKind,
    TeacherFailure,
    Usage,
)
from teachers.walls import missing_protection

walled = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def checked(checker: str, completion: str, reference: str | None, request: ScoreRequest) -> float | None:
    return recipe_check(checker, completion, reference)


def teacher(check: Any, *, folder: Path = Path(), **sandbox: Any) -> Programs:
    settings = {"kind": "program", "check": check, "sandbox": {"seconds": 5, "memory_megabytes": 256, **sandbox}}
    return programs("grader", ProgramTeacher.model_validate(settings), folder=folder, check=checked, clear=str)


def question(completion: str, reference: str | None = None, **rest: Any) -> ScoreRequest:
    conversation: Conversation = rest.pop("conversation", RawText(""))
    return ScoreRequest(
        "p/0", "p", rest.pop("sample_index", 0), 3, "code", conversation, (), "end",
        reference=reference, completion=completion, **rest,
    )  # fmt: skip


def asked(who: Programs, questions: Sequence[ScoreRequest], seconds: float = 300) -> list[Answer | TeacherFailure]:
    async def ask() -> list[Answer | TeacherFailure]:
        deadline = asyncio.get_running_loop().time() + seconds
        return await asyncio.gather(*(who.score(request, deadline) for request in questions))

    return asyncio.run(ask())


def judged(who: Programs, completion: str, reference: str | None = None, **rest: Any) -> Judgment:
    (found,) = asked(who, [question(completion, reference, **rest)])
    assert isinstance(found, Answer), found
    assert isinstance(found.signal, Judgment)
    assert found.signal.rewrite is None
    assert (found.usage, found.latency > 0) == (Usage(), True)
    return found.signal


def failed(who: Programs, completion: str, reference: str | None = None, **rest: Any) -> TeacherFailure:
    (found,) = asked(who, [question(completion, reference, **rest)])
    assert isinstance(found, TeacherFailure), found
    assert found.teacher == "grader"
    return found


# ---- the recipe's checkers ----


def test_an_answer_is_judged_by_the_prompt_s_checker_or_the_teacher_s() -> None:
    own = teacher("answer")
    assert judged(own, "it is 1,200", "1200", checker="numeric") == Judgment(1.0)
    wrong = judged(own, "it is 7", "1200", checker="numeric")
    assert (wrong.score, wrong.feedback) == (0.0, "wrong by the checker numeric")
    assert judged(teacher({"kind": "answer", "checker": "exact"}), "a  b", "a b", checker="none").score == 1.0
    assert failed(own, "7", "7", checker="none").reason == "no_checker"
    assert failed(own, "7", None, checker="exact").reason == "no_reference"


def test_a_checker_in_a_file_decides_the_key(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text("def half(completion, reference, prompt): return 0.5\n")
    own = teacher("answer")
    assert judged(own, "x", checker=f"{path}:half").score == 0.5
    other = tmp_path / "other.py"
    other.write_text("def half(completion, reference, prompt): return 0.25\n")
    assert own.key(question("x", checker=f"{path}:half")) != own.key(question("x", checker=f"{other}:half"))
    named = [teacher({"kind": "answer", "checker": f"{name}.py:half"}, folder=tmp_path) for name in ("half", "other")]
    assert [judged(who, "x").score for who in named] == [0.5, 0.25]
    assert named[0].identity != named[1].identity


# ---- patterns and schemas ----


def test_a_pattern_is_found_or_not() -> None:
    who = teacher({"kind": "pattern", "regex": r"answer: {reference}$"})
    assert judged(who, "so the answer: 1.5", "1.5") == Judgment(1.0)
    assert judged(who, "so the answer: 1x5", "1.5").score == 0.0
    assert "answer:" in (judged(who, "no", "1.5").feedback or "")
    assert failed(who, "x").reason == "no_reference"


def test_a_pattern_that_would_never_end_is_cut_off_and_is_no_grade() -> None:
    pattern = {"kind": "pattern", "regex": r"^(a+)+$"}
    found = failed(teacher(pattern, seconds=1), "a" * 60 + "b")
    assert (found.reason, found.retryable) == ("pattern_failed", False)
    assert judged(teacher(pattern), "a" * 60).score == 1.0


SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "pattern": "^(a+)+$"}}}


def test_json_by_a_schema(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    schema = {"kind": "json_schema", "file": "schema.json"}
    who = teacher(schema, folder=tmp_path)
    assert judged(who, 'Here:\n```json\n{"name": "aaa"}\n```\nas asked') == Judgment(1.0)
    assert judged(who, '{"name": "aaa"}') == Judgment(1.0)
    wrong = judged(who, '{"name": 3}')
    assert (wrong.score, wrong.feedback) == (0.0, "$.name 3 is not of type 'string'")
    for text in ("no JSON", "", "[" * 100_000, '{"name": "a"'):
        assert (judged(who, text).feedback or "").startswith("not JSON"), text[:10]
    quick = teacher(schema, folder=tmp_path, seconds=2)
    assert failed(quick, json.dumps({"name": "a" * 60 + "b"})).reason == "schema_failed"


# ---- commands ----


@walled
def test_a_command_passes_with_status_0_and_may_print_its_score(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "grade.sh").write_text("#!/bin/sh\ncat more/word ANSWER; echo; echo 0.25\n")
    (tmp_path / "tests" / "more").mkdir()
    (tmp_path / "tests" / "more" / "word").write_text("hello ")
    who = teacher({"kind": "command", "run": ["./grade.sh"], "files": "tests"}, folder=tmp_path)
    assert judged(who, "world") == Judgment(0.25, "hello world 0.25")
    same = teacher({"kind": "command", "run": ["cmp", "ANSWER", "/usr/share/common-licenses/none"]})
    assert judged(same, "x").score == 0.0
    plain = teacher({"kind": "command", "run": ["grep", "-q", "yes", "ANSWER"]})
    assert judged(plain, "yes") == Judgment(1.0)
    assert judged(plain, "no") == Judgment(0.0, "it ended with exit status 1")
    found = failed(teacher({"kind": "command", "run": ["no-such-program"]}), "x")
    assert (found.reason, "no-such-program" in found.detail) == ("sandbox_failed", True)


@walled
def test_an_answer_that_is_a_program_comes_without_its_fence() -> None:
    text = "Like this:\n```python\nprint(6 * 7)\n```\n"
    shown = ["sh", "-c", "cat answer* >&2; false"]
    code = teacher({"kind": "command", "run": shown, "answer": "answer.py"})
    prose = teacher({"kind": "command", "run": shown, "answer": "answer.md"})
    assert (judged(code, text).feedback or "").endswith(": print(6 * 7)")
    assert (judged(prose, text).feedback or "").endswith(": ```")


# ---- Python tests: what they are ----


def test_code_comes_out_of_markdown() -> None:
    assert fenced("a\n```python\nx = 1\n```\nb\n~~~\ny\n~~~\n") == ["x = 1\n", "y\n"]
    assert fenced("````md\n```python\nx\n```\n````\n") == ["```python\nx\n```\n"]
    assert fenced("```python\n    return 1\nand then it was cut") == ["    return 1\nand then it was cut"]
    assert fenced("no fence, only `code`") == []


def test_pieces_of_an_answer() -> None:
    tests = read_tests(
        "assert add(1, 2) == 3", RawText("import math\n\ndef helper(): ...\n\ndef add(a, b):\n    '''Adds.'''\n")
    )
    assert tests is not None
    assert tests.entry == "add"
    stub = tests.stub
    body = "    return a + b\n"
    assert parts_of(body, tests) == [stub + body]
    assert parts_of(f"{body}\n\ndef other():\n    pass\n", tests) == [f"{stub}{body}\n\n"]
    whole = f"def add(a, b):\n{body}"
    assert parts_of(whole, tests) == [stub, whole]
    assert parts_of(f"Use it:\n```python\nprint(add(1, 2))\n```\nwith\n```py\n{whole}```\n", tests) == [stub, whole]
    assert parts_of(f"```python\n{body}```", tests) == [stub + body]
    assert parts_of("add = sum", tests) == [stub, "add = sum"]


def test_where_tests_are_told() -> None:
    chat = Chat((Message("user", "Complete:\n```python\ndef f(x):\n    '''...'''\n```\nplease"),))
    found = read_tests("assert f(1)", chat)
    assert found is not None
    assert (found.entry, found.stub) == ("f", "def f(x):\n    '''...'''\n")
    told = read_tests(json.dumps({"test": "assert g()", "prompt": "import os", "entry_point": "g"}), chat)
    assert told is not None
    assert (told.test, told.stub, told.entry) == ("assert g()", "import os", "g")
    assert read_tests('{"a": 1}["a"]', RawText("hello")) is not None  # Python, not JSON
    assert read_tests(None, chat) is None


# ---- Python tests: honest answers ----

HEAD = RawText("def add(a, b):\n    '''Adds.'''\n")
ADD = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate([1], [2]) == [1, 2]\n"


@walled
def test_right_wrong_and_why() -> None:
    who = teacher("python_tests")
    assert judged(who, "    return a + b\n", ADD, conversation=HEAD) == Judgment(1.0)
    wrong = judged(who, "    return a - b\n", ADD, conversation=HEAD)
    assert wrong.score == 0.0
    assert wrong.feedback == "failed: assert candidate(1, 2) == 3; called with (1, 2) it returned -1"
    raised = judged(who, "    return a + b if a == 1 else a[7]\n", ADD, conversation=HEAD).feedback or ""
    assert raised.startswith("IndexError: list index out of range, in `return a + b if a == 1 else a[7]`; in the test")
    broken = judged(who, "    return (\n", ADD, conversation=HEAD).feedback or ""
    assert broken.startswith("the program does not run: SyntaxError")
    other = judged(who, "    return a + b\n\ndef sub(a, b): pass", json.dumps({"test": ADD, "entry_point": "sub"}))
    assert (other.score, (other.feedback or "")[:24]) == (0.0, "the program does not run")
    unsaid = RawText("Write a function that adds.")
    assert judged(who, "def plus(a, b): return a + b", ADD, conversation=unsaid) == Judgment(1.0)
    assert judged(who, "def plus(a, b): pass", ADD, conversation=unsaid).score == 0.0
    assert judged(who, "plus = 3", ADD, conversation=unsaid) == Judgment(0.0, "it defines no function")
    slow = judged(teacher("python_tests", seconds=1), "    while True: pass\n", ADD, conversation=HEAD)
    assert slow == Judgment(0.0, "it ran longer than 1 s")
    hog = judged(teacher("python_tests"), "    return [0] * (1 << 40)\n", ADD, conversation=HEAD)
    assert (hog.score, "MemoryError" in (hog.feedback or "")) == (0.0, True)


PLAIN = {
    "asserts": ("def f(x): return x * 2", "assert f(2) == 4\nfor n in range(9): assert f(n) == 2 * n"),
    "functions": ("def f(x): return x * 2", "def test_f():\n    assert f(2) == 4\ndef test_g():\n    assert f(0) == 0"),
    "all plain data": (
        "def f(x): return x",
        """
        import math
        for x in (None, True, 3, -0.0, 10 ** 5000, "a\\ud800\\n", b"\\xff", (1, (2,)), [[1]], {1, 2}, {(1, 2): [3]},
                  frozenset("ab"), 1j, range(3), bytearray(b"x"), {}, (), set()):
            assert f(x) == x and type(f(x)) is type(x), x
        assert math.isnan(f(math.nan)) and f(-math.inf) == -math.inf
        """,
    ),
    "subclasses": (
        """
        from collections import Counter, OrderedDict, namedtuple
        from enum import IntEnum
        Color = IntEnum("Color", "RED BLUE")
        Point = namedtuple("Point", "x y")
        def f(): return [Counter("aab"), OrderedDict(a=1), Point(1, 2), Color.BLUE]
        """,
        "assert f() == [{'a': 2, 'b': 1}, {'a': 1}, (1, 2), 2]",
    ),
    "changes in place": (
        "def f(items, table):\n    items.sort(); table['n'] = len(items)",
        "items, table = [3, 1, 2], {}\nassert f(items, table) is None\nassert items == [1, 2, 3] and table == {'n': 3}",
    ),
    "classes": (
        """
        class Stack:
            def __init__(self): self.items = []
            def push(self, item): self.items.append(item); return self
            def pop(self): return self.items.pop()
            def __len__(self): return len(self.items)
            def __getitem__(self, n): return self.items[n]
        """,
        """
        s = Stack()
        assert s.push(1).push("b") and len(s) == 2 and s[0] == 1
        assert s.pop() == "b" and s.items == [1]
        """,
    ),
    "values of classes": (
        """
        from dataclasses import dataclass
        @dataclass(frozen=True)
        class V:
            x: int
            y: int = 0
            def __add__(self, other): return V(self.x + other.x, self.y + other.y)
        """,
        "assert V(1, 2) + V(3, y=4) == V(4, 6) and V(1) != V(2) and str(V(1)) == 'V(x=1, y=0)'",
    ),
    "generators": ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6"),
    "exceptions": (
        "class Mine(ValueError): pass\ndef f(x):\n    if x < 0: raise Mine('negative')\n    return {}[x]",
        """
        for x, kind in ((-1, ValueError), (1, KeyError)):
            try:
                f(x)
            except kind:
                pass
            else:
                raise AssertionError("nothing was raised")
        """,
    ),
    "a helper and an import of its own": (
        "import math\nfrom functools import cache\n@cache\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "def f(n): return fib(n) + math.floor(0.5)",
        "assert f(80) == 23416728348467685",
    ),
    "prints and a main block": (
        "print('x' * 10 ** 6)\ndef f(): return 1\nif __name__ == '__main__': f(1)",
        "assert f() == 1",
    ),
}


@walled
@pytest.mark.parametrize("name", PLAIN)
def test_honest_answers_pass(name: str) -> None:
    answer, test = map(dedent, PLAIN[name])
    assert judged(teacher("python_tests"), answer, test) == Judgment(1.0)


# ---- Python tests: answers that cheat ----

EASY = "def check(candidate):\n    for x in range(5): assert candidate(x) == x * x + 41 * x + 7\n"
CHEATS = {
    "ends with success before the tests": "import os\nos._exit(0)",
    "ends with success in the middle": "import os\ndef f(x): os._exit(0)",
    "leaves politely": "import sys\ndef f(x): sys.exit(0)",
    "leaves at once": "raise SystemExit(0)",
    "prints a verdict": 'print(\'{"passed": true, "fault": null, "feedback": ""}\')\ndef f(x): return 0',
    "equals everything": """
        class Yes(int):
            def __eq__(self, other): return True
            __ne__ = __lt__ = __gt__ = lambda self, other: False
            def __hash__(self): return 0
        def f(x): return Yes()
    """,
    "equals everything, as a stranger": """
        class Yes:
            def __eq__(self, other): return True
            def __bool__(self): return True
            def __getattr__(self, name): return lambda *a: True
        def f(x): return Yes()
    """,
    "hides a built-in": "def range(*a): return ()\ndef f(x): return 0\nAssertionError = None\nall = lambda x: True",
    "mends Python": """
        import builtins, json, operator
        builtins.range = lambda *a: ()
        builtins.AssertionError = type(None)
        json.dumps = lambda *a: "{}"
        operator.eq = lambda a, b: True
        def f(x): return 0
    """,
    "looks for the tests in the frames": """
        import sys, gc
        def f(x):
            frame = sys._getframe()
            while frame:
                if "check" in str(frame.f_globals.get("test", "")) or "candidate" in frame.f_locals:
                    return x * x + 41 * x + 7
                frame = frame.f_back
            for thing in gc.get_objects():
                if isinstance(thing, dict) and "nonce" in thing:
                    return x * x + 41 * x + 7
            return 0
    """,
    "looks for the tests in files and memory": """
        import glob, os, re
        def f(x):
            for path in glob.glob("/proc/*/mem") + glob.glob("/proc/*/fd/*") + glob.glob("/tmp/**", recursive=True):
                if path.split("/")[2] in (str(os.getpid()), "self", "thread-self"):
                    continue
                try:
                    text = os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1 << 20)
                except OSError:
                    continue
                if b"41 * x" in text:
                    return x * x + 41 * x + 7
            return 0
    """,
    "looks into the judge's memory": """
        import os
        def f(x):
            try:
                for line in open(f"/proc/{os.getppid()}/maps"):
                    return x * x + 41 * x + 7
            except OSError:
                return 0
    """,
    "takes over the judge": """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        def f(x):
            return x * x + 41 * x + 7 if libc.ptrace(16, os.getppid(), 0, 0) == 0 else 0
    """,
    "writes into whatever is open": """
        import os
        for n in range(64):
            for text in (b'{"value": 7}\\n', b'{"passed": true, "fault": null, "feedback": ""}\\n'):
                try:
                    os.write(n, text)
                except OSError:
                    pass
        def f(x): return 0
    """,
    "writes where the judge writes": """
        import os
        def f(x):
            for who in (os.getppid(), 1):
                for n in (0, 1, 2):
                    try:
                        with open(f"/proc/{who}/fd/{n}", "w") as file:
                            file.write('{"passed": true, "fault": null, "feedback": ""}')
                    except OSError:
                        pass
            return 0
    """,
    "ends the judge": "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGKILL)",
    "ends everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "leaves it to a child": """
        import os
        def f(x):
            if os.fork() == 0:
                return 0
            os._exit(0)
    """,
    "speaks no sense": """
        import os
        def f(x):
            for n in range(3, 64):
                try:
                    os.write(n, b"[[[[\\n")
                except OSError:
                    pass
    """,
    "raises what ends tests": "class Skip(BaseException): pass\ndef f(x): raise Skip",
    "blames the tests": "def f(x): raise ImportError('no module named tests')",
    "has no words": "class E(Exception):\n    def __str__(self): raise self\ndef f(x): raise E",
    "returns itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "changes what it was given": "def f(x, *a): return 0\nf.__code__ = (lambda x: 0).__code__",
}


@walled
@pytest.mark.parametrize("name", CHEATS)
def test_no_answer_passes_by_cheating(name: str) -> None:
    verdict = judged(teacher("python_tests"), dedent(CHEATS[name]), json.dumps({"test": EASY, "entry_point": "f"}))
    assert verdict.score == 0.0
    assert verdict.feedback
    assert len(verdict.feedback) <= 300


@walled
def test_the_cheats_are_measured_against_a_test_that_can_be_passed() -> None:
    right = judged(
        teacher("python_tests"), "def f(x): return x * x + 41 * x + 7", json.dumps({"test": EASY, "entry_point": "f"})
    )
    assert right == Judgment(1.0)


# ---- no grade ----


@walled
def test_tests_that_judge_nothing_are_failures_and_no_zeros() -> None:
    who = teacher("python_tests")
    answer = "def f(x): return x"
    assert failed(who, answer).reason == "no_reference"
    nothing = ("x = 1", "def helper():\n    assert f(1)", "class TestF:\n    def test_f(self):\n        assert f(1)")
    for test in (
        "assert (",
        "import no_such_module\nassert f(1)",
        "assert f(len) is len",
        "raise SystemExit",
        *nothing,
    ):
        found = failed(who, answer, test)
        assert (found.reason, found.retryable) == ("bad_tests", False), test


@walled
def test_no_turn_before_the_deadline_is_a_failure_that_may_be_asked_again() -> None:
    who = teacher("python_tests")
    (found,) = asked(who, [question("while True: pass", "assert 1")], seconds=0.2)
    assert isinstance(found, TeacherFailure)
    assert (found.reason, found.retryable, found.in_doubt) == ("timeout", True, False)


# ---- as a teacher ----


def test_it_is_a_remote_teacher_with_keys() -> None:
    who = teacher("answer")
    assert isinstance(who, RemoteTeacher)
    assert who.signals == {SignalKind.JUDGMENT}
    assert who.estimate(question("x")) == Usage()
    base = question("x", "y", checker="exact")
    others = [
        question("x ", "y", checker="exact"), question("x", "z", checker="exact"), question("x", None, checker="exact"),
        question("x", "y", checker="numeric"), question("x", "y", checker="exact", sample_index=1),
        question("x", "y", checker="exact", conversation=RawText("def f(): ...")), question("\ud800", "y"),
    ]  # fmt: skip
    assert len({who.key(request) for request in [base, *others]}) == 1 + len(others)
    assert who.key(base) == teacher({"kind": "answer", "checker": "exact"}).key(base)


def test_what_decides_an_answer_decides_the_identity(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tests.py").write_text("1")
    command = {"kind": "command", "run": ["true"], "files": "a"}
    whoever = [
        teacher("answer"), teacher({"kind": "answer", "checker": "exact"}), teacher({"kind": "pattern", "regex": "a"}),
        teacher({"kind": "pattern", "regex": "b"}), teacher({"kind": "pattern", "regex": "b"}, seconds=4),
    ]  # fmt: skip
    identities = [who.identity for who in whoever]
    if missing_protection() is None:
        identities.append(teacher(command, folder=tmp_path).identity)
        (tmp_path / "a" / "tests.py").write_text("2")
        identities.append(teacher(command, folder=tmp_path).identity)
        assert identities[-1] == teacher(command, folder=tmp_path).identity
    assert len(set(identities)) == len(identities)


def test_preflight_runs_a_program() -> None:
    async def examined(who: Programs) -> dict[str, bool | None]:
        found = await who.examine(asyncio.get_running_loop().time() + 60)
        return {finding.what: finding.good for finding in found}

    good = None if missing_protection() else True
    assert asyncio.run(examined(teacher("answer", required=False))) == {"sandbox": good, "latency": None}


def test_without_bubblewrap_only_what_runs_answers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing_protection.cache_clear()
    try:
        with pytest.raises(
            TeacherError, match=r"^teachers.grader: .*apt-get install bubblewrap.*sandbox.required: false"
        ):
            teacher("python_tests")
        open_one = teacher("python_tests", required=False)
        assert "unprotected" in open_one.notes[0]
        assert judged(open_one, "def f(): return 1", "assert f() == 1") == Judgment(1.0)
        assert judged(open_one, "def f(): return 2", "assert f() == 1").score == 0.0
        assert teacher({"kind": "pattern", "regex": "a"}).notes == ()
        assert judged(teacher({"kind": "pattern", "regex": "a"}), "cat") == Judgment(1.0)
    finally:
        missing_protection.cache_clear()


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"kind": "pattern", "regex": "(a"}, r"teachers.grader.check.regex: .*mend the pattern"),
        ({"kind": "json_schema", "file": "none.json"}, r"check.file: .*none.json cannot be read"),
        ({"kind": "json_schema", "file": "wrong.json"}, r"check.file: .*wrong.json is no JSON schema"),
        ({"kind": "json_schema", "file": "text.json"}, r"check.file: .*text.json is no JSON schema"),
        ({"kind": "command", "run": ["true"], "files": "nowhere"}, r"check.files: there is no folder .*nowhere"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(check: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text('{"type": "nothing"}')
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(TeacherError, match=message) as caught:
        teacher(check, folder=tmp_path, required=False)
    assert "\n" not in str(caught.value)


def test_an_attempt_has_time_for_its_program() -> None:
    settings = {"kind": "program", "check": "python_tests", "sandbox": {"required": False}, "limits": {"timeout": 5}}
    with pytest.raises(TeacherError, match=r"may take 30 s on the clock and limits.timeout is 5 s"):
        programs("grader", ProgramTeacher.model_validate(settings), folder=Path(), check=checked, clear=str)
