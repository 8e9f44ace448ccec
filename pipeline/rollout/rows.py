"""One completion that an engine writes: what is asked for, and the rollout that its tokens make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.rollout.protocol import SamplingSettings, require_room
from pipeline.rollout.segments import segment
from pipeline.types import Prompt, Rollout

if TYPE_CHECKING:
    from pipeline.rollout.drafts import Draft
    from pipeline.rollout.segments import ThinkTags
    from pipeline.rollout.stopping import Finish


@dataclass(frozen=True)
class Row:
    """One completion to write."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    sample_index: int

    @property
    def rollout_id(self) -> str:
        return f"{self.prompt.prompt_id}/{self.sample_index}"


def rows_of(prompts: Sequence[tuple[Prompt, tuple[int, ...]]], settings: SamplingSettings, context: int) -> list[Row]:
    """A prompt's samples together. Raises DataError for a prompt that is empty, or too long for its answer."""
    for prompt, prompt_ids in prompts:
        require_room(prompt, prompt_ids, settings, context)
    return [
        Row(prompt, tuple(prompt_ids), index)
        for prompt, prompt_ids in prompts
        for index in range(settings.samples_per_prompt)
    ]


def rollout_of(row: Row, draft: Draft, finish: Finish, settings: SamplingSettings, tags: ThinkTags | None) -> Rollout:
    """draft: with log-probabilities of the distribution that was drawn from."""
    whole = settings.top_p == 1.0 and settings.top_k == 0
    logprobs = tuple(draft.logprobs)
    return Rollout(
        prompt=row.prompt,
        sample_index=row.sample_index,
        prompt_ids=row.prompt_ids,
        segments=segment(draft.token_ids, finish.reason, tags, row.prompt_ids, finish.past_stop),
        finish_reason=finish.reason,
        model_logprobs=logprobs if whole else (),  # what was cut away, an engine does not say
        sampling_logprobs=logprobs,
        policy_versions=tuple(draft.versions),
    )
