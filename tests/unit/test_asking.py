"""Who is asked about a rollout, with what coefficient, and what failures do to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.asking import Asked, Asking, judged_by_prompt, request_of, rows_of
from pipeline.errors import RecipeError
from pipeline.judgments import Baselines, JudgedSettings
from pipeline.recipe_file import load_recipe
from pipeline.recipe_losses import Objective
from pipeline.routing import routes_of
from pipeline.targets import ANCHOR
from pipeline.types import Divergence, Prompt, Rollout
from teachers.exchange import Exchange
from teachers.plan import Plan, Routes
from teachers.pool import Pool
from teachers.types import (
    Answer,
    FullVocab,
    Head,
    HeadWeights,
    RawText,
    ScoreRequest,
    Segment,
    SignalKind,
    TeacherFailure,
)  # fmt: skip
from tests.models import tiny_tokenizer
from tests.runs import changed, distill_settings, write_recipe

HEAD = Head("head", 5, lambda: HeadWeights(torch.zeros(5, 2)))


@dataclass
class Scripted:
    """A real teacher by the protocol: it answers with zeros, but fails on the requests named."""

    name: str
    fails_on: frozenset[str] = frozenset()
    signals: frozenset[SignalKind] = frozenset({SignalKind.FULL_VOCAB})
    seen: list[str] = field(default_factory=list)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]:
        for request in reversed(requests):
            self.seen.append(request.request_id)
            if request.request_id in self.fails_on:
                yield request.request_id, TeacherFailure(self.name, "too_long", retryable=False)
            else:
                count = len(request.token_ids)
                signal = FullVocab(torch.zeros(count, 2), HEAD, torch.ones(count, dtype=torch.bool))
                yield request.request_id, Answer(signal)

    def close(self) -> None: ...


def rollout(name: str, domain: str) -> Rollout:
    segment = Segment("assistant", "answer", (1, 2), trainable=True)
    return Rollout(Prompt(name, "source", domain, RawText(name)), 0, (0,), (segment,), "length", (0.0,) * 2, (0.0,) * 2)


def asking(teachers: Mapping[str, Scripted], routes: Routes, weights: Mapping[str, float], **anchor: object) -> Asking:
    objective = Objective()
    judged = JudgedSettings(objective.grades, objective.rewrites, max_new_tokens=8)
    lm: Any = SimpleNamespace(tokenizer=tiny_tokenizer(), end_ids=frozenset({1}))  # a model is not needed to read
    return Asking(Pool(teachers), Plan(routes), weights, objective.losses(), judged, lm, **anchor)  # type: ignore[arg-type]


def ask(asking: Asking, rollouts: Sequence[Rollout], step: int) -> Asked:
    exchange = Exchange(asking.pool, asking.plan, {})
    for rollout in rollouts:
        exchange.submit(request_of(asking, rollout, step))
    return rows_of(asking, rollouts, exchange.settle(), Baselines())


def coefficients(rows: Sequence[object]) -> list[dict[str, float]]:
    return [{score.teacher: score.coefficient for score in row.scores} for row in rows]  # type: ignore[attr-defined]


def test_a_domain_goes_to_its_teacher_with_its_weight() -> None:
    teachers = {"a": Scripted("a"), "b": Scripted("b")}
    asked = ask(
        asking(teachers, Routes({"a": {"a": 1.0}, "b": {"b": 1.0}}), {"a": 1.0, "b": 0.25}),
        [rollout("p", "a"), rollout("q", "b"), rollout("r", "a")],
        step=1,
    )
    assert coefficients(asked.rows) == [{"a": 1.0}, {"b": 0.25}, {"a": 1.0}]
    assert sorted(teachers["a"].seen) == ["p/0", "r/0"]
    assert [row.rollout.rollout_id for row in asked.rows] == ["p/0", "q/0", "r/0"]


def test_a_prompts_checker_sees_the_prompt_as_it_is_in_the_data(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    judge = tmp_path / "checks.py"
    judge.write_text(f"def judge(c, r, p):\n    open({str(seen)!r}, 'w').write(repr(p))\n    return c == r\n")
    prompt = Prompt("p", "source", "a", RawText("q"), "yes", "hint", True, f"{judge}:judge", '{"run": 1}')
    asked = request_of(asking({}, Routes({}, {}), {}), replace(rollout("p", "a"), prompt=prompt), step=1)
    assert judged_by_prompt(asked, "yes") == 1.0
    assert seen.read_text() == repr(prompt)
    assert judged_by_prompt(asked, "no") == 0.0
    assert judged_by_prompt(replace(asked, checker=None), "yes") is None


def test_shares_go_to_who_answered_and_failures_are_counted() -> None:
    teachers = {"a": Scripted("a", frozenset({"q/0", "r/0"})), "b": Scripted("b", frozenset({"r/0"}))}
    asked = ask(
        asking(teachers, Routes({}, {"a": 3.0, "b": 1.0}), {"a": 1.0, "b": 2.0}),
        [rollout("p", "x"), rollout("q", "x"), rollout("r", "x")],
        step=1,
    )
    assert coefficients(asked.rows) == [{"a": 0.75, "b": 0.5}, {"b": 2.0}, {}]
    assert asked.failures == {"a": {"too_long": 2}, "b": {"too_long": 1}}
    assert [row.taught for row in asked.rows] == [True, True, False]


def test_the_anchor_stands_beside_the_teachers() -> None:
    anchor = (Scripted(ANCHOR, frozenset({"q/0"})), 0.3)
    asked = ask(
        asking({"a": Scripted("a")}, Routes({}, {"a": 1.0}), {"a": 1.0}, anchor=anchor),
        [rollout("p", "x"), rollout("q", "x")],
        step=1,
    )
    assert coefficients(asked.rows) == [{"a": 1.0, ANCHOR: 0.3}, {"a": 1.0}]
    assert asked.failures == {ANCHOR: {"too_long": 1}}
    assert asked.rows[0].scores[1].divergence == Divergence("reverse_kl")


@pytest.mark.parametrize(
    ("routing", "domain", "shares"),
    [
        ("domain", "sorting", {"sorting": 1.0}),
        ({"kind": "domain", "table": {"sorting": "addition"}}, "sorting", {"addition": 1.0}),
        ({"table": {"sorting": {"sorting": 1, "addition": 3}}}, "sorting", {"sorting": 0.25, "addition": 0.75}),
        ({"kind": "mixture", "shares": {"sorting": 1, "addition": 1}}, "addition", {"sorting": 0.5, "addition": 0.5}),
        ("all", "addition", {"sorting": 0.5, "addition": 0.5}),
    ],
)
def test_routing_as_the_recipe_says_it(tmp_path: Path, routing: object, domain: str, shares: dict[str, float]) -> None:
    settings = changed(distill_settings(tmp_path), {"routing": routing})
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", settings)).recipe
    assert routes_of(recipe).shares(domain) == shares


def test_a_default_teacher_takes_what_the_table_leaves(tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), {"routing": {"default": "sorting"}})
    del settings["teachers"]["addition"]
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", settings)).recipe
    assert routes_of(recipe).shares("addition") == {"sorting": 1.0}


def test_a_grader_reads_the_answer_and_not_the_thinking() -> None:
    ids = tiny_tokenizer().encode("hidden shown", add_special_tokens=False)
    segments = tuple(
        Segment("assistant", kind, tuple(part), trainable=True)  # type: ignore[arg-type]
        for kind, part in (("think", ids[:7]), ("answer", ids[7:]), ("end", [1]))
    )
    written = replace(rollout("p", "a"), segments=segments)
    assert request_of(asking({}, Routes({}), {}), written, step=1).completion == "shown"


@pytest.mark.parametrize(
    "grader",
    [
        {"kind": "chat", "model": "m", "url": "http://127.0.0.1:1/v1"},
        {"kind": "program", "check": "answer"},
        {"kind": "plugin", "use": "mine"},
    ],
)
def test_spans_of_a_grader_are_refused(tmp_path: Path, grader: dict[str, object]) -> None:
    changes = {"teachers.grader": {**grader, "spans": ["answer"]}, "objective": {"grades": {"weight": 0}}}
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path / "recipe.yaml", changed(distill_settings(tmp_path), changes)))
    (problem,) = caught.value.problems
    assert "teachers.grader.spans: belongs to kind: transformers, adapter, self or served; remove it" in problem
