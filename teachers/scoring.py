"""How a model in this process scores completions: its own rendering, the student's ids, last hidden states.

What every kind of teacher with hidden states shares; the kinds differ in where the model comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from teachers.caching import eval_mode
from teachers.causal_lm import CausalLM, last_hidden, render
from teachers.types import Answer, FullVocab, Head, ScoreRequest, Segment, SignalKind, TeacherFailure, Usage

if TYPE_CHECKING:
    from torch import Tensor

# Entered around every use of a model, such as `active_adapter`.
Running = Callable[[], AbstractContextManager[None]]
TOKENS_PER_FORWARD = 16_384
# The end token and tool calls are the answer's: who does not score the answer does not say where it ends.
_SPAN_OF = {"think": "think", "answer": "answer", "tool_call": "answer", "end": "answer"}


@dataclass(frozen=True)
class Ends:
    """The tokens that close an answer: one role, perhaps two ids."""

    student: int
    teacher: int


@dataclass(frozen=True)
class Row:
    """What a teacher reads for one request: the prompt as it renders it, the completion's N ids."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.completion_ids


@dataclass(eq=False)
class HiddenStateTeacher:
    """A LocalTeacher that answers with last hidden states over the whole vocabulary.

    head: over the student's vocabulary, ends already mapped by role. spans: the segment kinds it scores.
    system: what it is told and the student is not. running: entered around every forward (an adapter switched on).
    """

    name: str
    lm: CausalLM
    head: Head
    ends: Ends
    spans: tuple[str, ...] = ("think", "answer")
    system: str | None = None
    tokens_per_forward: int = TOKENS_PER_FORWARD
    running: Running = nullcontext
    signals: frozenset[SignalKind] = frozenset({SignalKind.FULL_VOCAB})

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]:
        """One answer per request: FullVocab with hidden (N, D) on the model's device, or a TeacherFailure.

        Failures: too_long (beyond the context), empty_prompt (nothing predicts the first token), not_finite.
        """
        rows: dict[str, Row] = {}
        wanted: dict[str, ScoreRequest] = {}
        for request in requests:
            row = row_of(request, self.lm, self.system, self.ends)
            if failure := self._refusal(row):
                yield request.request_id, failure
            else:
                rows[request.request_id], wanted[request.request_id] = row, request
        # All forwards are over before the first answer leaves: whoever takes it may use the same model otherwise.
        states = self._states(rows)
        for request_id, request in wanted.items():
            yield request_id, self._answer(request, rows[request_id], states.pop(request_id))

    def close(self) -> None:
        """Nothing is held that goes away with the teacher: its model may be another teacher's too."""

    def _refusal(self, row: Row) -> TeacherFailure | None:
        length = len(row.token_ids)
        if length > self.lm.context:
            return self._failure("too_long", f"{length} tokens, and its context has {self.lm.context}")
        if not row.prompt_ids:
            return self._failure("empty_prompt", "its rendering of the prompt has no tokens")
        return None

    def _states(self, rows: dict[str, Row]) -> dict[str, Tensor]:
        """Request id -> (N, D) predicting states."""
        names = list(rows)
        states: dict[str, Tensor] = {}
        with self.running(), eval_mode(self.lm.model):
            token_ids = [rows[name].token_ids for name in names]
            for index, hidden in last_hidden(self.lm, token_ids, tokens_per_forward=self.tokens_per_forward):
                # A copy: a view would keep the padded batch alive, prompts included.
                states[names[index]] = predicting_states(hidden, len(rows[names[index]].completion_ids)).clone()
        return states

    def _answer(self, request: ScoreRequest, row: Row, hidden: Tensor) -> Answer | TeacherFailure:
        valid = scored_tokens(request.segments, self.spans).to(hidden.device)
        if not bool(hidden[valid].isfinite().all()):
            return self._failure("not_finite", f"hidden states of {request.request_id}")
        return Answer(FullVocab(hidden, self.head, valid), Usage(input=len(row.token_ids)), model_returned=self.lm.name)

    def _failure(self, reason: str, detail: str) -> TeacherFailure:
        return TeacherFailure(self.name, reason, retryable=False, detail=detail)


def row_of(request: ScoreRequest, lm: CausalLM, system: str | None, ends: Ends) -> Row:
    """The request as the teacher reads it. Raises TeacherError as `render`."""
    completion = tuple(
        ends.teacher if segment.kind == "end" and token == ends.student else token
        for segment in request.segments
        for token in segment.token_ids
    )
    return Row(render(request.conversation, lm.tokenizer, system), completion)


def predicting_states(hidden: Tensor, completion_length: int) -> Tensor:
    """(prompt + N, D) -> (N, D): the state that predicts completion token n is the one before it.

    The one place where teachers shift; the last token's own state predicts what nobody wrote.
    """
    end = hidden.shape[0] - 1
    return hidden[end - completion_length : end]


def scored_tokens(segments: Sequence[Segment], spans: Collection[str]) -> Tensor:
    """(N,) bool: tokens of trainable segments whose kind the teacher scores. A tool's results never are."""
    return torch.tensor(
        [segment.trainable and _SPAN_OF.get(segment.kind) in spans for segment in segments for _ in segment.token_ids],
        dtype=torch.bool,
    )
