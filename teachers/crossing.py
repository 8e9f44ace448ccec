"""The kind `transformers` with `align`: a causal LM in this process with another tokenizer than the student's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from teachers.bridge import Bridge, Crossed, bridge_models, cross, restricted, to_student
from teachers.caching import eval_mode
from teachers.causal_lm import CausalLM, last_hidden, render
from teachers.heads import find_head
from teachers.models import base_key, where
from teachers.scoring import Row, Running, predicting_states, scored_tokens
from teachers.switching import adapters_disabled, is_adapted
from teachers.types import Answer, Head, HeadWeights, ScoreRequest, SignalKind, TeacherFailure, TopK, Usage

if TYPE_CHECKING:
    from torch import Tensor

    from teachers.config import TransformersTeacher
    from teachers.models import Models

_LOGITS_AT_ONCE = 1 << 24  # 64 MB in fp32, whatever the vocabulary


@dataclass(eq=False)
class CrossingTeacher:
    """A LocalTeacher that answers with the top-k of what both vocabularies have, where both cut the text alike.

    head: over the teacher's vocabulary. spans, system, running: as in `HiddenStateTeacher`. temperature: the recipe's,
    which the signal is at.
    """

    name: str
    lm: CausalLM
    head: Head
    bridge: Bridge
    top_k: int
    spans: tuple[str, ...]
    system: str | None
    tokens_per_forward: int
    temperature: float = 1.0
    running: Running = nullcontext
    signals: frozenset[SignalKind] = frozenset({SignalKind.TOP_K})

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user may want to know, one line each."""
        return (f"teachers.{self.name}: {self.bridge.note}",)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]:
        """One answer per request: TopK with (N, top_k) entries on the CPU, or a TeacherFailure.

        Failures: not_exact (bytes that its tokenizer cannot write), too_long (beyond the context), empty_prompt
        (nothing predicts the first token), low_coverage (too few of the tokens to score are its own), not_finite.
        """
        rows: dict[str, Row] = {}
        crossed: dict[str, Crossed] = {}
        for request, found in zip(requests, cross(self.bridge, requests), strict=True):
            asked = self._asked(request, found)
            if isinstance(asked, TeacherFailure):
                yield request.request_id, asked
            else:
                rows[request.request_id], crossed[request.request_id] = asked
        # All forwards are over before the first answer leaves: whoever takes it may use the same model otherwise.
        tops = self._tops(rows, crossed)
        for name, row in rows.items():
            yield name, self._answer(name, row, tops.pop(name))

    def close(self) -> None:
        """Nothing is held that goes away with the teacher: its model may be another teacher's too."""

    def _asked(self, request: ScoreRequest, found: Crossed | TeacherFailure) -> tuple[Row, Crossed] | TeacherFailure:
        """The row to read and the pairs to score."""
        if isinstance(found, TeacherFailure):
            return found
        row = Row(render(request.conversation, self.lm.tokenizer, self.system), found.token_ids)
        if len(row.token_ids) > self.lm.context:
            return self._failure("too_long", f"{len(row.token_ids)} tokens, and its context has {self.lm.context}")
        if not row.prompt_ids:
            return self._failure("empty_prompt", "its rendering of the prompt has no tokens")
        pairs = restricted(self.bridge, found, scored_tokens(request.segments, self.spans))
        return pairs if isinstance(pairs, TeacherFailure) else (row, pairs)

    @torch.no_grad()
    def _tops(self, rows: dict[str, Row], crossed: dict[str, Crossed]) -> dict[str, TopK]:
        """Request id -> the student's TopK."""
        names = list(rows)
        tops: dict[str, TopK] = {}
        with self.running(), eval_mode(self.lm.model):
            weights = self.head.load()
            token_ids = [rows[name].token_ids for name in names]
            for index, hidden in last_hidden(self.lm, token_ids, tokens_per_forward=self.tokens_per_forward):
                row, pairs = rows[names[index]], crossed[names[index]]
                states = predicting_states(hidden, len(row.completion_ids))[pairs.teacher_at.to(hidden.device)]
                labels = torch.tensor(row.completion_ids, dtype=torch.int64)[pairs.teacher_at]
                top = self._top(weights, states, labels, opening=pairs.opening)
                # One row for each pair and none for the teacher's other tokens, which nobody asks for.
                packed = replace(pairs, teacher_at=torch.arange(len(labels)))
                tops[names[index]] = to_student(self.bridge, packed, top, self.top_k)
            self.head.release()
        return tops

    def _top(self, weights: HeadWeights, states: Tensor, labels: Tensor, *, opening: bool) -> TopK:
        """States (n, D) that predict `labels` (n,) -> their TopK, in the teacher's ids.

        The best are taken among the entries that the student has, so that none of the K is lost on the way.
        """
        lacking = (self.bridge.ids[: self.head.size] < 0).to(states.device)
        lacking_first = (self.bridge.opening[: self.head.size] < 0).to(states.device)
        labels = labels.to(states.device)
        k = min(self.top_k, len(self.bridge.rarest))
        parts = []
        step = max(_LOGITS_AT_ONCE // self.head.size, 1)
        for start in range(0, max(len(labels), 1), step):  # once where there is nothing, for the shapes
            logits = self.head.logits(weights, states[start : start + step])
            if self.temperature != 1.0:  # over a large vocabulary a division is as dear as a softmax
                logits = logits / self.temperature
            logprobs = logits.log_softmax(-1)
            common = logprobs.masked_fill(lacking, -torch.inf)
            if opening and start == 0:
                common[0] = logprobs[0].masked_fill(lacking_first, -torch.inf)
            ids = common.topk(k).indices
            token_logprobs = logprobs.gather(1, labels[start : start + step, None]).squeeze(1)
            kept = logprobs.gather(1, ids)
            parts.append((token_logprobs, ids, kept, logprobs.scatter_(1, ids, -torch.inf).logsumexp(-1)))
        token_logprobs, ids, kept, log_tail = (torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True))
        return TopK(token_logprobs, ids, kept, log_tail, torch.ones(len(labels), dtype=torch.bool))

    def _answer(self, request_id: str, row: Row, top: TopK) -> Answer | TeacherFailure:
        if bool(top.logprobs[top.valid].isnan().any()):
            return self._failure("not_finite", f"log-probabilities of {request_id}")
        return Answer(top, Usage(input=len(row.token_ids)), model_returned=self.lm.name)

    def _failure(self, reason: str, detail: str) -> TeacherFailure:
        return TeacherFailure(self.name, reason, retryable=False, detail=detail)


def build(name: str, config: TransformersTeacher, models: Models, temperature: float = 1.0) -> CrossingTeacher:
    """Loads the model, or uses it where adapters stand on it already, with all of them off.

    Raises:
        TeacherError: it cannot be loaded, or its tokens are too far from the student's.
    """
    assert config.align is not None, f"{name} has the student's tokenizer"
    key = base_key(config, models.resolve)
    lm = models.get(key, name)
    running: Running = partial(adapters_disabled, lm.model) if is_adapted(lm.model) else nullcontext
    with running():
        head = find_head(lm.model, lm.vocab_size, key=" ".join(filter(None, key)), called=where(name))
    head, running = models.between_turns(lm, head, running)
    return CrossingTeacher(
        name=name,
        lm=lm,
        head=head,
        bridge=bridge_models(models.student, lm, config.align.least_coverage),
        top_k=config.align.top_k,
        spans=config.spans,
        system=config.system,
        tokens_per_forward=models.tokens_per_forward,
        temperature=temperature,
        running=running,
    )
