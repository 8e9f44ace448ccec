"""A vLLM server's prompt_logprobs from a small transformers model: true scores in the format of vLLM 0.32."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_LOGPROBS = 20  # what vLLM allows without --max-logprobs


@dataclass(frozen=True)
class Scorer:
    """log_table: (P) token ids -> (P, V) log p(· | the ids up to and with that place). context: of the model."""

    log_table: Callable[[Sequence[int]], Tensor]
    encode: Callable[[str], list[int]]
    context: int


def scorer_of(folder: str) -> Scorer:
    """The model and the tokenizer of a folder, in fp32 on the CPU."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    alone = threading.Lock()

    def log_table(token_ids: Sequence[int]) -> Tensor:
        with alone, torch.inference_mode():
            logits: Tensor = model(torch.tensor([list(token_ids)])).logits[0, :, : len(tokenizer)]
            return logits.float().log_softmax(-1)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text).input_ids)

    return Scorer(log_table, encode, int(model.config.max_position_embeddings))


def completion(scorer: Scorer, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(status, body) of POST /v1/completions with prompt_logprobs."""
    prompt = request.get("prompt")
    token_ids = scorer.encode(prompt) if isinstance(prompt, str) else list(prompt or ())
    k = request.get("prompt_logprobs")
    if not token_ids or not all(isinstance(token, int) for token in token_ids):
        return 400, _error("prompt: one text or one list of token ids")
    if k is not None and not 0 <= k <= MAX_LOGPROBS:
        return 400, _error(f"Requested prompt logprobs of {k}, which is greater than max allowed: {MAX_LOGPROBS}")
    room = len(token_ids) + int(request.get("max_tokens", 16))
    if room > scorer.context:
        return 400, _error(
            f"This model's maximum context length is {scorer.context} tokens. However, you requested {room} tokens."
        )
    table = scorer.log_table(token_ids)
    rows = None if k is None else [None, *(_row(table[i], token, k) for i, token in enumerate(token_ids[1:]))]
    choice = {"index": 0, "text": "?", "logprobs": None, "finish_reason": "length", "prompt_logprobs": rows}
    usage = {"prompt_tokens": len(token_ids), "completion_tokens": 1, "total_tokens": len(token_ids) + 1}
    return 200, {"object": "text_completion", "model": request["model"], "choices": [choice], "usage": usage}


def _row(logprobs: Tensor, realised: int, k: int) -> dict[str, dict[str, Any]]:
    """The realised token first, then the K most probable; rank counts from 1."""
    top = logprobs.topk(k).indices.tolist() if k else []
    ranks = {realised: int((logprobs > logprobs[realised]).sum()) + 1} | {t: rank for rank, t in enumerate(top, 1)}
    return {
        str(token): {"logprob": float(logprobs[token]), "rank": rank, "decoded_token": None}
        for token, rank in ranks.items()
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "code": 400}}
