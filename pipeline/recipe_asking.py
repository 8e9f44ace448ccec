"""What a recipe may say about its teachers together: who is asked about which prompt, how they are asked, and what may
leave this machine. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag

from pipeline.recipe_values import AsTuple, Fraction, TextList, Weight, named, text_or
from teachers.config import Budget, Price, Section, example

# ---- who is asked ----


Shares = Annotated[dict[str, Weight], Field(min_length=1)]
TeacherOrShares = Annotated[Annotated[str, Tag("text")] | Annotated[Shares, Tag("shares")], text_or("shares")]


class ByDomain(Section):
    """Each prompt goes to its domain's teacher, or is shared between several by fixed weights."""

    model_config = example("{table: {math: {math: 3, code: 1}}, default: code}")

    kind: Literal["domain"] = "domain"
    table: dict[str, TeacherOrShares] = Field(
        default_factory=dict, description="domain: teacher, or domain: {teacher: share}; default: of the same name"
    )
    default: str | None = Field(None, description="the teacher of domains that the table leaves out")


class Mixture(Section):
    """Every prompt is shared between the same teachers by fixed weights."""

    model_config = example("{kind: mixture, shares: {math: 3, code: 1}}")

    kind: Literal["mixture"]
    shares: Shares = Field(description="teacher: share; they are scaled to sum to one")


class AllTeachers(Section):
    """Every prompt goes to every teacher, in equal shares."""

    model_config = example("all")

    kind: Literal["all"]


class Cascade(Section):
    """The cheapest teacher is asked first, and the next one only where it fails, is unsure or disagrees.

    The last one that answers teaches alone.
    """

    model_config = example("{kind: cascade, order: [math, code], unsure: [0.25, 0.75]}")

    kind: Literal["cascade"]
    order: TextList = Field(description="teachers, the cheapest first")
    unsure: Annotated[tuple[Fraction, Fraction], AsTuple] = Field(
        (0.25, 0.75), description="scores between these are unsure", examples=["[0.25, 0.75]"]
    )
    entropy: float | None = Field(
        None, gt=0, description="nats per token; a teacher whose distributions have more on average is unsure"
    )
    disagreement: float | None = Field(
        None, gt=0, description="nats per token of a teacher's surprise at the student's answer, from which to go on"
    )
    checker: bool = Field(True, description="go on where the prompt's checker contradicts the score or the rewrite")


def _routing(value: Any) -> Any:
    """`routing: all` is short for `routing: {kind: all}`, and a table alone is by domain."""
    return {"kind": "domain", **value} if isinstance(value, dict) else named(value)


Routing = Annotated[ByDomain | Mixture | AllTeachers | Cascade, Field(discriminator="kind"), BeforeValidator(_routing)]


# ---- the pool ----


class PoolSettings(Section):
    """How the teachers are asked together."""

    model_config = example("{staleness: 1, quorum: 0.8, budget: {dollars: 20}}")

    staleness: int = Field(
        0,
        ge=0,
        le=8,
        description="steps that are written ahead: 1 trains on the step before while teachers answer this one",
    )
    quorum: Fraction = Field(0.5, description="the share of a step's rows that some teacher must have answered")
    below_quorum: Literal["stop", "wait"] = Field("stop", description="wait: ask again, after a rest, for ever")
    budget: Budget | None = Field(None, description="for all teachers together")
    journal: Path | None = Field(None, description="a journal shared between runs; private answers never enter it")
    model_change: Literal["stop", "go_on"] = Field(
        "stop", description="where a server begins to return another model's name"
    )
    student_price: Price | None = Field(None, description="of the student, served: when it has paid its teachers back")


class Privacy(Section):
    """What may leave this machine."""

    model_config = example("{mode: sealed, allowed: ['10.0.0.5:8000']}")

    mode: Literal["open", "sealed"] = Field(
        "open", description="sealed: the run has no network but the allowed addresses, by the kernel"
    )
    allowed: tuple[str, ...] = Field((), description="host or host:port that private prompts may go to")
