"""What was expected at shown tokens, against float64; and that showing them changes nothing else by a single bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.expectations import SHOWN_K, best_entries
from pipeline.fused import fused_loss
from pipeline.types import Expected, Shown, StepOutput, Target, TrainingBatch
from teachers.types import FullVocab, Head, HeadWeights, TopK
from tests.numerics.naive import (
    GRADE,
    KINDS,
    ROWS,
    SIZE,
    WIDTH,
    divergence_of,
    draw,
    full,
    graded,
    logits,
    make_batch,
    make_head,
    make_target,
    signal_top_k,
    top_k_of,
)

SHOWN = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 16, 20, 22])
FEW = [1, 2, 4, 5, 8, 9, 10, 16, 17, 22]  # what a teacher that gives part of it covers


def student(dtype: torch.dtype) -> tuple[Tensor, Head, HeadWeights]:
    head, weights = make_head(100, dtype, rows=SIZE + 5, bias=True, scale=0.9, softcap=4.0)
    assert weights.bias is not None
    hidden = (2 * draw(ROWS, WIDTH, seed=50)).to(dtype).requires_grad_()
    return hidden, head, HeadWeights(weights.weight.requires_grad_(), weights.bias.requires_grad_())


def teacher_logprobs(seed: int) -> Tensor:
    """(ROWS, V), of a teacher that sends its top-k."""
    return draw(ROWS, SIZE, seed=seed, scale=2.0).log_softmax(-1)


def top_k(seed: int, k: int, positions: Sequence[int], labels: Tensor, dtype: torch.dtype) -> TopK:
    found = signal_top_k(teacher_logprobs(seed)[positions], k, labels[positions])
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))  # a server need not sort them
    return replace(
        found,
        token_logprobs=found.token_logprobs.to(dtype),
        ids=found.ids[:, order],
        logprobs=found.logprobs[:, order].to(dtype),
        log_tail=found.log_tail.to(dtype),
    )


def everything(dtype: torch.dtype, temperature: float = 1.0) -> TrainingBatch:
    """Teachers with the whole vocabulary, with few entries, with the sampled token alone, with a grade; supervision."""
    labels = make_batch([]).labels
    head, _ = make_head(200, dtype, rows=SIZE + 3, bias=True, scale=1.2, softcap=3.0, mapped=True)
    other, _ = make_head(300, dtype)
    rest = [row for row in range(ROWS) if row % 5 != 2]
    targets = [
        make_target(KINDS["reverse_kl"], rest, full(60, rest, head, dtype), seed=1),
        make_target(KINDS["forward_kl"], FEW, full(61, FEW, other, dtype), seed=2),
        make_target(KINDS["top_k_forward_kl"], FEW, full(62, FEW, other, dtype), seed=3),
        make_target(KINDS["top_k_forward_kl tail"], rest, top_k(63, 8, rest, labels, dtype), seed=4),
        make_target(KINDS["top_k_reverse_kl"], FEW, top_k(64, 3, FEW, labels, dtype), seed=5),
        make_target(KINDS["policy_gradient"], rest, top_k(65, 0, rest, labels, dtype), seed=6),
        make_target(GRADE, rest, graded(66, rest, dtype), seed=7),
    ]
    return make_batch(targets, nll=True, temperature=temperature)


def run(dtype: torch.dtype, batch: TrainingBatch, chunk_bytes: int = 20_000) -> tuple[StepOutput, tuple[Tensor, ...]]:
    hidden, head, weights = student(dtype)
    output = fused_loss(hidden, head, weights, batch, chunk_bytes=chunk_bytes)
    assert weights.bias is not None
    return output, torch.autograd.grad(output.loss, (hidden, weights.weight, weights.bias))


def shown_of(output: StepOutput) -> Shown:
    assert output.shown is not None
    return output.shown


# ---- nothing else changes ----


@pytest.mark.parametrize("chunk_bytes", [1, 5_000, 10**8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_gradients_and_measurements_are_the_same_bits(
    dtype: torch.dtype, chunk_bytes: int, temperature: float
) -> None:
    batch = everything(dtype, temperature)
    plain, gradients = run(dtype, batch, chunk_bytes)
    for places in (SHOWN, torch.arange(ROWS), torch.tensor([16])):
        found, same = run(dtype, replace(batch, shown=places), chunk_bytes)
        assert plain.shown is None
        assert found.shown is not None
        assert torch.equal(found.loss, plain.loss)
        assert torch.equal(found.nll, plain.nll)
        assert all(torch.equal(one, other) for one, other in zip(same, gradients, strict=True))
        assert torch.equal(found.entropy, plain.entropy)
        assert torch.equal(found.label_logprobs, plain.label_logprobs)
        for one, other in zip(found.targets, plain.targets, strict=True):
            for name in ("divergence", "overlap", "mass"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)


# ---- against the naive version ----


def naive_expected(logprobs: Tensor, labels: Tensor) -> Expected:
    """Sorted, all of them, by hand."""
    best = sorted_best(logprobs)
    ids = torch.tensor(best)
    token = torch.stack([row[label] for row, label in zip(logprobs, labels.tolist(), strict=True)])
    return Expected(token, ids, torch.stack([row[chosen] for row, chosen in zip(logprobs, ids, strict=True)]))


def sorted_best(logprobs: Tensor) -> list[list[int]]:
    return [sorted(range(len(row)), key=lambda n, row=row: -row[n])[:SHOWN_K] for row in logprobs.tolist()]


def close(found: Expected, wanted: Expected, where: Tensor | None = None) -> None:
    """where: which of the M are known; the others say nothing."""
    known = torch.ones(len(SHOWN), dtype=torch.bool) if where is None else where
    torch.testing.assert_close(found.label_logprobs[known], wanted.label_logprobs)
    torch.testing.assert_close(found.logprobs[known], wanted.logprobs)
    assert torch.equal(found.ids[known], wanted.ids)
    assert found.label_logprobs[~known].isnan().all()
    assert found.logprobs[~known].isnan().all()


def known(positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which of the shown tokens these cover; and where they have them, in the order of the shown."""
    rows = [positions.index(place) for place in SHOWN.tolist() if place in positions]
    return torch.isin(SHOWN, torch.tensor(positions)), torch.tensor(rows)


def test_the_students_and_each_teachers_expectations() -> None:
    batch = replace(everything(torch.float64, 0.7), shown=SHOWN)
    output, _ = run(torch.float64, batch)
    shown = shown_of(output)
    hidden, head, weights = student(torch.float64)
    lp = (logits(head, weights, hidden).detach() / 0.7).log_softmax(-1)
    close(shown.student, naive_expected(lp[SHOWN], batch.labels[SHOWN]))
    assert shown.teachers.keys() == {f"teacher {seed}" for seed in range(1, 7)}  # the grade expects no token
    for target in batch.targets[:3]:
        signal, positions = target.signal, target.positions.tolist()
        assert isinstance(signal, FullVocab)
        where, rows = known(positions)
        lq = (logits(signal.head, signal.head.load(), signal.hidden) / 0.7).log_softmax(-1)
        close(shown.teachers[target.teacher], naive_expected(lq[rows], batch.labels[SHOWN[where]]), where)
        if target.divergence.kind in ("reverse_kl", "forward_kl"):
            wanted = divergence_of(target.divergence, lp[SHOWN[where]], lq[rows])
            torch.testing.assert_close(shown.divergences[target.teacher][where], wanted)
        assert shown.divergences[target.teacher][~where].isnan().all()


@pytest.mark.parametrize(("index", "seed", "entries"), [(3, 63, 8), (4, 64, 3), (5, 65, 0)])
def test_a_teacher_that_gives_few_entries_is_shown_as_it_says(index: int, seed: int, entries: int) -> None:
    batch = replace(everything(torch.float64), shown=SHOWN)
    output, _ = run(torch.float64, batch)
    target = batch.targets[index]
    found = shown_of(output).teachers[target.teacher]
    where, rows = known(target.positions.tolist())
    assert found.ids.shape == (len(SHOWN), min(SHOWN_K, entries))
    lq = teacher_logprobs(seed)[SHOWN[where]]
    wanted = naive_expected(lq, batch.labels[SHOWN[where]])
    most = min(SHOWN_K, entries)
    close(found, Expected(wanted.label_logprobs, wanted.ids[:, :most], wanted.logprobs[:, :most]), where)
    signal = target.signal
    assert isinstance(signal, TopK)
    if entries:
        hidden, head, weights = student(torch.float64)
        lp = logits(head, weights, hidden).detach().log_softmax(-1)[SHOWN[where]]
        value = top_k_of(target.divergence, lp, signal.ids[rows], signal.logprobs[rows], signal.log_tail[rows])
        torch.testing.assert_close(shown_of(output).divergences[target.teacher][where], value)


@pytest.mark.parametrize("chunk_bytes", [1, 5_000])
def test_chunked_is_whole(chunk_bytes: int) -> None:
    batch = replace(everything(torch.float64), shown=SHOWN)
    whole, cut = (shown_of(run(torch.float64, batch, size)[0]) for size in (10**8, chunk_bytes))
    pairs = [(whole.student, cut.student), *((whole.teachers[name], cut.teachers[name]) for name in whole.teachers)]
    for one, other in pairs:
        torch.testing.assert_close(other.logprobs, one.logprobs, equal_nan=True)
        torch.testing.assert_close(other.label_logprobs, one.label_logprobs, equal_nan=True)
        assert torch.equal(other.ids, one.ids)


# ---- the best of many ----


@pytest.mark.parametrize("size", [5, 6, 63, 64, 320, 321, 383, 384, 385, 1_000, 5_003])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_best_entries_are_those_of_a_sort(size: int, rounded: bool) -> None:
    """Wherever they stand, behind the last whole stretch too; of equal ones any."""
    values = draw(40, size, seed=size, scale=3.0)
    values = values.round() if rounded else values
    values[0, -5:], values[1, :5], values[2, 3:] = 50.0, 50.0, -torch.inf
    ids = best_entries(values, SHOWN_K)
    assert all(len(set(row)) == SHOWN_K for row in ids.tolist())
    wanted = values.sort(-1, descending=True)
    assert torch.equal(values.gather(1, ids), wanted.values[:, :SHOWN_K])
    if not rounded:
        assert torch.equal(ids[3:], wanted.indices[3:, :SHOWN_K])


# ---- edges ----


def test_a_vocabulary_of_fewer_entries_than_are_shown() -> None:
    head, weights = make_head(100, torch.float64, size=3)
    hidden = draw(ROWS, WIDTH, seed=50)
    output = fused_loss(hidden, head, weights, replace(make_batch([], size=3), shown=SHOWN), chunk_bytes=1)
    assert shown_of(output).student.ids.shape == (len(SHOWN), 3)
    torch.testing.assert_close(shown_of(output).student.logprobs.exp().sum(-1), torch.ones(len(SHOWN)).double())


def test_a_teacher_that_has_none_of_the_shown_tokens_is_left_out_and_supervision_needs_none() -> None:
    head, _ = make_head(200, torch.float64)
    target = make_target(KINDS["reverse_kl"], [0, 9], full(60, [0, 9], head, torch.float64))
    batch = replace(make_batch([target], nll=True), shown=SHOWN)
    output, _ = run(torch.float64, batch)
    assert shown_of(output).teachers == shown_of(output).divergences == {}
    assert torch.equal(shown_of(output).student.label_logprobs, output.label_logprobs[SHOWN])


def test_what_is_not_finite_says_nothing() -> None:
    """Where its weight is 0 it may be anything, and trains nothing."""
    head, _ = make_head(200, torch.float64)
    signal = full(60, list(range(ROWS)), head, torch.float64)
    signal.hidden[4] = torch.nan
    target = make_target(KINDS["reverse_kl"], list(range(ROWS)), signal)
    weights = target.weights.clone()
    weights[4] = 0
    target = Target(target.teacher, target.positions, weights, target.divergence, signal)
    output, _ = run(torch.float64, replace(make_batch([target]), shown=SHOWN))
    found = shown_of(output).teachers[target.teacher]
    there = SHOWN == 4
    for values in (found.label_logprobs, found.logprobs, shown_of(output).divergences[target.teacher]):
        assert values[there].isnan().all()
        assert values[~there].isfinite().all()
