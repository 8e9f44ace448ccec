"""The grade for `check: repository_tests`: an answer in its place in a repository, and the repository's own tests.

1 where every chosen test passes, 0 where one does not, where the run ends before its tests do, or where the answer
reaches for what judges it: a change to a codebase is right or it is not, as in `python_tests`. What failed first is the
feedback. Which tests are chosen, and that they tell a right body from none, is found out before
(`pipeline/codebase/suite.py`).
"""

from __future__ import annotations

import ast
import asyncio
import io
import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from token import NAME, STRING
from tokenize import TokenError, generate_tokens
from typing import Any

from teachers.config import RepositorySuite
from teachers.python_tests import fenced
from teachers.repository_copy import Clear, copied, text_of
from teachers.repository_run import Ran, Trial, key_of, ran
from teachers.types import Judgment

MOST_WORDS = 300  # characters of feedback
MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class Grading:
    """What judging an answer needs; `ScoreRequest.grading` holds it as JSON.

    root: the checkout. path: the file in it. text: the digest of its text, whose characters [start, end) the answer
    replaces. symbol: what stands there, such as `Graph.add_edge`. tests: node ids that must pass. proof: the digest of
    these tests' code (`Ran.proof`). allowed: what the code that stands there touches itself, and an answer may.
    suite: how they run, and with which limits.
    """

    root: str
    path: str
    text: str
    start: int
    end: int
    symbol: str
    tests: tuple[str, ...]
    proof: str
    allowed: tuple[str, ...]
    suite: RepositorySuite

    def to_json(self) -> str:
        return json.dumps({**vars(self), "suite": self.suite.model_dump(mode="json")}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Grading:
        """Raises ValueError: not what `to_json` writes."""
        told: Any = json.loads(text)
        try:
            plain: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in told.items()}
            suite = RepositorySuite.model_validate_json(json.dumps(plain.pop("suite", None)))
            return Grading(**plain, suite=suite)
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"no grading by a repository's tests: {' '.join(str(error).split())}") from error


def digest_of(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class UnusableGrading(Exception):
    """What says nothing about the answer, in one line."""


_REMEMBERED: dict[str, Judgment] = {}  # of this process: an evaluation asks again what training has asked


async def grade(text: str, completion: str, clear: Clear) -> Judgment:
    """The judgment on an answer, within its suite's own limits. text: a Grading, as JSON. clear: as for a Trial.

    Raises UnusableGrading: no grading, a file that has changed since, no pytest; SandboxError, TeacherError: see `ran`.
    """
    try:
        grading = Grading.from_json(text)
    except ValueError as error:
        raise UnusableGrading(str(error)) from error
    whole = text_of(await asyncio.to_thread(copied, Path(grading.root), clear), grading.path)
    if whole is None or digest_of(whole) != grading.text:
        raise UnusableGrading(f"{grading.path} has changed since its prompt was made: read the codebase again")
    answer = fitted(whole, grading.start, grading.end, completion, grading.path)
    trial = trial_of(grading, whole, answer, clear)
    if grading.path.endswith(".py"):
        if fault := _fault(trial.text):
            return _failed(f"with it {grading.path} is not Python: {fault}")
        if words := reaching(answer, whole, REACHING if grading.suite.runner == "pytest" else REACHING | ENDING):
            return _failed(f"it reaches for what judges it: {', '.join(words[:3])}")
    key = key_of(trial) + digest_of(text)
    if key not in _REMEMBERED:
        found = judgment(grading, await ran(trial))
        while len(_REMEMBERED) >= MOST_REMEMBERED:
            del _REMEMBERED[next(iter(_REMEMBERED))]
        _REMEMBERED[key] = found
    return _REMEMBERED[key]


def trial_of(grading: Grading, whole: str, answer: str, clear: Clear) -> Trial:
    """The file as the answer leaves it, and the tests to run on it."""
    before = whole[: grading.start]
    first = before.count("\n") + 1
    return Trial(
        root=Path(grading.root),
        path=grading.path,
        text=before + answer + whole[grading.end :],
        lines=(first, first + answer.count("\n")),
        select=tuple(dict.fromkeys(test.partition("[")[0] for test in grading.tests)),
        chosen=grading.tests,
        suite=grading.suite,
        clear=clear,
    )


def judgment(grading: Grading, result: Ran) -> Judgment:
    """What a run says about an answer."""
    if result.missing is not None:
        raise UnusableGrading(f"{result.missing} is not installed for this Python: pip install {result.missing}")
    touched = [what for what in result.touched if what not in grading.allowed]
    if touched:
        return _failed(f"it reaches for what judges it: {', '.join(touched[:3])}")
    not_passed = [name for name in grading.tests if result.tests.get(name) != "passed"]
    if not_passed:
        name = next((name for name in not_passed if result.tests.get(name) == "failed"), not_passed[0])
        how = result.said.get(name) or next(iter(result.said.values()), "") or result.ending or "it did not run"
        return _failed(f"{name}: {result.ending if result.hung else how}")
    if not result.complete or result.ending:
        return _failed(result.ending or "the tests did not come to their end")
    if grading.suite.runner == "pytest" and result.proof(grading.tests) != grading.proof:
        return _failed("the tests that ran are not the repository's own")
    return Judgment(1.0)


def _failed(text: str) -> Judgment:
    text = " ".join(text.split())
    return Judgment(0.0, text if len(text) <= MOST_WORDS else f"{text[: MOST_WORDS - 3].rpartition(' ')[0]}...")


# ---- what an answer must not name ----

# Names that lead to the tests' runner, its frames and memory, and objects that say they equal what is expected.
REACHING = frozenset({
    "_pytest", "pytest", "pluggy", "unittest", "doctest", "mock", "conftest", "sitecustomize", "ctypes", "gc",
    "inspect", "importlib", "__import__", "__builtins__", "builtins", "__globals__", "__closure__", "__code__",
    "__subclasses__", "_getframe", "_current_frames", "f_back", "f_globals", "f_locals", "f_builtins", "f_lineno",
    "tb_frame", "gi_frame", "settrace", "setprofile", "__eq__", "__ne__", "__instancecheck__", "_exit", "atexit",
    "modules",
})  # fmt: skip


# Names that end a process: of a command the exit status alone is believed.
ENDING = frozenset({"exit", "quit", "SystemExit", "abort", "kill", "raise_signal", "execv", "execve", "execvp"})


def reaching(answer: str, whole: str, wanted: frozenset[str] = REACHING) -> list[str]:
    """Those names in an answer's code, in order, that the file it goes into does not have itself.

    `modules` only of `sys`. What is put together at run time is not seen here; `repository_judge.py` sees what it does.
    """
    known = set(re.findall(r"\w+", whole))
    found, before = [], ""
    try:
        for token in generate_tokens(io.StringIO(f"(\n{answer}\n)").readline):
            names = [token.string] if token.type == NAME else re.findall(r"\w+", token.string * (token.type == STRING))
            found += [name for name in names if name in wanted - known and (name != "modules" or before == "sys.")]
            before = (before + token.string)[-4:]
    except (TokenError, SyntaxError):
        found.append("what has no tokens")  # though it is Python in its place
    return list(dict.fromkeys(found))


# ---- what of an answer belongs into the place ----


def fitted(whole: str, start: int, end: int, completion: str, path: str) -> str:
    """The answer without a fence, and of Python no more than the block that it goes on with.

    A model that has written a body goes on with the next function. What is less indented than the place itself ends
    it, but not inside of a string or a bracket: the shortest piece up to such a line with which the file is Python.
    """
    blocks = fenced(completion)
    answer = blocks[0] if blocks else completion
    indent = re.search(r"^[ \t]*\Z", whole[:start], re.MULTILINE)
    if not path.endswith(".py") or indent is None:
        return answer
    width = len(indent[0])
    if blocks:  # whole lines, whose first is indented as the place already is
        answer = re.sub(r"\A[ \t]*", "", answer)
    answer = answer.rstrip()
    if width == 0:
        return answer
    lines = answer.split("\n")
    ends = [n for n in range(1, len(lines)) if lines[n].strip() and _width(lines[n]) < width]
    pieces = ["\n".join(lines[:n]).rstrip() for n in ends[:20]] + [answer]
    return next((piece for piece in pieces if not _fault(whole[:start] + piece + whole[end:])), pieces[0])


def _width(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _fault(text: str) -> str:
    """Why a text is not Python; empty where it is."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""
