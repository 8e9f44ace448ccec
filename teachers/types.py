"""What flows between a student and its teachers. Every value is frozen; a stage makes a new one.

Legend: N completion tokens of one request, V vocabulary, K top-k, D hidden size, R rows of a head's matrix (R >= V).
Tensors appear in annotations only, so this module, and with it `teachers.config`, imports without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["system", "user", "assistant", "tool"]
SegmentKind = Literal["prompt", "think", "answer", "tool_call", "tool_result", "end"]
FinishReason = Literal["end", "stop", "length"]  # end token sampled | stop string or stop id | out of room


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation that a chat template renders."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RawText:
    """A text that goes to the tokenizer as it is, without a template."""

    text: str


Conversation = Chat | RawText


@dataclass(frozen=True)
class Segment:
    """A stretch of a completion with one author and one kind. `token_ids` are always the student's."""

    role: Role
    kind: SegmentKind
    token_ids: tuple[int, ...]
    trainable: bool
    byte_spans: tuple[tuple[int, int], ...] | None = None


class SignalKind(StrEnum):
    FULL_VOCAB = "full_vocab"
    TOP_K = "top_k"
    JUDGMENT = "judgment"


@dataclass(frozen=True)
class HeadWeights:
    """The tensors of a head while it is loaded: weight (R, D), bias (R,) or None."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Head:
    """What turns last hidden states into logits over the student's vocabulary.

    A head is more than a matrix: Cohere scales its logits, Gemma 2 caps them, Qwen pads its rows.

    key: equal keys mean the same head; positions are grouped by it, so that one is loaded at a time.
    size: V, the real vocabulary entries; rows past it are padding and take no part.
    vocab_map: (V,) int64, the head's row for each of the student's ids, or None where they are the same.
    load, release: bring the matrix into memory and let it go again; both may be called many times.
    """

    key: str
    size: int
    load: Callable[[], HeadWeights]
    release: Callable[[], None] = lambda: None
    scale: float = 1.0
    softcap: float | None = None
    vocab_map: Tensor | None = None

    def logits(self, weights: HeadWeights, hidden: Tensor) -> Tensor:
        """(n, D) hidden states -> (n, V) fp32 logits. The product runs in the weights' dtype, the rest in fp32."""
        rows = weights.weight[: self.size] if self.vocab_map is None else weights.weight
        logits = (hidden.to(rows.dtype) @ rows.T).float()
        if weights.bias is not None:
            logits = logits + weights.bias[: logits.shape[-1]].float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = (logits / self.softcap).tanh() * self.softcap
        return logits if self.vocab_map is None else logits.index_select(-1, self.vocab_map)


@dataclass(frozen=True, eq=False)
class FullVocab:
    """A distribution over the whole vocabulary at each completion token, kept as hidden states.

    hidden (N, D): the state that predicts token n. valid (N,) bool: where the teacher gave a score; elsewhere
    `hidden` means nothing. Logits are never stored.
    """

    hidden: Tensor
    head: Head
    valid: Tensor


@dataclass(frozen=True, eq=False)
class TopK:
    """The K most probable entries at each completion token; K = 0 is the sampled token alone.

    token_logprobs (N,): log p(token_ids[n] | earlier tokens). ids, logprobs (N, K). log_tail (N,): the log of what
    the K entries leave, -inf where nothing is left. valid (N,) bool.
    """

    token_logprobs: Tensor
    ids: Tensor
    logprobs: Tensor
    log_tail: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Judgment:
    """What a teacher without distributions says: a score in [0, 1], words, a corrected text."""

    score: float | None = None
    feedback: str | None = None
    rewrite: str | None = None


Signal = FullVocab | TopK | Judgment


@dataclass(frozen=True)
class Usage:
    """Tokens that an answer was charged for. `cached` is a part of `input`, `reasoning` a part of `output`."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(frozen=True, eq=False)
class Answer:
    """One teacher's answer to one request. `latency` in seconds."""

    signal: Signal
    usage: Usage = Usage()
    model_returned: str | None = None
    latency: float = 0.0
    journal_key: str | None = None


@dataclass(frozen=True)
class TeacherFailure:
    """A failure is a value: it is counted, and the weights are renormalised over who answered.

    reason: a short name in snake_case: too_long, unavailable, rate_limited, timeout, refused, truncated, unparsable,
    not_finite, wrong_model, over_budget, private, … retryable: the same question may be answered if asked again.
    retry_after: seconds the teacher asked to wait. usage: what was charged all the same, None where nothing was.
    in_doubt: it was sent, and whether it was charged is not known. detail: one line, without secrets.
    """

    teacher: str
    reason: str
    retryable: bool
    detail: str = ""
    retry_after: float | None = None
    usage: Usage | None = None
    in_doubt: bool = False


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """A finished completion and all that a teacher may know about it.

    completion: the answer as text, without thinking, end tokens and whatever begins with a stop string; for teachers
        that read text. grading: what running it needs beside the reference, as JSON.
    upstream: what teachers that were asked before said, by name.
    """

    request_id: str
    group_id: str  # the prompt's id: samples of one prompt share it
    sample_index: int
    step: int
    domain: str
    conversation: Conversation
    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    reference: str | None = None
    privileged: str | None = None
    private: bool = False
    checker: str | None = None
    grading: str | None = None
    source: str = ""  # of the prompt, for messages
    completion: str = ""
    upstream: Mapping[str, Judgment] = field(default_factory=dict)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The N completion tokens, in order."""
        return tuple(token for segment in self.segments for token in segment.token_ids)


@runtime_checkable
class LocalTeacher(Protocol):
    """A teacher in this process. It answers every request exactly once, in any order."""

    name: str
    signals: frozenset[SignalKind]

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]: ...

    def close(self) -> None: ...


@runtime_checkable
class RemoteTeacher(Protocol):
    """A teacher that is waited for: a server, a chat API, a program. It may be asked many things at once.

    `score` is one attempt. Retries, limits, budgets and the journal are the courier's (`courier.py`), the same for all.
    identity: a fingerprint of all that decides an answer besides the request: the kind, the model, K, prompts, rubric;
    not the address of one of several equal servers. Never a secret.
    """

    name: str
    signals: frozenset[SignalKind]
    identity: str

    def key(self, request: ScoreRequest) -> str:
        """A fingerprint of exactly what would be sent, and of `sample_index`: equal keys have one answer."""
        ...

    def estimate(self, request: ScoreRequest) -> Usage:
        """The most that the question can be charged for; reserved in the budget before it is sent."""
        ...

    async def score(self, request: ScoreRequest, deadline: float) -> Answer | TeacherFailure:
        """One attempt. deadline: seconds of the running event loop's clock. Raises only programmer's errors."""
        ...

    async def examine(self, deadline: float) -> tuple[Finding, ...]:
        """What preflight finds out by asking: reachable, the model named exists, K allowed, context, latency, …"""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True)
class Finding:
    """One line of preflight. what: reachable, model, tokenizer, top_k, context, logprobs, repeat, uniform, latency, …

    good: None where it is only told, False where a run would be wrong. seconds: of a latency, for one answer.
    """

    what: str
    good: bool | None
    text: str
    seconds: float | None = None
