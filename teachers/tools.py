"""What a remote teacher is built with, besides its own configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from teachers.guard import Guard
from teachers.types import Conversation, ScoreRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Checker = Callable[[str, str, str | None, ScoreRequest], float | None]


@dataclass(frozen=True, eq=False)
class Tools:
    """student_render: (conversation, a system prompt or None) -> the prompt's ids as the student's tokenizer has them.

    folder: what relative paths in a recipe are relative to. check: (a checker of the recipe's, completion, reference,
    request) -> a score in [0, 1], or None where there is no judging it. clear: a text -> the same without secrets, for
    a repository that a program is to run.
    """

    student_tokenizer: PreTrainedTokenizerBase
    student_render: Callable[[Conversation, str | None], tuple[int, ...]]
    guard: Guard
    folder: Path
    check: Checker
    clear: Callable[[str], str]
