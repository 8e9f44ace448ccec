"""What a recipe may say about its losses: what each kind of answer trains, and how strongly. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from pipeline.recipe_values import Fraction, Positive, named
from pipeline.types import Divergence, Losses
from teachers.config import Section, example

# Megabytes of logits. A CPU is as quick with few rows of them; a GPU wants hundreds in a product.
CHUNK, CHUNK_GPU = 64, 1024

RATIO = "the student over what sampled the token; a token with a ratio outside the two trains nothing"


class DenseDivergence(Section):
    """Over the whole vocabulary."""

    clip: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="nats; a position whose value is above it pulls no more (OPSD)"
    )


class ReverseKL(DenseDivergence):
    """KL(S‖T): the student keeps to what the teacher finds likely."""

    model_config = example("reverse_kl")

    kind: Literal["reverse_kl"] = "reverse_kl"


class ForwardKL(DenseDivergence):
    """KL(T‖S): the student has to cover all that the teacher would write."""

    model_config = example("forward_kl")

    kind: Literal["forward_kl"]


class JSD(DenseDivergence):
    """Between the two: β KL(T‖M) + (1−β) KL(S‖M), M = βT + (1−β)S."""

    model_config = example("{kind: jsd, beta: 0.5}")

    kind: Literal["jsd"]
    beta: float = Field(0.5, gt=0, lt=1, description="0 and 1 are identically zero: say reverse_kl or forward_kl")


class SkewKL(DenseDivergence):
    """Forward or reverse KL to a mixture, which stays finite."""

    model_config = example("{kind: skew_kl, alpha: 0.1}")

    kind: Literal["skew_kl", "skew_reverse_kl"]
    alpha: float = Field(0.1, gt=0, lt=1, description="the share of T in the mixture; with skew_reverse_kl, of S")


class TopKKL(Section):
    kind: Literal["top_k_reverse_kl", "top_k_forward_kl"]
    k: Positive = Field(32, description="of the teacher's most probable entries")


class TopKRenormalised(TopKKL):
    """Over the teacher's k most probable entries, both sides renormalised over them."""

    model_config = example("{kind: top_k_forward_kl, k: 32, mass_penalty: 0.1}")

    tail: Literal[False] = Field(False, description="true: a bucket for the rest")
    mass_penalty: float = Field(0.0, ge=0, description="weight of -log(the student's mass on the kept entries)")


class TopKWithTail(TopKKL):
    """Over the teacher's k most probable entries, and one bucket for all the rest."""

    model_config = example("{kind: top_k_reverse_kl, k: 32, tail: true}")

    tail: Literal[True] = Field(description="the bucket for the rest")


class PolicyGradient(Section):
    """At the sampled token alone, with log T − log S as its advantage."""

    model_config = example("{kind: policy_gradient, advantage_clip: 5.0}")

    kind: Literal["policy_gradient"]
    ratio_low: float = Field(0.0, ge=0, description=RATIO)
    ratio_high: float = Field(2.0, gt=1, description=RATIO)
    advantage_clip: float = Field(5.0, gt=0, description="nats; log T - log S is cut to it, in both directions")


def _divergence_tag(value: Any) -> str:
    if isinstance(value, Section):
        return type(value).__name__
    if not isinstance(value, dict):
        return "unknown"
    kind = value.get("kind", "reverse_kl")
    if kind in ("top_k_reverse_kl", "top_k_forward_kl"):
        return "TopKWithTail" if value.get("tail") is True else "TopKRenormalised"
    names = {
        "reverse_kl": "ReverseKL",
        "forward_kl": "ForwardKL",
        "jsd": "JSD",
        "skew_kl": "SkewKL",
        "skew_reverse_kl": "SkewKL",
        "policy_gradient": "PolicyGradient",
    }
    return names.get(kind, "unknown") if isinstance(kind, str) else "unknown"


DivergenceChoice = Annotated[
    Annotated[ReverseKL, Tag("ReverseKL")]
    | Annotated[ForwardKL, Tag("ForwardKL")]
    | Annotated[JSD, Tag("JSD")]
    | Annotated[SkewKL, Tag("SkewKL")]
    | Annotated[TopKRenormalised, Tag("TopKRenormalised")]
    | Annotated[TopKWithTail, Tag("TopKWithTail")]
    | Annotated[PolicyGradient, Tag("PolicyGradient")],
    Discriminator(_divergence_tag),
    BeforeValidator(named),
]


Average = Annotated[
    Literal["trajectory", "token"],
    Field(description="token lets long answers dominate; trajectory gives each answer the same weight"),
]


TopKChoice = Annotated[
    Annotated[TopKRenormalised, Tag("TopKRenormalised")] | Annotated[TopKWithTail, Tag("TopKWithTail")],
    Discriminator(_divergence_tag),
    BeforeValidator(named),
]


class SampledToken(Section):
    """Policy gradient on the log-probability of the token that the student sampled."""

    model_config = example("{ratio_low: 0.5, ratio_high: 2.0}")

    ratio_low: float = Field(0.0, ge=0, description=RATIO)
    ratio_high: float = Field(2.0, gt=1, description=RATIO)
    advantage_clip: float = Field(5.0, gt=0, description="nats; log T - log S is cut to it, in both directions")


class Grades(Section):
    """A teacher's score of an answer, less a baseline, as the advantage of all its tokens."""

    model_config = example("{weight: 0.3, baseline: group}")

    weight: float = Field(1.0, ge=0, description="of this loss; 0: none")
    baseline: Literal["group", "running"] = Field(
        "group", description="the mean of the prompt's other samples; or the running mean of the domain"
    )
    ratio_low: float = Field(0.0, ge=0, description=RATIO)
    ratio_high: float = Field(2.0, gt=1, description=RATIO)


class Rewrites(Section):
    """A teacher's correction as a further supervised row, from where it begins to differ."""

    model_config = example("{weight: 0.3, least_kept: 0.2}")

    weight: float = Field(1.0, ge=0, description="of this loss; 0: none")
    least_kept: Fraction = Field(0.0, description="of the student's text; a rewrite that keeps less is left out")


class Objective(Section):
    """What each kind of answer trains: distributions, top-k, sampled tokens, grades, rewrites."""

    model_config = example("{divergence: forward_kl, average: trajectory, anchor: 0.05}")

    divergence: DivergenceChoice = Field(
        ReverseKL(), description="for teachers that give their whole distribution; the kind alone is enough"
    )
    top_k: TopKChoice = Field(
        TopKWithTail(kind="top_k_reverse_kl", tail=True),
        description="for teachers that give their most probable entries",
    )
    sampled: SampledToken = SampledToken()
    grades: Grades = Grades()
    rewrites: Rewrites = Rewrites()
    average: Average = "trajectory"
    anchor: float = Field(0.0, ge=0, description="weight of reverse KL to the initial student")
    reference: float = Field(0.0, ge=0, description="weight of supervised loss on the prompts' references")
    chunk_megabytes: Positive | None = Field(
        None,
        description=f"logits held at once; {CHUNK} on a CPU, {CHUNK_GPU} on a GPU; lower it when memory runs out",
    )

    def as_divergence(self) -> Divergence:
        return Divergence(**self.divergence.model_dump())

    def losses(self) -> Losses:
        """What each kind of distribution is taught with."""
        sampled = Divergence("policy_gradient", **self.sampled.model_dump())
        return Losses(self.as_divergence(), Divergence(**self.top_k.model_dump()), sampled)


def chunk_bytes(objective: Objective | None, *, gpu: bool) -> int:
    """Of logits held at once. objective: None for supervised training."""
    given = None if objective is None else objective.chunk_megabytes
    return (given or (CHUNK_GPU if gpu else CHUNK)) << 20
