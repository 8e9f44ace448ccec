"""How an answer is judged: equal or similar words, an equal number, tests, or a function in a file of the user's."""

from __future__ import annotations

import importlib.util
import re
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.types import Prompt
from teachers.python_tests import fenced

# A sign is one only where no operand stands before it: "5-3" ends in 3, "= -3" in -3.
SIGN = r"(?:(?<![\w)\]}])[-\N{MINUS SIGN}])?"
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
NUMBER = re.compile(rf"(?P<sign>{SIGN})(?P<value>{DIGITS}(?:\.\d+)?|\.\d+)(?:/(?P<below>\d+)(?![\d/]))?")
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
LATEX_NOISE = re.compile(r"\{,\}|\\[,!;]|\\?\$|\\text\{[^{}]*\}")
RUNNING = ("python_tests", "repository_tests")  # checkers that run the completion
# Nobody's answer has more digits, and a model that repeats itself must not cost quadratic time.
MOST_DIGITS = 200


def check(checker: str, completion: str, reference: str | None, prompt: Prompt | None = None) -> float | None:
    """The score of `completion` in [0, 1]; None where there is no judging it: checker `none`, or no reference.

    exact: equal after white space is normalised. numeric: equal numbers (`last_number`). first_line: equal first lines,
    white space around them aside. similarity: see there.
    python_tests: 1 where the reference's tests pass in the sandbox (`humaneval.py`). repository_tests: 1 where the
    repository's own do (`teachers/repository_tests.py`), by the prompt's `grading`. `path/to/file.py:function`:
    what `function(completion, reference, prompt)` returns, a bool or a number in [0, 1]; it is called without a
    reference, too. Raises DataError: a reference without a number, a fault in the file, with its line.
    """
    if checker == "none":
        return None
    path, colon, name = checker.rpartition(":")
    if colon:
        return _call(Path(path), name, completion, reference, prompt)
    if reference is None:
        return None
    if checker == "exact":
        return float(completion.split() == reference.split())
    if checker == "first_line":
        first = reference.strip().partition("\n")[0].rstrip()
        return float(_as_long(completion, first) == first)
    if checker == "similarity":
        return similarity(completion, reference)
    if checker in RUNNING:
        if prompt is None:
            raise DataError(f"checker {checker} needs the prompt, which says what the completion goes on with")
        return _run_tests(checker, [(replace(prompt, reference=reference), completion)])[0]
    if checker != "numeric":
        known = "exact, numeric, first_line, similarity, python_tests, repository_tests, none"
        raise DataError(f"unknown checker {checker!r}: choose {known} or a file.py:function")
    expected = last_number(reference)
    if expected is None:
        where = f"the reference of prompt {prompt.prompt_id} in {prompt.source}" if prompt else "the reference"
        raise DataError(f"checker numeric: {where}, {_short(reference)}, has no number; use exact or a file's function")
    return float(last_number(completion) == expected)


def check_all(asked: Sequence[tuple[Prompt, str]]) -> list[float | None]:
    """`check` of each completion by its prompt's own checker, in order; programs run as many at once as there are
    cores."""
    scores: dict[int, float | None] = {}
    for checker in RUNNING:
        numbers = [
            n for n, (prompt, _) in enumerate(asked) if prompt.checker == checker and prompt.reference is not None
        ]
        if numbers:
            scores |= zip(numbers, _run_tests(checker, [asked[n] for n in numbers]), strict=True)
    return [
        scores[n] if n in scores else check(prompt.checker or "none", text, prompt.reference, prompt)
        for n, (prompt, text) in enumerate(asked)
    ]


def similarity(completion: str, reference: str) -> float:
    """Edit similarity: 1 - d / (a + b), where a and b are the lengths in characters without the white space around and
    d is the fewest characters to insert and delete that make one the other; 1 for two empty texts. Of the completion
    only as many lines as the reference has: a model of code goes on with what comes next in the file.

    What CodeXGLUE's completion tasks report (2102.04664, §3.2; their `fuzz.ratio`, over 100).
    """
    from rapidfuzz.distance import Indel

    reference = reference.strip()
    return float(Indel.normalized_similarity(_as_long(completion, reference), reference))


def _as_long(completion: str, reference: str) -> str:
    """A completion without a fence around it, of no more lines than the reference."""
    answer = next(iter(fenced(completion)), completion)
    return "\n".join(answer.split("\n")[: reference.count("\n") + 1]).strip()


def _run_tests(checker: str, asked: Sequence[tuple[Prompt, str]]) -> list[float | None]:
    """None where the tests themselves could not be run."""
    from pipeline.humaneval import PYTHON_TESTS, judge
    from teachers.config import RepositoryTests, Sandbox

    return judge(
        asked, Sandbox(), PYTHON_TESTS if checker == "python_tests" else RepositoryTests(kind="repository_tests")
    )


def last_number(text: str) -> Fraction | None:
    r"""The number that a text comes to, exactly: in the last \boxed{}, else behind the last ####, else the last one.

    Understood: 1,234.5, $5, 50% (as 50), -3, 3/4, \frac{3}{4}. None where there is no number or an absurdly long one.
    """
    text = _conclusion(text)
    text = LATEX_FRACTION.sub(lambda match: f" {match[1]}/{match[2]} ", text)
    found = deque(NUMBER.finditer(LATEX_NOISE.sub(_replacement, text)), maxlen=1)
    if not found or len(found[0][0]) > MOST_DIGITS:
        return None
    last = found[0]
    value = Fraction(last["value"].replace(",", ""))
    if last["below"] is not None:
        if int(last["below"]) == 0:
            return None
        value /= int(last["below"])
    return -value if last["sign"] else value


def _conclusion(text: str) -> str:
    start = text.rfind(r"\boxed{")
    if start >= 0:
        inside = text[start + len(r"\boxed{") :]
        depth = 1
        for place, letter in enumerate(inside):
            depth += (letter == "{") - (letter == "}")
            if depth == 0:
                return inside[:place]
        return inside
    return text.rpartition("####")[2]


def _replacement(match: re.Match[str]) -> str:
    """LaTeX's commas become plain ones, its words a gap; thin spaces and currency signs vanish."""
    return "," if match[0] == "{,}" else " " if match[0].startswith(r"\text") else ""


# ---- a function in a file ----


def _call(path: Path, name: str, completion: str, reference: str | None, prompt: Prompt | None) -> float:
    function = load_function(path, name)
    try:
        value = function(completion, reference, prompt)
    except Exception as error:  # anything may go wrong in a user's file; it is their line that is named
        raise DataError(f"{_place(path, error)}: checker {name} failed: {_first_line(error)}; mend it") from error
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise DataError(f"{path}: checker {name} returned {_short(value)}; return a bool or a number in [0, 1]")
    return float(value)


@lru_cache(maxsize=64)
def load_function(path: Path, name: str) -> Callable[[str, str | None, Prompt | None], Any]:
    """Runs a Python file and returns one of its functions. Raises DataError with the file and line of a fault."""
    if not path.is_file():
        raise DataError(f"there is no checker file {path}: give one, seen from the recipe's folder")
    spec = importlib.util.spec_from_file_location(f"checker_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"the checker file {path} is not Python: give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{_place(path, error)}: the checker file does not load: {_first_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"{path} has no function {name}: define `def {name}(completion, reference, prompt)`")
    return function  # type: ignore[no-any-return]


def _place(path: Path, error: Exception) -> str:
    """path:line of the innermost frame in the file itself, or of the syntax error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) and not lines else (lines or [None])[-1]
    return str(path) if line is None else f"{path}:{line}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
