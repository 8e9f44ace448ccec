"""Rows -> batches: the shift, the weights, and that cutting rows into forwards changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.fused import fused_loss
from pipeline.metrics import Sums, collect, describe, merge
from pipeline.targets import Average, Normaliser, Row, Score, build_batch, group_rows, normaliser
from pipeline.types import Advantage, Divergence, Prompt, Rollout, TrainingBatch
from teachers.types import FullVocab, Head, HeadWeights, RawText, Segment, TopK

CPU = torch.device("cpu")
SIZE, WIDTH = 300, 3  # as large as the ids that the rows below are made of


def random_matrix(seed: int) -> Tensor:
    return torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEACHER = HeadWeights(random_matrix(1))
HEAD = Head("h", SIZE, lambda: TEACHER)


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


def test_answers_with_different_numbers_of_entries_stay_apart() -> None:
    rows = []
    for name, k in (("x", 2), ("y", 3), ("z", 2)):
        row = make_row(name, 1, 2)
        signal = TopK(torch.zeros(2), torch.zeros(2, k).long(), torch.zeros(2, k), torch.zeros(2), torch.ones(2).bool())
        rows.append(Row(row.rollout, (Score("t", 1.0, Divergence("top_k_reverse_kl"), signal),)))
    targets = batch_of(rows).targets
    assert {t.signal.ids.shape[-1]: t.positions.tolist() for t in targets if isinstance(t.signal, TopK)} == {
        2: [0, 1, 4, 5],
        3: [2, 3],
    }


# ---- several kinds of rows in one step ----


def graded_row(name: str, answer: int, advantage: float, teachers: tuple[str, ...] = ()) -> Row:
    """A rollout with a grade, and with distributions of `teachers` beside it."""
    row = make_row(name, 2, answer, teachers=teachers)
    signal = Advantage(torch.full((answer,), advantage), torch.ones(answer, dtype=torch.bool))
    return replace(row, scores=(*row.scores, Score("judge", 0.5, Divergence("grade"), signal)))


def rewritten(name: str, writer: str, kept: int, new: int, weight: float = 0.5) -> Row:
    """A correction of the rollout `name`: `new` tokens, the end among them, are trained on."""
    segments = (
        Segment("assistant", "answer", tuple(range(200, 200 + kept)), trainable=False),
        Segment("assistant", "answer", tuple(range(250, 250 + new - 1)), trainable=True),
        Segment("assistant", "end", (9,), trainable=True),
    )
    prompt = Prompt(name, "source", "a", RawText(name))
    return Row(Rollout(prompt, 0, (100, 101), segments, "end", writer=writer), supervised=weight, rewrite=True)


def reference_row(name: str, answer: int, weight: float = 0.25) -> Row:
    rollout = make_row(name, 2, answer).rollout
    rollout = replace(rollout, model_logprobs=(), sampling_logprobs=(), writer="reference")
    return Row(rollout, supervised=weight)


def mixed_step() -> list[Row]:
    rows = [make_row(f"r{n}", 2, 3 + n) for n in range(4)]
    rows += [graded_row("g0", 3, 0.5), graded_row("g1", 6, -0.25), graded_row("g2", 4, 0.125, ("t",))]
    rows += [rewritten("g0", "judge", 1, 4), rewritten("g1", "judge", 3, 2), rewritten("g1", "other", 0, 7)]
    return [*rows, reference_row("r0", 5), reference_row("g1", 2), Row(make_row("silent", 2, 3).rollout)]


@pytest.mark.parametrize("average", ["trajectory", "token"])
def test_adding_a_kind_of_row_does_not_thin_out_the_others(average: Average) -> None:
    rows = mixed_step()
    whole = weights_of(rows, normaliser(rows, average))
    for kind in ("rollout", "reference", "rewrite"):
        alone = [row for row in rows if row.kind == kind]
        assert weights_of(alone, normaliser(alone, average)).items() <= whole.items()
    assert {part for _, part, _ in whole} == {"student", "reference", "rewrite/judge", "rewrite/other"}


def weights_of(rows: Sequence[Row], norm: Normaliser) -> dict[tuple[str, str, str], float]:
    """By rollout, part and what pulls, the sum of the weights of a row's tokens."""
    found = {}
    for row in rows:
        if not row.taught:
            continue
        batch = build_batch([row], norm, temperature=1.0, device=CPU)
        for target in batch.targets:
            found[row.rollout.rollout_id, row.part, target.divergence.kind] = target.weights.sum().item()
        if row.supervised:
            found[row.rollout.rollout_id, row.part, "nll"] = batch.nll_weights.sum().item()
    return found


@pytest.mark.parametrize("average", ["trajectory", "token"])
def test_corrections_of_two_teachers_weigh_as_much_as_one_teachers(average: Average) -> None:
    """Shares of a half each: together they are one correction per rollout, not half of one."""
    one = [rewritten(f"x{n}", "a", 2, 3 + n, weight=1.0) for n in range(3)]
    halves = [replace(row, supervised=0.5) for row in one]
    others = [replace(row, rollout=replace(row.rollout, writer="b")) for row in halves]
    for rows in (one, [*halves, *others]):
        total = sum(weights_of(rows, normaliser(rows, average)).values())
        assert total == pytest.approx(1.0)


def loss_and_gradients(rows: Sequence[Row], norm: Normaliser, matrices: Sequence[Tensor]) -> list[Tensor]:
    """The loss and its gradients by a student whose hidden state is an entry of the first matrix."""
    batch = build_batch(rows, norm, temperature=1.0, device=CPU)
    output = fused_loss(matrices[0][batch.input_ids][batch.predictors], HEAD, HeadWeights(matrices[1]), exact(batch),
                        chunk_bytes=50_000)  # fmt: skip
    return [output.loss.detach(), *torch.autograd.grad(output.loss, matrices)]


def exact(batch: TrainingBatch) -> TrainingBatch:
    """With a sampler near the student, so that the ratios of grades count."""
    return replace(batch, sampling_logprobs=batch.sampling_logprobs.clamp(-6.0, -4.0))


@pytest.mark.parametrize("average", ["trajectory", "token"])
def test_pieces_and_processes_come_to_the_whole_step(average: Average) -> None:
    rows = mixed_step()
    matrices = [random_matrix(seed).requires_grad_() for seed in (2, 3)]
    norm = normaliser(rows, average)
    whole = loss_and_gradients([row for row in rows if row.taught], norm, matrices)
    ranks = two_processes(rows)
    assert Normaliser.merge([normaliser(rank, average) for rank in ranks]) == norm
    for cuts in (group_rows(rows, 1), group_rows(rows, 40), [g for rank in ranks for g in group_rows(rank, 25)]):
        assert len(cuts) > 2
        pieces = [loss_and_gradients(group, norm, matrices) for group in cuts]
        for found, wanted in zip(map(sum, zip(*pieces, strict=True)), whole, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
            assert wanted.abs().max() > 0


def two_processes(rows: Sequence[Row]) -> list[list[Row]]:
    """A rollout and its corrections are on one of them."""
    names = sorted({row.rollout.rollout_id for row in rows})
    return [[row for row in rows if names.index(row.rollout.rollout_id) % 2 == rank] for rank in range(2)]


@pytest.mark.parametrize(
    "rows",
    [
        [graded_row("g0", 3, 0.5), graded_row("g1", 2, -0.5)],
        [rewritten("g0", "judge", 1, 4), rewritten("g1", "judge", 3, 2)],
        [reference_row("r0", 5)],
    ],
    ids=["grades", "rewrites", "references"],
)
def test_one_kind_alone_trains(rows: list[Row]) -> None:
    matrices = [random_matrix(seed).requires_grad_() for seed in (2, 3)]
    loss, *gradients = loss_and_gradients(rows, normaliser(rows, "trajectory"), matrices)
    assert loss != 0
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_equal_grades_pull_exactly_nothing() -> None:
    rows = [graded_row(f"g{n}", 3 + n, 0.0) for n in range(4)]
    matrices = [random_matrix(seed).requires_grad_() for seed in (2, 3)]
    loss, *gradients = loss_and_gradients(rows, normaliser(rows, "token"), matrices)
    assert loss == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_grades_are_cut_and_joined_like_other_signals() -> None:
    masked = Segment("assistant", "answer", (200, 201), trainable=False)
    rest = Segment("assistant", "answer", (202, 9), trainable=True)
    row = graded_row("x", 4, 0.5)
    rows = [replace(row, rollout=replace(row.rollout, segments=(masked, rest))), graded_row("y", 3, -1.0)]
    (target,) = batch_of(rows).targets
    assert isinstance(target.signal, Advantage)
    assert target.signal.values.tolist() == [0.5, 0.5, -1.0, -1.0, -1.0]
    assert target.weights.tolist() == pytest.approx([0.5 / 4] * 2 + [0.5 / 6] * 3)


def test_each_part_is_reported_on_its_own() -> None:
    """-log p by whose text it is and the ratio by who graded, apart from the KL; over any cut the same."""
    rows = mixed_step()
    matrices = [random_matrix(seed) for seed in (2, 3)]
    norm = normaliser(rows, "trajectory")
    lines = []
    for cuts in ([[row for row in rows if row.taught]], group_rows(rows, 20)):
        parts = []
        for group in cuts:
            batch = exact(build_batch(group, norm, temperature=1.0, device=CPU))
            hidden = matrices[0][batch.input_ids][batch.predictors]
            output = fused_loss(hidden, HEAD, HeadWeights(matrices[1]), batch, chunk_bytes=10**6)
            parts.append(Sums())
            collect(parts[-1], batch, output)
        lines.append(describe(merge(parts)))
    for name in ("nll_per_token", "ratio"):
        assert lines[0][name] == pytest.approx(lines[1][name])
    assert lines[0]["nll_per_token"].keys() == {"reference", "rewrite/judge", "rewrite/other"}
    assert lines[0]["ratio"].keys() == {"judge"}
    assert lines[0]["kl"]["teacher"].keys() == {"t"}
    (row,) = [row for row in rows if row.part == "rewrite/other"]
    batch = build_batch([row], norm, temperature=1.0, device=CPU)
    logits = matrices[0][batch.input_ids][batch.predictors] @ matrices[1].T
    expected = torch.nn.functional.cross_entropy(logits, batch.labels).item()
    assert lines[0]["nll_per_token"]["rewrite/other"] == pytest.approx(expected)


# ---- what is shown ----


def test_the_tokens_of_the_rollout_that_people_are_shown() -> None:
    """Of this very one: a reference, and what a teacher made of it, have its id."""
    rows = [make_row("x", 3, 4), make_row("y", 1, 3), make_row("z", 2, 2)]
    kept = rows[1].rollout
    twin = replace(kept)
    rows += [Row(twin, supervised=0.5), Row(replace(kept, writer="critic"), supervised=0.5, rewrite=True)]
    norm = normaliser(rows, "trajectory")

    def shown(rows: Sequence[Row], rollout: Rollout | None) -> list[int] | None:
        batch = build_batch(rows, norm, temperature=1.0, device=CPU, shown=rollout)
        if batch.shown is not None:
            assert batch.labels[batch.shown].tolist() == [200, 201, 9]
        return None if batch.shown is None else batch.shown.tolist()

    assert shown(rows, kept) == [4, 5, 6]
    assert shown(rows[::-1], kept) == [8, 9, 10]
    assert shown(rows[:1], kept) is None
    assert shown(rows, None) is None
    assert shown([], kept) is None


def test_what_is_shown_leaves_out_what_is_not_trained() -> None:
    row = make_row("x", 2, 4)
    masked = Segment("assistant", "think", (200, 201), trainable=False)
    rest = Segment("assistant", "answer", (202, 9), trainable=True)
    rollout = replace(row.rollout, segments=(masked, rest))
    rows = [row, Row(rollout, row.scores)]
    batch = build_batch(rows, normaliser(rows, "trajectory"), temperature=1.0, device=CPU, shown=rollout)
    assert batch.shown is not None
    assert batch.labels[batch.shown].tolist() == [202, 9]
