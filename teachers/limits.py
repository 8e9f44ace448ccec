"""Rate limits and backoff as arithmetic: when may the next one go? Nobody waits here: the time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from teachers.config import Limits

MINUTE = 60.0  # seconds
FIRST_BACKOFF = 0.5  # seconds; doubles with every failure
LONGEST_BACKOFF = 30.0


@dataclass(eq=False)
class Window:
    """At most `limit` in any stretch of `seconds`.

    The window slides: buckets of whole minutes would let two full ones meet at the minute's edge. An amount above the
    limit counts as the limit, so that it goes alone and not never.
    """

    limit: int
    seconds: float = MINUTE
    _sent: deque[tuple[float, int]] = field(default_factory=deque)  # when, how much; oldest first
    _total: int = 0

    def earliest(self, now: float, amount: int = 1) -> float:
        """When `amount` may be sent, seconds: now, or the moment at which enough has left the window."""
        over = self._within(now) + min(amount, self.limit) - self.limit
        at = now
        for sent, sent_amount in self._sent:
            if over <= 0:
                break
            at, over = sent + self.seconds, over - sent_amount
        return at

    def book(self, now: float, amount: int = 1) -> None:
        """It is sent now. Times may not go back."""
        counted = min(amount, self.limit)
        self._sent.append((now, counted))
        self._total += counted

    def _within(self, now: float) -> int:
        while self._sent and self._sent[0][0] + self.seconds <= now:
            self._total -= self._sent.popleft()[1]
        return self._total


@dataclass(eq=False)
class Pace:
    """How fast one teacher may be asked: requests and tokens per minute, and rests that it asked for."""

    requests: Window | None = None
    tokens: Window | None = None
    _rests_until: float = 0.0

    def earliest(self, now: float, tokens: int) -> float:
        """When a request of that many tokens may be sent, if nothing else is sent before it."""
        requests_at = self.requests.earliest(now) if self.requests else now
        tokens_at = self.tokens.earliest(now, tokens) if self.tokens else now
        return max(now, self._rests_until, requests_at, tokens_at)

    def book(self, now: float, tokens: int) -> None:
        """A request of that many tokens is sent now."""
        if self.requests:
            self.requests.book(now)
        if self.tokens:
            self.tokens.book(now, tokens)

    def rest(self, until: float) -> None:
        """Nothing is sent before `until`."""
        self._rests_until = max(self._rests_until, until)


def pace_of(limits: Limits) -> Pace:
    per_minute = (limits.requests_per_minute, limits.tokens_per_minute)
    requests, tokens = (Window(limit) if limit else None for limit in per_minute)
    return Pace(requests, tokens)


def backoff(failures: int, retry_after: float | None, random: Random) -> float:
    """Seconds to wait after `failures` >= 1 in a row.

    Full jitter: uniform in [0, 0.5 s · 2^(failures - 1)], at most 30 s, so that those who failed together do not come
    back together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). It is added to what the
    teacher asked for, which is never cut short.
    """
    most = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(failures - 1, 32))
    return max(0.0, retry_after or 0.0) + random.uniform(0.0, most)
