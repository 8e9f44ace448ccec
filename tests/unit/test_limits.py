"""Rate limits and backoff: held against every stretch of a minute, on a clock that is a number."""

from __future__ import annotations

from random import Random

import pytest

from teachers.config import Limits
from teachers.limits import FIRST_BACKOFF, LONGEST_BACKOFF, MINUTE, Pace, Window, backoff, pace_of


def send(window: Window, arrivals: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Everything is sent as early as it may be, in order of arrival: when, and how much."""
    now, sent = 0.0, []
    for arrival, amount in arrivals:
        now = max(now, arrival)
        now = window.earliest(now, amount)
        window.book(now, amount)
        sent.append((now, amount))
    return sent


def in_any_stretch(sent: list[tuple[float, int]], seconds: float) -> int:
    """The most that any stretch [t, t + seconds) holds; it is enough to look at those that begin with a sending."""
    return max(sum(n for at, n in sent if start <= at and at < start + seconds) for start, _ in sent)


@pytest.mark.parametrize("seed", range(20))
def test_no_stretch_of_a_minute_holds_more_than_the_limit(seed: int) -> None:
    random = Random(seed)
    limit = random.randint(1, 50)
    arrivals = sorted((random.uniform(0, 600), random.randint(1, limit)) for _ in range(100))
    sent = send(Window(limit), arrivals)
    assert in_any_stretch(sent, MINUTE) <= limit
    assert all(at >= arrival for (at, _), (arrival, _) in zip(sent, arrivals, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_waits_longer_than_it_must(seed: int) -> None:
    """Whatever had to wait would break the limit if it were sent any earlier."""
    random = Random(seed)
    arrivals = sorted((random.uniform(0, 120), random.randint(1, 5)) for _ in range(60))
    sent = send(Window(7), arrivals)
    for place, ((at, amount), (arrival, _)) in enumerate(zip(sent, arrivals, strict=True)):
        free = max(arrival, sent[place - 1][0] if place else 0.0)
        if at > free:
            earlier = at - 1e-6
            assert sum(n for when, n in sent[:place] if when + MINUTE > earlier) + amount > 7


def test_a_burst_goes_at_once_and_the_rest_a_minute_later() -> None:
    assert send(Window(3), [(10.0, 1)] * 7) == [(10.0, 1)] * 3 + [(70.0, 1)] * 3 + [(130.0, 1)]


def test_more_than_the_limit_goes_alone() -> None:
    assert send(Window(10), [(0.0, 4), (0.0, 1000), (0.0, 1)]) == [(0.0, 4), (60.0, 1000), (120.0, 1)]


def test_asking_when_books_nothing() -> None:
    window = Window(1)
    assert [window.earliest(5.0) for _ in range(3)] == [5.0] * 3


def test_requests_tokens_and_rests_all_hold() -> None:
    pace = Pace(Window(2), Window(100))
    pace.book(0.0, 90)
    assert pace.earliest(1.0, 10) == 1.0
    assert pace.earliest(1.0, 11) == 60.0  # tokens
    pace.book(1.0, 10)
    assert pace.earliest(2.0, 0) == 60.0  # requests
    pace.rest(300.0)
    pace.rest(200.0)  # a shorter rest does not end a longer one
    assert pace.earliest(2.0, 0) == 300.0
    assert pace.earliest(301.0, 100) == 301.0


def test_without_limits_there_is_no_wait() -> None:
    pace = pace_of(Limits())
    for _ in range(1000):
        assert pace.earliest(7.0, 10**9) == 7.0
        pace.book(7.0, 10**9)


def test_limits_of_a_recipe() -> None:
    pace = pace_of(Limits(requests_per_minute=1, tokens_per_minute=5))
    pace.book(0.0, 5)
    assert pace.earliest(1.0, 0) == 60.0
    assert pace_of(Limits(tokens_per_minute=5)).requests is None


def test_backoff_doubles_up_to_a_limit_and_is_spread_out() -> None:
    for failures in range(1, 40):
        most = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (failures - 1))
        found = [backoff(failures, None, Random(seed)) for seed in range(300)]
        assert 0 <= min(found) < 0.1 * most
        assert 0.9 * most < max(found) <= most
        assert sum(found) / len(found) == pytest.approx(most / 2, rel=0.15)


def test_the_teacher_is_never_asked_before_it_wants_to_be() -> None:
    found = [backoff(1, 17.0, Random(seed)) for seed in range(100)]
    assert min(found) >= 17.0
    assert len(set(found)) == 100
    assert backoff(1, -5.0, Random(0)) == backoff(1, None, Random(0))
    assert 0 <= backoff(1, float("nan"), Random(0)) <= FIRST_BACKOFF


def test_the_same_seed_waits_the_same() -> None:
    one, other = Random(3), Random(3)
    assert [backoff(n, None, one) for n in range(1, 9)] == [backoff(n, None, other) for n in range(1, 9)]
