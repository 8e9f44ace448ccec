"""Prompts and answers that are too long for the student, refused before any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.errors import DataError
from pipeline.prompts import PromptSets, Rows, beginning, sizes_of
from pipeline.types import Prompt
from teachers.types import Conversation, RawText

SPARE_TOKENS = 16  # for what a chat template puts around longer conversations


def require_lengths(
    prompt_sets: PromptSets, render: Callable[[Conversation], Sequence[int]], most: int, *, context: int, new: int
) -> None:
    """Raises DataError where a prompt has more than `most` tokens, or with `new` ones more than `context`.

    render: how the student sees a prompt.

    A token is at least a byte, so only prompts of many bytes are rendered: those that with the template's own tokens,
    as many as it puts around nothing, might pass.
    """
    held_out = [prompt for prompts in prompt_sets.held_out.values() for prompt in prompts]
    limit = min(most, context - new)
    everything = [*prompt_sets.train.values(), Rows(held_out.__getitem__, range(len(held_out)), sizes_of(held_out))]
    for prompts in everything:
        around = len(render(_emptied(prompts[0].conversation))) + SPARE_TOKENS
        for place in np.flatnonzero(prompts.sizes[:, 0] + around > limit):
            prompt = prompts[int(place)]
            length = len(render(prompt.conversation))
            begins = f"leave the prompt out; it begins {beginning(prompt.conversation)!r}"
            if length > most:
                raise DataError(
                    f"data.sources.{prompt.source}: a prompt has {length} tokens, data.max_prompt_tokens is {most}: "
                    f"raise it or {begins}"
                )
            if length > limit:
                raise DataError(
                    f"data.sources.{prompt.source}: a prompt has {length} tokens, and with {new} new ones passes the "
                    f"model's context of {context}: lower rollout.max_new_tokens or {begins}"
                )


def require_references(prompt_sets: PromptSets, length: Callable[[Prompt], int], context: int) -> None:
    """Raises DataError where a training prompt has no reference, or more than `context` tokens together with it.

    length: of both; raises DataError where there is no reference. A token is at least a byte, so only long ones are
    counted.
    """
    for prompts in prompt_sets.train.values():
        for place in np.flatnonzero(prompts.sizes[:, 1] == 0):
            length(prompts[int(place)])
        around = (
            length(replace(prompts[0], conversation=_emptied(prompts[0].conversation), reference="")) + SPARE_TOKENS
        )
        for place in np.flatnonzero(prompts.sizes.sum(1) + around > context):
            prompt = prompts[int(place)]
            if (found := length(prompt)) > context:
                raise DataError(
                    f"data.sources.{prompt.source}: a prompt and its answer have {found} tokens, and the model's "
                    f"context is {context}: leave it out; it begins {beginning(prompt.conversation)!r}"
                )


def _emptied(conversation: Conversation) -> Conversation:
    if isinstance(conversation, RawText):
        return RawText("")
    return replace(conversation, messages=tuple(replace(message, content="") for message in conversation.messages))
