"""The fused pass against whole logits and autograd in float64, and the invariants it promises."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline import fused
from pipeline.fused import OVERLAP_STRIDE, fused_loss
from pipeline.types import Divergence, StepOutput, Target, TrainingBatch
from teachers.types import FullVocab, Head, HeadWeights, TopK
from tests.numerics.naive import (
    GRADE,
    KINDS,
    ROWS,
    SIZE,
    SPARSE,
    WIDTH,
    draw,
    full,
    graded,
    logits,
    make_batch,
    make_head,
    make_target,
    naive,
    signal_top_k,
)

EVERY = list(range(ROWS))
every_kind = pytest.mark.parametrize("name", list(KINDS))


def student(
    dtype: torch.dtype = torch.float64, *, frozen: bool = False, head: tuple[Head, HeadWeights] | None = None
) -> tuple[Tensor, Head, HeadWeights]:
    own, weights = head or make_head(100, dtype)
    hidden = draw(ROWS, WIDTH, seed=50).to(dtype).requires_grad_()
    weight = weights.weight.clone().requires_grad_(not frozen)
    bias = None if weights.bias is None else weights.bias.clone().requires_grad_(not frozen)
    return hidden, own, HeadWeights(weight, bias)


def run(
    hidden: Tensor, head: Head, weights: HeadWeights, batch: TrainingBatch, chunk_bytes: int = 20_000
) -> tuple[StepOutput, tuple[Tensor, ...]]:
    """The output, and the gradients with respect to hidden, weight and bias."""
    output = fused_loss(hidden, head, weights, batch, chunk_bytes=chunk_bytes)
    leaves = [x for x in (hidden, weights.weight, weights.bias) if x is not None and x.requires_grad]
    return output, torch.autograd.grad(output.loss, leaves)


def compare(hidden: Tensor, head: Head, weights: HeadWeights, batch: TrainingBatch, **tolerance: float) -> StepOutput:
    output, gradients = run(hidden, head, weights, batch)
    expected = naive(hidden, head, weights, batch)
    assert expected.gradients[0].abs().max() > 0
    torch.testing.assert_close(output.loss.double(), expected.loss, **tolerance)
    for found, wanted in zip(gradients, expected.gradients, strict=True):
        torch.testing.assert_close(found.double(), wanted, **tolerance)
    for target, measured, values in zip(batch.targets, output.targets, expected.values, strict=True):
        if target.divergence.kind not in ("policy_gradient", "grade") and target.divergence.clip is None:
            torch.testing.assert_close(measured.divergence.double(), values, **tolerance)
    return output


def one_teacher(name: str, dtype: torch.dtype = torch.float64, **batch: float) -> TrainingBatch:
    head, _ = make_head(200, dtype)
    positions = [row for row in EVERY if row % 5 != 2]
    target = make_target(KINDS[name], positions, full(60, positions, head, dtype))
    return make_batch([target], nll=True, **batch)


# ---- against the naive version ----


@every_kind
def test_value_and_gradients(name: str) -> None:
    compare(*student(), one_teacher(name))


@every_kind
def test_value_and_gradients_with_all_that_a_head_can_be(name: str) -> None:
    """Scale, softcap, bias, padded rows and, for the teacher, another order of the rows; a temperature."""
    own = make_head(100, torch.float64, rows=SIZE + 5, bias=True, scale=0.7, softcap=4.0)
    head, _ = make_head(
        200, torch.float64, rows=SIZE + 9, bias=True, scale=1.3, softcap=3.0, mapped=True, width=WIDTH + 2
    )
    target = make_target(KINDS[name], EVERY, full(60, EVERY, head, torch.float64, width=WIDTH + 2))
    hidden, own_head, weights = student(head=own)
    compare(hidden, own_head, weights, make_batch([target], nll=True, temperature=0.6))


@every_kind
def test_float32(name: str) -> None:
    output = compare(*student(torch.float32), one_teacher(name, torch.float32), rtol=1e-4, atol=2e-5)
    assert output.loss.dtype == torch.float32


@every_kind
def test_bfloat16_stays_near(name: str) -> None:
    hidden, head, weights = student(torch.bfloat16)
    batch = one_teacher(name, torch.bfloat16)
    output, gradients = run(hidden, head, weights, batch)
    expected = naive(hidden, head, weights, batch)
    assert output.loss.dtype == torch.float32
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.bfloat16]
    if name not in ("policy_gradient", "forward_kl clip"):  # which jump, at the ratio's interval and at the clip
        torch.testing.assert_close(output.loss.double(), expected.loss, rtol=0.02, atol=0.02)
        for found, wanted in zip(gradients, expected.gradients, strict=True):
            assert (found.double() - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("name", SPARSE)
def test_a_top_k_signal_is_the_same_as_a_whole_one_cut_to_its_top_k(name: str) -> None:
    batch = one_teacher(name)
    (whole,) = batch.targets
    assert isinstance(whole.signal, FullVocab)
    lq = logits(whole.signal.head, whole.signal.head.load(), whole.signal.hidden).log_softmax(-1)
    signal = signal_top_k(lq, 5, batch.labels[whole.positions])
    hidden, head, weights = student()
    found = run(hidden, head, weights, replace(batch, targets=(replace(whole, signal=signal),)))
    expected = run(hidden, head, weights, batch)
    torch.testing.assert_close(found[0].loss, expected[0].loss)
    torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(found[0].targets[0].mass, expected[0].targets[0].mass, equal_nan=True)
    compare(hidden, head, weights, replace(batch, targets=(replace(whole, signal=signal),)))


def test_the_sampled_token_alone_is_enough_for_policy_gradient() -> None:
    empty = torch.zeros(ROWS, 0)
    said = -3 * torch.rand(ROWS, generator=torch.Generator().manual_seed(0))
    signal = TopK(said, empty.long(), empty, torch.zeros(ROWS), torch.ones(ROWS, dtype=torch.bool))
    output = compare(*student(), make_batch([make_target(KINDS["policy_gradient"], EVERY, signal)]))
    (measured,) = output.targets
    torch.testing.assert_close(measured.divergence, output.label_logprobs - signal.token_logprobs)
    assert measured.overlap.isnan().all()


def grades(seed: int = 70, dtype: torch.dtype = torch.float64) -> Target:
    positions = [row for row in EVERY if row % 4 != 1]
    return make_target(GRADE, positions, graded(seed, positions, dtype), seed=seed)


def test_grades_alone() -> None:
    output = compare(*student(), make_batch([grades()]))
    (measured,) = output.targets
    assert 0 < (measured.divergence == 0).sum() < len(measured.divergence)  # ratios outside their interval
    assert measured.overlap.isnan().all()
    assert measured.mass.isnan().all()


def test_grades_beside_a_divergence_and_supervision() -> None:
    batch = one_teacher("reverse_kl")
    compare(*student(), replace(batch, targets=(*batch.targets, grades())))
    hidden, head, weights = student(torch.float32)
    batch = one_teacher("top_k_forward_kl tail", torch.float32)
    batch = replace(batch, targets=(grades(dtype=torch.float32), *batch.targets))
    compare(hidden, head, weights, batch, rtol=1e-4, atol=2e-5)


def test_the_gradient_of_grades_is_the_slope_of_their_surrogate() -> None:
    """Finite differences along random directions, with the importance ratio held where it is."""
    hidden, head, weights = student()
    target = grades()
    batch = make_batch([target], temperature=0.8)
    _, gradients = run(hidden, head, weights, batch)
    labels, sampling = (x[target.positions] for x in (batch.labels, batch.sampling_logprobs))

    def logprobs(h: Tensor, w: Tensor) -> Tensor:
        lp = (logits(head, HeadWeights(w), h) / batch.temperature).log_softmax(-1)[target.positions]
        return lp.gather(1, labels[:, None]).squeeze(1).detach()

    ratio = (logprobs(hidden, weights.weight) - sampling).exp()
    pull = target.weights * ratio.where((ratio >= 0.5) & (ratio <= 2.0), 0.0) * target.signal.values
    for seed in range(5):
        steps = draw(*hidden.shape, seed=seed), draw(*weights.weight.shape, seed=seed + 50)
        up, down = (
            -(pull * logprobs(hidden + e * steps[0], weights.weight + e * steps[1])).sum() for e in (1e-6, -1e-6)
        )
        slope = sum((g * step).sum() for g, step in zip(gradients, steps, strict=True))
        torch.testing.assert_close((up - down) / 2e-6, slope, rtol=1e-6, atol=1e-8)


def test_no_advantage_no_gradient_and_a_larger_one_in_proportion() -> None:
    hidden, head, weights = student()
    target = grades()
    _, gradients = run(hidden, head, weights, make_batch([target]))
    for factor in (0.0, 1.0, -2.0, 4.0):
        signal = replace(target.signal, values=target.signal.values * factor)
        _, found = run(hidden, head, weights, make_batch([replace(target, signal=signal)]))
        for one, other in zip(found, gradients, strict=True):
            assert torch.equal(one, factor * other)


def test_an_advantage_is_taught_by_grade_and_grade_by_an_advantage() -> None:
    head, _ = make_head(200, torch.float64)
    for kind, signal in ((KINDS["policy_gradient"], graded(1, EVERY)), (GRADE, full(60, EVERY, head, torch.float64))):
        with pytest.raises(AssertionError, match=kind.kind):
            run(*student(), make_batch([make_target(kind, EVERY, signal)]))


def several(dtype: torch.dtype = torch.float64) -> TrainingBatch:
    """Ten targets of every kind over overlapping positions, two of them with the same head, and grades."""
    heads = [make_head(200 + 10 * i, dtype)[0] for i in range(5)]
    kinds = list(KINDS.values())
    targets = []
    for index in range(10):
        positions = [row for row in EVERY if (row // 3 + index) % 4 < 2]
        signal = full(60 + index, positions, heads[index % 5], dtype)
        targets.append(make_target(kinds[index], positions, signal, seed=index))
    return make_batch([*targets, grades(dtype=dtype)], nll=True)


def test_several_teachers_on_one_position() -> None:
    compare(*student(), several())


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_teachers_on_one_position_are_their_aggregate(name: str) -> None:
    """Heads with orthogonal inputs let one hidden state stand for Σ w_i log q_i; forward KL needs a mixture instead."""
    heads = [make_head(200 + 10 * i, torch.float64) for i in range(3)]
    shares = [0.5, 0.3, 0.2]
    signals = [full(60 + i, EVERY, head, torch.float64) for i, (head, _) in enumerate(heads)]
    targets = [
        Target(str(i), torch.tensor(EVERY), torch.full((ROWS,), share), KINDS[name], signal)
        for i, (share, signal) in enumerate(zip(shares, signals, strict=True))
    ]
    all_lq = [logits(s.head, w, s.hidden).log_softmax(-1) for s, (_, w) in zip(signals, heads, strict=True)]
    if name == "reverse_kl":
        aggregate = sum(w * lq for w, lq in zip(shares, all_lq, strict=True))
    else:
        aggregate = sum(w * lq.exp() for w, lq in zip(shares, all_lq, strict=True)).log()
    identity = HeadWeights(torch.eye(SIZE, dtype=torch.float64))
    one = FullVocab(aggregate, Head("identity", SIZE, lambda: identity), torch.ones(ROWS, dtype=torch.bool))
    single = Target("all", torch.tensor(EVERY), torch.ones(ROWS), KINDS[name], one)
    found = run(*student(), make_batch(targets))
    expected = run(*student(), make_batch([single]))
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-7)  # the weights are float32


# ---- invariants ----


@pytest.mark.parametrize("chunk_bytes", [1, 3_000, 20_000, 10**9])
def test_chunked_is_whole(chunk_bytes: int) -> None:
    hidden, head, weights = student()
    batch = several()
    whole, whole_gradients = run(hidden, head, weights, batch, 10**9)
    output, gradients = run(hidden, head, weights, batch, chunk_bytes)
    torch.testing.assert_close(output.loss, whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, whole_gradients, rtol=1e-10, atol=1e-13)
    for name in ("entropy", "label_logprobs", "nll"):
        torch.testing.assert_close(getattr(output, name), getattr(whole, name))
    for mine, other in zip(output.targets, whole.targets, strict=True):
        for name in ("divergence", "overlap", "mass"):
            torch.testing.assert_close(getattr(mine, name), getattr(other, name), equal_nan=True)


def test_one_batch_is_the_sum_of_its_rows() -> None:
    hidden, head, weights = student()
    batch = several()
    _, gradients = run(hidden, head, weights, batch)
    loss = torch.zeros((), dtype=torch.float64)
    for row in EVERY:
        loss = loss + fused_loss(hidden[[row]], head, weights, row_of(batch, row), chunk_bytes=10**6).loss
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weights.weight)), gradients)


def row_of(batch: TrainingBatch, row: int) -> TrainingBatch:
    targets = []
    for target in batch.targets:
        here = (target.positions == row).nonzero().squeeze(-1)
        name = "hidden" if isinstance(target.signal, FullVocab) else "values"
        signal = replace(target.signal, **{k: getattr(target.signal, k)[here] for k in (name, "valid")})
        targets.append(replace(target, positions=0 * here, weights=target.weights[here], signal=signal))
    return replace(
        batch,
        targets=tuple(targets),
        labels=batch.labels[[row]],
        sampling_logprobs=batch.sampling_logprobs[[row]],
        nll_weights=batch.nll_weights[[row]],
    )


@every_kind
def test_a_teacher_identical_to_the_student_gives_nothing(name: str) -> None:
    hidden, head, weights = student(torch.float32)
    signal = FullVocab(hidden.detach().clone(), head, torch.ones(ROWS, dtype=torch.bool))
    kind = replace(KINDS[name], mass_penalty=0.0)
    output, gradients = run(hidden, head, weights, make_batch([make_target(kind, EVERY, signal)]))
    atol = 1e-5 if name in SPARSE else 0.0
    torch.testing.assert_close(output.loss.detach(), torch.tensor(0.0), atol=atol, rtol=0)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=atol, rtol=0)
    overlap = output.targets[0].overlap
    assert (overlap[overlap.isfinite()] == 1).all()


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("tail", [False, True])
def test_top_k_of_everything_is_full(kind: str, tail: bool) -> None:
    hidden, head, weights = student()
    batch = one_teacher(kind)
    (target,) = batch.targets
    everything = Divergence("top_k_reverse_kl" if kind == "reverse_kl" else "top_k_forward_kl", k=10 * SIZE, tail=tail)
    found = run(hidden, head, weights, replace(batch, targets=(replace(target, divergence=everything),)))
    expected = run(hidden, head, weights, batch)
    torch.testing.assert_close(found[0].loss, expected[0].loss)
    torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(found[0].targets[0].mass, torch.ones(len(target.positions), dtype=torch.float64))


def test_measurements() -> None:
    hidden, head, weights = student()
    batch = one_teacher("top_k_reverse_kl", temperature=0.5)
    output, _ = run(hidden, head, weights, batch)
    lp = (logits(head, weights, hidden) / 0.5).log_softmax(-1).detach()
    torch.testing.assert_close(output.entropy, -(lp.exp() * lp).sum(-1))
    torch.testing.assert_close(output.label_logprobs, lp.gather(1, batch.labels[:, None]).squeeze(1))
    torch.testing.assert_close(output.nll, -(batch.nll_weights * output.label_logprobs).sum())
    (target,), (measured,) = batch.targets, output.targets
    assert isinstance(target.signal, FullVocab)
    lq = logits(target.signal.head, target.signal.head.load(), target.signal.hidden)
    for row, position in enumerate(target.positions.tolist()):
        if position % OVERLAP_STRIDE:
            assert measured.overlap[row].isnan()
        else:
            mine, other = (set(x.topk(16).indices.tolist()) for x in (lp[position], lq[row]))
            assert measured.overlap[row] == pytest.approx(len(mine & other) / 16)
    assert measured.overlap.isfinite().sum() == 2
    assert not any(x.requires_grad for x in (output.nll, output.entropy, output.label_logprobs, measured.divergence))


def test_overlap_with_a_teacher_that_gives_fewer_than_sixteen() -> None:
    hidden, head, weights = student()
    lp = logits(head, weights, hidden).log_softmax(-1).detach()
    signal = signal_top_k(lp, 5, torch.zeros(ROWS, dtype=torch.int64))
    swapped = signal.ids.clone()
    swapped[:, 4] = lp.argmin(-1)
    targets = [make_target(KINDS["top_k_reverse_kl"], EVERY, replace(signal, ids=ids)) for ids in (signal.ids, swapped)]
    output, _ = run(hidden, head, weights, make_batch(targets))
    assert [t.overlap[0].item() for t in output.targets] == pytest.approx([1.0, 0.8])


# ---- the graph ----


def test_backward_scales_by_what_comes_from_above() -> None:
    hidden, head, weights = student()
    batch = one_teacher("reverse_kl")
    _, gradients = run(hidden, head, weights, batch)
    (3.5 * fused_loss(hidden, head, weights, batch, chunk_bytes=10**6).loss).backward()
    torch.testing.assert_close(hidden.grad, 3.5 * gradients[0])
    torch.testing.assert_close(weights.weight.grad, 3.5 * gradients[1])


def test_backward_runs_once() -> None:
    """Its gradients are scaled in place, so a second run would scale them twice."""
    output = fused_loss(*student(), one_teacher("reverse_kl"), chunk_bytes=10**6)
    output.loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward only"):
        output.loss.backward()


def test_a_tied_embedding_collects_both_its_gradients() -> None:
    """Hidden states that come from the same matrix, against the naive head on the same graph."""
    _, head, weights = student()
    batch = one_teacher("forward_kl")

    def gradient(fused: bool) -> Tensor:
        matrix = weights.weight.detach().clone().requires_grad_()
        hidden = matrix[batch.labels].tanh()
        if fused:
            loss = fused_loss(hidden, head, HeadWeights(matrix), batch, chunk_bytes=5_000).loss
            return torch.autograd.grad(loss, matrix)[0]
        through_hidden, through_head = naive(hidden, head, HeadWeights(matrix), batch).gradients
        return torch.autograd.grad(hidden, matrix, through_hidden)[0] + through_head

    torch.testing.assert_close(gradient(True), gradient(False))


def test_no_head_gradient_when_it_is_frozen() -> None:
    hidden, head, weights = student(frozen=True)
    batch = one_teacher("reverse_kl")
    with Watch() as watch:
        output = fused_loss(hidden, head, weights, batch, chunk_bytes=500)
    (found,) = torch.autograd.grad(output.loss, hidden)
    torch.testing.assert_close(found, naive(hidden, head, weights, batch).gradients[0])
    assert (SIZE, WIDTH) not in watch.products
    with Watch() as watch:
        fused_loss(*student(), batch, chunk_bytes=500)
    assert (SIZE, WIDTH) in watch.products


def test_a_head_learns_from_frozen_hidden_states() -> None:
    hidden, head, weights = student()
    batch = one_teacher("reverse_kl")
    output = fused_loss(hidden.detach(), head, weights, batch, chunk_bytes=5_000)
    (found,) = torch.autograd.grad(output.loss, weights.weight)
    torch.testing.assert_close(found, naive(hidden, head, weights, batch).gradients[1])


def test_without_grad_mode_nothing_is_differentiated() -> None:
    hidden, head, weights = student()
    batch = several()
    expected, _ = run(hidden, head, weights, batch)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, Watch() as watch:
            output = fused_loss(hidden, head, weights, batch, chunk_bytes=10**6)
        assert not output.loss.requires_grad
        assert {columns for _, columns in watch.products} == {SIZE}
        torch.testing.assert_close(output.loss, expected.loss.detach())
        for mine, other in zip(output.targets, expected.targets, strict=True):
            torch.testing.assert_close(mine.divergence, other.divergence)


def test_an_empty_batch_is_zero_and_attached() -> None:
    _, head, weights = student()
    hidden = torch.zeros(0, WIDTH, dtype=torch.float64, requires_grad=True)
    nowhere: list[int] = []
    target = make_target(KINDS["reverse_kl"], nowhere, full(1, nowhere, make_head(2, torch.float64)[0], torch.float64))
    for targets in ([], [target]):
        output, gradients = run(hidden, head, weights, make_batch(targets, rows=0))
        assert output.loss == 0
        assert gradients[0].shape == hidden.shape
        assert gradients[1].abs().max() == 0


def test_positions_without_targets_are_measured_and_pull_nothing() -> None:
    hidden, head, weights = student()
    output, gradients = run(hidden, head, weights, make_batch([]))
    assert output.loss == 0
    assert output.entropy.isfinite().all()
    assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_products_follow_autocast() -> None:
    hidden, head, weights = student(torch.float32)
    batch = one_teacher("reverse_kl", torch.float32)
    with torch.autocast("cpu", torch.bfloat16), Watch() as watch:
        output = fused_loss(hidden, head, weights, batch, chunk_bytes=10**6)
    assert watch.product_dtype == torch.bfloat16
    gradients = torch.autograd.grad(output.loss, (hidden, weights.weight))
    assert [g.dtype for g in gradients] == [torch.float32, torch.float32]
    expected = naive(hidden, head, weights, batch)
    for found, wanted in zip(gradients, expected.gradients, strict=True):
        assert (found.double() - wanted).norm() < 0.05 * wanted.norm()


def test_the_heads_gradient_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = one_teacher("reverse_kl", torch.bfloat16)
    _, (_, whole) = run(*student(torch.bfloat16), batch)
    monkeypatch.setattr(fused, "_HEAD_ROWS", 7)  # no divisor of the vocabulary
    hidden, head, weights = student(torch.bfloat16)
    assert head.size > 14
    assert head.size % 7
    _, (_, parts) = run(hidden, head, weights, batch)
    torch.testing.assert_close(parts, whole)


# ---- what is not finite ----


@every_kind
def test_a_weight_of_zero_adds_exactly_nothing_even_to_nan(name: str) -> None:
    hidden, head, weights = student()
    batch = one_teacher(name)
    (target,) = batch.targets
    assert isinstance(target.signal, FullVocab)
    silent = replace(target, weights=target.weights.clone().index_fill_(0, torch.tensor([1, 4]), 0.0))
    broken = replace(target.signal, hidden=target.signal.hidden.clone().index_fill_(0, torch.tensor([1, 4]), torch.nan))
    output, gradients = run(hidden, head, weights, replace(batch, targets=(replace(silent, signal=broken),)))
    expected, expected_gradients = run(hidden, head, weights, replace(batch, targets=(silent,)))
    assert torch.equal(output.loss, expected.loss)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=0)
    divergence = output.targets[0].divergence
    assert divergence[[1, 4]].isnan().all()
    assert divergence.isfinite().sum() == len(divergence) - 2


def test_a_top_k_signal_with_weight_zero_adds_exactly_nothing_even_to_nan() -> None:
    nan = torch.full((ROWS, 4), torch.nan)
    ids = torch.arange(4).repeat(ROWS, 1)
    signal = TopK(nan[:, 0], ids, nan, nan[:, 0], torch.ones(ROWS, dtype=torch.bool))
    for kind in (KINDS["top_k_reverse_kl"], KINDS["top_k_forward_kl tail"], KINDS["policy_gradient"]):
        target = replace(make_target(kind, EVERY, signal), weights=torch.zeros(ROWS))
        output, gradients = run(*student(), make_batch([target]))
        assert output.loss == 0
        assert all(gradient.abs().max() == 0 for gradient in gradients)


@every_kind
def test_masked_vocabulary_is_finite(name: str) -> None:
    """A teacher whose bias is -inf on entries that the student uses."""
    head, loaded = make_head(200, torch.float32)
    bias = torch.zeros(SIZE).index_fill_(0, torch.arange(0, SIZE, 4), -torch.inf)
    masked = replace(head, load=lambda: HeadWeights(loaded.weight, bias))
    batch = make_batch([make_target(KINDS[name], EVERY, full(60, EVERY, masked, torch.float32))])
    output, gradients = run(*student(torch.float32), batch)
    assert output.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_divergence_over_the_vocabulary_of_a_top_k_signal_is_refused() -> None:
    signal = signal_top_k(draw(ROWS, SIZE, seed=1).log_softmax(-1), 4, torch.zeros(ROWS, dtype=torch.int64))
    none = replace(signal, ids=signal.ids[:, :0], logprobs=signal.logprobs[:, :0])
    with pytest.raises(AssertionError, match="reverse_kl needs the whole vocabulary"):
        run(*student(), make_batch([make_target(KINDS["reverse_kl"], EVERY, signal)]))
    with pytest.raises(AssertionError, match="needs K > 0"):
        run(*student(), make_batch([make_target(KINDS["top_k_reverse_kl"], EVERY, none)]))


# ---- heads and memory ----


def test_heads_are_loaded_once_per_group_and_one_groups_at_a_time() -> None:
    held: Counter[str] = Counter()
    events: list[tuple[str, frozenset[str]]] = []

    def counted(seed: int) -> Head:
        head, loaded = make_head(seed, torch.float64)

        def load() -> HeadWeights:
            held[head.key] += 1
            events.append((head.key, frozenset(+held)))
            return loaded

        def release() -> None:
            held[head.key] -= 1

        return replace(head, load=load, release=release)

    one, two = counted(200), counted(210)
    cover = {"one": [0, 1, 5, 6], "two": [2, 3, 5, 6, 9], "one again": [10, 11]}
    heads = {"one": one, "two": two, "one again": one}
    signals = {name: full(3, where, heads[name], torch.float64) for name, where in cover.items()}
    targets = [make_target(KINDS["reverse_kl"], where, signals[name]) for name, where in cover.items()]
    run(*student(), make_batch(targets), chunk_bytes=1)
    # Groups: nobody; one; one (again); one and two; two. Neighbours share what is loaded.
    assert [key for key, _ in events] == [one.key, two.key]
    assert not +held
    alone = [targets[0], replace(targets[1], positions=torch.tensor([12, 13, 15, 16, 19]))]
    events.clear()
    run(*student(), make_batch(alone), chunk_bytes=1)
    assert [sorted(now) for _, now in events] == [[one.key], [two.key]]


def test_memory_does_not_grow_with_tokens_times_vocabulary() -> None:
    """Bytes alive at once, forward and backward, against the plain version under the same watch."""
    tokens, size, width, chunk_bytes = 400, 3_000, 4, 300_000
    own, weights = make_head(1, torch.float32, size=size, width=width)
    head, _ = make_head(2, torch.float32, size=size, width=width)
    positions = list(range(tokens))
    target = make_target(KINDS["jsd"], positions, full(3, positions, head, torch.float32, width))
    batch = make_batch([target], rows=tokens, size=size, nll=True)
    hidden = draw(tokens, width, seed=4).float().requires_grad_()
    weight = weights.weight.requires_grad_()
    whole = tokens * size * 4
    with Watch() as watch:
        fused_loss(hidden, own, HeadWeights(weight), batch, chunk_bytes=chunk_bytes).loss.backward()
    everything_else = 3 * weight.nbytes + 20 * (hidden.nbytes + 10 * 4 * tokens)
    assert watch.peak < 1.1 * chunk_bytes + everything_else < whole / 4
    with Watch() as plain:
        student_lp = (hidden @ weight.T).log_softmax(-1)
        teacher_lp = (target.signal.hidden @ head.load().weight.T).log_softmax(-1)
        (student_lp.exp() * (student_lp - teacher_lp)).sum().backward()
    assert plain.peak > 3 * whole


def test_in_bfloat16_only_the_last_chunk_is_padded() -> None:
    """Products come in multiples of 64 rows there. Of 200 rows of one kind and 100 of another the budget holds some 150
    at once: 128 are run, then 72, then 100."""
    hidden = draw(300, WIDTH, seed=50).bfloat16().requires_grad_()
    head, weights = make_head(100, torch.bfloat16, size=40_000)
    batch = make_batch([], rows=300, size=40_000, nll=True)
    with Watch() as watch:
        fused_loss(hidden, head, weights, batch, chunk_bytes=22_500_000)
    rows = Counter({shape[0]: count for shape, count in watch.products.items() if shape[1] == 40_000})
    assert rows == {128: 3}


@pytest.mark.parametrize(
    ("chunk_bytes", "expected"),
    [(100_000_000, {300: 1}), (40_000_000, {128: 2, 44: 1}), (12_000_000, {46: 6, 24: 1})],
    ids=["all in half of it", "no more than is needed", "few, so all of it"],
)
def test_the_second_half_of_a_chunks_memory_is_for_large_vocabularies(
    chunk_bytes: int, expected: dict[int, int]
) -> None:
    """A row of logits has 80 kB here, and a block's buffers have 8.3 MB."""
    hidden = draw(300, WIDTH, seed=50).float().requires_grad_()
    head, weights = make_head(100, torch.float32, size=20_000)
    batch = make_batch([], rows=300, size=20_000)
    with Watch() as watch:
        fused_loss(hidden, head, weights, batch, chunk_bytes=chunk_bytes)
    assert {shape[0]: count for shape, count in watch.products.items() if shape[1] == 20_000} == expected


class Watch(TorchDispatchMode):
    """Shapes of the matrix products, the dtype of the first one, and the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[tuple[int, ...]] = Counter()
        self.product_dtype: torch.dtype | None = None
        self.live = self.peak = 0
        self.holders: Counter[int] = Counter()  # tensors per storage
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] in ("mm", "addmm", "addmm_"):
            self.products[tuple(result.shape)] += 1
            self.product_dtype = self.product_dtype or result.dtype
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        if id(tensor) in self.seen:
            return
        self.seen.add(id(tensor))
        storage, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self.holders[storage] += 1
        if self.holders[storage] == 1:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self._gone, id(tensor), storage, size)

    def _gone(self, name: int, storage: int, size: int) -> None:
        self.seen.discard(name)
        self.holders[storage] -= 1
        if self.holders[storage] == 0:
            self.live -= size
