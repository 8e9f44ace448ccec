"""What a recipe may say about guards: from which value on each of them acts, and how. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from teachers.config import Section, example

Action = Literal["warn", "lower_rate", "balance", "roll_back", "stop"]


class Guard(Section):
    """One guard."""

    model_config = example("{threshold: 0, action: stop}")

    threshold: float = Field(ge=0, allow_inf_nan=False, description="the value that is still fine")
    action: Action = Field(description="what is done beyond it")


def _guard(threshold: float, action: Action, what: str) -> Any:
    return Field(Guard(threshold=threshold, action=action), description=f"{what}; off: none")


# A number that is not finite cannot train, whatever its rate or weight; refusals are asked for after training.
POSSIBLE: Mapping[str, tuple[Action, ...]] = {"not_finite": ("roll_back", "stop"), "refusals": ("warn",)}


class Guards(Section):
    """What is watched in a run. `NAME: off` turns a guard off; `NAME: warn` is its action, `NAME: 3` its threshold.

    The description of each guard says what its threshold is held against.
    """

    model_config = example("{length: 3, kl: warn, overlap: off}")

    not_finite: Guard | None = _guard(0, "roll_back", "numbers in a step that are not finite")
    repetition: Guard | None = _guard(0.1, "roll_back", "growth of the share of answers that repeat themselves")
    length: Guard | None = _guard(2, "warn", "growth of the mean length, times")
    truncation: Guard | None = _guard(0.3, "warn", "growth of the share of answers that are cut")
    entropy: Guard | None = _guard(10, "warn", "fall of the student's entropy, times")
    overlap: Guard | None = _guard(0.15, "warn", "fall of the share of top entries in common with the teachers")
    kl: Guard | None = _guard(3, "warn", "growth of a domain's KL, times")
    score: Guard | None = _guard(0.3, "warn", "fall of a domain's score")
    gradient: Guard | None = _guard(10, "balance", "a domain's gradient per row over that of the others, times")
    mass: Guard | None = _guard(0.5, "warn", "share of the student's mass outside of the teachers' top k")
    uniform: Guard | None = _guard(0.05, "stop", "nats; a teacher whose best tokens are no more above equal ones")
    stale: Guard | None = _guard(1e-6, "warn", "nats, or of grades; a teacher whose answers are the same to everything")
    refusals: Guard | None = _guard(0.1, "warn", "share of unsafe requests refused by the base and not by the student")
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="lowered rates are multiplied by it")
    rollbacks: int = Field(3, ge=0, description="of a run at most; the next one stops it")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """Short forms, and what is left out of a guard, filled in from its default."""
        if not isinstance(value, Mapping):
            return value
        return {name: _whole(cls.model_fields[name].default, given) if name in cls.model_fields else given
                for name, given in value.items()}  # fmt: skip

    @model_validator(mode="after")
    def _can_be_done(self) -> Guards:
        for name, possible in POSSIBLE.items():
            guard: Guard | None = getattr(self, name)
            if guard is not None and guard.action not in possible:
                raise ValueError(f"{name}: {guard.action} is no remedy for it; give {' or '.join(possible)}, or off")
        return self

    def on(self) -> dict[str, Guard]:
        """Those that are not off, by name."""
        return {name: guard for name in NAMES if (guard := getattr(self, name)) is not None}

    @property
    def roll_back(self) -> bool:
        """Whether some guard may roll back."""
        return self.rollbacks > 0 and any(guard.action == "roll_back" for guard in self.on().values())


NAMES = tuple(name for name, field in Guards.model_fields.items() if isinstance(field.default, Guard))


def _whole(default: Any, given: Any) -> Any:
    if not isinstance(default, Guard):
        return given
    if given is False or given == "off":
        return None
    filled = default.model_dump()
    if isinstance(given, str):
        return filled | {"action": given}
    if isinstance(given, int | float):
        return filled | {"threshold": given}
    return {**filled, **given} if isinstance(given, Mapping) else given
