"""From what guards find to what is done: a state that is carried from step to step, and through checkpoints.

Lowering a rate and balancing change the steps that follow; rolling back and stopping end the step by an Alarm, which
the loop catches (`trainer.train`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.errors import RunError
from pipeline.guards import DETECTORS, WINDOW, Finding, Line, findings, pulls, seen
from pipeline.recipe_guards import Action, Guards

QUIET = 8  # steps after which a guard speaks of the same subject again: its two sides have changed by then
HARDEST = 100.0  # a domain's weight is at most so many times another's


@dataclass(frozen=True)
class Raised:
    """A finding, and what is done about it."""

    finding: Finding
    action: Action

    def to_json(self) -> dict[str, Any]:
        """For a line of metrics."""
        found = self.finding
        return {"name": found.name, "subject": found.subject, "value": found.value, "threshold": found.threshold,
                "action": self.action}  # fmt: skip


class Alarm(RunError):
    """A step after which a run must not simply go on."""

    def __init__(self, step: int, raised: Raised) -> None:
        self.step, self.raised = step, raised
        name = raised.finding.name
        super().__init__(
            f"step {step}: {raised.finding.said}; mend that and go on with --resume, or let it pass with "
            f"guards.{name}=warn --resume"
        )


@dataclass(frozen=True)
class Watch:
    """window: the last lines, what guards read of them. spoke: by guard and subject, the step it last did.

    rate: what the schedule's learning rate is multiplied by. balance: by domain, what its rows' weights are.
    rollbacks: so far; rolled_to: the step of the last one, -1 before there was any.
    """

    window: tuple[Line, ...] = ()
    spoke: Mapping[str, int] = field(default_factory=dict)
    rate: float = 1.0
    balance: Mapping[str, float] = field(default_factory=dict)
    rollbacks: int = 0
    rolled_to: int = -1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Watch:
        return Watch(**{**value, "window": tuple(value["window"])}) if value else Watch()


def look(settings: Guards, watch: Watch, line: Line) -> tuple[Watch, tuple[Raised, ...]]:
    """What the guards say after a step, and the state for the next one."""
    watch = replace(watch, window=(*watch.window, seen(line))[-WINDOW:])
    step = line["step"]
    raised = tuple(
        Raised(finding, guard.action)
        for name, guard in settings.on().items()
        if name in DETECTORS
        for finding in findings(name, watch.window, guard.threshold)
        if step - watch.spoke.get(_key(finding), -QUIET) >= QUIET
    )
    actions = {each.action for each in raised}
    return replace(
        watch,
        spoke={**watch.spoke, **{_key(each.finding): step for each in raised}},
        rate=watch.rate * settings.rate_factor if "lower_rate" in actions else watch.rate,
        balance=balanced(watch) if "balance" in actions else watch.balance,
    ), raised


def _key(finding: Finding) -> str:
    return f"{finding.name}/{finding.subject or ''}"


def balanced(watch: Watch) -> dict[str, float]:
    """Weights by domain, of mean 1, after which a row of each pulls as hard as one of any other."""
    found = pulls(watch.window)
    if not found:
        return dict(watch.balance)
    line = watch.window[-1]
    per_row = {d: line["gradient_share"][d] / line["domain_rows"][d] for d in found if line["gradient_share"].get(d)}
    wanted = {domain: watch.balance.get(domain, 1.0) / pull for domain, pull in per_row.items()}
    least = min(wanted.values(), default=1.0)
    bounded = {domain: min(weight, HARDEST * least) for domain, weight in wanted.items()}
    mean = sum(bounded.values()) / max(1, len(bounded))
    return dict(watch.balance) | {domain: weight / mean for domain, weight in bounded.items()}


def first_alarm(step: int, raised: Sequence[Raised]) -> Alarm | None:
    """What ends the step, if something does: stopping before rolling back."""
    for action in ("stop", "roll_back"):
        for each in raised:
            if each.action == action:
                return Alarm(step, each)
    return None


def rolled_back(settings: Guards, watch: Watch, kept: Watch, step: int) -> Watch:
    """The state to go on with from a checkpoint of `step`, made from the checkpoint's own (`kept`) and the present one.

    Each roll-back lowers the rate further than the one before. It depends on `watch` alone how many there were, so
    that one which was cut short, and is done again, counts once.
    """
    return replace(
        kept,
        rate=min(watch.rate, kept.rate) * settings.rate_factor,
        balance=watch.balance,
        rollbacks=watch.rollbacks + 1,
        rolled_to=step,
    )
