"""What a generator is: prompts in, rollouts out, the same whether the student runs in this process or on a server.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from pipeline.errors import DataError
from pipeline.recipe_rollouts import Sampling
from pipeline.types import Prompt, Rollout

OnFinished = Callable[[Sequence[Rollout]], None]


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn.

    temperature: 0 is greedy, for evaluation; a recipe's own is above 0.
    top_p, top_k: keep the fewest most probable entries with mass top_p of the top_k most probable; 1 and 0 keep all.
    stop: texts that end a completion; it keeps the token in which one is complete.
    stop_token_ids: tokens that end a completion, beside the model's own end tokens.
    rows: completions decoded together at most.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    samples_per_prompt: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    rows: int = 64

    @classmethod
    def from_recipe(cls, rollouts: Sampling) -> SamplingSettings:
        return cls(**{field.name: getattr(rollouts, field.name) for field in fields(cls)})


class Generator(Protocol):
    """Writes completions with the student's present weights."""

    def generate(
        self,
        prompts: Sequence[tuple[Prompt, tuple[int, ...]]],
        settings: SamplingSettings,
        *,
        seed: int,
        step: int,
        policy_version: int,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """Completes every prompt `settings.samples_per_prompt` times.

        Args:
            prompts: each prompt with its ids as the student sees them.
            seed, step: with a prompt's id and the sample's number they determine the random numbers, nothing else does.
            policy_version: number of updates in the weights, recorded with every token.
            on_finished: called with the rollouts that have finished since the last call, while others are written.

        Returns:
            Rollouts in the order of the prompts, a prompt's samples together.

        Raises:
            DataError: a prompt is empty, or leaves no room for `max_new_tokens` in the model's context.
        """
        ...


def require_room(prompt: Prompt, prompt_ids: Sequence[int], settings: SamplingSettings, context: int) -> None:
    """Raises DataError for a prompt that is empty, or leaves no room for its answer."""
    if not prompt_ids:
        raise DataError(f"source {prompt.source}: prompt {prompt.prompt_id} is empty: there is no token to continue")
    if len(prompt_ids) + settings.max_new_tokens > context:
        raise DataError(
            f"source {prompt.source}: prompt {prompt.prompt_id} has {len(prompt_ids)} tokens, and with "
            f"{settings.max_new_tokens} new ones passes the model's context of {context}; "
            "lower data.max_prompt_tokens or rollout.max_new_tokens"
        )
