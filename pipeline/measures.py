"""The loss on held-out references: it moves before any answer is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.types import Prompt
from teachers.causal_lm import CausalLM, last_hidden, render
from teachers.heads import find_head
from teachers.scoring import predicting_states

TOKENS_PER_FORWARD = 8_192


@torch.no_grad()
def reference_losses(lm: CausalLM, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Prompt id -> nats per token of its reference after the prompt, at temperature 1.

    The end token is left out: a model that has only seen whole files would go on where a reference stops. Prompts
    without a reference, and those that with theirs pass the context, have none.
    """
    rows: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for prompt in prompts:
        if prompt.reference is None:
            continue
        ids = tuple(lm.tokenizer.encode(prompt.reference, add_special_tokens=False))
        shown = render(prompt.conversation, lm.tokenizer)
        if ids and shown and len(shown) + len(ids) <= lm.context:
            rows[prompt.prompt_id] = (shown, ids)
    names = list(rows)
    head = find_head(lm.model, lm.vocab_size, lm.name)
    weights = head.load()
    losses: dict[str, float] = {}
    every = [shown + ids for shown, ids in rows.values()]
    for index, hidden in last_hidden(lm, every, tokens_per_forward=TOKENS_PER_FORWARD):
        ids = rows[names[index]][1]
        logprobs = head.logits(weights, predicting_states(hidden, len(ids))).log_softmax(-1)
        labels = torch.tensor(ids, device=logprobs.device)
        losses[names[index]] = -float(logprobs.gather(-1, labels[:, None]).mean())
    head.release()
    return {name: losses[name] for name in names}
