"""Answers against independent solvers that read nothing but the question; splits and determinism."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from pipeline.tasks import DOMAINS, generate, split_of

COUNT = 60  # the smallest domain, code_brackets, has somewhat more held-out questions than this


def _sums(question: str) -> str:
    return "".join(str(sum(map(int, question[:end])) % 5) for end in range(1, len(question) + 1))


def _addition(question: str) -> str:
    left, right = question.split("+")
    columns = []
    for end in (1, 2, 3):
        lower = (int(left[-end + 1 :]) + int(right[-end + 1 :])) // 10 ** (end - 1) if end > 1 else 0
        total = int(left[-end]) + int(right[-end]) + lower
        columns.append(f"{left[-end]}+{right[-end]}+{lower}={total // 10}{total % 10}")
    return " ".join(columns)


def _division(question: str) -> str:
    dividend, divisor = question.split("/")
    prefixes = [int(dividend[:end]) for end in range(1, len(dividend) + 1)]
    return " ".join(f"{prefix // int(divisor) % 10}r{prefix % int(divisor)}" for prefix in prefixes)


def _boolean(question: str) -> str:
    """Folding from the left is the same as putting every operation into parentheses."""
    values = []
    for end in range(3, len(question) + 1, 2):
        nested = "(" * (end // 2) + question[0]
        nested += "".join(f"{operation})" for operation in re.findall("..", question[1:end]))
        values.append(str(eval(nested)))
    return "".join(values)


def _walking(question: str) -> str:
    start, moves = question.split()
    positions = []
    for end in range(1, len(moves) + 1):
        past = moves[:end]
        x = int(start[0]) + past.count("E") - past.count("W")
        y = int(start[1]) + past.count("N") - past.count("S")
        positions.append(f"{x % 10}{y % 10}")
    return " ".join(positions)


def _run_lengths(question: str) -> str:
    return re.sub(r"(.)\1*", lambda run: run[1] + str(len(run[0])), question)


def _cancelling(question: str) -> str:
    steps = [question]
    while (rest := re.sub(r"(.)\1", "", steps[-1], count=1)) != steps[-1]:
        steps.append(rest)
    return " ".join(steps[1:])


def _brackets(question: str) -> str:
    code = re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "", question)
    depth, answer = 0, ""
    for bracket in re.findall(r"[()\[\]{}]", code):
        depth += 1 if bracket in "([{" else -1
        answer += f"{bracket}{depth}"
    return answer


def _camel_case(question: str) -> str:
    return re.sub("_(.)", lambda match: match[1].upper(), question)


SOLVERS: dict[str, Callable[[str], str]] = {
    "running_sums": _sums,
    "addition": _addition,
    "division": _division,
    "boolean": _boolean,
    "walking": _walking,
    "sorting": lambda question: "".join(letter for letter in map(chr, range(128)) if letter in question),
    "run_lengths": _run_lengths,
    "cancelling": _cancelling,
    "code_brackets": _brackets,
    "camel_case": _camel_case,
}

FIXED = {  # worked by hand
    "running_sums": ("sums mod 5: 31402413", "34330403"),
    "addition": ("add: 180+428", "0+8+0=08 8+2+0=10 1+4+1=06"),
    "division": ("divide: 99304/7", "1r2 4r1 1r6 8r4 6r2"),
    "boolean": ("fold: 1^1|1&0^1|1|1^0&1", "01011111"),
    "walking": ("walk: 90 EENSSW", "00 10 11 10 19 09"),
    "sorting": ("sort: qcymrupfok", "cfkmopqruy"),
    "run_lengths": ("runs: ddddbbcccfffaaaa", "d4b2c3f3a4"),
    "cancelling": ("cancel: cabbad", "caad cd"),
    "code_brackets": ("brackets: if msg.args[0][:3] != '(':", "[1]0[1]0"),
    "camel_case": ("camelCase: get_source_file", "getSourceFile"),
}


def _solve(domain: str, question: str) -> str:
    return SOLVERS[domain](question.split(": ", 1)[1])


def test_there_are_ten_domains_with_a_summary_each() -> None:
    assert len(DOMAINS) == 10
    assert set(DOMAINS) == set(SOLVERS)
    for name, task in DOMAINS.items():
        assert task.name == name
        assert len(task.summary) > 40


@pytest.mark.parametrize("domain", SOLVERS)
def test_the_solvers_of_this_file_agree_with_examples_worked_by_hand(domain: str) -> None:
    question, answer = FIXED[domain]
    assert _solve(domain, question) == answer


@pytest.mark.parametrize("domain", SOLVERS)
def test_answers_agree_with_an_independent_solver(domain: str) -> None:
    for question, answer in generate(domain, 300, 1, "train") + generate(domain, COUNT, 1, "held_out"):
        assert answer == _solve(domain, question), question


@pytest.mark.parametrize("domain", SOLVERS)
def test_questions_fit_a_character_vocabulary_and_a_small_context(domain: str) -> None:
    for question, answer in generate(domain, 300, 2, "train"):
        assert f"{question}{answer}".isascii()
        assert f"{question}{answer}".isprintable()
        assert len(question) <= 60
        assert 1 <= len(answer) <= 32


@pytest.mark.parametrize("domain", SOLVERS)
def test_held_out_questions_are_distinct_and_never_trained_on_whatever_the_seeds(domain: str) -> None:
    held_out = [question for question, _ in generate(domain, COUNT, 3, "held_out")]
    trained = {question for seed in range(3) for question, _ in generate(domain, 1_000, seed, "train")}
    assert len(set(held_out)) == COUNT
    assert not trained & set(held_out)
    assert {split_of(question) for question in held_out} == {"held_out"}
    assert {split_of(question) for question in trained} == {"train"}


@pytest.mark.parametrize("domain", SOLVERS)
def test_a_longer_draw_begins_with_the_shorter_one_and_seeds_differ(domain: str) -> None:
    assert generate(domain, 50, 4, "train")[:20] == generate(domain, 20, 4, "train")
    assert generate(domain, 50, 4, "held_out")[:20] == generate(domain, 20, 4, "held_out")
    assert generate(domain, 20, 4, "train") != generate(domain, 20, 5, "train")


def test_processes_with_other_hash_seeds_draw_the_same() -> None:
    program = (
        "from pipeline.tasks import *; print([generate(d, 5, 7, s) for d in DOMAINS for s in ('train', 'held_out')])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].strip() == str([generate(d, 5, 7, s) for d in DOMAINS for s in ("train", "held_out")])


def test_an_unknown_domain_is_one_line_that_lists_the_domains() -> None:
    with pytest.raises(ValueError, match=r"unknown domain 'sums': choose one of running_sums, addition, .*") as caught:
        generate("sums", 1, 0, "train")
    assert "\n" not in str(caught.value)


def test_more_held_out_questions_than_a_domain_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"code_brackets has only \d+ held-out questions, not 100000: ask for fewer"):
        generate("code_brackets", 100_000, 0, "held_out")
