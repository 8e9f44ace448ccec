"""Who is asked about which request, and how much each answer counts. Pure: names and numbers only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from teachers.errors import TeacherError
from teachers.types import ScoreRequest


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

    def main_teacher(self, domain: str) -> str:
        """The teacher with the largest share, the first named of equal ones. Raises TeacherError as `shares`."""
        shares = self.shares(domain)
        return max(shares, key=lambda teacher: shares[teacher])


@dataclass(frozen=True)
class Assignment:
    """One teacher is asked about one request. The shares of a request sum to 1."""

    teacher: str
    request_id: str
    share: float


Stage = tuple[Assignment, ...]


def plan(requests: Sequence[ScoreRequest], routes: Routes) -> tuple[Stage, ...]:
    """Stages in the order they are asked; routing alone needs one. Raises TeacherError for an unknown domain."""
    shares = {domain: routes.shares(domain) for domain in dict.fromkeys(request.domain for request in requests)}
    return (
        tuple(
            Assignment(teacher, request.request_id, share)
            for request in requests
            for teacher, share in shares[request.domain].items()
        ),
    )


def renormalise(assignments: Iterable[Assignment], failed: Collection[tuple[str, str]]) -> tuple[Assignment, ...]:
    """The assignments without the failed (teacher, request_id) pairs; each request's shares sum to what they did.

    A request that nobody answered has no assignment left.
    """
    asked, answered = defaultdict[str, float](float), defaultdict[str, float](float)
    left = []
    for assignment in assignments:
        asked[assignment.request_id] += assignment.share
        if (assignment.teacher, assignment.request_id) not in failed:
            answered[assignment.request_id] += assignment.share
            left.append(assignment)
    return tuple(
        # Untouched where nobody failed, so that a share stays the same number.
        assignment
        if asked[assignment.request_id] == answered[assignment.request_id]
        else replace(
            assignment, share=assignment.share * asked[assignment.request_id] / answered[assignment.request_id]
        )
        for assignment in left
    )
