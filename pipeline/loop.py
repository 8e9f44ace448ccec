"""What a step needs and what it changes: the two values that the loop is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.judgments import Baselines
from pipeline.lookout import Watch
from pipeline.mixing import MixState

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from pipeline.asking import Asking
    from pipeline.averaging import Averages
    from pipeline.display import Display
    from pipeline.ranks import World
    from pipeline.recipe import Data, Training
    from pipeline.recipe_guards import Guards
    from pipeline.shares import Share
    from pipeline.student import Student
    from pipeline.types import Prompt
    from pipeline.writers import Writer


def _nowhere(line: Mapping[str, Any]) -> None:
    """For runs without a tracker."""


@dataclass(frozen=True, eq=False)
class Loop:
    """Everything a step needs that does not change from step to step.

    model: the student as `accelerator` wrapped it; `student` is the same object without the wrapping.
    write: who writes the completions. share: to which prompts in this process. writing: the models that do, which have
    to be whole meanwhile.
    averages: the student's moving averages, where a teacher needs one.
    asking: who scores them, or None for supervised training.
    staleness: how many steps the student writes ahead of what it trains on. block: how many steps of completions are
        written together, where they do not depend on the student.
    reference: the weight of supervised rows on the prompts' references, beside the on-policy ones.
    token_limit: completion tokens after which training ends, or None.
    log: is given every line of metrics, once it is on disk: the trackers.
    elsewhere: the completions are drawn by other code than trains on them, and what that differs by is measured.
    """

    data: Data
    training: Training
    seed: int
    prompts: Mapping[str, Sequence[Prompt]]
    student: Student
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    world: World
    write: Writer
    share: Share
    writing: tuple[torch.nn.Module, ...]
    averages: Averages
    asking: Asking | None
    staleness: int
    block: int
    average: Any
    reference: float
    temperature: float
    token_limit: int | None
    stop: tuple[str, ...]
    guards: Guards
    folder: Path
    display: Display
    log: Callable[[Mapping[str, Any]], None] = _nowhere
    elsewhere: bool = False

    def journal(self, attempt: int) -> Path:
        """Where rollouts are recorded after so many roll-backs: none is taken for one of another attempt."""
        folder = self.folder / "journal"
        return folder / f"attempt-{attempt}" if attempt else folder

    @cached_property
    def prompt_of(self) -> dict[str, Prompt]:
        """Reads all there is: only for steps that had been drawn when a run was stopped."""
        return {prompt.prompt_id: prompt for prompts in self.prompts.values() for prompt in prompts}


@dataclass(frozen=True)
class State:
    """What changes from step to step.

    step: updates made. tokens: completion tokens trained on so far. baselines: of grades. ahead: the prompts of the
    steps after `step` that are drawn already, by id; their rollouts are recorded.
    watch: what the guards know, and have changed.
    """

    step: int
    mix: MixState
    tokens: int = 0
    baselines: Baselines = field(default_factory=Baselines)
    ahead: tuple[tuple[str, ...], ...] = ()
    watch: Watch = field(default_factory=Watch)

    @property
    def attempt(self) -> int:
        """How many roll-backs there were."""
        return self.watch.rollbacks

    def progress(self) -> dict[str, Any]:
        """All but the step, as JSON."""
        return {
            "mix": self.mix.to_json(),
            "tokens": self.tokens,
            "baselines": self.baselines.to_json(),
            "ahead": self.ahead,
            "watch": self.watch.to_json(),
        }

    @staticmethod
    def of(step: int, saved: Mapping[str, Any]) -> State:
        """What `progress` gave. A checkpoint of before there were guards has none of theirs."""
        return State(
            step,
            MixState.from_json(saved["mix"]),
            saved["tokens"],
            Baselines.from_json(saved["baselines"]),
            tuple(map(tuple, saved["ahead"])),
            Watch.from_json(saved.get("watch", {})),
        )
