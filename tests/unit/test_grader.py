"""The chat server's grader: what partial credit it gives, and that without it nothing but a right answer scores."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.servers.grader import judged

REFERENCE = "abcde"


def score(answer: str, *, partial: bool) -> float:
    return judged(answer, REFERENCE, partial=partial)[1]


def test_partial_credit_grows_with_what_is_right_before_the_first_mistake() -> None:
    scores = [score(REFERENCE[:right] + "?" * (5 - right), partial=True) for right in range(6)]
    assert scores[0] == 0
    assert scores[-1] == 1
    assert all(low < high for low, high in pairwise(scores))


@pytest.mark.parametrize("answer", ["abcdef", "abcd", "?bcde", "", "abcde abcde"])
def test_only_the_right_answer_scores_1(answer: str) -> None:
    assert score(answer, partial=True) < 1
    assert score(answer, partial=False) == 0


@pytest.mark.parametrize("partial", [False, True])
def test_a_right_answer_needs_no_rewrite_and_a_wrong_one_becomes_the_reference(partial: bool) -> None:
    assert judged("abcde", REFERENCE, partial=partial)[2] is None
    assert judged("abXde", REFERENCE, partial=partial)[2] == REFERENCE
