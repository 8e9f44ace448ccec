"""A completion's tokens, told apart: thinking, answer, end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from teachers.types import FinishReason, Segment, SegmentKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ThinkTags(NamedTuple):
    """The tokens that open and close thinking."""

    open: int
    close: int


def think_tags(tokenizer: PreTrainedTokenizerBase) -> ThinkTags | None:
    """The ids of <think> and </think> where each is one token of the vocabulary."""
    names = ["<think>", "</think>"]
    ids = tokenizer.convert_tokens_to_ids(names)
    # An unknown token has the id of the unknown token, or none.
    known = None not in ids and tokenizer.convert_ids_to_tokens(ids) == names
    return ThinkTags(*ids) if known else None


def segment(
    token_ids: Sequence[int],
    finish_reason: FinishReason,
    tags: ThinkTags | None = None,
    prompt_ids: Sequence[int] = (),
    past_stop: bool = False,
) -> tuple[Segment, ...]:
    """Splits a completion into segments whose tokens, one after the other, are `token_ids`.

    The tags belong to the thinking between them. A prompt whose last tag opens (some templates do that) makes the
    completion begin inside. Thinking that is never closed lasts to the end.

    Args:
        token_ids: the completion; with finish_reason "end" its last one is the end token.
        past_stop: the last token carries text after a stop string, and so is not trained on.
    """
    ended = finish_reason == "end"
    body = token_ids[:-1] if ended or past_stop else token_ids
    kinds = _kinds(body, tags, prompt_ids)
    segments = [
        Segment("assistant", kind, tuple(token for _, token in run), trainable=True)
        for kind, run in groupby(zip(kinds, body, strict=True), key=lambda pair: pair[0])
    ]
    if ended:
        segments.append(Segment("assistant", "end", (token_ids[-1],), trainable=True))
    elif past_stop:
        kind = _kinds(token_ids, tags, prompt_ids)[-1]
        segments.append(Segment("assistant", kind, (token_ids[-1],), trainable=False))
    return tuple(segments)


def _kinds(token_ids: Sequence[int], tags: ThinkTags | None, prompt_ids: Sequence[int]) -> list[SegmentKind]:
    if tags is None:
        return ["answer"] * len(token_ids)
    thinking = next((token == tags.open for token in reversed(prompt_ids) if token in tags), False)
    kinds: list[SegmentKind] = []
    for token in token_ids:
        thinking = thinking or token == tags.open
        kinds.append("think" if thinking else "answer")
        thinking = thinking and token != tags.close
    return kinds
