"""What a recipe may say about its losses: what each kind of answer trains, and how strongly. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from pipeline.recipe_values import Fraction, Positive, named
from pipeline.types import Divergence, Losses
from teachers.config import Section


class DenseDivergence(Section):
    """Over the whole vocabulary."""

    clip: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="nats; a position whose value is above it pulls no more (OPSD)"
    )


class ReverseKL(DenseDivergence):
    kind: Literal["reverse_kl"] = "reverse_kl"


class ForwardKL(DenseDivergence):
    kind: Literal["forward_kl"]


class JSD(DenseDivergence):
    kind: Literal["jsd"]
    beta: float = Field(0.5, gt=0, lt=1, description="0 and 1 are identically zero: say reverse_kl or forward_kl")


class SkewKL(DenseDivergence):
    kind: Literal["skew_kl", "skew_reverse_kl"]
    alpha: float = Field(0.1, gt=0, lt=1)


class TopKKL(Section):
    kind: Literal["top_k_reverse_kl", "top_k_forward_kl"]
    k: Positive = 32


class TopKRenormalised(TopKKL):
    tail: Literal[False] = False
    mass_penalty: float = Field(0.0, ge=0, description="weight of -log(the student's mass on the kept entries)")


class TopKWithTail(TopKKL):
    tail: Literal[True]


class PolicyGradient(Section):
    kind: Literal["policy_gradient"]
    ratio_low: float = Field(0.0, ge=0)
    ratio_high: float = Field(2.0, gt=1)
    advantage_clip: float = Field(5.0, gt=0)


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

    ratio_low: float = Field(0.0, ge=0)
    ratio_high: float = Field(2.0, gt=1)
    advantage_clip: float = Field(5.0, gt=0)


class Grades(Section):
    """A teacher's score of an answer, less a baseline, as the advantage of all its tokens."""

    weight: float = Field(1.0, ge=0)
    baseline: Literal["group", "running"] = Field(
        "group", description="the mean of the prompt's other samples; or the running mean of the domain"
    )
    ratio_low: float = Field(0.0, ge=0)
    ratio_high: float = Field(2.0, gt=1)


class Rewrites(Section):
    """A teacher's correction as a further supervised row, from where it begins to differ."""

    weight: float = Field(1.0, ge=0)
    least_kept: Fraction = Field(0.0, description="of the student's text; a rewrite that keeps less is left out")


class Objective(Section):
    """What each kind of answer trains: distributions, top-k, sampled tokens, grades, rewrites."""

    divergence: DivergenceChoice = ReverseKL()
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
    chunk_megabytes: Positive = Field(64, description="logits held at once; lower it when memory runs out")

    def as_divergence(self) -> Divergence:
        return Divergence(**self.divergence.model_dump())

    def losses(self) -> Losses:
        """What each kind of distribution is taught with."""
        sampled = Divergence("policy_gradient", **self.sampled.model_dump())
        return Losses(self.as_divergence(), Divergence(**self.top_k.model_dump()), sampled)
