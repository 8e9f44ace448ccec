"""What each kind of server that scores a text is sent, and how its answer reads. Pure: no network.

Legend as in `served_rows.py`: P prompt tokens, N completion tokens, K entries per token.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from teachers.served_rows import BadAnswerError, Entry, Question, Rows
from teachers.types import Usage


@dataclass(frozen=True)
class Format:
    """path: below the server's root. body: what is sent. rows: reads the answer; raises BadAnswerError."""

    name: str
    path: str
    body: Callable[[Question], dict[str, Any]]
    rows: Callable[[Mapping[str, Any], Question], Rows]


# ---- reading what others wrote ----


def usage_of(body: Mapping[str, Any], question: Question) -> Usage:
    """What was charged, as the server counts; what it does not say is counted here."""
    said = body.get("usage") or body.get("meta_info")
    said = said if isinstance(said, Mapping) else {}
    details = said.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else said.get("cached_tokens")
    return Usage(
        input=_count(said.get("prompt_tokens"), len(question.token_ids)),
        cached=_count(cached, 0),
        output=_count(said.get("completion_tokens"), 0),
    )


def _count(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadAnswerError("missing_logprobs", f"its answer has no {what}")
    return value


def _last(value: object, what: str, count: int) -> list[Any]:
    """The last `count` items, of the completion's tokens."""
    items = _list(value, what)
    if len(items) < count:
        raise BadAnswerError("misaligned", f"{len(items)} {what} for {count} tokens")
    return items[len(items) - count :]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan  # null, or a word: no number in any case
    return float(value)


def _choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = _list(body.get("choices"), "choices")
    if len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise BadAnswerError("malformed", f"it has {len(choices)} choices, and one was asked for")
    return choices[0]


# ---- vLLM ----


def _vllm_body(question: Question) -> dict[str, Any]:
    return {
        "model": question.model,
        "prompt": list(question.token_ids),
        "max_tokens": 1,
        "temperature": question.temperature,
        "prompt_logprobs": question.k,
    }


def _vllm_rows(body: Mapping[str, Any], question: Question) -> Rows:
    rows = _list(_choice(body).get("prompt_logprobs"), "prompt_logprobs")
    if len(rows) != len(question.token_ids):
        raise BadAnswerError("misaligned", f"{len(rows)} prompt_logprobs for {len(question.token_ids)} tokens")
    return _by_id(rows[len(question.prompt_ids) :], question)


def _by_id(rows: Sequence[Any], question: Question) -> Rows:
    """[{"<token id>": {"logprob": …}}], the realised token among them, which shows that the rows are aligned."""
    realised, entries = [], []
    for row, token in zip(rows, question.completion_ids, strict=True):
        if not isinstance(row, Mapping) or not all(isinstance(entry, Mapping) for entry in row.values()):
            raise BadAnswerError("missing_logprobs", "a token of the completion has no entries")
        if str(token) not in row:
            raise BadAnswerError("misaligned", f"token {token} is not among the entries of its place")
        realised.append(_number(row[str(token)].get("logprob")))
        read = [(_token_id(key), _number(entry.get("logprob"))) for key, entry in row.items()]
        # vLLM always gives the realised token, and nothing else where no entries are asked for.
        entries.append(read if question.k else [entry for entry in read if entry[0] != token])
    return Rows(realised, entries)


def _token_id(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise BadAnswerError("malformed", f"{text[:20]!r} is no token id")
    return int(text)


VLLM = Format("/v1/completions with prompt_logprobs", "/v1/completions", _vllm_body, _vllm_rows)


def _vllm_lean_body(question: Question) -> dict[str, Any]:
    return {
        "model": question.model,
        "token_ids": list(question.token_ids),
        "return_token_ids": True,
        "sampling_params": {
            "max_tokens": 1,
            "temperature": question.temperature,
            "detokenize": False,
            # Row i scores its ids as predictions of token start + i + 1: here each completion token and nothing else.
            "prompt_logprob_token_ids": [[token] for token in question.completion_ids],
            "prompt_logprob_start": len(question.prompt_ids) - 1,
        },
    }


def _vllm_lean_rows(body: Mapping[str, Any], question: Question) -> Rows:
    """(N, 1) log-probabilities as the bytes of an .npy file in base64, and the ids that were read."""
    if body.get("prompt_token_ids") != list(question.token_ids):
        raise BadAnswerError("misaligned", "its tokens are not those that were sent")
    said = body.get("prompt_token_id_logprobs")
    if not isinstance(said, str):
        raise BadAnswerError("missing_logprobs", "its answer has no prompt_token_id_logprobs")
    try:
        values = np.load(io.BytesIO(base64.b64decode(said, validate=True)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadAnswerError("malformed", f"prompt_token_id_logprobs is no array: {error}") from error
    if values.shape != (len(question.completion_ids), 1) or values.dtype.kind != "f":
        raise BadAnswerError("misaligned", f"log-probabilities of shape {values.shape}")
    return Rows(values[:, 0].tolist(), [()] * len(values))


# For the sampled tokens alone: a few bytes for each, and none for the prompt. vLLM 0.32 with its V2 model runner.
VLLM_LEAN = Format("/inference/v1/generate", "/inference/v1/generate", _vllm_lean_body, _vllm_lean_rows)


# ---- SGLang ----


def _sglang_body(question: Question) -> dict[str, Any]:
    return {
        "input_ids": list(question.token_ids),
        "sampling_params": {"max_new_tokens": 0, "temperature": question.temperature},
        "return_logprob": True,
        # The first row that comes back is null: it is the last token of the prompt.
        "logprob_start_len": len(question.prompt_ids) - 1,
        "top_logprobs_num": question.k,
    }


def _sglang_rows(body: Mapping[str, Any], question: Question) -> Rows:
    """[[logprob, id, text]] for the realised tokens, and a list of such for each under input_top_logprobs."""
    meta = body.get("meta_info")
    if not isinstance(meta, Mapping):
        raise BadAnswerError("missing_logprobs", "its answer has no meta_info")
    count = len(question.completion_ids)
    tokens = [_pair(item) for item in _last(meta.get("input_token_logprobs"), "input_token_logprobs", count)]
    if tuple(token for token, _ in tokens) != question.completion_ids:
        raise BadAnswerError("misaligned", "its tokens are not those that were sent")
    entries: list[list[Entry]] = [[] for _ in tokens]
    if question.k:
        tops = _last(meta.get("input_top_logprobs"), "input_top_logprobs", count)
        entries = [[_pair(item) for item in _list(top, "entries for a token")] for top in tops]
    return Rows([logprob for _, logprob in tokens], entries)


def _pair(item: object) -> Entry:
    if not isinstance(item, list) or len(item) < 2 or not isinstance(item[1], int):
        raise BadAnswerError("malformed", "an entry is not [logprob, token id, …]")
    return item[1], _number(item[0])


SGLANG = Format("/generate", "/generate", _sglang_body, _sglang_rows)


# ---- any server with completions, echo and logprobs ----


@dataclass(frozen=True)
class Texts:
    """The student's tokens as texts. of_id: each id's text. ids: text -> id, for texts that only one token has."""

    of_id: Sequence[str]
    ids: Mapping[str, int]
    decode: Callable[[Sequence[int]], str]


def completions(texts: Texts, *, as_ids: bool, ask_for_ids: bool) -> Format:
    """A format for servers that echo the prompt with log-probabilities, by their tokens' texts.

    as_ids: the prompt goes out as token ids; else as a text, which the server cuts itself. ask_for_ids: asks for
    "token_id:7" instead of texts, which few servers understand and some refuse.
    """

    def body(question: Question) -> dict[str, Any]:
        ids = list(question.token_ids)
        return {
            "model": question.model,
            "prompt": ids if as_ids else texts.decode(ids),
            "max_tokens": 1,  # 0 means no limit to some servers
            "temperature": question.temperature,
            "echo": True,
            "logprobs": question.k,
            **({"return_tokens_as_token_ids": True} if ask_for_ids else {}),
        }

    def rows(body: Mapping[str, Any], question: Question) -> Rows:
        return _echoed(body, question, texts)

    sent, back = "ids" if as_ids else "text", "ids" if ask_for_ids else "texts"
    return Format(f"/v1/completions with echo ({sent} out, {back} back)", "/v1/completions", body, rows)


def _echoed(body: Mapping[str, Any], question: Question, texts: Texts) -> Rows:
    said = _choice(body).get("logprobs")
    if not isinstance(said, Mapping):
        raise BadAnswerError("missing_logprobs", "its answer has no logprobs")
    start, end = len(question.prompt_ids), len(question.token_ids)
    tokens = _list(said.get("tokens"), "tokens")
    if len(tokens) not in (end, end + 1):  # the one token that it had to write may be left out
        raise BadAnswerError("misaligned", f"{len(tokens)} tokens came back, and {end} were sent")
    for token, text in zip(question.token_ids, tokens, strict=False):
        # Servers show a part of a character each in their own way: its neighbours have to speak for it.
        if text not in (f"token_id:{token}", texts.of_id[token]) and "\ufffd" not in texts.of_id[token]:
            raise BadAnswerError("misaligned", f"{text!r} came back for token {token}, {texts.of_id[token]!r}")
    realised = [_number(value) for value in _list(said.get("token_logprobs"), "token_logprobs")[start:end]]
    if not question.k:
        return Rows(realised, [()] * len(realised))
    tops = _list(said.get("top_logprobs"), "top_logprobs")[start:end]
    return Rows(realised, [_entries(top, texts) for top in tops])


def _entries(top: object, texts: Texts) -> list[Entry] | None:
    if not isinstance(top, Mapping):
        raise BadAnswerError("missing_top_k", "a token has no top_logprobs")
    entries: list[Entry] = []
    for text, logprob in top.items():
        numbered = text.removeprefix("token_id:")
        token = int(numbered) if text != numbered and numbered.isdigit() else texts.ids.get(text)
        if token is None:
            return None
        entries.append((token, _number(logprob)))
    return entries
