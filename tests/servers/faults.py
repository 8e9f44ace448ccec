"""What can go wrong with a server, by name, and when it does: by a seeded plan, by a script, or as a request says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any


class Fault(StrEnum):
    # in place of an answer
    RATE_LIMITED = "rate_limited"  # 429 with Retry-After
    RATE_LIMITED_BARE = "rate_limited_bare"  # 429 without
    ERROR_500 = "error_500"
    ERROR_503 = "error_503"
    HTML_502 = "html_502"
    HTML_200 = "html_200"
    REDIRECT = "redirect"
    # on the way
    SLOW = "slow"  # late, and right
    HANG = "hang"  # nothing, until the client gives up
    RESET = "reset"  # in the middle of the body
    CUT = "cut"  # a body shorter than announced
    TRUNCATED_JSON = "truncated_json"  # as long as announced, and half of an object
    # in the answer of either role
    WRONG_USAGE = "wrong_usage"
    NO_USAGE = "no_usage"
    OTHER_MODEL = "other_model"
    # in a grade
    NAN_SCORE = "nan_score"
    HIGH_SCORE = "high_score"
    REFUSAL = "refusal"
    FILTERED = "filtered"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    NO_CHOICES = "no_choices"
    PROSE = "prose"
    # in log-probabilities
    NAN_LOGPROB = "nan_logprob"
    POSITIVE_LOGPROB = "positive_logprob"
    MISSING_TOP_K = "missing_top_k"
    MISSING_ROW = "missing_row"
    MISSING_TOKEN = "missing_token"  # the realised one


STATUS = (
    *(Fault.RATE_LIMITED, Fault.RATE_LIMITED_BARE, Fault.ERROR_500, Fault.ERROR_503),
    *(Fault.HTML_502, Fault.HTML_200, Fault.REDIRECT),
)
WIRE = (Fault.SLOW, Fault.HANG, Fault.RESET, Fault.CUT, Fault.TRUNCATED_JSON)
EITHER = (Fault.WRONG_USAGE, Fault.NO_USAGE, Fault.OTHER_MODEL)
CHAT = (
    *(Fault.NAN_SCORE, Fault.HIGH_SCORE, Fault.REFUSAL, Fault.FILTERED, Fault.TRUNCATED),
    *(Fault.EMPTY, Fault.NO_CHOICES, Fault.PROSE),
)
SCORES = (*(Fault.NAN_LOGPROB, Fault.POSITIVE_LOGPROB, Fault.MISSING_TOP_K, Fault.MISSING_ROW, Fault.MISSING_TOKEN),)
# After these a question has its right answer all the same.
HARMLESS = (Fault.SLOW, Fault.WRONG_USAGE, Fault.NO_USAGE)
# These end a question, or a run, instead of being asked again: left out of a plan unless it names them.
FINAL = (Fault.REDIRECT, Fault.OTHER_MODEL, Fault.REFUSAL, Fault.FILTERED)

_IN_TEXT = re.compile(r"\[\[fault:(\w+)(?:\*(\d+))?\]\]")


@dataclass(frozen=True)
class Plan:
    """Which requests go wrong: a share of them, by their content and how often it was asked before, not by time.

    faults: those that are drawn from, with equal chances.
    """

    rate: float = 0.0
    seed: int = 0
    faults: tuple[Fault, ...] = tuple(fault for fault in Fault if fault not in FINAL)

    def fault(self, content: str, attempt: int, role: tuple[Fault, ...]) -> Fault | None:
        """content: what is asked. attempt: from 0. role: the faults that the endpoint can have beside the common."""
        digest = sha256(f"{self.seed}/{content}/{attempt}".encode()).digest()
        if int.from_bytes(digest[:8], "big") >= self.rate * 2**64:
            return None
        possible = [fault for fault in self.faults if fault in (*STATUS, *WIRE, *EITHER, *role)]
        return possible[int.from_bytes(digest[8:12], "big") % len(possible)] if possible else None


def asked_for(text: str, attempt: int) -> Fault | None:
    """The fault that a text asks for: `[[fault:reset]]` each time, `[[fault:reset*2]]` the first two times."""
    match = _IN_TEXT.search(text)
    return Fault(match[1]) if match and (match[2] is None or attempt < int(match[2])) else None


# ---- answers, spoiled ----


def spoiled(body: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
    """The body of an answer with a fault in it; unchanged where the fault is none of the answer's."""
    change = _CHANGES.get(fault) if fault else None
    return change(json.loads(json.dumps(body))) if change else body


def _changed(**fields: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: {**body, **fields}


def _message(finish: str, **fields: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(body: dict[str, Any]) -> dict[str, Any]:
        choice = body["choices"][0]
        choice["message"] |= fields
        choice["finish_reason"] = finish
        return body

    return change


def _reply(change: Callable[[str], str], finish: str = "stop") -> Callable[[dict[str, Any]], dict[str, Any]]:
    def changed(body: dict[str, Any]) -> dict[str, Any]:
        content = body["choices"][0]["message"]["content"]
        return _message(finish, content=change(content))(body)

    return changed


def _score(value: object) -> Callable[[str], str]:
    def change(content: str) -> str:
        try:
            fields = json.loads(content)
        except ValueError:  # a server that is held to no format
            return "no score at all"
        return json.dumps({**fields, "score": value})

    return change


def _rows(
    change: Callable[[list[Mapping[str, Any] | None]], list[Any]],
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def changed(body: dict[str, Any]) -> dict[str, Any]:
        choice = body["choices"][0]
        choice["prompt_logprobs"] = change(choice["prompt_logprobs"])
        return body

    return changed


def _last_row(change: Callable[[dict[str, Any]], object]) -> Callable[[list[Any]], list[Any]]:
    """The last row is a completion's, wherever the prompt ends. Its first entry is the realised token's."""
    return lambda rows: [*rows[:-1], change(rows[-1])]


def _with_logprob(value: float) -> Callable[[dict[str, Any]], object]:
    return lambda row: {token: {**entry, "logprob": value} for token, entry in row.items()}


_CHANGES: Mapping[Fault, Callable[[dict[str, Any]], dict[str, Any]]] = {
    Fault.WRONG_USAGE: _changed(usage={"prompt_tokens": -7, "completion_tokens": "many", "total_tokens": 10**15}),
    Fault.NO_USAGE: _changed(usage=None),
    Fault.OTHER_MODEL: lambda body: {**body, "model": f"{body['model']}-next"},
    Fault.NAN_SCORE: _reply(_score(math.nan)),
    Fault.HIGH_SCORE: _reply(_score(7)),
    Fault.REFUSAL: _message("stop", content=None, refusal="I cannot help with that."),
    Fault.FILTERED: _message("content_filter", content=""),
    Fault.TRUNCATED: _reply(lambda content: content[: len(content) // 2], finish="length"),
    Fault.EMPTY: _message("stop", content=""),
    Fault.NO_CHOICES: _changed(choices=[]),
    Fault.PROSE: _reply(lambda _: "What a fine answer! I have nothing to add."),
    Fault.NAN_LOGPROB: _rows(_last_row(_with_logprob(math.nan))),
    Fault.POSITIVE_LOGPROB: _rows(_last_row(_with_logprob(0.5))),
    Fault.MISSING_TOP_K: _rows(_last_row(lambda row: dict(list(row.items())[:1]))),
    Fault.MISSING_ROW: _rows(lambda rows: rows[:-1]),
    Fault.MISSING_TOKEN: _rows(_last_row(lambda row: dict(list(row.items())[1:]))),
}
