"""What the files of a run directory hold, as far as a page reads it: every key may be missing, others may be there.

Whatever has another shape is left out of the page as a whole, a line or a file, and the page says so: so nothing else
in this package has to expect a list where a number stands.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, RootModel, ValidationError

Number = Annotated[float, Field(strict=True)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True)]
Numbers = list[Number | None] | None
Choices = list[list[tuple[Any, Finite]] | None] | None  # at each token: (text, probability) of the likeliest


class Metrics(BaseModel):
    step: Count = 0
    rows: Count = 0
    tokens: Count = 0
    loss: Number | None = None
    nll: Number | None = None
    kl: dict[str, dict[str, Number]] = {}
    failures: dict[str, dict[str, Count]] = {}


class Timings(BaseModel):
    step: Count = 0
    processes: Count = 0
    seconds: dict[str, Number] = {}
    peak_bytes: Count = 0


class Happened(BaseModel):
    step: Count = 0


class Taught(BaseModel):
    divergence: Numbers = None
    logprobs: Numbers = None
    top: Choices = None


class Judged(BaseModel):
    score: Finite | None = None
    rewrite: str | None = None
    rewrite_text: str | None = None


class Sample(BaseModel):
    step: Count = 0
    domain: str | None = None
    writer: str | None = None
    finish_reason: str | None = None
    score: Finite | None = None
    tokens: list[Any] | None = None
    logprobs: Numbers = None
    top: Choices = None
    segments: list[tuple[str, Count, Count]] | None = None
    teachers: dict[str, Taught] = {}
    judgments: dict[str, Judged] = {}


class GivenBy(BaseModel):
    gave: list[str] | None = None
    share: Finite | None = None


class GivenTo(BaseModel):
    teachers: dict[str, GivenBy] = {}


class Provenance(BaseModel):
    samples: list[GivenTo] | None = None


class Answered(BaseModel):
    prompt_id: str = ""
    score: Finite | None = None


class Passes(BaseModel):
    value: Finite


class Score(BaseModel):
    mean: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None
    scores: dict[str, Finite] = {}
    measures: dict[str, dict[str, Finite]] = {}
    passes: dict[str, Passes] = {}


class Scores(RootModel[dict[str, Score]]):
    """By domain."""


class Evaluation(BaseModel):
    tokens_trained: dict[str, Count] = {}


class Ledger(BaseModel):
    in_doubt: list[Any] = []


class Mark(BaseModel):
    private_sources: list[str] = []


class Anything(BaseModel):
    """Of which nothing is read but what is looked at first."""


def fits(value: Any, shape: type[BaseModel]) -> bool:
    """Whether a value that JSON gave is a mapping of that shape."""
    if not isinstance(value, dict):
        return False
    try:
        shape.model_validate(value)
    except ValidationError:
        return False
    return True
