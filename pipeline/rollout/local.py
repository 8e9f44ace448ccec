"""Rollouts in this process: a decoding loop, one uniform number per token.

Which rows decode together, and when finished ones leave, follows from the prompts, the settings, the seed and the step
alone: the last bits of a logit depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import NotFinite
from pipeline.rollout.decoding import Engine
from pipeline.rollout.lean import engine_for
from pipeline.rollout.protocol import OnFinished, SamplingSettings, require_room
from pipeline.rollout.sampling import sample, uniforms
from pipeline.rollout.segments import ThinkTags, segment, think_tags
from pipeline.rollout.stopping import Finish, Stopping, stopping_of
from pipeline.types import Prompt, Rollout
from teachers.caching import eval_mode
from teachers.causal_lm import CausalLM

_REMOVE_FROM = 0.25  # the share of finished rows from which copying the cache without them pays


@dataclass(frozen=True)
class _Row:
    """One completion to write. place: of its prompt in the call."""

    place: int
    prompt: Prompt
    prompt_ids: tuple[int, ...]
    sample_index: int


@dataclass
class _Draft:
    """A completion while it is written."""

    token_ids: list[int] = field(default_factory=list)
    model_logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None


class LocalGenerator:
    """A `Generator` (see `protocol.py`) around a model in this process. The model's mode is restored after a call.

    products: the dtype that matrices are multiplied in where the lean engine decodes; None: the weights' own. How it
    decodes is settled when it is made.
    """

    def __init__(self, lm: CausalLM, products: torch.dtype | None = None) -> None:
        self.lm = lm
        self.engine: Engine = engine_for(lm, products)

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
        """As in the protocol.

        Raises:
            DataError: a prompt is empty, or leaves no room for `max_new_tokens` in the model's context.
            ModelError: the model has no cache to decode with.
            NotFinite: the model's logits are not finite numbers.
        """
        for prompt, prompt_ids in prompts:
            require_room(prompt, prompt_ids, settings, self.lm.context)
        rows = [
            _Row(place, prompt, tuple(prompt_ids), sample_index)
            for place, (prompt, prompt_ids) in enumerate(prompts)
            for sample_index in range(settings.samples_per_prompt)
        ]
        tags = think_tags(self.lm.tokenizer)
        written: dict[tuple[int, int], Rollout] = {}
        with torch.inference_mode(), eval_mode(self.lm.model):
            for group in _groups(rows, settings.rows, self.engine.mixes_lengths):
                numbers = [
                    uniforms(seed, step, row.prompt.prompt_id, row.sample_index, settings.max_new_tokens)
                    for row in group
                ]
                for finished in self._decode(group, np.stack(numbers), settings):
                    rollouts = [_rollout(row, draft, tags, policy_version) for row, draft in finished]
                    for (row, _), rollout in zip(finished, rollouts, strict=True):
                        written[row.place, row.sample_index] = rollout
                    if on_finished is not None:
                        on_finished(rollouts)
        return [written[row.place, row.sample_index] for row in rows]

    def _decode(
        self,
        group: Sequence[_Row],
        numbers: np.ndarray[Any, np.dtype[np.float64]],
        settings: SamplingSettings,
    ) -> Iterator[list[tuple[_Row, _Draft]]]:
        """Yields rows whenever some are finished, with what they hold."""
        stopping = stopping_of(self.lm, settings)
        drafts = [_Draft() for _ in group]
        writing = list(range(len(group)))  # which draft each row of the batch writes
        prompts = {row.place: row.prompt_ids for row in group}
        number = {place: index for index, place in enumerate(prompts)}
        batch = self.engine.read(list(prompts.values()), [number[row.place] for row in group], settings.max_new_tokens)
        draws = torch.from_numpy(numbers).to(batch.logits.device)
        for turn in range(settings.max_new_tokens):
            ids, *logprobs = sample(batch.logits, draws[:, turn], settings.temperature, settings.top_p, settings.top_k)
            tokens = ids.tolist()
            running, finished = _record(group, drafts, writing, tokens, logprobs, stopping)
            if finished:
                yield [(group[index], drafts[index]) for index in finished]
            if not running:
                break
            if self.engine.drops_rows and len(running) <= (1 - _REMOVE_FROM) * len(tokens):
                rows = torch.tensor(running, device=ids.device)
                batch.keep(rows)
                ids, draws = ids[rows], draws[rows]
                writing = [writing[place] for place in running]
            batch.advance(ids)


def _record(
    group: Sequence[_Row],
    drafts: Sequence[_Draft],
    writing: Sequence[int],
    tokens: Sequence[int],
    logprobs: Sequence[Tensor],
    stopping: Stopping,
) -> tuple[list[int], list[int]]:
    """Appends a token to every draft that is not finished. Returns the places in the batch that go on, and the drafts
    that are finished now."""
    running, finished = [], []
    model_logprobs, sampling_logprobs = (values.tolist() for values in logprobs)
    for place, (index, token) in enumerate(zip(writing, tokens, strict=True)):
        draft = drafts[index]
        if draft.finish is not None:
            continue
        if model_logprobs[place] != model_logprobs[place]:  # NaN
            raise NotFinite(
                f"prompt {group[index].prompt.prompt_id}: the model's logits are not finite numbers; "
                "go back to an earlier checkpoint and lower training.learning_rate"
            )
        draft.token_ids.append(token)
        draft.model_logprobs.append(model_logprobs[place])
        draft.sampling_logprobs.append(sampling_logprobs[place])
        draft.finish = stopping.finish(draft.token_ids)
        if draft.finish is None:
            running.append(place)
        else:
            finished.append(index)
    return running, finished


def _groups(rows: Sequence[_Row], limit: int, mixed_lengths: bool) -> Iterator[list[_Row]]:
    """Batches of at most `limit` rows, about equally many in each; rows of one length only, unless mixed."""
    by_length = sorted(rows, key=lambda row: (len(row.prompt_ids), row.prompt.prompt_id, row.sample_index))
    for _, same in groupby(by_length, key=lambda row: 0 if mixed_lengths else len(row.prompt_ids)):
        members = list(same)
        count = -(-len(members) // limit)
        for index in range(count):
            yield members[index * len(members) // count : (index + 1) * len(members) // count]


def _rollout(row: _Row, draft: _Draft, tags: ThinkTags | None, policy_version: int) -> Rollout:
    assert draft.finish is not None
    model, sampling = tuple(draft.model_logprobs), tuple(draft.sampling_logprobs)
    return Rollout(
        prompt=row.prompt,
        sample_index=row.sample_index,
        prompt_ids=row.prompt_ids,
        segments=segment(draft.token_ids, draft.finish.reason, tags, row.prompt_ids, draft.finish.past_stop),
        finish_reason=draft.finish.reason,
        model_logprobs=model,
        sampling_logprobs=model if sampling == model else sampling,  # 32 bytes a token, where one object will do
        policy_versions=(policy_version,) * len(draft.token_ids),
    )
