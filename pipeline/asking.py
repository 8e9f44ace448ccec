"""Rollouts -> requests -> plan -> answers -> rows: who is asked about what, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.recipe import AllTeachers, ByDomain, Mixture, RecipeBase
from pipeline.targets import ANCHOR, Row, Score
from pipeline.types import Divergence, Rollout
from teachers.plan import Routes, plan, renormalise
from teachers.pool import Pool
from teachers.types import Answer, FullVocab, LocalTeacher, ScoreRequest, TeacherFailure, TopK


@dataclass(frozen=True, eq=False)
class Asking:
    """Everything that decides what a row is taught, besides the rollout itself.

    weights: a teacher's weight in the recipe. anchor: the initial student as a teacher, with its weight, or None.
    """

    pool: Pool
    routes: Routes
    weights: Mapping[str, float]
    divergence: Divergence
    anchor: tuple[LocalTeacher, float] | None = None


@dataclass(frozen=True)
class Asked:
    """Rows in the order of the rollouts, and how often each teacher failed for which reason."""

    rows: tuple[Row, ...]
    failures: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def routes_of(recipe: RecipeBase) -> Routes:
    """The recipe's routing as shares by domain. `recipe_file` has made sure that every name exists."""
    routing = recipe.routing
    if isinstance(routing, AllTeachers):
        return Routes({}, dict.fromkeys(recipe.teachers, 1.0))
    if isinstance(routing, Mixture):
        return Routes({}, routing.shares)
    assert isinstance(routing, ByDomain)
    table = {name: {name: 1.0} for name in recipe.teachers}
    table |= {
        domain: {share: 1.0} if isinstance(share, str) else dict(share) for domain, share in routing.table.items()
    }  # fmt: skip
    return Routes(table, {routing.default: 1.0} if routing.default else {})


def request_of(rollout: Rollout, step: int) -> ScoreRequest:
    prompt = rollout.prompt
    return ScoreRequest(
        request_id=rollout.rollout_id,
        group_id=prompt.prompt_id,
        sample_index=rollout.sample_index,
        step=step,
        domain=prompt.domain,
        conversation=prompt.conversation,
        segments=rollout.segments,
        finish_reason=rollout.finish_reason,
        reference=prompt.reference,
        privileged=prompt.privileged,
        private=prompt.private,
        checker=prompt.checker,
    )


def ask(asking: Asking, rollouts: Sequence[Rollout], step: int) -> Asked:
    """Asks every teacher that the plan names and joins the answers to the rollouts."""
    requests = {rollout.rollout_id: request_of(rollout, step) for rollout in rollouts}
    scores: dict[str, list[Score]] = {rollout.rollout_id: [] for rollout in rollouts}
    failures: dict[str, Counter[str]] = {}
    for stage in plan(tuple(requests.values()), asking.routes):
        answers: dict[tuple[str, str], Answer] = {}
        failed: set[tuple[str, str]] = set()
        for teacher, request_id, result in asking.pool.score(stage, requests):
            if isinstance(result, TeacherFailure):
                failures.setdefault(teacher, Counter())[result.reason] += 1
                failed.add((teacher, request_id))
            else:
                answers[teacher, request_id] = result
        for assignment in renormalise(stage, failed):
            answer = answers[assignment.teacher, assignment.request_id]
            coefficient = assignment.share * asking.weights[assignment.teacher]
            scores[assignment.request_id].append(_score(assignment.teacher, coefficient, asking.divergence, answer))
    if asking.anchor is not None:
        _add_anchor(asking.anchor, requests, scores, failures)
    rows = tuple(Row(rollout, tuple(scores[rollout.rollout_id])) for rollout in rollouts)
    return Asked(rows, {teacher: dict(sorted(counts.items())) for teacher, counts in sorted(failures.items())})


def _score(teacher: str, coefficient: float, divergence: Divergence, answer: Answer) -> Score:
    assert isinstance(answer.signal, FullVocab | TopK), f"{teacher} gave {type(answer.signal).__name__}"
    return Score(teacher, coefficient, divergence, answer.signal)


def _add_anchor(
    anchor: tuple[LocalTeacher, float],
    requests: Mapping[str, ScoreRequest],
    scores: dict[str, list[Score]],
    failures: dict[str, Counter[str]],
) -> None:
    """The pull back to the initial student: always reverse KL, beside whatever the teachers are taught with."""
    teacher, weight = anchor
    for request_id, result in teacher.score(tuple(requests.values())):
        if isinstance(result, TeacherFailure):
            failures.setdefault(ANCHOR, Counter())[result.reason] += 1
        else:
            scores[request_id].append(_score(ANCHOR, weight, Divergence("reverse_kl"), result))
