"""One completion that vLLM writes: what is asked for, when it is finished, and the rollout that its tokens make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.rollout.protocol import SamplingSettings, require_room
from pipeline.rollout.segments import segment, think_tags
from pipeline.rollout.stopping import Finish, stopping_of
from pipeline.types import Prompt, Rollout

if TYPE_CHECKING:
    from pipeline.rollout.drafts import Draft
    from teachers.causal_lm import CausalLM


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


class Endings:
    """When a completion of a model is finished, and the rollout that it then is."""

    def __init__(self, lm: CausalLM, settings: SamplingSettings) -> None:
        self._settings = settings
        self._stopping = stopping_of(lm, settings)
        self._tags = think_tags(lm.tokenizer)

    @property
    def ids(self) -> list[int]:
        """Tokens that end one."""
        return sorted(self._stopping.end_ids | self._stopping.stop_ids)

    def finish(self, draft: Draft) -> Finish | None:
        """Whether its last token ended it; called after every one."""
        return self._stopping.finish(draft.token_ids) if draft.token_ids else None

    def rollout(self, row: Row, draft: Draft, finish: Finish) -> Rollout:
        """draft: with log-probabilities of the distribution that was drawn from."""
        whole = self._settings.top_p == 1.0 and self._settings.top_k == 0
        logprobs = tuple(draft.logprobs)
        return Rollout(
            prompt=row.prompt,
            sample_index=row.sample_index,
            prompt_ids=row.prompt_ids,
            segments=segment(draft.token_ids, finish.reason, self._tags, row.prompt_ids, finish.past_stop),
            finish_reason=finish.reason,
            model_logprobs=logprobs if whole else (),  # what was cut away, an engine does not say
            sampling_logprobs=logprobs,
            policy_versions=tuple(draft.versions),
        )
