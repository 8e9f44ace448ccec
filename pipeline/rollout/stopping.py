"""When a completion is finished: an end token, a stop token, a stop string, or no more room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.rollout.protocol import SamplingSettings
from teachers.types import FinishReason

if TYPE_CHECKING:
    from teachers.causal_lm import CausalLM

_LONGEST_CHARACTER = 4  # bytes of UTF-8


class Finish(NamedTuple):
    """Why a completion ended. past_stop: its last token carries text after the stop string."""

    reason: FinishReason
    past_stop: bool = False


@dataclass(frozen=True)
class Stopping:
    """decode: ids -> text, with special tokens and spaces as they are."""

    end_ids: frozenset[int]
    stop_ids: frozenset[int]
    stop: tuple[str, ...]
    max_new_tokens: int
    decode: Callable[[Sequence[int]], str]

    def finish(self, token_ids: Sequence[int]) -> Finish | None:
        """Whether the last of `token_ids` ended the completion; called after every token."""
        last = token_ids[-1]
        if last in self.end_ids:
            return Finish("end")
        if last in self.stop_ids:
            return Finish("stop")
        if self.stop and (text := self._stopped(token_ids)) is not None:
            exact = any(stop in text and text.index(stop) + len(stop) == len(text) for stop in self.stop)
            return Finish("stop", past_stop=not exact)
        return Finish("length") if len(token_ids) >= self.max_new_tokens else None

    def _stopped(self, token_ids: Sequence[int]) -> str | None:
        """The last tokens' text if a stop string is complete in it.

        A stop string may begin inside one token and end inside another, and so may each of its characters. A token is
        at least a byte, so as many tokens as the longest stop string has bytes hold it, and one more, because some
        decoders drop a space before the first. If the tail begins inside a character, decoders show a replacement
        character, some for whole runs of bytes; then it is read again from up to three tokens earlier.
        """
        width = max(len(stop.encode()) for stop in self.stop) + 1
        for earlier in range(_LONGEST_CHARACTER):
            text = self.decode(token_ids[-(width + earlier) :])
            if any(stop in text for stop in self.stop):
                return text
            if "\ufffd" not in text:
                break
        return None


def stopping_of(lm: CausalLM, settings: SamplingSettings) -> Stopping:
    """When a completion of this model ends."""

    def decode(token_ids: Sequence[int]) -> str:
        text: str = lm.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    return Stopping(lm.end_ids, frozenset(settings.stop_token_ids), settings.stop, settings.max_new_tokens, decode)
