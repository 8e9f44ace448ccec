"""What is said to a vLLM server about one completion, and what it says back, token by token: ids in, ids out.

Seen with vLLM 0.32: POST /v1/completions with `prompt` as ids streams lines `data: {...}`, each with the new tokens'
ids (`return_token_ids`) and, with `logprobs: 0`, their log-probabilities alone. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from pipeline.rollout.protocol import SamplingSettings

COMPLETIONS = "/v1/completions"
_DATA, _DONE = "data:", "[DONE]"
_UNASKED = 1e-3  # nats above 0 that rounding may make of a log-probability


class BadStreamError(Exception):
    """The server said something that is no piece of the completion it was asked for. passes: it may be asked again."""

    def __init__(self, text: str, *, passes: bool = False) -> None:
        super().__init__(text)
        self.passes = passes


@dataclass(frozen=True)
class Piece:
    """New tokens. finish: why the server says that it ends here, None: it goes on."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str | None = None


def seed_of(seed: int, step: int, prompt_id: str, sample_index: int, written: int) -> int:
    """A request's seed, below 2**63. written: tokens that are there already: the numbers that drew them are used up,
    and a continuation that drew with them again would repeat itself."""
    name = f"{seed}/{step}/{sample_index}/{prompt_id}/{written}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def question(
    model: str,
    token_ids: Sequence[int],
    settings: SamplingSettings,
    *,
    left: int,
    seed: int,
    end_ids: Sequence[int],
    salt: str,
    banned: Sequence[int] = (),
) -> dict[str, Any]:
    """The body of a request to go on after `token_ids`.

    left: tokens at most. end_ids: that end it. salt: of the prefix cache: what other weights computed is not used.
    banned: entries of the model's vocabulary that are none of the tokenizer's.

    Everything that a server could have a default of its own for is said.
    """
    return {
        "model": model,
        "prompt": list(token_ids),
        **drawn(settings, left=left, seed=seed, end_ids=end_ids, banned=banned),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "cache_salt": salt,
        "stream": True,
    }


def drawn(
    settings: SamplingSettings, *, left: int, seed: int, end_ids: Sequence[int], banned: Sequence[int] = ()
) -> dict[str, Any]:
    """How tokens are drawn, by vLLM's names, which are the same in a request and in Python. As in `question`."""
    params: dict[str, Any] = {
        "max_tokens": left,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop_token_ids": list(end_ids),
        "ignore_eos": True,  # the ends are ours, all of them
        "logprobs": 0,
    }
    return params | ({"logit_bias": dict.fromkeys(banned, -100.0)} if banned else {})


def piece_of(line: str, vocab_size: int) -> Piece | None:
    """A line of the stream; None for one that says nothing of tokens.

    Raises BadStreamError: an error told in the stream, tokens without their log-probabilities, ids out of range.
    """
    if not line.startswith(_DATA) or (text := line[len(_DATA) :].strip()) == _DONE:
        return None
    try:
        said = json.loads(text)
    except ValueError as error:
        raise BadStreamError(f"a line that is no JSON: {text[:80]!r}", passes=True) from error
    if not isinstance(said, Mapping) or said.get("error"):
        raise BadStreamError(_error(said), passes=True)
    choices = said.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    choice = choices[0]
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    ids, logprobs = ids or [], logprobs or []
    if len(ids) != len(logprobs):
        raise BadStreamError(f"{len(ids)} token ids with {len(logprobs)} log-probabilities; it has to be vLLM 0.10.2+")
    if any(not isinstance(token, int) or not 0 <= token < vocab_size for token in ids):
        raise BadStreamError(f"token ids outside of the student's {vocab_size}: {ids[:5]}; it serves another model")
    if any(not isinstance(value, float | int) or not isfinite(value) or value > _UNASKED for value in logprobs):
        raise BadStreamError(f"log-probabilities that are none: {logprobs[:5]}")
    return Piece(tuple(ids), tuple(min(0.0, float(value)) for value in logprobs), choice.get("finish_reason"))


def _error(said: Any) -> str:
    error = said.get("error") if isinstance(said, Mapping) else said
    message = error.get("message") if isinstance(error, Mapping) else error
    return " ".join(str(message).split())[:300]
