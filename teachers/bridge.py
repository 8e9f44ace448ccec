"""From the student's tokenizer to a teacher's and back: a completion as the teacher reads it, its scores in our ids.

Strict 1:1 (2610.08448): a position is supervised only where one token of the student is one token of the teacher,
byte for byte, and the text before it ends at the same byte. There an entry of the teacher's becomes the student's entry
of the same bytes; entries that the student lacks go to the tail. Any kind of teacher crosses in three steps:
`build_bridge` once, `cross` before it is asked, `to_student` with what it said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from teachers.alignment import PROBES, answer_end, rendered_answer
from teachers.errors import TeacherError
from teachers.scoring import Ends
from teachers.spans import Integers, Pieces, encode, match, pieces
from teachers.types import Chat, ScoreRequest, Segment, TeacherFailure, TopK

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from teachers.causal_lm import CausalLM

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Side:
    """A tokenizer. lead: its template puts a space before an answer, which is no part of it (Llama 2's ▁)."""

    pieces: Pieces
    end: int
    lead: bool


@dataclass(frozen=True, eq=False)
class Bridge:
    """name: the teacher's, in failures.

    ids (R,) int64: the student's id for each of the teacher's, or -1; none of the student's stands there twice.
    opening (R,): the same at the first token of an answer in a chat, where one side may have a space in front.
    special: the teacher's token for the student's special tokens that it has too. rarest: the ordinary ids of the
    student's that have a counterpart, the highest first, which tokenizers made last. least_coverage: the share of a
    completion's tokens that must be tokens of the teacher. coverage: that share on the probe texts.
    """

    name: str
    student: Side
    teacher: Side
    ids: Tensor
    opening: Tensor
    special: Mapping[int, int]
    rarest: Tensor
    least_coverage: float
    coverage: float = 0.0

    @property
    def note(self) -> str:
        shared = int((self.ids >= 0).sum())
        return (
            f"another tokenizer: {shared} of its {len(self.ids)} entries are the student's too, and on probe texts "
            f"{self.coverage:.0%} of the student's tokens are its tokens; only such tokens are scored"
        )


@dataclass(frozen=True, eq=False)
class Crossed:
    """A completion of N student tokens as the teacher reads it.

    token_ids (M): the teacher's. student_at, teacher_at (n,) int64, ascending: pairs of tokens that are the same.
    opening: whether the first pair opens an answer in a chat, where `Bridge.opening` holds.
    """

    length: int
    token_ids: tuple[int, ...]
    student_at: Tensor
    teacher_at: Tensor
    opening: bool


# ---- once: which entries are the same ----


def build_bridge(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    ends: Ends,
    *,
    name: str,
    least_coverage: float,
    vocab_size: int | None = None,
) -> Bridge:
    """Compares two tokenizers, entry by entry.

    name: the teacher's. vocab_size: of the student; ids from there on have no row in its model.

    Raises:
        TeacherError: entries that are not exact bytes, or too few of the student's tokens in common.
    """
    where = f"teachers.{name}"
    ours, theirs = _side(student, ends.student, "the student"), _side(teacher, ends.teacher, where)
    size = len(ours.pieces.entries) if vocab_size is None else vocab_size
    ids = _counterparts(theirs, ours, size, opening=False)
    special = theirs.pieces.special.keys() | {theirs.end}
    ordinary = [mine for their, mine in enumerate(ids.tolist()) if mine >= 0 and their not in special]
    bridge = Bridge(
        name,
        ours,
        theirs,
        ids,
        opening=ids if ours.lead == theirs.lead else _counterparts(theirs, ours, size, opening=True),
        special={int(ids[their]): their for their in special if ids[their] >= 0},
        rarest=torch.tensor(sorted(ordinary, reverse=True), dtype=torch.int64),
        least_coverage=least_coverage,
    )
    bridge = replace(bridge, coverage=_probe(bridge))
    if bridge.coverage < least_coverage:
        raise TeacherError(
            f"{where}: {bridge.coverage:.0%} of the student's tokens on probe texts are tokens of this teacher, and "
            f"align.least_coverage is {least_coverage:.0%}; lower it, or use a teacher with a closer tokenizer"
        )
    return bridge


def bridge_models(student: CausalLM, teacher: CausalLM, least_coverage: float) -> Bridge:
    """The same for models, which know what ends their answers. Raises TeacherError as `build_bridge`."""
    ends = Ends(answer_end(student), answer_end(teacher))
    return build_bridge(
        student.tokenizer,
        teacher.tokenizer,
        ends,
        name=teacher.name,
        least_coverage=least_coverage,
        vocab_size=student.vocab_size,
    )


def _side(tokenizer: PreTrainedTokenizerBase, end: int, name: str) -> Side:
    table = pieces(tokenizer, name=name)
    return Side(table, end, _leads(tokenizer, table))


def _leads(tokenizer: PreTrainedTokenizerBase, table: Pieces) -> bool:
    """Whether an answer "b" begins with a space in the tokens that the chat template makes of it."""
    opened, whole = rendered_answer(tokenizer) or ([], [])
    if opened and whole[: len(opened)] == opened:
        return table.text(whole[len(opened) : len(opened) + 1]).startswith(b" ")
    backend = tokenizer.backend_tokenizer
    ids = backend.encode("b", add_special_tokens=False).ids
    return bool(table.text(ids) == b" b" and backend.decode(ids) == "b")


def _counterparts(teacher: Side, student: Side, size: int, *, opening: bool) -> Tensor:
    """(R,) the student's id below `size` for each of the teacher's, or -1.

    Special tokens go by their names, ends by their role.
    """
    found = torch.full((len(teacher.pieces.entries),), -1, dtype=torch.int64)
    theirs, ours = _by_bytes(teacher, opening), _by_bytes(student, opening)
    for text in theirs.keys() & ours.keys():
        for their, mine in _paired(theirs[text], ours[text]):
            found[their] = mine
    names = {token: index for index, token in student.pieces.special.items() if index != student.end}
    for index, token in teacher.pieces.special.items():
        found[index] = names.get(token, -1)
    found[teacher.end] = student.end
    return found.where(found < size, -1)


class _Same(NamedTuple):
    """Entries of the same bytes, ascending; mostly one. fallback: those like <0x41>."""

    whole: list[int]
    fallback: list[int]


def _by_bytes(side: Side, opening: bool) -> dict[bytes, _Same]:
    """opening: as the first token of an answer, where a space in front is the template's."""
    table = side.pieces
    found: defaultdict[bytes, _Same] = defaultdict(lambda: _Same([], []))
    for index, text in enumerate(table.entries):
        if not text or index == side.end or (opening and side.lead and not text.startswith(b" ")):
            continue
        same = found[text[1:] if opening and side.lead else text]
        (same.fallback if index in table.fallback else same.whole).append(index)
    return found


def _paired(theirs: _Same, ours: _Same) -> list[tuple[int, int]]:
    """Like with like, so that a tokenizer's entries are their own counterparts; then what is left over."""
    pairs = [*zip(theirs.whole, ours.whole, strict=False), *zip(theirs.fallback, ours.fallback, strict=False)]
    left = theirs.whole[len(ours.whole) :] + theirs.fallback[len(ours.fallback) :]
    left_of_ours = ours.whole[len(theirs.whole) :] + ours.fallback[len(theirs.fallback) :]
    return [*pairs, *zip(left, left_of_ours, strict=False)]


def _probe(bridge: Bridge) -> float:
    """The share of the student's tokens on the probe texts that are the teacher's too."""
    texts = [ids for ids in encode(bridge.student.pieces, [text.encode() for text in PROBES]) if ids]
    segments = [(Segment("assistant", "answer", tuple(ids), trainable=True),) for ids in texts]
    crossed = _cross(bridge, segments, chat=[False] * len(segments))
    matched = sum(len(one.student_at) for one in crossed if one is not None)
    return matched / max(sum(map(len, texts)), 1)


# ---- before a teacher is asked: the completion in its tokens ----


def cross(bridge: Bridge, requests: Sequence[ScoreRequest]) -> list[Crossed | TeacherFailure]:
    """Cuts the completions' bytes into the teacher's tokens: each segment by itself, special tokens apart.

    Failures: not_exact, where the teacher's tokenizer cannot write the bytes.
    """
    failure = TeacherFailure(bridge.name, "not_exact", retryable=False, detail="it has no tokens for some of the bytes")
    chat = [isinstance(request.conversation, Chat) for request in requests]
    return [found or failure for found in _cross(bridge, [request.segments for request in requests], chat)]


class _Run(NamedTuple):
    """Tokens of one segment, all text, or one that the teacher has by another id; no token reaches out of its run.

    lengths: of the student's tokens in `text`. lead: the teacher writes a space in front. same: the teacher's token.
    """

    lengths: Integers
    text: bytes
    lead: bool = False
    same: int | None = None


def _cross(bridge: Bridge, completions: Sequence[Sequence[Segment]], chat: Sequence[bool]) -> list[Crossed | None]:
    rows = [list(_runs(bridge, *row)) for row in zip(completions, chat, strict=True)]
    texts = [b" " * run.lead + run.text for row in rows for run in row if run.same is None]
    encoded = iter(encode(bridge.teacher.pieces, texts))
    cuts = [[next(encoded) if run.same is None else [run.same] for run in row] for row in rows]
    return [_joined(bridge, *row) for row in zip(completions, rows, cuts, chat, strict=True)]


def _runs(bridge: Bridge, segments: Sequence[Segment], chat: bool) -> Iterator[_Run]:
    """The runs of one completion. Before the first of a chat either template may have put a space."""
    table = bridge.student.pieces
    opening = chat
    for segment in segments:
        for ids in _apart(segment.token_ids, table.special.keys()):
            same = bridge.teacher.end if segment.kind == "end" else bridge.special.get(ids[0])
            if same is not None:
                yield from (_Run(np.ones(1, np.int64), b"", same=same) for _ in ids)
            elif ids[0] in table.special:
                name = table.special[ids[0]].encode()
                yield _Run(np.array([len(name)]), name)
            else:
                text, lengths = table.text(ids), table.lengths[list(ids)]
                if opening and bridge.student.lead and table.entries[ids[0]].startswith(b" "):
                    text, lengths[0] = text[1:], lengths[0] - 1
                yield _Run(lengths, text, lead=opening and bridge.teacher.lead)
            opening = False


def _apart(token_ids: Sequence[int], special: Set[int]) -> Iterator[Sequence[int]]:
    """Stretches of ordinary tokens, and special tokens one by one."""
    start = 0
    for place, token in enumerate(token_ids) if special & set(token_ids) else ():
        if token in special:
            if start < place:
                yield token_ids[start:place]
            yield token_ids[place : place + 1]
            start = place + 1
    if start < len(token_ids):
        yield token_ids[start:]


def _joined(
    bridge: Bridge, segments: Sequence[Segment], runs: Sequence[_Run], cut: Sequence[list[int] | None], chat: bool
) -> Crossed | None:
    """Pairs up the tokens of a whole completion: in each run both sides have the same bytes."""
    token_ids: list[int] = []
    ours, theirs = [_NONE], [_NONE]
    for run, ids in zip(runs, cut, strict=True):
        if ids is None:
            return None
        lengths = bridge.teacher.pieces.lengths[ids] if run.same is None else run.lengths
        if run.lead:
            lengths[0] -= 1
        token_ids += ids
        ours.append(run.lengths)
        theirs.append(lengths)
    student_at, teacher_at = match(np.concatenate(ours), np.concatenate(theirs))
    student_ids = np.array([token for segment in segments for token in segment.token_ids], np.int64)
    counterparts = bridge.ids.numpy()[np.array(token_ids, np.int64)[teacher_at]]
    opening = chat and len(student_at) > 0 and student_at[0] == teacher_at[0] == 0
    if opening:
        counterparts[0] = bridge.opening[token_ids[0]]
    # The same bytes are not yet the same entry: A and <0x41>, or an end token that does not close answers.
    same = counterparts == student_ids[student_at]
    return Crossed(
        length=len(student_ids),
        token_ids=tuple(token_ids),
        student_at=torch.from_numpy(student_at[same]),
        teacher_at=torch.from_numpy(teacher_at[same]),
        opening=bool(opening and same[0]),
    )


def restricted(bridge: Bridge, crossed: Crossed, wanted: Tensor) -> Crossed | TeacherFailure:
    """Only the pairs whose token of the student is wanted, (N,) bool.

    Failures: low_coverage, where these are fewer than the bridge's least share of the wanted tokens, or none at all.
    """
    keep = wanted[crossed.student_at]
    matched, count = int(keep.sum()), int(wanted.sum())
    if count and (not matched or matched < bridge.least_coverage * count):
        detail = f"{matched} of {count} tokens are its own, and align.least_coverage is {bridge.least_coverage:.0%}"
        return TeacherFailure(bridge.name, "low_coverage", retryable=False, detail=detail)
    return replace(
        crossed,
        student_at=crossed.student_at[keep],
        teacher_at=crossed.teacher_at[keep],
        opening=crossed.opening and bool(keep[0]),
    )


# ---- what a teacher said, in the student's tokens ----


def to_student(bridge: Bridge, crossed: Crossed, top: TopK, k: int) -> TopK:
    """A teacher's top-k over its own tokens (M rows, its ids) as one over the student's (N rows, the student's ids).

    On the CPU. The realised token keeps its log-probability. An entry that the student lacks goes to the tail. Where
    fewer than K are left, the places are filled with the rarest of the common entries, each with an equal share of the
    tail: that is all that is known of them, and a probability of 0 would be punished by the divergence. Entries and
    tail sum to what they summed to before, 1; nothing is renormalised.

    K is `k`, or `top`'s where that has fewer entries. valid: where a token is the same on both sides and the teacher's
    is valid; elsewhere the rest means nothing.
    """
    k = min(k, top.ids.shape[-1], len(bridge.rarest))
    rows = crossed.teacher_at
    ids = _looked_up(bridge.ids, top.ids[rows])
    if crossed.opening:
        ids[0] = _looked_up(bridge.opening, top.ids[rows[0]])
    ids, logprobs, log_tail = _filled(bridge, *_kept(ids, top.logprobs[rows], top.log_tail[rows], k))
    n, at = crossed.length, crossed.student_at
    return TopK(
        token_logprobs=logprobs.new_zeros(n).index_copy(0, at, top.token_logprobs[rows]),
        ids=bridge.rarest[:k].repeat(n, 1).index_copy(0, at, ids),
        logprobs=logprobs.new_full((n, k), -torch.inf).index_copy(0, at, logprobs),
        log_tail=logprobs.new_zeros(n).index_copy(0, at, log_tail),
        valid=torch.zeros(n, dtype=torch.bool).index_copy(0, at, top.valid[rows]),
    )


def _looked_up(counterparts: Tensor, ids: Tensor) -> Tensor:
    """-1 for ids past the table: a server may know of padded rows."""
    return torch.where(ids < len(counterparts), counterparts[ids.clamp(max=len(counterparts) - 1)], -1)


def _kept(ids: Tensor, logprobs: Tensor, log_tail: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best of (n, K) entries that have a counterpart, in their order; the others go to the tail.

    Places that are left over have id -1.
    """
    lacking = ids < 0
    order = torch.arange(ids.shape[-1]).expand_as(ids)
    if k < ids.shape[-1]:
        # An entry of probability 0 still comes before one that is lacking.
        worth = logprobs.clamp(min=torch.finfo(logprobs.dtype).min).masked_fill(lacking, -torch.inf)
        order = worth.topk(k).indices.sort().values
    kept = torch.zeros_like(lacking).scatter(1, order, True) & ~lacking
    dropped = logprobs.masked_fill(kept, -torch.inf).logsumexp(-1)
    return ids.gather(1, order), logprobs.gather(1, order), torch.logaddexp(log_tail, dropped)


def _filled(bridge: Bridge, ids: Tensor, logprobs: Tensor, log_tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct entries for the places with id -1, taken out of the tail with an equal share each."""
    missing = ids < 0
    if not bool(missing.any()):
        return ids, logprobs, log_tail
    k = ids.shape[-1]
    candidates = bridge.rarest[: 2 * k]
    row = torch.arange(len(ids))[:, None] << 32  # entries of different rows are different
    taken = torch.isin(row + candidates, row + ids)
    chosen = candidates[taken.to(torch.int8).argsort(stable=True)[:, :k]]
    place = (missing.cumsum(-1) - 1).clamp(min=0)
    count = missing.sum(-1)
    spread = len(bridge.ids) - k + count  # the entries that the tail stands for
    share = log_tail - spread.to(log_tail.dtype).log()
    return (
        torch.where(missing, chosen.gather(1, place), ids),
        torch.where(missing, share[:, None], logprobs),
        log_tail + torch.log1p(-count.to(log_tail.dtype) / spread),
    )
