"""Rows -> batches: the shift, the weights, and that cutting rows into forwards changes nothing."""

from __future__ import annotations

import math
import random

import pytest
import torch

from pipeline.targets import Row, Score, build_batch, group_rows, normaliser
from pipeline.types import Divergence, Prompt, Rollout
from teachers.types import FullVocab, Head, HeadWeights, RawText, Segment, TopK

CPU = torch.device("cpu")
HEAD = Head("h", 7, lambda: HeadWeights(torch.zeros(7, 3)))


def make_row(name: str, prompt: int, answer: int, *, hidden_from: int = 0, teachers: tuple[str, ...] = ("t",)) -> Row:
    """A row of `prompt` tokens 100.. and `answer` tokens 200.., scored by `teachers`; hidden[n] = hidden_from + n."""
    segments = (
        Segment("assistant", "answer", tuple(range(200, 200 + answer - 1)), trainable=True),
        Segment("assistant", "end", (9,), trainable=True),
    )
    prompt_value = Prompt(name, "source", "a", RawText(name))
    logprobs = tuple(-0.5 - n for n in range(answer))
    rollout = Rollout(prompt_value, 0, tuple(range(100, 100 + prompt)), segments, "end", logprobs, logprobs)
    hidden = (torch.arange(answer).float() + hidden_from)[:, None].expand(answer, 3)
    signal = FullVocab(hidden, HEAD, torch.ones(answer, dtype=torch.bool))
    return Row(rollout, tuple(Score(teacher, 1.0 / len(teachers), Divergence(), signal) for teacher in teachers))


def batch_of(rows: list[Row], average: str = "trajectory"):  # type: ignore[no-untyped-def]
    return build_batch(rows, normaliser(rows, average), temperature=1.0, device=CPU)  # type: ignore[arg-type]


def test_each_label_follows_its_predictor() -> None:
    batch = batch_of([make_row("x", 3, 4), make_row("y", 1, 2)])
    following = batch.input_ids[batch.predictors + 1]
    assert following.tolist() == batch.labels.tolist() == [200, 201, 202, 9, 200, 9]
    assert batch.predictors.tolist() == [2, 3, 4, 5, 7, 8]
    assert batch.positions.tolist() == [*range(7), *range(3)]
    assert batch.cu_seqlens.tolist() == [0, 7, 10]


def test_unscored_tokens_carry_nothing_and_signals_stay_aligned() -> None:
    row = make_row("x", 2, 4)
    masked = Segment("assistant", "answer", (200, 201), trainable=False)
    rest = Segment("assistant", "answer", (202, 9), trainable=True)
    rollout = Rollout(row.rollout.prompt, 0, (100, 101), (masked, rest), "stop", (0.0,) * 4, (0.0,) * 4)
    batch = batch_of([Row(rollout, row.scores)])
    assert batch.labels.tolist() == [202, 9]
    (target,) = batch.targets
    assert isinstance(target.signal, FullVocab)
    assert target.signal.hidden[:, 0].tolist() == [2.0, 3.0]
    assert target.positions.tolist() == [0, 1]


def test_where_the_teacher_gave_no_score_there_is_no_target() -> None:
    row = make_row("x", 2, 3)
    signal = row.scores[0].signal
    assert isinstance(signal, FullVocab)
    partial = FullVocab(signal.hidden, signal.head, torch.tensor([True, False, True]))
    batch = batch_of([Row(row.rollout, (Score("t", 1.0, Divergence(), partial),))])
    assert batch.targets[0].positions.tolist() == [0, 2]
    assert batch.targets[0].weights.tolist() == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize(("average", "long", "short"), [("trajectory", 1 / 16, 1 / 4), ("token", 0.1, 0.1)])
def test_weights_sum_to_one_over_the_step(average: str, long: float, short: float) -> None:
    batch = batch_of([make_row("long", 2, 8), make_row("short", 2, 2)], average)
    (target,) = batch.targets
    assert target.weights.sum().item() == pytest.approx(1.0)
    assert target.weights[0].item() == pytest.approx(long)
    assert target.weights[-1].item() == pytest.approx(short)


def test_rows_without_an_answer_do_not_thin_out_the_others() -> None:
    silent = Row(make_row("silent", 2, 5).rollout)
    batch = batch_of([make_row("x", 2, 2)])
    rows = [make_row("x", 2, 2), silent]
    together = build_batch(group_rows(rows, 100)[0], normaliser(rows, "trajectory"), temperature=1.0, device=CPU)
    assert together.targets[0].weights.tolist() == batch.targets[0].weights.tolist()


def test_references_are_averaged_apart_from_rollouts() -> None:
    reference = Row(make_row("r", 2, 4).rollout, supervised=0.5)
    rows = [make_row("x", 2, 2), reference]
    batch = build_batch(rows, normaliser(rows, "trajectory"), temperature=1.0, device=CPU)
    assert batch.targets[0].weights.sum().item() == pytest.approx(1.0)
    assert batch.nll_weights.sum().item() == pytest.approx(0.5)
    assert batch.nll_weights[:2].tolist() == [0.0, 0.0]


def test_cutting_into_forwards_keeps_every_weight() -> None:
    generator = random.Random(0)
    rows = [
        make_row(f"r{i}", generator.randint(1, 9), generator.randint(1, 9), hidden_from=10 * i, teachers=("t", "u"))
        for i in range(20)
    ]
    whole = {}
    for limit in (1, 30, 60, 10_000):
        norm = normaliser(rows, "trajectory")
        weights: dict[tuple[str, float], float] = {}
        groups = group_rows(rows, limit)
        assert sorted(row.rollout.rollout_id for group in groups for row in group) == sorted(
            row.rollout.rollout_id for row in rows
        )
        for group in groups:
            assert len(group) == 1 or max(row.length for row in group) * len(group) <= limit
            for target in build_batch(group, norm, temperature=1.0, device=CPU).targets:
                assert isinstance(target.signal, FullVocab)
                for state, weight in zip(target.signal.hidden[:, 0].tolist(), target.weights.tolist(), strict=True):
                    weights[target.teacher, state] = weights.get((target.teacher, state), 0.0) + weight
        whole[limit] = weights
    assert whole[1] == whole[30] == whole[60] == whole[10_000]
    assert math.isclose(sum(whole[1].values()), 1.0, rel_tol=1e-5)


def test_an_empty_batch_has_nothing_in_it() -> None:
    batch = build_batch([], normaliser([], "token"), temperature=1.0, device=CPU)
    assert batch.input_ids.shape == batch.labels.shape == (0,)
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.targets == ()


def test_top_k_signals_are_cut_and_joined_like_states() -> None:
    row = make_row("x", 2, 3)
    signal = TopK(
        torch.tensor([-1.0, -2.0, -3.0]),
        torch.tensor([[0, 1], [2, 3], [4, 5]]),
        torch.zeros(3, 2),
        torch.zeros(3),
        torch.tensor([False, True, True]),
    )
    scored = Row(row.rollout, (Score("t", 1.0, Divergence("top_k_reverse_kl"), signal),))
    other = Row(make_row("y", 1, 3).rollout, (Score("t", 1.0, Divergence("top_k_reverse_kl"), signal),))
    (target,) = batch_of([scored, other]).targets
    assert isinstance(target.signal, TopK)
    assert target.signal.ids.tolist() == [[2, 3], [4, 5]] * 2
    assert target.positions.tolist() == [1, 2, 4, 5]
