"""The sampler against softmax in float64 and a naive truncation, and the random numbers it is given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.rollout.sampling import sample, uniforms

ALMOST_ONE = 1.0 - 2.0**-53


def naive_kept(logits: Tensor, temperature: float, top_p: float, top_k: int) -> list[int]:
    """The ids of one row (V,) that top_k and then top_p keep, equals by ascending id."""
    probabilities = (logits.double() / temperature).softmax(-1)
    order = sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))
    order = order[:top_k] if top_k else order
    total, kept, mass = float(probabilities[order].sum()), [], 0.0
    for token in order:
        kept.append(token)
        mass += float(probabilities[token])
        if mass >= top_p * total:
            break
    return kept


def grid(count: int) -> Tensor:
    """(count,) float64, evenly spread over [0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


class TestUniforms:
    def test_the_first_numbers_do_not_depend_on_the_count(self) -> None:
        assert np.array_equal(uniforms(1, 2, "p", 3, 1000)[:17], uniforms(1, 2, "p", 3, 17))

    def test_every_argument_matters(self) -> None:
        keys = [(0, 0, "p", 0), (1, 0, "p", 0), (0, 1, "p", 0), (0, 0, "q", 0), (0, 0, "p", 1), (0, 0, "0/p", 0)]
        assert len({float(uniforms(*key, 1)[0]) for key in keys}) == len(keys)

    def test_values_stay_the_same_over_versions(self) -> None:
        # A change here changes every rollout of a resumed run.
        expected = [0.5116280839655278, 0.5648680401221758]
        assert uniforms(7, 3, "prompt", 1, 2).tolist() == expected

    def test_they_are_uniform_also_across_rollouts(self) -> None:
        first = np.array([uniforms(0, 0, f"prompt-{index}", 0, 1)[0] for index in range(4000)])
        for values in (first, uniforms(0, 0, "prompt", 0, 4000)):
            assert values.min() >= 0.0
            assert values.max() < 1.0
            distance = np.abs(np.sort(values) - grid(4000).numpy()).max()
            assert distance < 1.63 / math.sqrt(4000)  # Kolmogorov-Smirnov, 1%


@pytest.mark.parametrize("vocab_size", [3, 512, 700, 1600])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.8, 0), (1.3, 1.0, 20), (1.0, 0.6, 30)]
)
class TestDistribution:
    def test_draws_follow_softmax(self, vocab_size: int, temperature: float, top_p: float, top_k: int) -> None:
        logits = 2 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size))
        kept = naive_kept(logits, temperature, top_p, top_k)
        expected = torch.zeros(vocab_size, dtype=torch.float64)
        expected[kept] = (logits[kept].double() / temperature).softmax(-1)
        draws = 4000
        numbers = torch.from_numpy(uniforms(0, vocab_size, "chi", 0, draws))
        ids, _, _ = sample(logits.expand(draws, -1), numbers, temperature, top_p, top_k)
        counts = torch.bincount(ids, minlength=vocab_size).double()
        assert counts[expected == 0].sum() == 0
        # Chi-squared over entries expected at least five times, the rest taken together.
        common = expected * draws >= 5
        got = torch.cat([counts[common], counts[~common].sum()[None]])
        wanted = draws * torch.cat([expected[common], expected[~common].sum()[None]])
        statistic = float(((got - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum())
        freedom = int((wanted > 0).sum()) - 1
        assert statistic <= freedom + 4 * math.sqrt(2 * freedom) + 1

    def test_inverts_the_cumulative_distribution(
        self, vocab_size: int, temperature: float, top_p: float, top_k: int
    ) -> None:
        logits = 2 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size))
        kept = sorted(naive_kept(logits, temperature, top_p, top_k))
        edges = (logits[kept].double() / temperature).softmax(-1).cumsum(-1)
        numbers = grid(999)
        ids, model, sampling = sample(logits.expand(999, -1), numbers, temperature, top_p, top_k)
        places = torch.tensor([kept.index(token) for token in ids.tolist()])
        before = torch.cat([edges.new_zeros(1), edges])[places]
        assert (before - 1e-6 <= numbers).all()
        assert (numbers <= edges[places] + 1e-6).all()
        whole = (logits.double() / temperature).log_softmax(-1)
        torch.testing.assert_close(model, whole[ids].float())
        torch.testing.assert_close(sampling, (whole[ids] - whole[kept].logsumexp(-1)).float(), atol=1e-5, rtol=1e-5)


def test_a_large_flat_vocabulary_loses_no_entry_to_rounding() -> None:
    """In fp32 a cumulative sum near 1 steps by 6e-8, too coarse for 151,936 entries of 6.6e-6 each."""
    vocab_size = 151_936
    numbers = torch.tensor([0.0, 1e-6, 0.25, 0.5, 0.999, ALMOST_ONE], dtype=torch.float64)
    ids, logprobs, _ = sample(torch.zeros(len(numbers), vocab_size), numbers, 1.0)
    expected = (numbers * vocab_size).floor().long().clamp_max(vocab_size - 1)
    assert ((ids - expected).abs() <= 1).all()
    assert torch.equal(ids[[0, -1]], expected[[0, -1]])
    torch.testing.assert_close(logprobs, torch.full_like(logprobs, -math.log(vocab_size)))


@pytest.mark.parametrize("vocab_size", [40, 512, 2000])
def test_entries_without_probability_are_never_drawn(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, vocab_size, generator=generator)
    logits[torch.rand(logits.shape, generator=generator) < 0.9] = -torch.inf
    logits[:, vocab_size // 2] = 0.0
    logits[:, 0] = logits[:, -1] = -torch.inf
    for numbers in (torch.zeros(300), torch.full((300,), ALMOST_ONE), torch.rand(300, generator=generator)):
        for top_p, top_k in ((1.0, 0), (0.9, 0), (1.0, 7)):
            ids, model, sampling = sample(logits, numbers.double(), 1.0, top_p, top_k)
            assert model.isfinite().all()
            assert sampling.isfinite().all()
            assert logits.gather(-1, ids[:, None]).isfinite().all()


def test_underflow_is_no_entry() -> None:
    logits = torch.tensor([[0.0, -200.0, -300.0]])
    ids, logprobs, _ = sample(logits, torch.tensor([ALMOST_ONE], dtype=torch.float64), 1.0)
    assert ids.tolist() == [0]
    assert logprobs.tolist() == [0.0]


def test_equals_are_cut_by_ascending_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0, 2.0]]).expand(500, -1)
    assert set(sample(logits, grid(500), 1.0, top_k=3)[0].tolist()) == {1, 2, 3}
    assert set(sample(logits, grid(500), 1.0, top_k=3, top_p=0.5)[0].tolist()) == {1, 2}


def test_top_p_keeps_at_least_one_and_grows_past_the_first_candidates() -> None:
    logits = torch.zeros(200, 5000)
    logits[100:, 17] = 30.0  # a row that one entry fills, beside one that needs half of all
    ids, model, sampling = sample(logits, grid(200), 1.0, top_p=0.5)
    assert set(ids[100:].tolist()) == {17}
    assert ids[:100].max() < 2500
    torch.testing.assert_close(model[0] - sampling[0], torch.tensor(0.5).log(), atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_each_other() -> None:
    logits = torch.randn(6, 800, generator=torch.Generator().manual_seed(1))
    numbers = grid(6)
    together = sample(logits, numbers, 0.9, top_p=0.9)
    for row in range(6):
        alone = sample(logits[row : row + 1], numbers[row : row + 1], 0.9, top_p=0.9)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(together, alone, strict=True))


def test_temperature_zero_takes_the_most_probable() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    ids, model, sampling = sample(logits, torch.tensor([0.99, 0.99], dtype=torch.float64), 0.0)
    assert ids.tolist() == [1, 0]
    torch.testing.assert_close(model, logits.log_softmax(-1)[[0, 1], [1, 0]])
    assert sampling.tolist() == [0.0, 0.0]


def test_logits_that_are_not_finite_show_as_nan() -> None:
    for bad in (torch.nan, torch.inf):
        for temperature, top_p, top_k in ((1.0, 1.0, 0), (1.0, 0.9, 0), (1.0, 1.0, 1), (0.0, 1.0, 0)):
            ids, model, _ = sample(torch.tensor([[0.0, bad], [0.0, 1.0]]), grid(2), temperature, top_p, top_k)
            assert model.isnan().tolist() == [True, False]
            assert ids.max() < 2
