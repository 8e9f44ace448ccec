"""The values that flow through a step: Prompt -> Rollout -> TrainingBatch -> StepOutput.

Legend: T completion tokens of a row, S all tokens of a packed batch, B rows, N scored tokens, n a subset of N, M those
that are shown to people, V vocabulary, D hidden size. Tensors appear in annotations only, so this module imports
without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from teachers.types import Conversation, FinishReason, FullVocab, Segment, TopK

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One task for the student.

    prompt_id: stable over runs and machines (a hash of the content), so a rollout's random numbers are too.
    source: the recipe's name for where it comes from; mixing weights belong to sources.
    reference: the expected answer, for supervised training and for the checker; never shown to the student.
    privileged: what only some teachers may see. private: must not leave this machine.
    checker: how an answer is judged (`pipeline.checkers`). grading: what that needs beside the reference, as JSON.
    """

    prompt_id: str
    source: str
    domain: str
    conversation: Conversation
    reference: str | None = None
    privileged: str | None = None
    private: bool = False
    checker: str | None = None
    grading: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt.

    prompt_ids: the prompt as the student saw it. segments: the completion, T tokens in all.
    model_logprobs (T): log p of each token under the student at the recipe's temperature.
    sampling_logprobs (T): the same after top-p and top-k, what the token was really drawn with.
    policy_versions (T): number of updates the student had seen when it wrote the token.
    For a completion that the student did not write (a reference, a teacher's sample) both log-probabilities are
    empty and `writer` says who did.
    """

    prompt: Prompt
    sample_index: int
    prompt_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    model_logprobs: tuple[float, ...] = ()
    sampling_logprobs: tuple[float, ...] = ()
    policy_versions: tuple[int, ...] = ()
    writer: str = "student"

    @property
    def rollout_id(self) -> str:
        return f"{self.prompt.prompt_id}/{self.sample_index}"

    @property
    def completion_ids(self) -> tuple[int, ...]:
        return tuple(token for segment in self.segments for token in segment.token_ids)

    @property
    def trainable(self) -> tuple[bool, ...]:
        """(T) which tokens may carry a loss: a tool's output and text after a stop string may not."""
        return tuple(segment.trainable for segment in self.segments for _ in segment.token_ids)


DivergenceKind = Literal[
    "reverse_kl", "forward_kl", "jsd", "skew_kl", "skew_reverse_kl", "top_k_reverse_kl", "top_k_forward_kl",
    "policy_gradient", "grade",
]  # fmt: skip


@dataclass(frozen=True)
class Divergence:
    """Which loss a teacher's signal becomes, with its parameters (FACTS: GKD, DistiLLM, Revisiting OPD, MOPD).

    beta: the teacher's share of the mixture in jsd, strictly between 0 and 1.
    alpha: the skew of skew_kl and skew_reverse_kl.
    k, tail, mass_penalty: top_k_*: entries kept; one bucket for the rest instead of renormalising; the weight of
        -log(student's mass on the kept entries), only without a tail.
    ratio_low, ratio_high: policy_gradient and grade: the importance ratio counts only inside this interval.
    advantage_clip: policy_gradient: the advantage is clipped to ±advantage_clip. A grade's lies within ±1.
    clip: divergences over the whole vocabulary: a position whose value is above it pulls no more; None for no bound.
    """

    kind: DivergenceKind = "reverse_kl"
    beta: float = 0.5
    alpha: float = 0.1
    k: int = 32
    tail: bool = False
    mass_penalty: float = 0.0
    ratio_low: float = 0.0
    ratio_high: float = 2.0
    advantage_clip: float = 5.0
    clip: float | None = None


@dataclass(frozen=True)
class Losses:
    """What a teacher's signal is taught with: over the whole vocabulary, over its top k, by the sampled token alone."""

    full: Divergence
    top_k: Divergence
    sampled: Divergence

    def of(self, signal: FullVocab | TopK) -> Divergence:
        if isinstance(signal, FullVocab):
            return self.full
        return self.top_k if signal.ids.shape[-1] else self.sampled


@dataclass(frozen=True, eq=False)
class Advantage:
    """How much better than expected an answer was, at each of its tokens. values (n,) fp32; valid (n,) bool.

    It depends on the whole answer that was written, never on what else could have stood at one position: a divergence
    in its place would have no gradient on average.
    """

    values: Tensor
    valid: Tensor


TargetSignal = FullVocab | TopK | Advantage


@dataclass(frozen=True, eq=False)
class Target:
    """One teacher's signal on some of a batch's scored tokens.

    positions (n,) int64, ascending: which of the batch's N scored tokens. weights (n,) fp32: already normalised
    over the whole step (rows, tokens, ranks, accumulation, the teacher's share), so that the loss is a plain
    weighted sum. signal: n rows, every one valid.
    """

    teacher: str
    positions: Tensor
    weights: Tensor
    divergence: Divergence
    signal: TargetSignal


class Stretch:
    """Which part of every row this process has: the rank-th of `size`; the others are in `group`.

    A plain class: torch takes dataclasses and tuples apart on their way through a model.
    """

    def __init__(self, rank: int, size: int, group: Any) -> None:
        self.rank, self.size, self.group = rank, size, group


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Rows laid end to end. What one forward of the student needs, and nothing it has to ask for.

    input_ids, positions (S,) int64; cu_seqlens (B+1,) int64: row b is [cu_seqlens[b], cu_seqlens[b+1]).
    predictors (N,) int64: index into S of the token whose hidden state predicts scored token i (the one shift
        between tokens and predictions is made where this is built: `targets.py`).
    labels (N,) int64: the tokens predicted. sampling_logprobs (N,) fp32: what they were drawn with; NaN where the
        student did not write them.
    nll_weights (N,) fp32: normalised weight of -log p(label), for supervised rows; zero elsewhere.
    group (N,) int64: index into `domains`, for metrics. part (N,) int64: index into `parts`, which say whose text a
        token is: the student's, a reference, a teacher's sample, a teacher's rewrite.
    shown (M,) int64, ascending, or None: the scored tokens of the answer that is kept for people to read. What was
        expected there is measured too; the loss is the same with and without.
    stretch: where several processes share its rows: which part of each is this one's. The scored tokens are those of
        that part alone; input_ids are whole.
    """

    input_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    predictors: Tensor
    labels: Tensor
    sampling_logprobs: Tensor
    nll_weights: Tensor
    group: Tensor
    domains: tuple[str, ...]
    part: Tensor
    parts: tuple[str, ...]
    targets: tuple[Target, ...]
    temperature: float = 1.0
    shown: Tensor | None = None
    stretch: Stretch | None = None


@dataclass(frozen=True, eq=False)
class Expected:
    """What somebody expected at M tokens, at the recipe's temperature; NaN where nothing is known.

    label_logprobs (M,): log p of the token that stands there. ids (M, K) int64, logprobs (M, K): the most probable
    entries, the best first: K of them at most `expectations.SHOWN_K`, fewer where a teacher gives fewer.
    """

    label_logprobs: Tensor
    ids: Tensor
    logprobs: Tensor


@dataclass(frozen=True, eq=False)
class Shown:
    """What a batch's M shown tokens came to. All detached.

    teachers: by name, those that gave something there; an advantage expects no token. divergences (M,): each teacher's,
    as in `TargetOutput`, NaN where it gave nothing.
    """

    student: Expected
    teachers: Mapping[str, Expected]
    divergences: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class TargetOutput:
    """What one Target came to. All detached.

    divergence (n,) fp32: the value per token, before weights; for a grade the importance ratio as it counted. overlap
    (n,) fp32: the share of the student's top-k that is in the teacher's, NaN where it was not measured. mass (n,) fp32:
    the student's probability on the teacher's kept entries; NaN where there are none. sharpness (n,) fp32: nats from an
    equal share of the vocabulary to the teacher's most probable entry, and best (n,) fp32 that entry's id; NaN where
    they were not measured.
    """

    teacher: str
    positions: Tensor
    divergence: Tensor
    overlap: Tensor
    mass: Tensor
    sharpness: Tensor
    best: Tensor


@dataclass(frozen=True, eq=False)
class StepOutput:
    """`Student.forward`: loss, a scalar attached to the graph (zero, and attached, for an empty batch); the rest
    detached. entropy, label_logprobs (N,) fp32 of the student. nll: the supervised part of the loss, a scalar. pull
    (N,) fp32: the norm of d loss / d hidden of each scored token, NaN where no gradient was wanted. shown: None where
    the batch shows nothing."""

    loss: Tensor
    nll: Tensor
    entropy: Tensor
    label_logprobs: Tensor
    targets: tuple[TargetOutput, ...]
    pull: Tensor
    shown: Shown | None = None
