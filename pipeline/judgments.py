"""Judgments -> what they train: a score becomes an advantage of a rollout's tokens, a rewrite a supervised row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any, Literal, NamedTuple

import torch

from pipeline.recipe_losses import Grades, Rewrites
from pipeline.rewrites import Room, marks_of, rewrite_rollout
from pipeline.targets import Row, Score
from pipeline.types import Advantage, Divergence, Rollout
from teachers.causal_lm import CausalLM
from teachers.types import Judgment

MEMORY = 0.9  # of the running mean of a domain's grades

Counts = MutableMapping[str, float]
# Who judged, its share of the prompt times its weight in the recipe, what it said.
Judgments = Mapping[str, Sequence[tuple[str, float, Judgment]]]  # by rollout id


@dataclass(frozen=True)
class JudgedSettings:
    """What judgments train. max_new_tokens: a rewrite may not be longer than the student's own answers may.

    stop: the rollouts' stop strings, which end an answer's text.
    """

    grades: Grades
    rewrites: Rewrites
    max_new_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Baselines:
    """The running mean of the grades that each teacher gave in each domain: teacher -> domain -> mean."""

    means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {teacher: dict(domains) for teacher, domains in self.means.items()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Baselines:
        return Baselines({teacher: dict(domains) for teacher, domains in value.items()})


@dataclass(frozen=True, eq=False)
class Judged:
    """What a step's judgments came to, of this process's rollouts; `baselines` of all.

    scores: by rollout id, those to add to its row. rows: one per rewrite that is used. counts: sums that are added up
    over the processes and turned into metrics by `metrics.describe_judged`.
    """

    scores: Mapping[str, tuple[Score, ...]]
    rows: tuple[Row, ...]
    baselines: Baselines
    counts: Mapping[str, float]


def judge(
    rollouts: Sequence[Rollout],
    judgments: Judgments,
    settings: JudgedSettings,
    baselines: Baselines,
    lm: CausalLM,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> Judged:
    """Turns judgments of `rollouts` into scores and rows. A weight of 0 turns grades or rewrites off.

    gather: a value of this process -> those of all; called once. A prompt's samples may be on several processes, and
    each is compared with all others: so the advantages do not depend on how many processes there are.
    """
    grades = _grades(rollouts, judgments)
    everyones = [grade for part in gather(grades) for grade in part]
    found = advantages(everyones, settings.grades.baseline, baselines)
    counts: Counts = defaultdict(float)
    room = Room(lm, marks_of(lm), settings.stop, settings.max_new_tokens, settings.rewrites.least_kept)
    scores: dict[str, tuple[Score, ...]] = {}
    rows: list[Row] = []
    for rollout in rollouts:
        said = judgments.get(rollout.rollout_id, ())
        scores[rollout.rollout_id] = tuple(_scores(rollout, said, settings.grades, found, counts))
        rows += _rows(rollout, said, settings.rewrites, room, counts)
    following = observe(baselines, everyones) if settings.grades.baseline == "running" else baselines
    return Judged(scores, tuple(rows), following, dict(counts))


# ---- grades ----


class Grade(NamedTuple):
    teacher: str
    rollout_id: str
    prompt_id: str
    domain: str
    score: float


def _grades(rollouts: Sequence[Rollout], judgments: Judgments) -> list[Grade]:
    found = []
    for rollout in rollouts:
        for teacher, _, judgment in judgments.get(rollout.rollout_id, ()):
            if judgment.score is not None:
                assert 0 <= judgment.score <= 1, f"{teacher} gave {judgment.score}; a score is in [0, 1]"
                prompt = rollout.prompt
                found.append(Grade(teacher, rollout.rollout_id, prompt.prompt_id, prompt.domain, judgment.score))
    return found


def advantages(
    grades: Sequence[Grade], baseline: Literal["group", "running"], baselines: Baselines
) -> dict[tuple[str, str], float | None]:
    """By (teacher, rollout id): how much better a grade is than its baseline; None where there is nothing to compare.

    group: the mean of the same teacher's grades of the prompt's other samples (leave-one-out, as in RLOO 2402.14740:
    a baseline with the sample itself in it would shrink its advantage). running: the domain's running mean before this
    step; in the first step, which has none, the mean of the domain's other grades.
    """
    peers: dict[tuple[str, str], list[float]] = {}

    def group_of(grade: Grade) -> tuple[str, str]:
        return grade.teacher, grade.prompt_id if baseline == "group" else grade.domain

    for grade in grades:
        peers.setdefault(group_of(grade), []).append(grade.score)
    found: dict[tuple[str, str], float | None] = {}
    for grade in grades:
        mean = baselines.means.get(grade.teacher, {}).get(grade.domain) if baseline == "running" else None
        found[grade.teacher, grade.rollout_id] = (
            _less_the_others(grade.score, peers[group_of(grade)]) if mean is None else grade.score - mean
        )
    return found


def _less_the_others(score: float, scores: Sequence[float]) -> float | None:
    """`score` less the mean of the others in `scores`, itself among them. Of differences: equal ones give exactly 0."""
    others = len(scores) - 1
    return fsum(score - other for other in scores) / others if others else None


def observe(baselines: Baselines, grades: Sequence[Grade]) -> Baselines:
    """The baselines after a step with these grades, in whatever order."""
    by_domain: dict[tuple[str, str], list[float]] = {}
    for grade in grades:
        by_domain.setdefault((grade.teacher, grade.domain), []).append(grade.score)
    means = {teacher: dict(domains) for teacher, domains in baselines.means.items()}
    for (teacher, domain), scores in sorted(by_domain.items()):
        mean = fsum(scores) / len(scores)
        before = means.setdefault(teacher, {}).get(domain, mean)
        means[teacher][domain] = MEMORY * before + (1 - MEMORY) * mean
    return Baselines(means)


def _scores(
    rollout: Rollout,
    said: Sequence[tuple[str, float, Judgment]],
    settings: Grades,
    found: Mapping[tuple[str, str], float | None],
    counts: Counts,
) -> Iterator[Score]:
    """The advantages as signals on all of a rollout's tokens. A grade without a baseline gives none, and is counted."""
    divergence = Divergence("grade", ratio_low=settings.ratio_low, ratio_high=settings.ratio_high)
    length = len(rollout.completion_ids)
    for teacher, coefficient, judgment in said:
        if judgment.score is None:
            continue
        advantage = found[teacher, rollout.rollout_id]
        _add(counts, teacher, "grade", judgment.score)
        if advantage is None:
            counts[f"alone/{teacher}"] += 1
            continue
        _add(counts, teacher, "advantage", abs(advantage))
        if settings.weight > 0:
            signal = Advantage(
                torch.full((length,), advantage, dtype=torch.float32), torch.ones(length, dtype=torch.bool)
            )
            yield Score(teacher, coefficient * settings.weight, divergence, signal)


def _add(counts: Counts, teacher: str, what: str, value: float) -> None:
    counts[f"{what}/{teacher}"] += value
    counts[f"{what}s/{teacher}"] += 1


# ---- rewrites ----


def _rows(
    rollout: Rollout,
    said: Sequence[tuple[str, float, Judgment]],
    settings: Rewrites,
    room: Room,
    counts: Counts,
) -> Iterator[Row]:
    for teacher, coefficient, judgment in said:
        if judgment.rewrite is None or settings.weight == 0:
            continue
        written = rewrite_rollout(rollout, judgment.rewrite, teacher, room)
        if isinstance(written, Rollout):
            counts[f"rewrites/{teacher}/used"] += 1
            yield Row(written, supervised=coefficient * settings.weight, rewrite=True)
        else:
            counts[f"rewrites/{teacher}/{written}"] += 1
