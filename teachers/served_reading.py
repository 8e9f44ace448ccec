"""How a request is put to a server: in the student's tokens, or in those of another tokenizer and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from teachers.alignment import closing_token
from teachers.bridge import build_bridge, cross, restricted, to_student
from teachers.causal_lm import load_tokenizer, render
from teachers.config import Alignment, ServedTeacher
from teachers.scoring import Ends, scored_tokens
from teachers.served_rows import Question
from teachers.types import ScoreRequest, TeacherFailure, TopK

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from teachers.tools import Tools


@dataclass(frozen=True, eq=False)
class Read:
    """A request as the server is asked it. wanted: which of the question's tokens are scored. back: what the server
    said of them, as the student's tokens."""

    question: Question
    wanted: Tensor
    back: Callable[[TopK], TopK]


@dataclass(frozen=True, eq=False)
class Reader:
    """tokenizer: the server's. read: a request as it is asked, or why it cannot be. notes: for a user, a line each."""

    tokenizer: PreTrainedTokenizerBase
    read: Callable[[ScoreRequest], Read | TeacherFailure]
    notes: tuple[str, ...] = ()


def reader_of(name: str, config: ServedTeacher, tools: Tools) -> Reader:
    """Raises TeacherError for another tokenizer that is not there, or too far from the student's."""
    if config.tokenizer is None:

        def same(request: ScoreRequest) -> Read:
            prompt = tools.student_render(request.conversation, config.system)
            question = Question(config.model, prompt, request.token_ids, config.top_k)
            return Read(question, scored_tokens(request.segments, config.spans), lambda top: top)

        return Reader(tools.student_tokenizer, same)
    align = config.align or Alignment()
    tokenizer = load_tokenizer(config.tokenizer, name=f"teachers.{name}", revision=None)
    student = tools.student_tokenizer
    ends = Ends(closing_token(student, name="the student"), closing_token(tokenizer, name=f"teachers.{name}"))
    bridge = build_bridge(student, tokenizer, ends, name=name, least_coverage=align.least_coverage)

    def across(request: ScoreRequest) -> Read | TeacherFailure:
        (found,) = cross(bridge, [request])
        if isinstance(found, TeacherFailure):
            return found
        pairs = restricted(bridge, found, scored_tokens(request.segments, config.spans))
        if isinstance(pairs, TeacherFailure):
            return pairs
        wanted = torch.zeros(len(found.token_ids), dtype=torch.bool)
        wanted[pairs.teacher_at] = True
        prompt = render(request.conversation, tokenizer, config.system)
        question = Question(config.model, prompt, found.token_ids, config.top_k)
        return Read(question, wanted, lambda top: to_student(bridge, pairs, top, align.top_k))

    return Reader(tokenizer, across, (f"teachers.{name}: {bridge.note}",))
