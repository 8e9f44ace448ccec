"""Who is asked about which request, in what order, and how much each answer counts. Pure: names and numbers only.

A plan is walked one request at a time: given what was answered so far, who is asked next; and when nobody is left to
ask, the shares of those who answered. Routing asks all at once; a fallback, a cascade, and a teacher that is shown
another's feedback come later, when what they wait for is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from teachers.errors import TeacherError
from teachers.types import Answer, Judgment, ScoreRequest, TeacherFailure

Result = Answer | TeacherFailure
# The score that the prompt's own checker gives to a text in place of the answer; None where there is no judging it.
PromptChecker = Callable[[ScoreRequest, str], float | None]
PASSING = 0.5  # a score from which an answer counts as right, where it is held against a checker


@dataclass(frozen=True)
class Routes:
    """Shares of teachers. by_domain: of a domain's prompts; otherwise: of every other domain's, empty for none.

    Shares are positive and relative: 3 and 1 are three quarters and one.
    """

    by_domain: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    otherwise: Mapping[str, float] = field(default_factory=dict)

    def shares(self, domain: str) -> dict[str, float]:
        """Teacher -> share; the shares sum to 1. Raises TeacherError for a domain without a teacher."""
        shares = self.by_domain.get(domain) or self.otherwise
        if not shares:
            known = ", ".join(sorted(self.by_domain)) or "none"
            raise TeacherError(
                f"no teacher for the domain {domain!r} (there are teachers for: {known}); "
                f"add it to routing.table, or name a routing.default"
            )
        total = sum(shares.values())
        return {teacher: share / total for teacher, share in shares.items()}

    def everyone(self, domain: str) -> tuple[str, ...]:
        """All that may be asked about a prompt of this domain. Raises TeacherError as `shares`."""
        return tuple(self.shares(domain))

    def main_teacher(self, domain: str) -> str:
        """The teacher with the largest share, the first named of equal ones. Raises TeacherError as `shares`."""
        shares = self.shares(domain)
        return max(shares, key=lambda teacher: shares[teacher])


@dataclass(frozen=True)
class Cascade:
    """Teachers from the cheapest to the dearest; the next is asked only where `goes_on` says so.

    unsure: scores strictly between these two. entropy: of a teacher that gives distributions, from which it is unsure.
    disagreement: its surprise at the student's answer, from which to go on. Both are means in nats per token
    (`doubt.py`), or None. check: what judgments must not contradict, or None. temperature: of the distributions.
    """

    order: tuple[str, ...]
    unsure: tuple[float, float] = (0.25, 0.75)
    disagreement: float | None = None
    entropy: float | None = None
    check: PromptChecker | None = None
    temperature: float = 1.0

    def everyone(self, domain: str) -> tuple[str, ...]:
        return self.order

    def main_teacher(self, domain: str) -> str:
        """The dearest: the one that the student is compared with."""
        return self.order[-1]

    def asked(self, request: ScoreRequest, asked: Collection[str], settled: Mapping[str, Result]) -> tuple[str, ...]:
        """Those whose turn has come, given who was asked and what was answered so far."""
        for place, name in enumerate(self.order[:-1]):
            if self.order[place + 1] in asked:  # so this one went on: looking into a distribution twice would cost
                continue
            result = settled.get(name)
            if result is None or not self.goes_on(request, result):
                return self.order[: place + 1]
        return self.order

    def goes_on(self, request: ScoreRequest, result: Result) -> bool:
        """Whether a dearer teacher is worth asking after this result. Raises what `check` raises."""
        if isinstance(result, TeacherFailure):
            return True
        if isinstance(result.signal, Judgment):
            return self._doubts(result.signal) or self._contradicted(request, result.signal)
        if self.disagreement is None and self.entropy is None:
            return False
        from teachers.doubt import doubt_of

        doubt = doubt_of(result.signal, request.token_ids, self.temperature)
        return doubt is not None and (
            (self.disagreement is not None and doubt.surprise > self.disagreement)
            or (self.entropy is not None and doubt.entropy > self.entropy)
        )

    def _doubts(self, judgment: Judgment) -> bool:
        """Whether it is unsure, or says nothing that could be learned from."""
        if judgment.score is None:
            return judgment.rewrite is None
        low, high = self.unsure
        return low < judgment.score < high

    def _contradicted(self, request: ScoreRequest, judgment: Judgment) -> bool:
        """Whether the prompt's checker sees the answer otherwise than the score does, or finds the correction wrong."""
        if self.check is None:
            return False
        if judgment.score is not None:
            found = self.check(request, request.completion)
            if found is not None and (found >= PASSING) != (judgment.score >= PASSING):
                return True
        corrected = None if judgment.rewrite is None else self.check(request, judgment.rewrite)
        return corrected is not None and corrected < PASSING


@dataclass(frozen=True)
class Plan:
    """fallback: teacher -> who is asked where it fails. needs: teacher -> whose feedback it is shown."""

    routes: Routes | Cascade
    fallback: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)


def may_teach(plan: Plan, domain: str) -> frozenset[str]:
    """All whose answer about a prompt of this domain may get a share: those routed to, and who stands in for them.

    Raises TeacherError for a domain without a teacher.
    """
    found: set[str] = set()
    for name in plan.routes.everyone(domain):
        at: str | None = name
        while at is not None and at not in found:
            found.add(at)
            at = plan.fallback.get(at)
    return frozenset(found)


def may_be_asked(plan: Plan, domain: str) -> frozenset[str]:
    """The same, and those whose feedback one of them is shown. Raises TeacherError as `may_teach`."""
    found: set[str] = set()
    left = [*may_teach(plan, domain)]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [other for other in (plan.needs.get(name), plan.fallback.get(name)) if other is not None]
    return frozenset(found)


def next_teachers(
    plan: Plan, request: ScoreRequest, asked: Collection[str], settled: Mapping[str, Result]
) -> tuple[str, ...]:
    """Whom to ask now, beside those in `asked`; empty with nothing under way: the request is settled.

    settled: what teachers in `asked` have said so far. Raises TeacherError for a domain without a teacher.
    """
    routes = plan.routes
    first = (
        routes.asked(request, asked, settled) if isinstance(routes, Cascade) else tuple(routes.shares(request.domain))
    )
    wanted: dict[str, None] = {}
    for name in first:
        _want(plan, name, settled, wanted)
    return tuple(name for name in wanted if name not in asked)


def _want(plan: Plan, name: str, settled: Mapping[str, Result], wanted: dict[str, None]) -> None:
    if name in wanted:
        return
    shows = plan.needs.get(name)
    if shows is not None and shows not in settled:
        _want(plan, shows, settled, wanted)
        return
    wanted[name] = None
    if isinstance(settled.get(name), TeacherFailure) and name in plan.fallback:
        _want(plan, plan.fallback[name], settled, wanted)


def before(plan: Plan, name: str) -> tuple[str, ...]:
    """The teachers whose judgments this one is told: whom the plan makes it wait for, and nobody who was just quick."""
    order = plan.routes.order if isinstance(plan.routes, Cascade) else ()
    earlier = order[: order.index(name)] if name in order else ()
    return (*earlier, *((plan.needs[name],) if name in plan.needs else ()))


def final_shares(plan: Plan, request: ScoreRequest, settled: Mapping[str, Result]) -> dict[str, float]:
    """Teacher -> share of a settled request, over those who answered; they sum to 1. Empty where nobody did.

    A failed teacher's share is its fallback's; where that failed too, all others' shares grow in proportion.
    """
    routes = plan.routes
    if isinstance(routes, Cascade):
        answered = [name for name in routes.order if _answerer(plan, name, settled) is not None]
        last = _answerer(plan, answered[-1], settled) if answered else None
        return {last: 1.0} if last is not None else {}
    shares: dict[str, float] = {}
    lost = False
    for name, share in routes.shares(request.domain).items():
        who = _answerer(plan, name, settled)
        if who is None:
            lost = True
        else:
            shares[who] = shares.get(who, 0.0) + share
    if not lost:  # untouched, so that a share stays the same number
        return shares
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _answerer(plan: Plan, name: str, settled: Mapping[str, Result]) -> str | None:
    """Who answered in this teacher's place: itself, or the first of its fallbacks that did."""
    seen: set[str] = set()
    while name not in seen:
        if isinstance(settled.get(name), Answer):
            return name
        seen.add(name)
        if name not in plan.fallback:
            return None
        name = plan.fallback[name]
    return None
