"""The chat server's grader: what partial credit it gives, and that without it nothing but a right answer scores."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from tests.servers.grader import Weakness, judged, mistaken, said_of

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


def test_a_weak_one_is_unsure_of_some_and_mistaken_in_as_many_of_the_hard_questions_alone() -> None:
    kinds = Counter()
    weakness = Weakness(0.5, "hard")
    for n in range(2000):
        for answer in (REFERENCE, "abcd", "abXde"):
            hard, easy = (
                {"user": f"{kind} {n}", "reference": REFERENCE, "answer": answer} for kind in ("hard", "easy")
            )
            right = judged(answer, REFERENCE)
            assert said_of(easy, weakness) == said_of(hard, Weakness()) == right
            said = said_of(hard, weakness)
            kinds[answer, "right" if said == right else "unsure" if said[1] == 0.5 else "mistaken"] += 1
            if said != right and said[1] != 0.5:
                assert said == judged(answer, mistaken(REFERENCE))
                assert (said[1] == 1) == (answer == "abcd")
    for answer in (REFERENCE, "abcd", "abXde"):  # what it does not know hangs on the question alone
        assert kinds[answer, "right"] == kinds[REFERENCE, "right"] == pytest.approx(1000, abs=70)
        assert kinds[answer, "unsure"] == kinds[REFERENCE, "unsure"] == pytest.approx(500, abs=60)


@pytest.mark.parametrize("reference", ["abcde", "a", "0"])
def test_what_a_weak_one_takes_for_the_answer_is_wrong(reference: str) -> None:
    assert mistaken(reference) not in ("", reference)
