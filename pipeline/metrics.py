"""What a step came to, as numbers that are the same whenever the step is run again.

Sums are kept per process as plain floats, merged in rank order, and divided once at the end.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from statistics import fmean
from typing import Any

from torch import Tensor

from pipeline.targets import ANCHOR
from pipeline.types import Rollout, StepOutput, TrainingBatch

LEAST_SEEN = 8  # tokens, before a teacher is judged by them
LOOKED_AT = 10_000  # characters of an answer, its last, for repetition
LOOPS = 10  # times that an answer which repeats itself can be made smaller; prose can about 2 times, code and tables 5


@dataclass
class Sums:
    """Running sums of one process over one step: `total[name]` and how many values it came from; and maxima."""

    total: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    count: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    most: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        """Adds the finite entries of `values`: NaN marks what was not measured."""
        finite = values[values.isfinite()].double()
        self.total[name] += float(finite.sum())
        self.count[name] += finite.numel()

    def see(self, name: str, values: Tensor) -> None:
        """Remembers the largest finite entry."""
        finite = values[values.isfinite()]
        if finite.numel():
            self.most[name] = max(self.most.get(name, float("-inf")), float(finite.max()))

    def mean(self, name: str) -> float:
        return self.total[name] / self.count[name]


def collect(sums: Sums, batch: TrainingBatch, output: StepOutput) -> None:
    """Adds one forward's per-token values: KL per teacher and per domain, entropy, overlap, mass in support, -log p of
    what is imitated by whose it is, the importance ratio of graded tokens per teacher."""
    sums.total["loss"] += float(output.loss.detach())
    sums.total["nll"] += float(output.nll)
    sums.add("entropy", output.entropy)
    sums.add("logprob", output.label_logprobs)
    collect_mismatch(sums, output.label_logprobs - batch.sampling_logprobs)
    for index, part in enumerate(batch.parts):
        imitated = (batch.part == index) & (batch.nll_weights != 0)
        sums.add(f"nll/{part}", -output.label_logprobs[imitated])
    for index, domain in enumerate(batch.domains):
        sums.add(f"pull/{domain}", output.pull[batch.group == index])
    for asked, target in zip(batch.targets, output.targets, strict=True):
        if asked.divergence.kind == "grade":
            sums.add(f"ratio/{target.teacher}", target.divergence)
            continue
        sums.add(f"kl/teacher/{target.teacher}", target.divergence)
        if target.teacher == ANCHOR:  # not what a domain has left to learn
            continue
        sums.add(f"sharpness/{target.teacher}", target.sharpness)
        sums.add(f"sharpness squared/{target.teacher}", target.sharpness.double().square())
        sums.add(f"best/{target.teacher}", target.best.double())
        sums.add(f"best squared/{target.teacher}", target.best.double().square())
        sums.add("overlap", target.overlap)
        sums.add("mass_in_support", target.mass)
        group = batch.group[target.positions]
        for index in sorted(set(group.tolist())):
            sums.add(f"kl/domain/{batch.domains[index]}", target.divergence[group == index])


def collect_mismatch(sums: Sums, difference: Tensor) -> None:
    """difference (N,): log π − log μ of tokens that μ drew; NaN where the student did not write one. The estimate of
    KL(μ ‖ π) is the mean of exp(d) − 1 − d, which is never negative (Schulman, "Approximating KL divergence", k3)."""
    sums.add("mismatch", difference.abs())
    sums.see("mismatch", difference.abs())
    sums.add("mismatch kl", difference.double().expm1() - difference.double())


def describe_mismatch(sums: Sums) -> dict[str, Any]:
    """mismatch: between what tokens were drawn with, elsewhere, and what the student gives them now: the mean and the
    largest |difference| of their log-probabilities, and the KL estimated from them, in nats. Where it writes a step
    ahead that includes what it has learned since."""
    if not sums.count.get("mismatch"):
        return {}
    kl = sums.mean("mismatch kl")
    return {"mismatch": {"mean": sums.mean("mismatch"), "largest": sums.most["mismatch"], "kl": kl}}


def merge(parts: Sequence[Sums]) -> Sums:
    """The sums of all processes, in rank order."""
    whole = Sums()
    for part in parts:
        for name, value in part.total.items():
            whole.total[name] += value
        for name, value in part.count.items():
            whole.count[name] += value
        for name, value in part.most.items():
            whole.most[name] = max(whole.most.get(name, value), value)
    return whole


def divergence_by(sums: Sums, what: str) -> dict[str, float]:
    """Mean KL per token by `what`: teacher, the anchor among them, or domain, without it."""
    return _means(sums, f"kl/{what}/")


def _means(sums: Sums, prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): sums.mean(name)
        for name in sorted(sums.count)
        if name.startswith(prefix) and sums.count[name]
    }


def describe(sums: Sums) -> dict[str, Any]:
    """The part of a metrics line that comes from the forwards.

    nll: the supervised part of the loss. nll_per_token: of each text that is imitated, by its writer, before weights.
    ratio: of graded tokens, by teacher: 1 on policy; lower where ratios outside the interval count nothing.
    """
    line: dict[str, Any] = {"loss": sums.total["loss"], "nll": sums.total["nll"]}
    line["kl"] = {"teacher": divergence_by(sums, "teacher"), "domain": divergence_by(sums, "domain")}
    for name, prefix in (("nll_per_token", "nll/"), ("ratio", "ratio/")):
        if means := _means(sums, prefix):
            line[name] = means
    for name in ("entropy", "logprob", "overlap", "mass_in_support"):
        if sums.count.get(name):
            line[name] = sums.mean(name)
    return line | _gradient_share(sums) | _sharpness(sums)


def _gradient_share(sums: Sums) -> dict[str, Any]:
    """gradient_share: by domain, of the summed norms of the gradients that reach the student's last hidden states."""
    prefix = "pull/"
    pulls = {name.removeprefix(prefix): sums.total[name] for name in sorted(sums.count) if name.startswith(prefix)}
    whole = sum(pulls.values())
    return {"gradient_share": {domain: pull / whole for domain, pull in pulls.items()}} if whole > 0 else {}


def _sharpness(sums: Sums) -> dict[str, Any]:
    """sharpness: by teacher, how far its most probable token is above an equal share of the vocabulary, in nats, how
    much that differs from token to token, and whether that token is ever another one; of those that were seen at
    LEAST_SEEN tokens."""
    means, squares = _means(sums, "sharpness/"), _means(sums, "sharpness squared/")
    best, best_squares = _means(sums, "best/"), _means(sums, "best squared/")
    found = {
        teacher: {
            "mean": mean,
            "deviation": sqrt(max(0.0, squares[teacher] - mean**2)),
            "one_token": best_squares[teacher] == best[teacher] ** 2,  # exact: sums of whole numbers below 2^53
        }
        for teacher, mean in means.items()
        if sums.count[f"sharpness/{teacher}"] >= LEAST_SEEN
    }
    return {"sharpness": found} if found else {}


def describe_coverage(parts: Sequence[Mapping[str, tuple[int, int]]]) -> dict[str, Any]:
    """coverage: the share of the trained tokens that a teacher scored, where that is not all of them: one with another
    tokenizer, or one that scores thinking alone."""
    sums: dict[str, tuple[int, int]] = {}
    for part in parts:
        for teacher, (some, whole) in part.items():
            before = sums.get(teacher, (0, 0))
            sums[teacher] = (before[0] + some, before[1] + whole)
    shares = {teacher: some / whole for teacher, (some, whole) in sorted(sums.items()) if some < whole}
    return {"coverage": shares} if shares else {}


def describe_judged(parts: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What judgments came to (`judgments.Judged.counts` of every process), by teacher; empty where there were none.

    grade: the mean score. advantage: the mean of its absolute value. alone: graded answers without another to compare
    with. rewrites: how many became rows ("used"), and why others did not.
    """
    sums: dict[str, float] = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            sums[name] += value
    line: dict[str, Any] = {}
    for name in sorted(sums):
        what, teacher, *rest = name.split("/")
        if what in ("grade", "advantage"):
            line.setdefault(what, {})[teacher] = sums[name] / sums[f"{what}s/{teacher}"]
        elif what == "alone":
            line.setdefault(what, {})[teacher] = int(sums[name])
        elif what == "rewrites":
            line.setdefault(what, {}).setdefault(teacher, {})[rest[0]] = int(sums[name])
    return line


def describe_rollouts(rollouts: Sequence[Rollout], scores: Sequence[float | None]) -> dict[str, Any]:
    """Tokens, lengths, truncation, and the checker's mean score per domain, over all of a step's rollouts. scores: of
    each, None where it was not judged."""
    lengths = [len(rollout.completion_ids) for rollout in rollouts]
    by_domain: dict[str, list[float]] = defaultdict(list)
    for rollout, score in zip(rollouts, scores, strict=True):
        if score is not None:
            by_domain[rollout.prompt.domain].append(score)
    return {
        "rows": len(rollouts),
        "prompt_tokens": sum(len(rollout.prompt_ids) for rollout in rollouts),
        "tokens": sum(sum(rollout.trainable) for rollout in rollouts),
        "length": {"mean": fmean(lengths), "max": max(lengths)},
        "truncated": fmean(rollout.finish_reason == "length" for rollout in rollouts),
        "score": {domain: fmean(values) for domain, values in sorted(by_domain.items())},
        "domain_rows": dict(sorted(Counter(rollout.prompt.domain for rollout in rollouts).items())),
    }


def shrinks(text: str) -> float:
    """How many times smaller zlib makes the end of a text, without the header and checksum that it puts around it: a
    letter that is said again and again is seen from 60 on, a sentence of 60 letters after 12 times."""
    end = text[-LOOKED_AT:].encode("utf-8", errors="replace")
    return len(end) / len(zlib.compress(end, wbits=-zlib.MAX_WBITS)) if end else 0.0


def describe_repetition(texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """repetition: by domain, the share of its answers that repeat themselves. texts: (domain, answer)."""
    found: dict[str, list[bool]] = {}
    for domain, text in texts:
        found.setdefault(domain, []).append(shrinks(text) > LOOPS)
    return {"repetition": {domain: fmean(values) for domain, values in sorted(found.items())}}


def all_finite(value: Any) -> bool:
    """Whether every number in a nested metrics value is finite."""
    if isinstance(value, Mapping):
        return all(all_finite(entry) for entry in value.values())
    return isfinite(value) if isinstance(value, float) else True
