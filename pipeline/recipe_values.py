"""What a recipe's fields are made of: numbers within bounds, names, lists, and texts that stand for sections."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="letters, digits, - and _")]


def text_or(other: str) -> Discriminator:
    """Chooses between a text and something else by type, so that a mistake is reported once and not per member."""
    return Discriminator(lambda value: "text" if isinstance(value, str) else other)


# A recipe is read strictly, and behind a validator of ours a list is no longer JSON's, which may become a tuple.
AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
TextList = Annotated[tuple[str, ...], Field(min_length=1), AsTuple]
TextOrList = Annotated[Annotated[str, Tag("text")] | Annotated[TextList, Tag("list")], text_or("list")]


def named(value: Any) -> Any:
    """`tune: lora` is short for `tune: {kind: lora}`."""
    return {"kind": value} if isinstance(value, str) else value
