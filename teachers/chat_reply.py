"""What a chat teacher wrote -> a Judgment, or why it is none; and what the server says it cost.

A server with structured output sends one JSON object. Others put it in a fence, after a thinking block, between
sentences, in single quotes or with a comma too many, and all of that is read. What could be read in two ways is not:
a reply that quotes a student's own `{"score": 1}` must not turn that into a grade.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teachers.chat_prompt import well_formed
from teachers.types import Judgment, Usage

_THINKING = re.compile(r"\s*<(think|thinking|reasoning)>.*?</\1>", re.DOTALL)
# A template may open the thinking block in the prompt, so that only its end is in the reply.
_END_OF_THINKING = re.compile(r"[^{}]*</think>", re.DOTALL)
_KEYS = "score|feedback|rewrite"
_OBJECT = re.compile(rf"""\{{(?=\s*(?:["']|(?:{_KEYS})\s*:))""")
_QUOTED_KEY = re.compile(rf"""["'](?:{_KEYS})["']\s*:""")
# One field of an object that is not quite JSON. A string ends at a quote that is followed by the next field or by the
# end of the object, so that quotes and apostrophes inside it need no escape.
_FIELD = re.compile(
    rf"""\s*(?P<mark>["']?)(?P<key>{_KEYS})(?P=mark)\s*:\s*
    (?:(?P<quote>["'])(?P<text>(?:\\.|[^\\])*?)(?P=quote)|(?P<bare>[^\s"'{{}},][^,{{}}\n]*))
    (?=\s*(?:,?\s*\}}|,\s*["']?(?:{_KEYS})["']?\s*:))\s*,?""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SCORE = re.compile(rf"({_NUMBER})\s*(?:(%)|(?:/|out of)\s*({_NUMBER}))?")
_LONGEST_LOOSE = 100_000  # characters: the loose reading is slower than linear where a text is made to be slow


@dataclass(frozen=True)
class Unreadable:
    """Why a text is not the reply that was asked for. Nothing of the text itself is in it: that may be private."""

    why: str


def read_reply(text: str, gives: Collection[str], completion: str) -> Judgment | Unreadable:
    """The judgment in a reply, with exactly what was asked for.

    gives: the keys that were asked for. A score may be a number, "0.7", "7/10" or "70%"; outside of [0, 1] it is
    unreadable. completion: the student's text; a rewrite gets the white space around it, and is None where it
    changes nothing.
    """
    body = _without_thinking(text)
    if not body.strip():
        return Unreadable("it is empty")
    if tuple(gives) == ("score",) and (score := as_score(body)) is not None:
        fields: Mapping[str, Any] | Unreadable = {"score": score}
    else:
        fields = _fields(body, gives)
    return fields if isinstance(fields, Unreadable) else _judgment(fields, gives, completion)


def as_score(value: object) -> float | None:
    """A number as it is, or what "0.7", "7/10", "7 out of 10", "70%" mean; None where it is not a finite number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e300 else None  # NaN and infinity are not below it
    if not isinstance(value, str) or (match := _SCORE.fullmatch(value.strip())) is None:
        return None
    number, percent, whole = float(match[1]), match[2], float(match[3]) if match[3] else 1.0
    score = number / 100 if percent else number / whole if whole > 0 else math.nan
    return score if math.isfinite(score) else None


def usage_of(reported: object, most: Usage, received: str) -> tuple[Usage, bool]:
    """(tokens charged for, whether all counts were the server's own), from the `usage` of a reply.

    most: the most that question and answer can come to; received: all text that came back. Where a count is missing,
    of a wrong type, negative, or several times too high, the most it can have been is charged: a budget must hold.
    """
    counts = reported if isinstance(reported, Mapping) else {}
    read = _count(counts, "prompt_tokens")
    written = _count(counts, "completion_tokens")
    trusted = True
    if read is None or not 0 < read <= 4 * most.input + 4096:  # a server may add instructions of its own
        read, trusted = most.input, False
    if written is None or written > 4 * most.output + 4096 or (written == 0 and received):
        written, trusted = min(most.output, len(well_formed(received).encode())), False
    cached = _count(counts, "prompt_tokens_details", "cached_tokens")
    if cached is None:
        cached = _count(counts, "prompt_cache_hit_tokens")  # DeepSeek
    reasoning = _count(counts, "completion_tokens_details", "reasoning_tokens") or 0
    # Some count reasoning beside the answer and not as a part of it; the sum says so.
    apart = reasoning > written or (reasoning > 0 and _count(counts, "total_tokens") == read + written + reasoning)
    if apart and reasoning <= 4 * most.output + 4096:
        written += reasoning
    return Usage(read, min(cached or 0, read), written, min(reasoning, written)), trusted


@dataclass(frozen=True)
class Said:
    """What is of use in the body of a chat completion.

    text: the answer, without reasoning that the server keeps apart. all_text: with it. error: in place of an answer.
    """

    text: str = ""
    all_text: str = ""
    refusal: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    error: str | None = None


def said_in(body: Mapping[str, Any]) -> Said:
    """Reads a body of which any part may be missing or something else."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        error = body.get("error")
        message = error.get("message") if isinstance(error, Mapping) else error
        return Said(error=None if error is None else _line(message))
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    text = _plain(message.get("content"))
    finish, refusal, model = choice.get("finish_reason"), message.get("refusal"), body.get("model")
    if refusal is None and finish == "content_filter":
        refusal = "the server's content filter"
    return Said(
        text=text,
        all_text=text + _plain(message.get("reasoning_content")) + _plain(message.get("reasoning")),
        refusal=_line(refusal) if refusal else None,
        finish_reason=finish if isinstance(finish, str) else None,
        model=model if isinstance(model, str) else None,
    )


def _plain(content: object) -> str:
    """A message's content: a text, or a list of parts with one each."""
    if isinstance(content, list):
        return "".join(_plain(part.get("text")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _count(counts: Mapping[str, Any], *keys: str) -> int | None:
    value: Any = counts
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


# ---- finding the object ----


def _without_thinking(text: str) -> str:
    if opened := _THINKING.match(text):
        return text[opened.end() :]
    if re.match(r"\s*<(?:think|thinking|reasoning)>", text):
        return ""  # it never came to an end
    ended = _END_OF_THINKING.match(text)
    return text[ended.end() :] if ended else text


def _fields(text: str, gives: Collection[str]) -> Mapping[str, Any] | Unreadable:
    """The one object of a text that has the keys asked for."""
    found: list[Mapping[str, Any]] = []
    around, position = "", 0
    while start := _OBJECT.search(text, position):
        read = _strict(text, start.start()) or _loose(text, start.start())
        if read is None:
            # Going on inside of it could take for the reply what is only quoted in it.
            return Unreadable("it holds an object that is not JSON")
        around += text[position : start.start()]
        fields, position = read
        if fields not in found and set(gives) & fields.keys():
            found.append(fields)
    if _QUOTED_KEY.search(around + text[position:]):
        return Unreadable("a part of its object stands outside of it")  # a quotation ended it too early
    complete = [fields for fields in found if set(gives) <= fields.keys()]
    if len(complete) == 1:
        return complete[0]
    if complete:
        return Unreadable(f"it holds {len(complete)} different answers")
    missing = sorted(set(gives) - found[-1].keys()) if found else sorted(gives)
    return Unreadable(f"it has no {', '.join(missing)}")


Read = tuple[dict[str, Any], int] | None  # an object, and where it ends


def _strict(text: str, start: int) -> Read:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return value, end


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands there twice")
    return fields


# Line breaks inside a string are no JSON, and common.
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_once)


def _loose(text: str, start: int) -> Read:
    """An object with known keys alone, in any quotes or none, perhaps with a comma after the last."""
    if len(text) - start > _LONGEST_LOOSE:
        return None
    fields: dict[str, Any] = {}
    position = start + 1
    while field := _FIELD.match(text, position):
        if field["key"] in fields or (field["text"] and _QUOTED_KEY.search(field["text"])):
            return None
        fields[field["key"]] = _bare(field["bare"]) if field["text"] is None else _unescaped(field["text"])
        position = field.end()
    end = re.compile(r"\s*\}").match(text, position)
    return (fields, end.end()) if fields and end else None


def _bare(value: str) -> str | None:
    value = value.strip()
    return None if value.lower() in ("null", "none") else value


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _ESCAPED.get(code, code)

    return _ESCAPE.sub(character, text)


# ---- the judgment ----


def _judgment(fields: Mapping[str, Any], gives: Collection[str], completion: str) -> Judgment | Unreadable:
    score, feedback, rewrite = None, None, None
    if "score" in gives:
        score = as_score(fields["score"])
        if score is None or not 0 <= score <= 1:
            return Unreadable("its score is not a number from 0 to 1")
    if "feedback" in gives:
        feedback = fields["feedback"]
        if isinstance(feedback, list) and all(isinstance(line, str) for line in feedback):
            feedback = "\n".join(feedback)
        if feedback is not None and not isinstance(feedback, str):
            return Unreadable("its feedback is not a text")
        feedback = well_formed(feedback).strip() if feedback else None
    if "rewrite" in gives:
        rewrite = fields["rewrite"]
        if rewrite is not None and not isinstance(rewrite, str):
            return Unreadable("its rewrite is not a text")
        rewrite = _with_edges_of(completion, well_formed(rewrite)) if rewrite and rewrite.strip() else None
    return Judgment(score, feedback or None, None if rewrite == completion else rewrite)


def _with_edges_of(completion: str, rewrite: str) -> str:
    """The rewrite with the white space around the student's text where it has none: it is seldom copied."""
    if not completion.strip():
        return rewrite
    before = completion[: len(completion) - len(completion.lstrip())]
    after = completion[len(completion.rstrip()) :]
    before = "" if rewrite[0].isspace() else before
    return before + rewrite + ("" if rewrite[-1].isspace() else after)
