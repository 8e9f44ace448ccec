"""Evaluations: greedy answers held against a naive loop, intervals against their definitions, tables by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch

from pipeline.evaluate import Score, answer_text, evaluate_model, evaluation_json, passes_table, table
from pipeline.rollout.protocol import SamplingSettings
from pipeline.statistics import Z, mean_interval, paired_difference, ratio_of_means, resampled_means, wilson
from pipeline.types import Prompt, Rollout
from teachers.causal_lm import CausalLM, load_causal_lm, render
from teachers.types import Chat, Message, RawText, Segment
from tests.models import save_tiny

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    torch.set_num_threads(1)
    return load_causal_lm(save_tiny(tmp_path_factory.mktemp("tiny")), name="tiny", dtype="float32")


def prompt(number: int, domain: str, reference: str | None = "nothing like it", checker: str = "exact") -> Prompt:
    chat = Chat((Message("user", "say something " + "again " * (number % 4) + str(number)),))
    return Prompt(f"{domain}{number}", domain, domain, chat, reference, checker=checker)


def naive_greedy(lm: CausalLM, prompt_ids: Sequence[int]) -> list[int]:
    """One row, no cache: the most probable token again and again."""
    ids = list(prompt_ids)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, : lm.vocab_size]
            ids.append(int(logits.argmax()))
            if ids[-1] in lm.end_ids:
                break
    return ids[len(prompt_ids) :]


def naive_answer(lm: CausalLM, completion: Sequence[int]) -> str:
    text: str = lm.tokenizer.decode(
        [token for token in completion if token not in lm.end_ids], skip_special_tokens=True
    )
    return text


# ---- one model ----


def test_greedy_answers_and_their_scores(lm: CausalLM) -> None:
    prompts = [prompt(number, "a") for number in range(7)]
    completions = [naive_greedy(lm, render(p.conversation, lm.tokenizer)) for p in prompts]
    prompts = [
        replace(p, reference=naive_answer(lm, completion)) if number in (0, 2, 3) else p
        for number, (p, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    unjudged = [prompt(number, "b", reference=None) for number in range(3)]
    finished: list[int] = []
    settings = SamplingSettings(NEW_TOKENS, temperature=0.7, top_k=3, samples_per_prompt=5, rows=3)
    held_out = {"a": prompts, "b": unjudged}
    evaluation = evaluate_model(lm, held_out, settings=settings, prompts_per_domain=5, advance=finished.append)
    assert [sample.completion for sample in evaluation.samples[:5]] == [naive_answer(lm, c) for c in completions[:5]]
    score = evaluation.domains["a"]
    assert score.scores == {"a0": 1, "a1": 0, "a2": 1, "a3": 1, "a4": 0}
    assert (score.mean, score.low, score.high) == (0.6, *wilson(3, 5))
    assert score.length == fmean(map(len, completions[:5]))
    assert score.truncated == fmean(completion[-1] not in lm.end_ids for completion in completions[:5])
    assert (evaluation.domains["b"].mean, evaluation.domains["b"].scores, evaluation.domains["b"].prompts) == (
        None,
        {},
        3,
    )
    assert sum(finished) == 5 + 3


def test_several_answers_are_sampled_and_passed_by_the_unbiased_estimate(lm: CausalLM) -> None:
    settings = SamplingSettings(2, temperature=0.8, rows=3)
    prompts = [prompt(number, "a") for number in range(4)]
    written = evaluate_model(lm, {"a": prompts}, settings=settings, prompts_per_domain=4, samples=5).samples
    answers = [[sample.completion for sample in written if sample.prompt_id == p.prompt_id] for p in prompts]
    assert [len(set(of_one)) > 1 for of_one in answers] == [True] * 4  # else nothing was sampled
    prompts = [replace(p, reference=of_one[0]) for p, of_one in zip(prompts, answers, strict=True)]
    prompts[3] = replace(prompts[3], reference="nothing like it")
    score = evaluate_model(lm, {"a": prompts}, settings=settings, prompts_per_domain=4, samples=5).domains["a"]
    passed = [sum(text.split() == of_one[0].split() for text in of_one) for of_one in answers[:3]] + [0]
    assert list(score.scores.values()) == [count / 5 for count in passed]
    assert score.prompts == 4
    assert score.passes.keys() == {"pass@1", "pass@5"}
    assert score.passes["pass@1"]["value"] == pytest.approx(sum(passed) / 20)
    assert score.passes["pass@5"]["value"] == 0.75
    assert score.passes["pass@5"]["low"] < 0.75 < score.passes["pass@5"]["high"]
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_no_rate_of_passing_where_an_answer_may_be_half_right(lm: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("def half(completion, reference, prompt):\n    return 0.5\n")
    halves = [prompt(number, "a", checker=f"{tmp_path / 'half.py'}:half") for number in range(2)]
    evaluation = evaluate_model(lm, {"a": halves}, settings=SamplingSettings(2), prompts_per_domain=2, samples=3)
    assert (evaluation.domains["a"].mean, evaluation.domains["a"].passes) == (0.5, {})


def test_a_domain_does_not_depend_on_the_others(lm: CausalLM) -> None:
    held_out = {name: [prompt(number, name) for number in range(5)] for name in ("a", "b")}
    settings = SamplingSettings(NEW_TOKENS, rows=4)
    both = evaluate_model(lm, held_out, settings=settings, prompts_per_domain=5)
    alone = evaluate_model(lm, {"b": held_out["b"]}, settings=settings, prompts_per_domain=5)
    assert both.domains["b"] == alone.domains["b"]
    assert both.samples[5:] == alone.samples


def test_answers_end_before_the_stop_string_and_without_thinking(lm: CausalLM) -> None:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(lm.tokenizer.encode(text, add_special_tokens=False))

    segments = (
        Segment("assistant", "think", ids("hm 3 STOP"), True),
        Segment("assistant", "answer", ids("four."), True),
        Segment("assistant", "answer", ids("STOP x"), False),
        Segment("assistant", "end", (min(lm.end_ids),), True),
    )
    rollout = Rollout(prompt(0, "a"), 0, (1,), segments, "end")
    assert answer_text(rollout, lm) == "four.STOP x"
    assert answer_text(rollout, lm, ("never", "STOP", " x")) == "four."


def test_a_table_of_passing() -> None:
    rates = {"pass@1": {"value": 0.5, "low": 0.25, "high": 0.75}}
    one, other = replace(judged([1, 0]), passes=rates), judged([1, 1])
    models = {"base": {"a": one, "b": other}, "student": {"a": other, "b": other}}
    assert passes_table(models) == (["domain", "of", "base", "student"], [["a", "pass@1", "0.500 [0.25, 0.75]", None]])
    assert evaluation_json(models)["pass_at_k"] == {"a": {"base": rates}}


def test_a_score_survives_json() -> None:
    score = judged([1, 0.25, 0])
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


# ---- intervals ----


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (1, 3), (97, 100), (150, 200)])
def test_wilson_solves_its_equation(successes: int, n: int) -> None:
    """Its ends are the proportions p from which the observed one is Z standard errors of p away."""
    for end in wilson(successes, n):
        assert abs(successes / n - end) == pytest.approx(Z * sqrt(end * (1 - end) / n))


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 20)[0] == 0
    assert wilson(20, 20)[1] == 1
    assert wilson(20, 20)[0] == pytest.approx(1 - wilson(0, 20)[1])
    assert wilson(20, 20)[0] == pytest.approx(0.8389, abs=1e-4)


def test_bootstrap_spreads_like_the_standard_error() -> None:
    scores = np.random.default_rng(0).uniform(size=150)
    means = resampled_means(np.array([scores]), stream=0)[:, 0]
    assert means.mean() == pytest.approx(scores.mean(), abs=0.003)
    assert means.std() == pytest.approx(pstdev(scores) / sqrt(150), rel=0.06)
    low, high = mean_interval(list(scores))
    assert high - low == pytest.approx(2 * Z * pstdev(scores) / sqrt(150), rel=0.08)
    assert mean_interval([0, 1, 1]) == wilson(2, 3)


def test_pairing_removes_what_prompts_have_in_common() -> None:
    generator = np.random.default_rng(1)
    second = generator.uniform(0, 0.9, size=100)
    first = second + generator.uniform(0.0, 0.1, size=100)
    value, low, high = paired_difference(list(first), list(second))
    assert value == pytest.approx(first.mean() - second.mean())
    assert 0 < low < value < high
    assert high - low < (mean_interval(list(first))[1] - mean_interval(list(first))[0]) / 4
    assert paired_difference(list(first), list(first)) == (0, 0, 0)


def test_ratio_of_means() -> None:
    above = {"a": [1.0, 1.0, 0.0, 1.0], "b": [0.5, 0.5]}
    below = {"a": [1.0, 1.0, 1.0, 1.0], "b": [1.0, 0.5]}
    found = ratio_of_means(above, below)
    assert found is not None
    assert found[0] == pytest.approx((0.75 + 0.5) / (1 + 0.75))
    assert found[1] < found[0] < found[2]
    assert ratio_of_means(above, above) == (1, 1, 1)
    assert ratio_of_means({}, {}) is None
    assert ratio_of_means({"a": [0.0]}, {"a": [0.0]}) is None


# ---- several models ----


def judged(scores: Sequence[float], first: int = 0) -> Score:
    low, high = mean_interval(scores)
    by_id = {f"p{first + i}": float(score) for i, score in enumerate(scores)}
    return Score(fmean(scores), low, high, by_id, len(scores), 5.0, 0.25)


MODELS = {
    "base": {"a": judged([1, 0, 0, 0]), "b": judged([1, 0, 0, 0]), "c": judged([0, 1])},
    "specialist": {"a": judged([1, 1, 1, 1]), "b": judged([1, 0, 0, 0])},
    "student": {"a": judged([1, 1, 1, 0]), "b": judged([1, 1, 0, 0]), "c": judged([1, 1])},
}


def test_evaluation_json() -> None:
    result = evaluation_json(MODELS, {"a": {"math": 0.02}})
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["domains"]["a"] == {"base": 0.25, "specialist": 1, "student": 0.75}
    assert result["domains"]["c"] == {"base": 0.5, "student": 1}
    assert result["intervals"]["a"]["student"] == list(wilson(3, 4))
    assert result["kl"] == {"a": {"math": 0.02}}
    assert result["means"] == {"base": 0.25, "specialist": 0.625, "student": 0.625}
    assert result["recovered"] == {"a": pytest.approx(2 / 3), "b": None}
    assert result["share_of_specialists"]["value"] == pytest.approx(1)
    assert result["differences"]["a"]["base"]["value"] == 0.5
    assert result["differences"]["c"].keys() == {"base"}
    assert result["lengths"]["a"]["base"] == 5
    assert result["truncated"]["a"]["base"] == 0.25


def test_only_prompts_that_both_models_have_are_paired() -> None:
    models = {"student": {"a": judged([1, 1, 0, 0])}, "base": {"a": judged([0, 0, 1], first=2)}}
    assert evaluation_json(models)["differences"]["a"]["base"]["value"] == 0
    models["base"] = {"a": judged([1], first=9)}
    assert evaluation_json(models)["differences"]["a"] == {}


def test_models_without_scores_leave_gaps() -> None:
    nothing = Score(None, None, None, {}, 3, 5.0, 0.0)
    result = evaluation_json({"base": {"a": nothing}, "student": {"a": nothing}})
    assert result["domains"] == {"a": {"base": None, "student": None}}
    assert result["share_of_specialists"] is None
    assert result["means"] == {}


def test_table() -> None:
    columns, rows = table(MODELS)
    assert columns == ["domain", "base", "specialist", "student"]
    assert [row[0] for row in rows] == ["a", "b", "c", "mean"]
    low, high = wilson(3, 4)
    assert rows[0][3] == f"0.750 [{low:.2f}, {high:.2f}]"
    assert rows[2][2] is None
    assert rows[3][1:] == ["0.250", "0.625", "0.625"]


def test_a_raw_text_is_evaluated_too(lm: CausalLM, tmp_path: Path) -> None:
    checker = tmp_path / "mine.py"
    checker.write_text("def judge(completion, reference, prompt):\n    return len(prompt.conversation.text) / 10\n")
    raw = Prompt("r", "a", "a", RawText("hello"), checker=f"{checker}:judge")
    evaluation = evaluate_model(lm, {"a": [raw]}, settings=SamplingSettings(3), prompts_per_domain=9)
    assert evaluation.domains["a"].mean == 0.5
