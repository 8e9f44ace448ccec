"""The kept rollouts, token by token, and held-out answers before and after: small enough for a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rapidfuzz.distance import Indel

from pipeline.report.read import MOST_ROLLOUTS, Line, Run, is_number, newest, section

BYTES_OF_TOKENS = 4_500_000
BYTES_OF_ANSWERS = 1_500_000
CHOICES_KEPT = (
    64,
    32,
    16,
    8,
)  # places of a rollout at which choices are shown: fewer where a page would grow too large
KINDS = ("gained", "lost", "wrong", "right", "same")  # of held-out answers, before and now
LONGEST_TEXT = 8_000  # characters of a prompt or answer
LONGEST_DIFF = 4_000  # words
Change = tuple[str, str]  # same, gone or new; the text


class Words:
    """Token texts by number, so that each stands in the page once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def list(self) -> list[str]:
        return list(self._numbers)


@dataclass(frozen=True)
class Views:
    """words: token texts. rollouts: each a plain value, see `rollout_view`. in_all: how many the run kept."""

    words: tuple[str, ...]
    rollouts: tuple[dict[str, Any], ...]
    in_all: int


def views_of(run: Run, budget: int = BYTES_OF_TOKENS) -> Views:
    """The run's rollouts, with as many choices as fit into `budget` bytes, and fewer rollouts where even few do not."""
    samples: Sequence[Line] = run.samples
    while True:
        for kept in CHOICES_KEPT:
            words = Words()
            made = [rollout_view(line, words, kept) for line in samples]
            if _size(made) + _size(words.list()) <= budget:
                return Views(tuple(words.list()), tuple(made), run.samples_in_all)
        if len(samples) < 2:
            return Views((), (), run.samples_in_all)
        samples = samples[::2]


def rollout_view(line: Line, words: Words, choices: int) -> dict[str, Any]:
    """A rollout in few bytes. Numbers are whole: divergences and log-probabilities in thousandths of a nat, -1 for
    none; probabilities in tenths of a percent. Choices are [place, word, probability, word, probability, …]."""
    view: dict[str, Any] = {
        "step": line.get("step"),
        "domain": line.get("domain"),
        "prompt": cut(line.get("prompt")),
        "reference": cut(line.get("reference")),
        "finish": line.get("finish_reason"),
        "writer": line.get("writer"),
        "score": line.get("score"),
    }
    tokens = line.get("tokens")
    if not isinstance(tokens, list):
        return view | {"completion": cut(line.get("completion"))}
    teachers = {name: said for name, said in section(line, "teachers").items() if isinstance(said, Mapping)}
    places = _worst(teachers, len(tokens), choices)
    view |= {
        "tokens": [words.number(str(text)) for text in tokens],
        "logprobs": _thousandths(line.get("logprobs"), -1),
        "top": list(_choices(line.get("top"), places, words)),
        "teachers": {
            name: {
                "divergence": _thousandths(said.get("divergence"), 1),
                "logprobs": _thousandths(said.get("logprobs"), -1),
                "top": list(_choices(said.get("top"), places, words)),
            }
            for name, said in teachers.items()
        },
        "parts": [part for part in line.get("segments") or () if isinstance(part, list) and len(part) == 3],
    }
    judged = {name: said for name, said in section(line, "judgments").items() if isinstance(said, Mapping)}
    if judged:
        answer = "".join(str(text) for text in tokens)
        view["judgments"] = {name: judgment_view(said, answer) for name, said in judged.items()}
    return view


def judgment_view(said: Line, answer: str) -> dict[str, Any]:
    """A grade, what was said, and the rewrite as changes to the answer."""
    rewrite = said.get("rewrite_text") or said.get("rewrite")
    return {
        "score": said.get("score"),
        "feedback": cut(said.get("feedback")),
        "changes": changes(answer, str(rewrite)) if rewrite else None,
    }


@lru_cache(2 * MOST_ROLLOUTS)  # views are made again with fewer choices where they do not fit
def changes(before: str, after: str) -> tuple[Change, ...]:
    """What has to be taken out of `before` and put in to make `after`, word by word, with as little as possible."""
    old, new = _words(_without_end(before)), _words(after)
    if max(len(old), len(new)) > LONGEST_DIFF:
        return ("gone", cut(before) or ""), ("new", cut(after) or "")
    found: list[Change] = []
    gone = put = ""
    for step in Indel.opcodes(old, new):
        if step.tag != "equal":
            gone += "".join(old[step.src_start : step.src_end])
            put += "".join(new[step.dest_start : step.dest_end])
            continue
        found += _changed(gone, put)
        found.append(("same", "".join(old[step.src_start : step.src_end])))
        gone = put = ""
    return (*found, *_changed(gone, put))


def _changed(gone: str, put: str) -> list[Change]:
    pairs: tuple[Change, ...] = (("gone", gone), ("new", put))
    return [pair for pair in pairs if pair[1]]


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _without_end(text: str) -> str:
    """An end token at the end is no part of what was corrected."""
    return re.sub(r"<\|?[\w/ ]+\|?>\s*$", "", text)


def _worst(teachers: Mapping[str, Line], length: int, most: int) -> list[int]:
    """The places with the largest divergence from any teacher, in order."""
    worst = [0.0] * length
    for said in teachers.values():
        for place, value in enumerate((said.get("divergence") or ())[:length]):
            if isinstance(value, int | float):
                worst[place] = max(worst[place], float(value))
    return sorted(sorted(range(length), key=lambda place: (-worst[place], place))[:most])


def _thousandths(values: Any, sign: int) -> list[int]:
    """Log-probabilities change their sign, so that -1 is free to mean none."""
    if not isinstance(values, list):
        return []
    return [
        max(0, round(1000 * sign * min(max(value, -1e5), 1e5)))
        if isinstance(value, int | float) and value == value
        else -1
        for value in values
    ]


def _choices(top: Any, places: Sequence[int], words: Words) -> Iterator[list[int]]:
    if not isinstance(top, list):
        return
    for place in places:
        given = top[place] if place < len(top) else None
        if isinstance(given, list) and given:
            row = [place]
            for text, probability in given:
                row += [words.number(str(text)), round(1000 * float(probability))]
            yield row


def cut(text: Any, most: int = LONGEST_TEXT) -> str | None:
    if text is None:
        return None
    text = str(text)
    return (
        text
        if len(text) <= most
        else f"{text[: most // 2]}\n[… {len(text) - most:,} characters …]\n{text[-most // 2 :]}"
    )


def _size(value: Any) -> int:
    import json

    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


# ---- held-out answers, before and now ----


def answers_of(run: Run, budget: int = BYTES_OF_ANSWERS) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """(pairs, counts): a prompt's answers of the base, the student and its teacher; domain -> outcome -> how many.

    Of each domain and outcome as many pairs as fit, evenly. Outcomes: gained (a higher score now), lost (a lower one),
    right or wrong as before, or same, where scores say more than that.
    """
    last = newest(run)
    base = {line["prompt_id"]: line for line in run.answers.get("base", ()) if "prompt_id" in line}
    teachers = {
        line["prompt_id"]: line.get("completion")
        for name, given in run.answers.items()
        if name.startswith("teacher-")
        for line in given
        if "prompt_id" in line
    }
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    counts: dict[str, dict[str, int]] = {}
    seen: set[str] = set()
    graded = {
        str(line.get("domain"))
        for given in (base.values(), run.answers.get(last or "", ()))
        for line in given
        if line.get("score") not in (0, 1)
    }
    for now in run.answers.get(last or "", ()):
        key = now.get("prompt_id")
        if not isinstance(key, str) or key not in base or key in seen:
            continue
        seen.add(key)
        domain = str(now.get("domain"))
        kind = _kind(base[key].get("score"), now.get("score"), graded=domain in graded)
        counts.setdefault(domain, dict.fromkeys(KINDS, 0))[kind] += 1
        pairs.setdefault((domain, kind), []).append(
            {
                "domain": domain,
                "kind": kind,
                "prompt": cut(now.get("prompt"), 3000),
                "reference": cut(now.get("reference"), 3000),
                "base": [cut(base[key].get("completion"), 3000), base[key].get("score")],
                "now": [cut(now.get("completion"), 3000), now.get("score")],
                "teacher": cut(teachers.get(key), 3000),
            }
        )
    ordered = sorted(pairs.items(), key=lambda item: KINDS.index(item[0][1]))
    return list(_in_turn([found for _, found in ordered], budget)), counts


def _kind(before: Any, now: Any, *, graded: bool) -> str:
    if not (is_number(before) and is_number(now)):
        return "same"
    if now != before:
        return "gained" if now > before else "lost"
    return "same" if graded else "right" if now == 1 else "wrong"


def _in_turn(groups: Iterable[list[dict[str, Any]]], budget: int) -> Iterator[dict[str, Any]]:
    waiting = [list(reversed(group)) for group in groups]
    while waiting:
        for group in waiting:
            pair = group.pop()
            budget -= _size(pair)
            if budget < 0:
                return
            yield pair
        waiting = [group for group in waiting if group]
