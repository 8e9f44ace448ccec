"""The answer of each step that people are shown: which one it is, and its line in samples.jsonl.

Every step has a line with the answer as it was written. About MOST_VIEWED of a run's, evenly spread, say token by token
what its teachers made of it as well: texts, log-probabilities, divergences, what the student and each teacher expected
where they disagreed most, and what others said of the whole answer. All of it is the same whenever a step is run again.

Legend: T tokens of the completion, M those that may carry a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import ceil, exp, isfinite
from typing import TYPE_CHECKING, Any

from pipeline.token_texts import Decode, entry_text, token_texts
from pipeline.types import Expected, Rollout, Shown
from teachers.types import Answer, Judgment, TeacherFailure

if TYPE_CHECKING:
    from torch import Tensor

MOST_VIEWED = 500  # steps of a run
MOST_CHOICES = 64  # tokens of an answer
LONGEST_VIEWED = 65_536  # tokens: a longer answer is kept as its text alone, hundreds of bytes a token less
DIGITS = 5  # that count; a page shows fewer


@dataclass(frozen=True)
class Kept:
    """A step's answer for people. place: among the step's rollouts. viewed: token by token, not as a text alone."""

    rollout: Rollout
    place: int
    viewed: bool

    @property
    def shown(self) -> Rollout | None:
        return self.rollout if self.viewed else None


def keep(rollouts: Sequence[Rollout], step: int, steps: int) -> Kept:
    """One of a step's rollouts, of `steps` that there are at most: the domains in turn, and each time that a domain has
    its turn the next of its rollouts. Steps that are viewed take turns among themselves, or a domain might never be."""
    every = ceil(steps / MOST_VIEWED)
    due = (step - 1) % every == 0
    turn = (step - 1) // every + 1 if due else step
    domains = sorted({rollout.prompt.domain for rollout in rollouts})
    visit, domain = divmod(turn, len(domains))
    places = [n for n, rollout in enumerate(rollouts) if rollout.prompt.domain == domains[domain]]
    place = places[visit % len(places)]
    return Kept(rollouts[place], place, due and not _is_long(rollouts[place]))


def _is_long(rollout: Rollout) -> bool:
    return sum(len(segment.token_ids) for segment in rollout.segments) > LONGEST_VIEWED


def line_of(rollout: Rollout, decode: Decode) -> dict[str, Any]:
    """What every step's line says: the answer as it was written."""
    return {
        "domain": rollout.prompt.domain,
        "prompt": decode(rollout.prompt_ids),
        "completion": decode(rollout.completion_ids),
        "reference": rollout.prompt.reference,
        "finish_reason": rollout.finish_reason,
        "writer": rollout.writer,
        "sampling_logprobs": () if _is_long(rollout) else rollout.sampling_logprobs,
    }


def view_of(
    rollout: Rollout,
    seen: Shown | None,
    decode: Decode,
    *,
    score: float | None,
    said: Mapping[str, Answer | TeacherFailure],
    rewritten: Mapping[str, str],
) -> dict[str, Any]:
    """What a viewed step's line says besides.

    seen: what the update saw of it, None where nobody taught it. score: the checker's. said: by whoever was asked.
    rewritten: teacher -> the answer's text as it is trained on, of rewrites that became rows.
    """
    return {
        "rollout_id": rollout.rollout_id,
        "prompt_id": rollout.prompt.prompt_id,
        "score": score,
        "tokens": token_texts(rollout.completion_ids, decode),
        "segments": list(_segments(rollout)),
        **_expectations(rollout, seen, decode),
        "judgments": {
            name: _judgment(result.signal, rewritten.get(name))
            for name, result in sorted(said.items())
            if isinstance(result, Answer) and isinstance(result.signal, Judgment)
        },
    }


def _segments(rollout: Rollout) -> Iterator[tuple[str, int, int]]:
    """Kind, first token, one past the last."""
    first = 0
    for segment in rollout.segments:
        yield segment.kind, first, first + len(segment.token_ids)
        first += len(segment.token_ids)


def _judgment(said: Judgment, rewritten: str | None) -> dict[str, Any]:
    return {"score": said.score, "feedback": said.feedback, "rewrite": said.rewrite, "rewrite_text": rewritten}


def _expectations(rollout: Rollout, seen: Shown | None, decode: Decode) -> dict[str, Any]:
    """The student's and the teachers' numbers, a list of T each; None where there are none."""
    nothing: list[None] = [None] * len(rollout.completion_ids)
    if seen is None:
        return {"logprobs": nothing, "top": nothing, "teachers": {}}
    places = [n for n, trainable in enumerate(rollout.trainable) if trainable]
    telling = _telling(seen)
    text = cache(partial(entry_text, decode=decode))

    def spread(values: Iterable[Any]) -> list[Any]:
        found: list[Any] = list(nothing)
        for place, value in zip(places, values, strict=True):
            found[place] = value
        return found

    def of(expected: Expected) -> dict[str, Any]:
        chosen = sorted(telling)
        columns = zip(chosen, expected.ids[chosen].tolist(), expected.logprobs[chosen].tolist(), strict=True)
        top = {n: _choices(ids, logprobs, text) for n, ids, logprobs in columns}
        return {
            "logprobs": spread(_numbers(expected.label_logprobs)),
            "top": spread(top.get(n) for n in range(len(places))),
        }

    teachers = {
        name: {"divergence": spread(_numbers(seen.divergences[name])), **of(expected)}
        for name, expected in sorted(seen.teachers.items())
    }
    return {**of(seen.student), "teachers": teachers}


def _telling(seen: Shown) -> frozenset[int]:
    """Which of the M tokens are shown with choices: those at which some teacher disagrees most; without teachers those
    that the student found least likely."""
    values = list(seen.divergences.values()) or [-seen.student.label_logprobs]
    worst = [max(column) for column in zip(*(_sortable(value) for value in values), strict=True)]
    ranked = sorted(range(len(worst)), key=lambda n: -worst[n])
    return frozenset(ranked[:MOST_CHOICES])


def _sortable(values: Tensor) -> list[float]:
    return [value if isfinite(value) else float("-inf") for value in values.tolist()]


def _choices(ids: Sequence[int], logprobs: Sequence[float], text: Callable[[int], str]) -> list[list[Any]] | None:
    """(text, probability) of each entry, None where there are none."""
    found = zip(ids, logprobs, strict=True)
    return [[text(token), _short(exp(logprob))] for token, logprob in found if isfinite(logprob)] or None


def _numbers(values: Tensor) -> list[float | None]:
    return [_short(value) if isfinite(value) else None for value in values.tolist()]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
