"""Whether a server computes what the student computes: a few tokens that it writes, scored by both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from pipeline.errors import RunError
from pipeline.rollout.protocol import SamplingSettings
from pipeline.rollout.vllm_engine import Engine
from pipeline.rollout.vllm_http import EngineError, Waiting, Wire
from pipeline.rollout.vllm_wire import COMPLETIONS, BadStreamError, piece_of, question
from teachers.caching import eval_mode
from teachers.causal_lm import CausalLM

TOKENS = 16
MOST = 0.25  # nats per token on average: kernels and bf16 differ by a tenth of it, other weights by more
_TEXT = "The quick brown fox jumps over the lazy dog."


async def require_same(
    engine: Engine, wire: Wire, lm: CausalLM, banned: Sequence[int], settings: SamplingSettings, waiting: Waiting
) -> float:
    """Mean |difference| of log-probabilities, in nats per token. It is asked as rollouts are, but for top-p and top-k.

    Raises RunError where the two differ by more than MOST: other weights, another model, another temperature.
    """
    prompt = sentence(lm)
    assert engine.published is not None
    body = question(
        engine.asked_as,
        prompt,
        replace(settings, top_p=1.0, top_k=0),
        left=TOKENS,
        seed=0,
        end_ids=sorted(lm.end_ids),
        salt=engine.published.name,
        banned=banned,
    )
    ids, logprobs = await _written(wire, body, lm, engine.root, waiting.silence)
    return require_near(lm, prompt, ids, logprobs, settings.temperature, engine.root)


def sentence(lm: CausalLM) -> list[int]:
    """What an engine goes on from when it is tried."""
    ids: list[int] = lm.tokenizer.encode(_TEXT, add_special_tokens=False)[: max(1, lm.context - TOKENS)]
    return ids


def require_near(
    lm: CausalLM, prompt: list[int], ids: list[int], logprobs: Sequence[float], temperature: float, who: str
) -> float:
    """Mean |difference| of `logprobs` of `ids` after `prompt` from the student's own, in nats per token.

    Raises RunError where it is more than MOST.
    """
    ours = _scored(lm, prompt, ids)
    there = fmean(abs(a - b) for a, b in zip(logprobs, at(ours, ids, temperature), strict=True))
    if there <= MOST:
        return there
    if temperature != 1.0:
        raw = fmean(abs(a - b) for a, b in zip(logprobs, at(ours, ids, 1.0), strict=True))
        if raw <= MOST:
            raise RunError(
                "rollout.server: its log-probabilities are those at temperature 1, not at rollout.temperature; start "
                "it with --logprobs-mode processed_logprobs"
            )
    raise RunError(
        f"rollout.server: {who} computes something else than the student: {there:.2f} nats per token apart on "
        f"average, and {MOST} is the most; let it serve the student's own model, unquantized"
    )


def at(logits: torch.Tensor, ids: list[int], temperature: float) -> list[float]:
    """log p of each id at `temperature`. logits (n, V)."""
    found = (logits / temperature).log_softmax(-1)
    values: list[float] = found.gather(-1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].tolist()
    return values


async def _written(
    wire: Wire, body: Mapping[str, Any], lm: CausalLM, root: str, silence: float
) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    logprobs: list[float] = []
    try:
        async with aclosing(wire.lines(COMPLETIONS, body, private=False, silence=silence)) as lines:
            async for line in lines:
                if (piece := piece_of(line, lm.vocab_size)) is not None:
                    ids += piece.token_ids
                    logprobs += piece.logprobs
    except (EngineError, BadStreamError) as error:
        raise RunError(f"rollout.server: {root} does not write: {error}") from error
    if not ids:
        raise RunError(f"rollout.server: {root} wrote nothing; see its log")
    return ids, logprobs


@torch.no_grad()
def _scored(lm: CausalLM, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """(n, V) logits that predict `ids`."""
    device = next(lm.model.parameters()).device
    with eval_mode(lm.model):
        logits = lm.model(input_ids=torch.tensor([[*prompt, *ids]], device=device), use_cache=False).logits[0]
    found: torch.Tensor = logits[len(prompt) - 1 : -1, : lm.vocab_size].float()
    return found
