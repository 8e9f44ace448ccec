"""Intervals for scores in [0, 1]: how far a table's numbers may be chance. All at 95%, all deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb, sqrt
from typing import Any

import numpy as np

Z = 1.959964  # of the normal distribution, two-sided 95%
RESAMPLES = 2_000
PASS_AT = (1, 10, 100)
Array = np.ndarray[Any, np.dtype[np.float64]]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval for a proportion, n > 0 (Wilson 1927); it stays inside [0, 1] and holds at 0 and 1."""
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """For the mean of n > 0 scores in [0, 1]: Wilson's where all are 0 or 1, else the bootstrap's percentiles."""
    if all(score in (0.0, 1.0) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return percentiles(resampled_means(np.array([scores]), stream=0)[:, 0])


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """(mean of first − second, low, high) for scores of the same n > 0 prompts, by the paired bootstrap."""
    difference = np.array([first], dtype=np.float64) - np.array([second], dtype=np.float64)
    return float(difference.mean()), *percentiles(resampled_means(difference, stream=0)[:, 0])


def ratio_of_means(
    above: Mapping[str, Sequence[float]], below: Mapping[str, Sequence[float]]
) -> tuple[float, float, float] | None:
    """(mean over domains of `above` / the same of `below`, low, high); each domain's prompts are paired and resampled
    on their own. None where `below` has no positive mean."""
    names = list(below)
    if not any(any(scores) for scores in below.values()):
        return None
    means = np.mean([[np.mean(above[name]), np.mean(below[name])] for name in names], axis=0)
    drawn = np.mean(
        [resampled_means(np.array([above[name], below[name]]), stream=i) for i, name in enumerate(names)], axis=0
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[:, 0] / drawn[:, 1]
    return float(means[0] / means[1]), *percentiles(ratios[np.isfinite(ratios)])


def resampled_means(scores: Array, *, stream: int) -> Array:
    """(models, n) scores of the same prompts -> (RESAMPLES, models) means over prompts drawn with replacement.

    `stream`: another number draws other prompts.
    """
    generator = np.random.Generator(np.random.Philox(key=stream))
    n = scores.shape[1]
    # How often each prompt is drawn is multinomial; the counts take the place of n indices per resample.
    counts = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means: Array = counts @ scores.T / n
    return means


def percentiles(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> tuple[float, float, float]:
    """(pass@k, low, high) from (samples, passed) of each of n > 0 problems.

    Per problem the unbiased estimate 1 − C(samples − passed, k) / C(samples, k) (2107.03374, eq. 1), the chance that of
    k of its samples at least one passes; the interval is over problems, the samples are taken as they are.
    Raises ValueError: k < 1, or a problem with fewer samples than k.
    """
    if not 1 <= k <= min(samples for samples, _ in counts):
        raise ValueError(f"pass@{k} needs at least {k} samples of each problem, and k at least 1")
    values = [1 - comb(samples - passed, k) / comb(samples, k) for samples, passed in counts]
    return float(np.mean(values)), *mean_interval(values)


def pass_rates(counts: Sequence[tuple[int, int]], ks: Sequence[int] = PASS_AT) -> dict[str, dict[str, float]]:
    """{"pass@1": {"value", "low", "high"}, …} from (samples, passed) of each problem, as `pass_at_k`: for each of `ks`,
    and for all samples together, where every problem has so many. Problems without samples are left out."""
    judged = [count for count in counts if count[0] > 0]
    most = min((samples for samples, _ in judged), default=0)
    wanted = sorted({k for k in (*ks, most) if 1 <= k <= most})
    return {f"pass@{k}": dict(zip(("value", "low", "high"), pass_at_k(judged, k), strict=True)) for k in wanted}
