"""What flows from a checkout to prompts: SourceFile -> Code -> Split -> Place -> Example. Imports without torch.

Offsets are characters of `SourceFile.text`, which has had its secrets replaced and its line ends made "\\n", so a span
means the same to every stage. Paths are posix and relative to the codebase's root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from teachers.types import Conversation

Language = Literal["python", "javascript", "typescript", "go", "rust", "java", "c", "cpp"]

# Why a file is not used. `outside`: a link that leaves the tree; `link`: one that stays, whose target is read itself.
# `untracked`: git ignores it or does not know it. A path that ends in a slash is a whole folder, counted as one.
Reason = Literal[
    "binary", "empty", "excluded", "generated", "licence", "link", "minified", "notebook", "outside", "submodule",
    "too_large", "undecodable", "unknown_language", "unparsable", "unreadable", "untracked", "vendored",
]  # fmt: skip

SymbolKind = Literal["function", "method", "class"]


class Span(NamedTuple):
    """text[start:end]."""

    start: int
    end: int


@dataclass(frozen=True)
class Symbol:
    """A function, a method or a class.

    name: as it is called, such as `add_edge`; path: with what it stands in, such as `Graph.add_edge`.
    whole: from its first decorator or comment-free first line to its last character, without the line end.
    head: `whole` up to where its body begins, the signature and its colon or brace included.
    docstring: the documentation as a reader sees it: a Python docstring with its quotes, the comment directly above in
        other languages; None without one.
    body: its statements without the docstring, from the first one's first character to the last one's last; None where
        there are none (a declaration, a docstring alone).
    calls: the names that its body calls or refers to, without repetition, in order.
    """

    kind: SymbolKind
    name: str
    path: str
    whole: Span
    head: Span
    body: Span | None
    docstring: Span | None = None
    calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Import:
    """One imported name. module: as it is written (`networkx.utils`, `./graph`, `std::fmt`, `stdio.h`). name: what is
    taken from it, None for the module itself. level: the leading dots of a Python import. span: the statement."""

    module: str
    name: str | None
    level: int
    span: Span


@dataclass(frozen=True)
class Outline:
    """What a parser found in a file. symbols: in order of their start, outer before inner. statements: the innermost
    and the compound ones alike, in order of start; each begins and ends at a statement's boundary."""

    symbols: tuple[Symbol, ...]
    imports: tuple[Import, ...]
    statements: tuple[Span, ...]


@dataclass(frozen=True)
class Sketch:
    """By what a text is compared with others, see `pipeline/codebase/duplicates.py`. signature: of MinHash, as bytes;
    empty for a text that is too short to tell. forms: of its functions and of the whole."""

    signature: bytes
    forms: frozenset[bytes]


@dataclass(frozen=True)
class SourceFile:
    """A file that is used. outline: None where there is no parser for its language (a README, a TOML file).

    digest: of the bytes on disk. licence: an SPDX identifier, where the file or the nearest licence file tells.
    is_test: whether it holds tests, by its name and place, as test runners find them. sketch: of its text; None where
    nobody made it yet.
    """

    path: str
    language: Language | None
    text: str
    digest: str
    outline: Outline | None = None
    licence: str | None = None
    is_test: bool = False
    sketch: Sketch | None = None


@dataclass(frozen=True)
class LeftOut:
    path: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Edit:
    """One file in one change. before: None where the change makes the file, after: None where it removes it."""

    path: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Change:
    """A commit against its first parent. time: seconds since 1970, of its author. edits: of text files, secrets
    replaced."""

    commit: str
    message: str
    time: int
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Code:
    """A codebase as it was read.

    revision: the commit that is checked out, None for a plain folder. files: sorted by path. secrets: detector -> how
    many it found and were replaced. changes: the newest first; empty where no history was asked for.
    """

    root: Path
    revision: str | None
    files: tuple[SourceFile, ...]
    left_out: tuple[LeftOut, ...]
    secrets: Mapping[str, int] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Split:
    """Which files may teach and which measure. They share no file, no near-duplicate and, split by time, no commit.

    dropped: training files that are too near to a held-out one -> that one. train_changes, held_out_changes: commits.
    fingerprint: equal fingerprints mean the same split of the same texts.
    """

    train: frozenset[str]
    held_out: frozenset[str]
    dropped: Mapping[str, str]
    train_changes: frozenset[str]
    held_out_changes: frozenset[str]
    fingerprint: str


TaskName = Literal["document", "line", "body", "fim", "docstring", "explain", "commit", "feature"]


class Place(NamedTuple):
    """Where a task is: the number of a file in `Code.files` (of a change in `Code.changes` for `commit`), what is to be
    written there, and the number of the symbol in the file's outline, -1 without one."""

    file: int
    span: Span
    symbol: int = -1


@dataclass(frozen=True)
class FillInTheMiddle:
    """The student's own tokens for it. order: of what stands around the gap (PSM or SPM)."""

    prefix: str
    suffix: str
    middle: str
    order: Literal["prefix_first", "suffix_first"] = "prefix_first"


@dataclass(frozen=True)
class Room:
    """How much an example may hold.

    prompt: tokens of the whole prompt. retrieved: of it, at most, what comes from other files; 0 for the file alone.
    shows_retrieved: that stands in the prompt; else it is kept beside it, and would fit.
    reference: tokens of the answer; a longer one makes no example. count: text -> tokens. fim: None where the student's
    tokenizer has no tokens for it. as_chat: a conversation instead of raw text. withheld: paths of which other files'
    examples show and say nothing: what is held out, where examples are to train on.
    """

    prompt: int
    retrieved: int
    reference: int
    count: Callable[[str], int]
    fim: FillInTheMiddle | None = None
    as_chat: bool = False
    shows_retrieved: bool = False
    withheld: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Example:
    """A task that the student can be given.

    reference: what the codebase itself has there. retrieved: the code from other files that belongs to it, put in front
    or not; a teacher may see it. grading: what running the answer needs, as JSON (`teachers/repository_tests.py`), None
    where nothing is run.
    """

    conversation: Conversation
    reference: str
    retrieved: str | None = None
    grading: str | None = None
