"""The chat server's grader: what partial credit it gives, and that without it nothing but a right answer scores."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from tests.servers.grader import fallible, judged

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


def test_a_weak_one_is_unsure_of_some_sure_and_wrong_of_as_many_and_always_of_the_same() -> None:
    kinds = Counter()
    for n in range(2000):
        answer = REFERENCE if n % 2 else "abXde"
        parts = {"prompt": str(n), "reference": REFERENCE, "answer": answer}
        found = judged(answer, REFERENCE)
        said = fallible(found, parts, 0.3)
        assert said == fallible(found, dict(parts), 0.3)
        assert fallible(found, parts, 0.0) == found
        kinds["right" if said == found else "unsure" if said[1] == 0.5 else "wrong"] += 1
        if said != found and said[1] != 0.5:
            assert said[1] == 1 - found[1]
            assert (said[2] is None) == (answer != REFERENCE)
    assert kinds["right"] == pytest.approx(1400, abs=60)
    assert kinds["unsure"] == pytest.approx(300, abs=50)
