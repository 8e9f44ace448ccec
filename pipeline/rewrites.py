"""A teacher's correction of a completion -> a completion to learn from: the student's own tokens up to where the
correction begins, then the new text.

What is kept is the context of what is learned, and is not trained on: the student can write it already.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING, Literal, NamedTuple

from pipeline.evaluate import answer_text
from pipeline.rollout.segments import ThinkTags, think_tags
from pipeline.types import Rollout
from teachers.alignment import answer_end
from teachers.causal_lm import CausalLM
from teachers.types import Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]
# Why a correction becomes no row.
Unused = Literal[
    "stopped",  # it goes on after a stop string, where the student could not
    "empty",
    "same",  # as the answer
    "unfinished",  # the student was still thinking, or went on after its answer
    "garbled",  # the tokenizer does not give it back
    "control_tokens",  # it has tokens that are no text
    "little_kept",  # of the student's text
    "too_long",  # for the context, or for max_new_tokens
]


class Marks(NamedTuple):
    """A model's tokens that are no text. end: what closes an answer. control: all of them, the tags among them."""

    end: int
    tags: ThinkTags | None
    control: frozenset[int]


@dataclass(frozen=True, eq=False)
class Room:
    """What a correction has to fit into. stop: the rollouts' stop strings, which end an answer's text.

    max_new_tokens: of a completion, as for the student's own. least_kept: of the characters that the student wrote.
    """

    lm: CausalLM
    marks: Marks
    stop: tuple[str, ...]
    max_new_tokens: int
    least_kept: float


def marks_of(lm: CausalLM) -> Marks:
    special = {token for token, entry in lm.tokenizer.added_tokens_decoder.items() if entry.special}
    tags = think_tags(lm.tokenizer)
    return Marks(answer_end(lm), tags, frozenset({*lm.end_ids, *special, *(tags or ())}))


def rewrite_rollout(rollout: Rollout, text: str, writer: str, room: Room) -> Rollout | Unused:
    """The rollout with its answer corrected to `text`: thinking and the tokens before the correction as the student
    wrote them and not trained on, then the new text and the end of the answer, which are.

    Or why it is of no use. White space that the student began with is put back where the text has none: it belongs to
    the format, and models that rewrite drop it.
    """
    lm, marks = room.lm, room.marks
    answer = answer_text(rollout, lm, room.stop)
    stopped = _before_stop(text, room.stop)
    if stopped is None:
        return "stopped"
    text = stopped
    if not text.strip():
        return "empty"
    if text.strip() == answer.strip():
        return "same"
    parts = _parts(rollout, marks.tags)
    if parts is None:
        return "unfinished"
    before, ids = parts
    wanted = text if text[0].isspace() else answer[: len(answer) - len(answer.lstrip())] + text
    joined = _join(ids, wanted, lm.tokenizer)
    if joined is None:
        return "garbled"
    kept, new, kept_text = joined
    if not marks.control.isdisjoint(kept + new):
        return "control_tokens"
    if answer and len(kept_text) < room.least_kept * len(answer):
        return "little_kept"
    pieces = [replace(segment, trainable=False) for segment in before]
    pieces += [Segment("assistant", "answer", part, own) for part, own in ((kept, False), (new, True)) if part]
    pieces.append(Segment("assistant", "end", (marks.end,), trainable=True))
    written = Rollout(rollout.prompt, rollout.sample_index, rollout.prompt_ids, tuple(pieces), "end", writer=writer)
    length = len(written.completion_ids)
    fits = length <= room.max_new_tokens and len(rollout.prompt_ids) + length <= lm.context
    return written if fits else "too_long"


def _before_stop(text: str, stop: Sequence[str]) -> str | None:
    """What stands before the first stop string; None where more follows, which the student could never write."""
    found = [(text.index(string), string) for string in stop if string in text]
    if not found:
        return text
    place, string = min(found)
    return None if text[place + len(string) :].strip() else text[:place]


def _parts(rollout: Rollout, tags: ThinkTags | None) -> tuple[tuple[Segment, ...], tuple[int, ...]] | None:
    """What comes before the answer, and the answer's tokens; None where no answer was begun or it is not the last."""
    segments = [segment for segment in rollout.segments if segment.kind != "end"]
    before = tuple(takewhile(lambda segment: segment.kind != "answer", segments))
    answer = segments[len(before) :]
    if any(segment.kind != "answer" for segment in answer) or (before and before[-1].kind == "tool_call"):
        return None
    read = (*rollout.prompt_ids, *(token for segment in before for token in segment.token_ids))
    if tags is not None and next((token == tags.open for token in reversed(read) if token in tags), False):
        return None
    return before, tuple(token for segment in answer for token in segment.token_ids)


class _Joined(NamedTuple):
    """The student's tokens that stay, those that follow, and the text of the former."""

    kept: tuple[int, ...]
    new: tuple[int, ...]
    kept_text: str


def _join(ids: tuple[int, ...], wanted: str, tokenizer: PreTrainedTokenizerBase) -> _Joined | None:
    """`wanted` as tokens that begin with as many of `ids` as they can; together they decode to exactly `wanted`."""

    def decode(token_ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    for kept, new in _candidates(ids, wanted, tokenizer, decode):
        if decode(kept + new) == wanted:
            return _Joined(kept, new, decode(kept))
    return None


def _candidates(
    ids: tuple[int, ...], wanted: str, tokenizer: PreTrainedTokenizerBase, decode: Decode
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """First as many of the student's tokens as the text shares, then the rest on its own. Some tokenizers (Llama 2's)
    put a space before whatever they are given: there the tokens that the whole text has in common with the student's.
    """
    kept = ids[: shared_tokens(ids, wanted, decode)]
    rest = wanted[len(decode(kept)) :]
    yield kept, tuple(tokenizer.encode(rest, add_special_tokens=False)) if rest else ()
    whole = tuple(tokenizer.encode(wanted, add_special_tokens=False))
    shared = _common(ids, whole)
    yield whole[:shared], whole[shared:]


def shared_tokens(ids: Sequence[int], text: str, decode: Decode) -> int:
    """How many of `ids`, at most, decode to a text that `text` begins with: whole tokens, whole characters.

    Characters may reach over tokens, and a beginning that ends inside one decodes to replacement characters, so the
    length of the decoded text does not simply grow. Without these at its end it is never longer than what is complete:
    a search for the first beginning that is too long ends behind the place, which is then looked for backwards.
    """
    common = _common(decode(ids), text)
    most = bisect_right(range(len(ids) + 1), common, key=lambda count: len(decode(ids[:count]).rstrip("\ufffd")))
    return next(count for count in range(min(most, len(ids)), -1, -1) if text.startswith(decode(ids[:count])))


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of the common beginning."""
    return sum(1 for _ in takewhile(bool, map(eq, one, other)))
