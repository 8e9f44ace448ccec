"""Rollouts -> requests -> the plan -> answers -> rows: who is asked about what, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.checkers import check
from pipeline.evaluate import answer_text
from pipeline.judgments import Baselines, Judged, JudgedSettings, judge
from pipeline.targets import ANCHOR, Row, Score
from pipeline.types import Divergence, Losses, Prompt, Rollout
from teachers.causal_lm import CausalLM
from teachers.exchange import Settled
from teachers.plan import Cascade, Plan, Result
from teachers.pool import Pool
from teachers.types import (
    Answer,
    FullVocab,
    Judgment,
    LocalTeacher,
    ScoreRequest,
    TeacherFailure,
    TopK,
)


@dataclass(frozen=True, eq=False)
class Asking:
    """Everything that decides what a row is taught, besides the rollout itself.

    weights: a teacher's weight in the recipe. lm, stop: how a completion is read as text. anchor: the initial student
    as a teacher, with its weight, or None. quorum: the share of a step's rows that somebody must have answered; with
    fewer a step waits and asks again, or stops the run.
    """

    pool: Pool
    plan: Plan
    weights: Mapping[str, float]
    losses: Losses
    judged: JudgedSettings
    lm: CausalLM
    stop: tuple[str, ...] = ()
    anchor: tuple[LocalTeacher, float] | None = None
    quorum: float = 0.0
    waits: bool = False


@dataclass(frozen=True)
class Asked:
    """Rows in the order of the rollouts, then those that corrections added.

    failures: teacher -> reason -> how often. unanswered: requests that nobody answered. baselines: of grades, for the
    next step. given: one entry per request, who gave what for it (provenance). judged: counts of what judgments came
    to. covered: teacher -> how many of the tokens that it was to score it did, and how many these were.
    """

    rows: tuple[Row, ...]
    failures: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unanswered: int = 0
    baselines: Baselines = field(default_factory=Baselines)
    given: tuple[Mapping[str, object], ...] = ()
    judged: Mapping[str, float] = field(default_factory=dict)
    covered: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def joined(parts: Sequence[Asked], rollouts: Sequence[Rollout]) -> Asked:
    """What came of the parts of a step, in the order of its rollouts. baselines: the last part's."""
    failures: dict[str, Counter[str]] = {}
    judged: Counter[str] = Counter()
    covered: dict[str, tuple[int, int]] = {}
    for part in parts:
        for teacher, counts in part.failures.items():
            failures.setdefault(teacher, Counter()).update(counts)
        for name, value in part.judged.items():
            judged[name] += value  # type: ignore[assignment]
        for teacher, (some, whole) in part.covered.items():
            before = covered.get(teacher, (0, 0))
            covered[teacher] = (before[0] + some, before[1] + whole)
    place = {rollout.rollout_id: n for n, rollout in enumerate(rollouts)}
    return Asked(
        rows=tuple(row for part in parts for row in part.rows),
        failures=_sorted(failures),
        unanswered=sum(part.unanswered for part in parts),
        baselines=parts[-1].baselines,
        given=tuple(sorted((g for part in parts for g in part.given), key=lambda g: place[str(g["request_id"])])),
        judged=dict(judged),
        covered=covered,
    )


def _sorted(failures: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {teacher: dict(sorted(counts.items())) for teacher, counts in sorted(failures.items())}


# ---- a rollout as a request ----


def judged_by_checker(checker: str, completion: str, reference: str | None, request: ScoreRequest) -> float | None:
    """A checker of the recipe's, for teachers that grade with it."""
    return check(checker, completion, reference, None)


def judged_by_prompt(request: ScoreRequest, text: str) -> float | None:
    """By the prompt's own checker, for plans: of an answer to `request`, the student's or a teacher's."""
    prompt = Prompt(
        prompt_id=request.group_id,
        source=request.source,
        domain=request.domain,
        conversation=request.conversation,
        reference=request.reference,
        privileged=request.privileged,
        private=request.private,
        checker=request.checker,
        grading=request.grading,
    )
    return check(request.checker or "none", text, request.reference, prompt)


def request_of(asking: Asking, rollout: Rollout, step: int) -> ScoreRequest:
    prompt = rollout.prompt
    return ScoreRequest(
        request_id=rollout.rollout_id,
        group_id=prompt.prompt_id,
        sample_index=rollout.sample_index,
        step=step,
        source=prompt.source,
        domain=prompt.domain,
        conversation=prompt.conversation,
        segments=rollout.segments,
        finish_reason=rollout.finish_reason,
        reference=prompt.reference,
        privileged=prompt.privileged,
        private=prompt.private,
        checker=prompt.checker,
        grading=prompt.grading,
        completion=answer_text(rollout, asking.lm, asking.stop),
    )


def local_rows(asking: Asking, rollouts: Sequence[Rollout], step: int) -> list[Row]:
    """Rows scored by the teachers in this process alone, and by such of them as give distributions.

    Of several processes all call it, the others without rollouts.
    """
    if isinstance(asking.plan.routes, Cascade):
        return []
    requests = {rollout.rollout_id: request_of(asking, rollout, step) for rollout in rollouts}
    rows = {rollout.rollout_id: Row(rollout) for rollout in rollouts}
    questions = [
        (teacher, request)
        for request in requests.values()
        for teacher in asking.plan.routes.shares(request.domain)
        if teacher not in asking.pool.remote
    ]
    for teacher, request_id, result in asking.pool.answers(questions):
        if isinstance(result, Answer) and isinstance(result.signal, FullVocab | TopK):
            score = Score(teacher, 1.0, asking.losses.of(result.signal), result.signal)
            rows[request_id] = replace(rows[request_id], scores=(*rows[request_id].scores, score))
    return list(rows.values())


# ---- answers as rows ----


def rows_of(
    asking: Asking,
    rollouts: Sequence[Rollout],
    settled: Mapping[str, Settled],
    baselines: Baselines,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> Asked:
    """Joins what the teachers said to the rollouts that they said it of. settled: of these rollouts. gather: as for
    `judgments.judge`."""
    failures: dict[str, Counter[str]] = {}
    scores: dict[str, list[Score]] = {rollout.rollout_id: [] for rollout in rollouts}
    judgments: dict[str, list[tuple[str, float, Judgment]]] = {}
    covered: dict[str, tuple[int, int]] = {}
    for rollout in rollouts:
        found = settled[rollout.rollout_id]
        for teacher, result in found.results.items():
            if isinstance(result, TeacherFailure):
                failures.setdefault(teacher, Counter())[result.reason] += 1
        for teacher, share in found.shares.items():
            signal = _answer(found.results[teacher]).signal
            coefficient = share * asking.weights[teacher]
            if isinstance(signal, Judgment):
                judgments.setdefault(rollout.rollout_id, []).append((teacher, coefficient, signal))
            else:
                scores[rollout.rollout_id].append(Score(teacher, coefficient, asking.losses.of(signal), signal))
                some, whole = covered.get(teacher, (0, 0))
                covered[teacher] = (some + int(signal.valid.sum()), whole + sum(rollout.trainable))
    judged: Judged = judge(rollouts, judgments, asking.judged, baselines, asking.lm, gather)
    for rollout_id, grades in judged.scores.items():
        scores[rollout_id] += grades
    if asking.anchor is not None and rollouts:
        _add_anchor(asking.anchor, {name: found.request for name, found in settled.items()}, scores, failures)
    rows = [Row(rollout, tuple(scores[rollout.rollout_id])) for rollout in rollouts]
    return Asked(
        rows=(*rows, *judged.rows),
        failures=_sorted(failures),
        unanswered=sum(not found.shares for found in settled.values()),
        baselines=judged.baselines,
        given=tuple(_given(settled[rollout.rollout_id]) for rollout in rollouts),
        judged=judged.counts,
        covered=covered,
    )


def _answer(result: Result) -> Answer:
    assert isinstance(result, Answer), "only those who answered have a share"
    return result


def _given(found: Settled) -> dict[str, object]:
    """Who gave what for one sample: the line of provenance."""
    teachers: dict[str, object] = {}
    for name, result in sorted(found.results.items()):
        if isinstance(result, TeacherFailure):
            teachers[name] = {"failed": result.reason}
            continue
        entry: dict[str, object] = {"gave": _kinds(result), "share": found.shares.get(name, 0.0)}
        if result.model_returned is not None:
            entry["model"] = result.model_returned
        if result.journal_key is not None:
            entry["journal_key"] = result.journal_key
        teachers[name] = entry
    return {"request_id": found.request.request_id, "private": found.request.private, "teachers": teachers}


def _kinds(answer: Answer) -> list[str]:
    signal = answer.signal
    if isinstance(signal, FullVocab):
        return ["distribution"]
    if isinstance(signal, TopK):
        return [f"top_{signal.ids.shape[-1]}"] if signal.ids.shape[-1] else ["sampled_token"]
    return [name for name in ("score", "feedback", "rewrite") if getattr(signal, name) is not None]


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
            assert isinstance(result.signal, FullVocab)
            scores[request_id].append(Score(ANCHOR, weight, Divergence("reverse_kl"), result.signal))
