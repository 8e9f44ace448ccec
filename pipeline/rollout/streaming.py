"""One answer, shown while it is written: the engine, the sampling and the stopping of rollouts, for one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from pipeline.rollout.decoding import Engine
from pipeline.rollout.protocol import SamplingSettings
from pipeline.rollout.sampling import sample, uniforms
from pipeline.rollout.stopping import stopping_of
from teachers.caching import eval_mode
from teachers.causal_lm import CausalLM
from teachers.types import FinishReason


@dataclass(frozen=True)
class Written:
    """An answer. text: without special tokens; what was shown of it, where its bytes are a text."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclass
class Readable:
    """Tokens to text, as far as it is certain: a character that takes several tokens appears with its last.

    decode: ids -> text. Only the tokens since the last certain place but one are read again, so that decoders that
    treat the first token of a text in their own way do no harm.
    """

    decode: Callable[[Sequence[int]], str]
    ids: list[int] = field(default_factory=list)
    _start: int = 0
    _certain: int = 0

    def add(self, token_id: int) -> str:
        self.ids.append(token_id)
        new = self._new()
        if not new or new.endswith("\ufffd"):
            return ""
        self._start, self._certain = self._certain, len(self.ids)
        return new

    def rest(self) -> str:
        """What is left at the end, whole or not."""
        return self._new()

    def _new(self) -> str:
        before = self.decode(self.ids[self._start : self._certain])
        return self.decode(self.ids[self._start :])[len(before) :]


def write_answer(
    lm: CausalLM,
    engine: Engine,
    prompt_ids: Sequence[int],
    settings: SamplingSettings,
    *,
    seed: int,
    step: int,
    name: str,
    on_text: Callable[[str], None],
) -> Written:
    """What a `LocalGenerator` writes for this prompt alone. seed, step, name: determine its random numbers.

    on_text: called with each piece of text. The prompt must leave room in the context for `settings.max_new_tokens`.
    """

    def decode(token_ids: Sequence[int]) -> str:
        text: str = lm.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    stopping, readable = stopping_of(lm, settings), Readable(decode)
    draws = torch.from_numpy(uniforms(seed, step, name, 0, settings.max_new_tokens))

    def show(text: str) -> None:
        if text:
            on_text(text)

    with torch.inference_mode(), eval_mode(lm.model):
        batch = engine.read([tuple(prompt_ids)], [0], settings.max_new_tokens)
        draws = draws.to(batch.logits.device)
        for turn in range(settings.max_new_tokens):
            ids, *_ = sample(batch.logits, draws[turn : turn + 1], settings.temperature, settings.top_p, settings.top_k)
            show(readable.add(int(ids[0])))
            finish = stopping.finish(readable.ids)
            if finish is not None:
                break
            batch.advance(ids)
    assert finish is not None
    show(readable.rest())
    return Written(tuple(readable.ids), decode(readable.ids), finish.reason)
