"""Who writes the completions of a step: the student, the prompts' references, or the teachers.

All three end in the same value, so that on-policy distillation,
supervised fine-tuning and a warm-up on the teachers' samples are one loop with different writers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from pipeline.errors import DataError
from pipeline.prompts import beginning
from pipeline.recipe import Training
from pipeline.rollout.local import LocalGenerator
from pipeline.rollout.protocol import Generator, OnFinished, SamplingSettings
from pipeline.types import Prompt, Rollout
from teachers.alignment import answer_end
from teachers.causal_lm import CausalLM, render
from teachers.plan import Cascade, Routes
from teachers.pool import Pool
from teachers.types import Chat, Message, Segment

REFERENCE = "reference"
ANOTHER = 1_000_003  # from the seed of one attempt to that of the next


class Writer(Protocol):
    def __call__(
        self,
        prompts: Sequence[Prompt],
        step: int,
        *,
        version: int = 0,
        attempt: int = 0,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """The rollouts of `prompts` in `step`, in their order. version: updates in the weights that write.
        attempt: roll-backs so far; after each the same prompts in the same step get other random numbers.

        on_finished: called with those that are finished, while others are still being written.
        """
        ...


def products_of(training: Training) -> torch.dtype | None:
    """The dtype of matrix products where it is not the weights' own."""
    return torch.bfloat16 if training.mixed_precision == "bf16" else None


def student_writer(lm: CausalLM, settings: SamplingSettings, seed: int, products: torch.dtype | None = None) -> Writer:
    """The student samples `settings.samples_per_prompt` answers to each prompt. products: see `LocalGenerator`."""
    return generated_writer(LocalGenerator(lm, products), lm, settings, seed)


def generated_writer(generator: Generator, lm: CausalLM, settings: SamplingSettings, seed: int) -> Writer:
    """The same by any generator."""

    def write(
        prompts: Sequence[Prompt],
        step: int,
        *,
        version: int = 0,
        attempt: int = 0,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        rendered = [(prompt, render(prompt.conversation, lm.tokenizer)) for prompt in prompts]
        return generator.generate(
            rendered,
            settings,
            seed=seed + attempt * ANOTHER,
            step=step,
            policy_version=version,
            on_finished=on_finished,
        )

    return write


def reference_writer(lm: CausalLM) -> Writer:
    """The prompts' own references. Raises DataError for a prompt that has none."""

    def write(
        prompts: Sequence[Prompt],
        step: int,
        *,
        version: int = 0,
        attempt: int = 0,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        return [reference_rollout(prompt, lm) for prompt in prompts]

    return write


def reference_rollout(prompt: Prompt, lm: CausalLM) -> Rollout:
    """A prompt's reference as a completion that ends."""
    if prompt.reference is None:
        raise DataError(
            f"data.sources.{prompt.source}: a prompt has no reference answer to train on: set "
            f"data.sources.{prompt.source}.columns.answer, or leave the prompt out; it begins "
            f"{beginning(prompt.conversation)!r}"
        )
    prompt_ids = render(prompt.conversation, lm.tokenizer)
    answer = _reference_ids(prompt, prompt_ids, lm)
    segments = (
        Segment("assistant", "answer", answer[:-1], trainable=True),
        Segment("assistant", "end", answer[-1:], trainable=True),
    )
    return Rollout(prompt, 0, prompt_ids, segments, "end", writer=REFERENCE)


def reference_length(prompt: Prompt, lm: CausalLM) -> int:
    """Tokens of a prompt and its reference together. Raises DataError as `reference_rollout`."""
    rollout = reference_rollout(prompt, lm)
    return len(rollout.prompt_ids) + len(rollout.completion_ids)


def _reference_ids(prompt: Prompt, prompt_ids: tuple[int, ...], lm: CausalLM) -> tuple[int, ...]:
    """The reference's tokens and an end token, as the chat template would write them where it extends the prompt.

    A template that rewrites earlier turns (Qwen3 drops thinking) does not extend it; there the text is tokenized alone.
    """
    assert prompt.reference is not None
    conversation = prompt.conversation
    if isinstance(conversation, Chat):
        turn = Message("assistant", prompt.reference)
        whole = render(replace(conversation, messages=(*conversation.messages, turn)), lm.tokenizer, open_turn=False)
        if whole[: len(prompt_ids)] == prompt_ids:
            completion = whole[len(prompt_ids) :]
            for index, token in enumerate(completion):
                if token in lm.end_ids:
                    return completion[: index + 1]
    ids: list[int] = lm.tokenizer.encode(prompt.reference, add_special_tokens=False)
    return (*ids, answer_end(lm))


def teacher_writer(
    pool: Pool, routes: Routes | Cascade, student: CausalLM, settings: SamplingSettings, seed: int
) -> Writer:
    """Each prompt is answered by the teacher with the largest share of it, and becomes a supervised row."""

    def write(
        prompts: Sequence[Prompt],
        step: int,
        *,
        version: int = 0,
        attempt: int = 0,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        by_teacher: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            by_teacher.setdefault(routes.main_teacher(prompt.domain), []).append(prompt)
        written: dict[str, list[Rollout]] = {}
        for teacher, group in by_teacher.items():
            with pool.writing(teacher) as lm:
                for rollout in student_writer(lm, settings, seed)(group, step, attempt=attempt):
                    written.setdefault(rollout.prompt.prompt_id, []).append(_as_sample(rollout, teacher, student))
        return [rollout for prompt in prompts for rollout in written[prompt.prompt_id]]

    return write


def _as_sample(rollout: Rollout, teacher: str, student: CausalLM) -> Rollout:
    """A teacher's completion under the student's own rendering of the prompt, ended by the student's end token."""
    segments = tuple(
        replace(segment, token_ids=(answer_end(student),)) if segment.kind == "end" else segment
        for segment in rollout.segments
    )
    return replace(
        rollout,
        prompt_ids=render(rollout.prompt.conversation, student.tokenizer),
        segments=segments,
        model_logprobs=(),
        sampling_logprobs=(),
        policy_versions=(),
        writer=teacher,
    )
