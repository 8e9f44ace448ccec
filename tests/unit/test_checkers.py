"""Judging answers: words, numbers, and functions in files, with the line of a fault in them."""

from __future__ import annotations

import json
import random
import shutil
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.checkers import check, check_all, last_number
from pipeline.errors import DataError
from pipeline.types import Prompt
from teachers.types import RawText


def test_exact_ignores_white_space_only() -> None:
    assert check("exact", " a  b\n", "a b") == 1
    assert check("exact", "a b c", "a b") == 0
    assert check("exact", "A b", "a b") == 0
    assert check("exact", "ab", "a b") == 0
    assert check("exact", "", "a") == 0


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_many_are_judged_as_one_by_one() -> None:
    head = "def double(x):\n    '''Twice.'''\n"
    tests = json.dumps({"prompt": head, "entry_point": "double", "test": "def check(f):\n    assert f(3) == 6\n"})
    judged = [("python_tests", tests), ("exact", "b"), ("python_tests", None), (None, "b"), ("numeric", "6")]
    asked = [
        (Prompt(f"{n}", "s", "d", RawText(head), reference, checker=checker), text)
        for n, (checker, reference) in enumerate(judged)
        for text in ("    return 2 * x\n", "    return 6\n", "    return 7\n", "b", "6")
    ]
    found = check_all(asked)
    assert found == [check(prompt.checker or "none", text, prompt.reference, prompt) for prompt, text in asked]
    assert found[:5] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert check_all([]) == []


def test_no_score_is_none() -> None:
    assert check("none", "a", "a") is None
    assert check("exact", "a", None) is None
    assert check("numeric", "1", None) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She has 3 left.\n#### 72", "72"),
        ("#### 1,234", "1234"),
        ("#### 5 dollars, not 6", "6"),
        ("The 12 of them pay $1,000,000.50.", "1000000.5"),
        ("That is 50%.", "50"),
        ("-3", "-3"),
        ("x = -3.", "-3"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\N{MINUS SIGN}7", "-7"),
        ("5-3", "3"),
        ("pages 4-8", "8"),
        ("3/4", "3/4"),
        ("about 0.50", "1/2"),
        (".25", "1/4"),
        (r"\boxed{\frac{3}{4}} or 9", "3/4"),
        (r"\boxed{1} and then \boxed{2}. 7", "2"),
        (r"$\boxed{\text{at 5 } 1{,}000}$", "1000"),
        (r"\boxed{12\,000", "12000"),
        (r"\$12.00", "12"),
        ("**18**", "18"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("1,111,1111", "1111"),
    ],
)
def test_last_number(text: str, value: str) -> None:
    assert last_number(text) == Fraction(value)


@pytest.mark.parametrize("text", ["", "none", "5/0", "9" * 5000, "-"])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.parametrize("trial", range(20))
def test_a_number_written_in_any_way_is_itself(trial: int) -> None:
    pick = random.Random(trial)
    number = Decimal(pick.randint(-(10 ** pick.randint(1, 16)), 10 ** pick.randint(1, 16))).scaleb(-pick.randint(0, 4))
    for text in (f"{number}", f"{number:,}", f"so it is {number:,}.", f"#### {number}", rf"\boxed{{{number}}}"):
        assert last_number(text) == Fraction(number)
    assert check("numeric", f"{number + Decimal('0.00001')}", f"{number}") == 0


@pytest.mark.parametrize("text", ["1," * 50_000, "1,111" * 50_000, r"\text{" * 50_000, "9" * 300_000, "1/" * 100_000])
@pytest.mark.timeout(60)  # with the square of the length it takes many times as long
def test_a_model_that_repeats_itself_is_judged_in_linear_time(text: str) -> None:
    assert check("numeric", text, "#### 72") == 0


def test_a_reference_without_a_number_is_said() -> None:
    with pytest.raises(DataError, match="the reference, 'seven', has no number; use exact"):
        check("numeric", "7", "seven")


def test_an_unknown_checker_is_said() -> None:
    with pytest.raises(DataError, match="unknown checker 'fuzzy'"):
        check("fuzzy", "7", "seven")


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_function_in_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path, "def half(completion, reference, prompt):\n    return 0.5 if reference in completion else False\n"
    )
    assert check(f"{path}:half", "a cat", "cat") == 0.5
    assert check(f"{path}:half", "a dog", "cat") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def judge(a, b, c):\n    x = 1\n    return len(None)\n", r"mine\.py:3: checker judge failed: TypeError"),
        ("def judge(a, b):\n    return 1\n", r"mine\.py: checker judge failed: TypeError.*positional"),
        ("def judge(a, b, c)\n    return 1\n", r"mine\.py:1: the checker file does not load: SyntaxError"),
        ("\nimport nothing_of_this_name\n", r"mine\.py:2: the checker file does not load: ModuleNotFoundError"),
        ("def other(a, b, c):\n    return 1\n", r"mine\.py has no function judge: define `def judge"),
        ("judge = 3\n", r"mine\.py has no function judge"),
        ("def judge(a, b, c):\n    return 2\n", r"mine\.py: checker judge returned 2; return a bool"),
        ("def judge(a, b, c):\n    return None\n", r"checker judge returned None"),
        ("def judge(a, b, c):\n    return float('nan')\n", r"checker judge returned nan"),
    ],
)
def test_a_fault_in_a_file_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=said) as caught:
        check(f"{path}:judge", "a", "b")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no checker file .*gone\.py"):
        check(f"{tmp_path}/gone.py:judge", "a", "b")


# ---- similar words ----


def insertions_and_deletions(left: str, right: str) -> int:
    """The fewest of them, by the recurrence itself."""
    row = list(range(len(right) + 1))
    for n, a in enumerate(left, 1):
        above, row = row, [n]
        row += [0] * len(right)
        for m, b in enumerate(right, 1):
            row[m] = above[m - 1] if a == b else 1 + min(above[m], row[m - 1])
    return row[-1]


@pytest.mark.parametrize("trial", range(20))
def test_similarity_is_what_its_formula_says(trial: int) -> None:
    numbers = random.Random(trial)
    left, right = ("".join(numbers.choices("ab c", k=numbers.randrange(12))) for _ in range(2))
    a, b = left.strip(), right.strip()
    expected = 1 - insertions_and_deletions(a, b) / (len(a) + len(b)) if a or b else 1.0
    assert check("similarity", left, right) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("checker", "completion", "reference", "expected"),
    [
        ("first_line", " + b\n    return c", "+ b", 1.0),
        ("first_line", "\n+ b", "+ b", 0.0),
        ("first_line", "+ b, c", "+ b", 0.0),
        ("first_line", "```python\n+ b\n```", "+ b", 1.0),
        ("similarity", "    a = 1\n    return a\n\n\ndef next():", "    a = 1\n    return a\n", 1.0),
        ("similarity", "    a = 1\n", "    a = 1\n    return a", 2 * 5 / (5 + 18)),
        ("similarity", "```\nab\n```\nwhich is it", "ab", 1.0),
    ],
)
def test_what_a_model_of_code_goes_on_with_is_not_judged(
    checker: str, completion: str, reference: str, expected: float
) -> None:
    assert check(checker, completion, reference) == pytest.approx(expected)


def test_similarity_of_the_same_and_of_nothing_alike() -> None:
    assert check("similarity", " return x\n", "return x") == 1.0
    assert check("similarity", "", "") == 1.0
    assert check("similarity", "abc", "xyz") == 0.0
    assert check("similarity", "abc", None) is None
