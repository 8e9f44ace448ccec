"""The losses against their definitions in float64, with the gradients that autograd finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.objectives import (
    LOG_FLOOR,
    Sparse,
    grade_term,
    log_of_the_rest,
    nll_term,
    policy_gradient_term,
    top_k_term,
    value_and_logit_grad,
)
from pipeline.types import Divergence
from tests.numerics.naive import (
    DENSE,
    GRADE,
    KINDS,
    divergence_of,
    draw,
    graded_of,
    signal_top_k,
    surrogate_of,
    top_k_of,
)

C, V = 7, 29
dense = pytest.mark.parametrize("name", DENSE)
top_k = pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("top_k")])
tails = pytest.mark.parametrize("name", ["top_k_reverse_kl tail", "top_k_forward_kl tail"])


def pair(spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """The student's logits, the teacher's log-probabilities."""
    return draw(C, V, seed=1, scale=spread), draw(C, V, seed=2, scale=spread).log_softmax(-1)


def autograd(function, logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = function(leaf.log_softmax(-1))
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def logit_grad(term: Sparse, p: Tensor) -> Tensor:
    """What a Sparse says, written out (C, V)."""
    outside = torch.zeros(len(p), dtype=p.dtype) if term.outside is None else term.outside
    return (outside[:, None] * p).scatter(1, term.ids, term.kept)


def run_top_k(kind: Divergence, logits: Tensor, lq: Tensor) -> tuple[Sparse, Tensor]:
    lp = logits.log_softmax(-1)
    signal = signal_top_k(lq, kind.k, torch.zeros(len(lq), dtype=torch.int64))
    rest = log_of_the_rest(lp.exp(), signal.ids)
    term = top_k_term(kind, lp.gather(1, signal.ids), rest, signal.ids, signal.logprobs, signal.log_tail)
    return term, logit_grad(term, lp.exp())


@dense
def test_dense_value_and_gradient(name: str) -> None:
    logits, lq = pair()
    value, gradient = value_and_logit_grad(KINDS[name], logits.log_softmax(-1), lq)
    expected, slope = autograd(lambda lp: divergence_of(KINDS[name], lp, lq), logits)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)


class _AsFunction(torch.autograd.Function):
    """A divergence with its analytic gradient, so that gradcheck compares it with finite differences."""

    @staticmethod
    def forward(ctx, logits, lq, kind):
        value, gradient = value_and_logit_grad(kind, logits.log_softmax(-1), lq)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output[:, None] * ctx.saved_tensors[0], None, None


@dense
def test_dense_gradient_is_the_slope_of_the_value(name: str) -> None:
    logits, lq = pair()
    assert torch.autograd.gradcheck(lambda z: _AsFunction.apply(z, lq[:3], KINDS[name]), logits[:3].requires_grad_())


@dense
def test_dense_in_float32_is_close_on_a_large_vocabulary(name: str) -> None:
    logits, teacher = draw(4, 5000, seed=1, scale=3), draw(4, 5000, seed=2, scale=3)
    expected = value_and_logit_grad(KINDS[name], logits.log_softmax(-1), teacher.log_softmax(-1))
    found = value_and_logit_grad(KINDS[name], logits.float().log_softmax(-1), teacher.float().log_softmax(-1))
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-4, atol=1e-7)


@dense
def test_a_teacher_identical_to_the_student_gives_exactly_nothing(name: str) -> None:
    lp = pair()[0].float().log_softmax(-1)
    value, gradient = value_and_logit_grad(KINDS[name], lp, lp)
    assert value.abs().max() == 0
    assert gradient.abs().max() == 0


@dense
def test_masked_entries_are_finite(name: str) -> None:
    """The teacher masks entries the student uses, and both mask the same ones."""
    logits, lq = (x.float() for x in pair())
    logits[:, :3] = -torch.inf
    lq = lq.masked_fill(torch.arange(V) % 4 == 0, -torch.inf).log_softmax(-1)
    value, gradient = value_and_logit_grad(KINDS[name], logits.log_softmax(-1), lq)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (value > 0).all()
    torch.testing.assert_close(gradient[:, 0], torch.zeros(C), atol=1e-30, rtol=0)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(C), atol=1e-5, rtol=0)


def test_reverse_kl_counts_masked_mass_at_the_floor() -> None:
    lp, lq = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[-torch.inf, 0.0]])
    value, _ = value_and_logit_grad(KINDS["reverse_kl"], lp, lq)
    expected = 0.25 * (torch.tensor(0.25).log() - LOG_FLOOR) + 0.75 * torch.tensor(0.75).log()
    torch.testing.assert_close(value, expected[None])


def test_forward_kl_pulls_where_the_student_has_nothing() -> None:
    lp, lq = torch.tensor([[-200.0, 0.0]]), torch.tensor([[0.5, 0.5]]).log()
    _, gradient = value_and_logit_grad(KINDS["forward_kl"], lp, lq)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5]]))


def test_jsd_tends_to_forward_and_reverse_kl() -> None:
    logits, lq = pair()
    lp = logits.log_softmax(-1)
    small = 1e-7
    for beta, share, limit in ((small, small, "forward_kl"), (1 - small, small, "reverse_kl")):
        found = value_and_logit_grad(Divergence("jsd", beta=beta), lp, lq)
        expected = value_and_logit_grad(KINDS[limit], lp, lq)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f / share, e, rtol=1e-4, atol=1e-6)


def test_jsd_swaps_sides_with_its_beta() -> None:
    logits, lq = pair()
    lp = logits.log_softmax(-1)
    one, _ = value_and_logit_grad(Divergence("jsd", beta=0.3), lp, lq)
    other, _ = value_and_logit_grad(Divergence("jsd", beta=0.7), lq, lp)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("skewed", "plain"), [("skew_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")])
def test_skew_tends_to_plain(skewed: str, plain: str) -> None:
    logits, lq = pair()
    lp = logits.log_softmax(-1)
    found = value_and_logit_grad(replace(KINDS[skewed], alpha=1e-9), lp, lq)
    for f, e in zip(found, value_and_logit_grad(KINDS[plain], lp, lq), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_a_weighted_sum_of_teachers_is_one_aggregated_target(name: str) -> None:
    """KL to the normalised geometric mean, and from the arithmetic one: same gradient, value up to a constant."""
    teachers = [draw(C, V, seed=seed).log_softmax(-1) for seed in (3, 4, 5)]
    shares = (0.5, 0.3, 0.2)
    if name == "reverse_kl":
        aggregated = sum(w * lq for w, lq in zip(shares, teachers, strict=True)).log_softmax(-1)
    else:
        aggregated = sum(w * lq.exp() for w, lq in zip(shares, teachers, strict=True)).log()
    constants = []
    for seed in (1, 2):
        lp = draw(C, V, seed=seed).log_softmax(-1)
        parts = [value_and_logit_grad(KINDS[name], lp, lq) for lq in teachers]
        value, gradient = value_and_logit_grad(KINDS[name], lp, aggregated)
        torch.testing.assert_close(sum(w * g for w, (_, g) in zip(shares, parts, strict=True)), gradient)
        constants.append(sum(w * v for w, (v, _) in zip(shares, parts, strict=True)) - value)
    torch.testing.assert_close(constants[0], constants[1])


def test_a_weighted_sum_of_jsd_is_not_the_jsd_of_a_mixture() -> None:
    lp = draw(C, V, seed=1).log_softmax(-1)
    teachers = [draw(C, V, seed=seed).log_softmax(-1) for seed in (3, 4)]
    mixture = sum(0.5 * lq.exp() for lq in teachers).log()
    parts = sum(0.5 * value_and_logit_grad(KINDS["jsd"], lp, lq)[1] for lq in teachers)
    assert (parts - value_and_logit_grad(KINDS["jsd"], lp, mixture)[1]).norm() > 0.01 * parts.norm()


def test_a_clip_bounds_whole_positions() -> None:
    """Below it nothing changes, above it the value is the clip and nothing pulls; entries are never cut one by one."""
    logits, lq = pair()
    lp = logits.log_softmax(-1)
    value, gradient = value_and_logit_grad(KINDS["forward_kl"], lp, lq)
    clip = float(value.median())
    clipped, slope = value_and_logit_grad(Divergence("forward_kl", clip=clip), lp, lq)
    above = value > clip
    assert 0 < above.sum() < C
    assert torch.equal(clipped, value.clamp(max=clip))
    assert torch.equal(slope, gradient.masked_fill(above[:, None], 0.0))


# ---- top-k ----


@top_k
def test_top_k_value_and_gradient(name: str) -> None:
    logits, lq = pair()
    kind = KINDS[name]
    term, gradient = run_top_k(kind, logits, lq)
    signal = signal_top_k(lq, kind.k, torch.zeros(C, dtype=torch.int64))
    expected, slope = autograd(lambda lp: top_k_of(kind, lp, signal.ids, signal.logprobs, signal.log_tail), logits)
    torch.testing.assert_close(term.value, expected)
    torch.testing.assert_close(gradient, slope)
    torch.testing.assert_close(term.mass, logits.softmax(-1).gather(1, signal.ids).sum(-1))


@top_k
def test_top_k_of_everything_is_full(name: str) -> None:
    logits, lq = pair()
    kind = replace(KINDS[name], k=V)
    term, gradient = run_top_k(kind, logits, lq)
    whole = "reverse_kl" if kind.kind == "top_k_reverse_kl" else "forward_kl"
    value, slope = value_and_logit_grad(KINDS[whole], logits.log_softmax(-1), lq)
    torch.testing.assert_close(term.value, value)
    torch.testing.assert_close(gradient, slope)


@top_k
def test_top_k_of_an_identical_teacher_is_only_the_penalty(name: str) -> None:
    lp = pair()[0].float().log_softmax(-1)
    term, gradient = run_top_k(replace(KINDS[name], mass_penalty=0.0), lp, lp)
    torch.testing.assert_close(term.value, torch.zeros(C), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros(C, V), atol=1e-6, rtol=0)


def test_renormalised_top_k_is_blind_outside_and_the_penalty_sees() -> None:
    """93% of the student's mass elsewhere, in the teacher's proportions within: loss and gradient are exactly 0."""
    lq = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    lp = torch.tensor([[0.04, 0.02, 0.9, 0.04]]).log()
    blind, gradient = run_top_k(Divergence("top_k_reverse_kl", k=2), lp, lq)
    torch.testing.assert_close(blind.value, torch.zeros(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros(1, 4), atol=1e-6, rtol=0)
    for seeing in (
        Divergence("top_k_reverse_kl", k=2, mass_penalty=1.0),
        Divergence("top_k_reverse_kl", k=2, tail=True),
    ):
        term, gradient = run_top_k(seeing, lp, lq)
        assert term.value > 0.5
        assert gradient[0, 2] > 0.1
        assert gradient[0, 0] < -0.01


@tails
def test_a_student_far_more_certain_than_the_teacher_keeps_its_gradient(name: str) -> None:
    """The student's tail is 1e-12, the teacher's 0.1: 1 - Σ in float32 would lose it, and p/tail would be noise."""
    logits = torch.tensor([[30.0, 0.0, -1.0, 1.0, 0.5]], dtype=torch.float64)
    lq = torch.tensor([[0.5, 0.4, 0.05, 0.03, 0.02]], dtype=torch.float64).log()
    kind = replace(KINDS[name], k=2)
    signal = signal_top_k(lq, 2, torch.zeros(1, dtype=torch.int64))

    def exact(lp: Tensor) -> Tensor:
        a = torch.cat([lp[:, :2], lp[:, 2:].logsumexp(-1, keepdim=True)], -1)
        b = torch.cat([signal.logprobs, signal.log_tail[:, None]], -1)
        return (a.exp() * (a - b) if kind.kind == "top_k_reverse_kl" else b.exp() * (b - a)).sum(-1)

    expected, slope = autograd(exact, logits)
    term, gradient = run_top_k(kind, logits.float(), lq.float())
    torch.testing.assert_close(term.value.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-7)


@tails
@pytest.mark.parametrize("log_tail", [-torch.inf, 1e-3, 0.0])
def test_odd_tails_are_finite(name: str, log_tail: float) -> None:
    """No tail at all; a tail, or a sum of kept probabilities, that rounding left above 1."""
    lp = pair()[0].float().log_softmax(-1)
    ids = torch.arange(5).repeat(C, 1)
    lq = torch.full((C, 5), 0.20001).log()
    rest = log_of_the_rest(lp.exp(), ids)
    term = top_k_term(KINDS[name], lp[:, :5], rest, ids, lq, torch.full((C,), log_tail))
    gradient = logit_grad(term, lp.exp())
    assert term.value.isfinite().all()
    assert (term.value > 0).all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(C), atol=2e-5, rtol=0)


@tails
def test_no_tail_on_either_side_is_nothing(name: str) -> None:
    lp = torch.tensor([[0.5, 0.5, 0.0]]).log()
    ids = torch.tensor([[0, 1]])
    term = top_k_term(
        KINDS[name], lp[:, :2], log_of_the_rest(lp.exp(), ids), ids, lp[:, :2], torch.tensor([-torch.inf])
    )
    assert term.value.item() == pytest.approx(0.0, abs=1e-6)
    assert term.kept.abs().max() < 1e-6


def test_the_log_of_the_rest_leaves_its_argument_alone() -> None:
    p = pair()[0].softmax(-1)
    before = p.clone()
    rest = log_of_the_rest(p, torch.arange(V - 2).repeat(C, 1))
    assert torch.equal(p, before)
    torch.testing.assert_close(rest, p[:, -2:].sum(-1).log())


# ---- the label alone ----


def test_policy_gradient_value_and_gradient() -> None:
    logits, lq = pair()
    kind = KINDS["policy_gradient"]
    labels = torch.arange(C) * 3
    own = logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    teacher = lq.gather(1, labels[:, None]).squeeze(1)
    sampling = own + torch.tensor([0.0, 0.3, -0.3, 2.0, -2.0, 0.0, 0.1])  # the fourth and fifth fall outside
    term = policy_gradient_term(kind, own, teacher, sampling, labels)
    expected, slope = autograd(
        lambda lp: surrogate_of(kind, lp.gather(1, labels[:, None]).squeeze(1), teacher, sampling), logits
    )
    torch.testing.assert_close(term.value, expected)
    torch.testing.assert_close(logit_grad(term, logits.softmax(-1)), slope)
    torch.testing.assert_close(term.shown, own - teacher)
    assert term.value[3] == term.value[4] == 0
    assert term.value[2] != 0


def test_policy_gradient_is_the_gradient_of_reverse_kl_on_average() -> None:
    """Σ_y π(y) · (gradient at y): the expectation over tokens drawn from π, without drawing."""
    logits, lq = pair()
    logits, lq = logits[:1], lq[:1]
    lp = logits.log_softmax(-1)
    every = torch.arange(V)
    kind = Divergence("policy_gradient", advantage_clip=1e6)
    term = policy_gradient_term(kind, lp[0], lq[0], lp[0], every)
    average = (lp.exp().T * logit_grad(term, lp.exp().expand(V, V))).sum(0, keepdim=True)
    value, slope = value_and_logit_grad(KINDS["reverse_kl"], lp, lq)
    torch.testing.assert_close(average, slope)
    torch.testing.assert_close((lp[0].exp() * term.shown).sum(), value[0])


def test_policy_gradient_corrects_for_another_sampler_on_average() -> None:
    logits, lq = pair()
    lp, mu, lq = logits[:1].log_softmax(-1), draw(1, V, seed=9).log_softmax(-1), lq[:1]
    kind = Divergence("policy_gradient", advantage_clip=1e6, ratio_high=1e6)
    term = policy_gradient_term(kind, lp[0], lq[0], mu[0], torch.arange(V))
    average = (mu.exp().T * logit_grad(term, lp.exp().expand(V, V))).sum(0, keepdim=True)
    torch.testing.assert_close(average, value_and_logit_grad(KINDS["reverse_kl"], lp, lq)[1])


def test_policy_gradient_ignores_what_the_student_did_not_write_and_survives_a_masked_label() -> None:
    lp, lq = torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -torch.inf])
    term = policy_gradient_term(KINDS["policy_gradient"], lp, lq, torch.tensor([torch.nan, -1.0]), torch.tensor([0, 1]))
    assert term.value[0] == 0
    assert term.kept[0] == 0
    assert term.value.isfinite().all()
    assert term.shown[1] == -1.0 - LOG_FLOOR


def every_answer() -> tuple[Tensor, Tensor, Tensor]:
    """One position, every token as the answer: log-probabilities (1, V), grades (V,), the gradient of their mean."""
    lp, grades = pair()[0][:1].log_softmax(-1), draw(V, seed=8).sigmoid()
    p = lp.exp()[0]
    return lp, grades, (p * (grades - (p * grades).sum()))[None]


def grade_gradients(lp: Tensor, advantage: Tensor, mu: Tensor, kind: Divergence = GRADE) -> Tensor:
    """(V, V): d loss / d logits, were token y the answer, in row y; lp, mu (V,), advantage (V,) of each answer."""
    term = grade_term(kind, lp, advantage, mu, torch.arange(V))
    return logit_grad(term, lp.exp().expand(V, V))


def test_grade_value_and_gradient() -> None:
    logits, _ = pair()
    labels = torch.arange(C) * 3
    own = logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    advantage = draw(C, seed=4)
    sampling = own + torch.tensor([0.0, 0.3, -0.3, 2.0, -2.0, 0.0, torch.nan])  # the last three but one count nothing
    term = grade_term(GRADE, own, advantage, sampling, labels)
    expected, slope = autograd(
        lambda lp: graded_of(GRADE, lp.gather(1, labels[:, None]).squeeze(1), advantage, sampling), logits
    )
    torch.testing.assert_close(term.value, expected)
    torch.testing.assert_close(logit_grad(term, logits.softmax(-1)), slope)
    assert (slope.abs().amax(-1) > 0).tolist() == [True, True, True, False, False, True, False]
    ratio = torch.tensor([0.0, -0.3, 0.3, 0.0], dtype=torch.float64).exp()
    torch.testing.assert_close(term.shown[[0, 1, 2, 5]], ratio)
    assert term.shown[[3, 4, 6]].tolist() == [0.0, 0.0, 0.0]


def test_grades_less_the_other_samples_follow_the_mean_grade_on_average() -> None:
    """Σ_yz π(y) π(z) (gradient at y with the grade of z as its baseline) = -∇ E[grade]; without drawing."""
    lp, grades, slope = every_answer()
    p = lp.exp()[0]
    advantage = grades - (p * grades).sum()  # the mean over z of grade(y) - grade(z): the gradient is linear in it
    average = (p[:, None] * grade_gradients(lp[0], advantage, lp[0])).sum(0, keepdim=True)
    torch.testing.assert_close(average, -slope)
    pairs = sum(p[z] * grade_gradients(lp[0], grades - grades[z], lp[0]) for z in range(V))
    torch.testing.assert_close((p[:, None] * pairs).sum(0, keepdim=True), -slope)


def test_grades_correct_for_another_sampler_on_average() -> None:
    lp, grades, slope = every_answer()
    mu = draw(V, seed=9).log_softmax(-1)
    kind = replace(GRADE, ratio_low=0.0, ratio_high=1e6)
    average = (mu.exp()[:, None] * grade_gradients(lp[0], grades, mu, kind)).sum(0, keepdim=True)
    torch.testing.assert_close(average, -slope)


def test_an_advantage_that_does_not_know_the_answer_teaches_nothing_on_average() -> None:
    """A divergence of the position as its advantage: the same number for every token that could stand there."""
    lp, lq = pair()[0][:1].log_softmax(-1), pair()[1][:1]
    divergence, slope = value_and_logit_grad(KINDS["reverse_kl"], lp, lq)
    gradients = grade_gradients(lp[0], -divergence.expand(V), lp[0])
    average = (lp.exp().T * gradients).sum(0)
    torch.testing.assert_close(average, torch.zeros(V, dtype=torch.float64), atol=1e-14, rtol=0)
    assert gradients.abs().max() > 0.1
    assert slope.abs().max() > 0.1


def test_nll_value_and_gradient() -> None:
    logits, _ = pair()
    labels = torch.arange(C)
    term = nll_term(logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1), labels)
    expected, slope = autograd(lambda lp: -lp.gather(1, labels[:, None]).squeeze(1), logits)
    torch.testing.assert_close(term.value, expected)
    torch.testing.assert_close(logit_grad(term, logits.softmax(-1)), slope)
