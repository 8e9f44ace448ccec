"""What of a codebase was taken, what was left out and why, which secrets were replaced: the rows of three tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.codebase.types import Code, LeftOut, Reason, SourceFile


class Taken(NamedTuple):
    """language: "text" for documents. size: bytes of UTF-8. licences: SPDX, without repetition, in order."""

    language: str
    files: int
    tests: int
    lines: int
    size: int
    licences: tuple[str, ...]


class Dropped(NamedTuple):
    """files: of which a whole folder counts as one. example: the first path and what there is to say about it."""

    reason: Reason
    files: int
    example: str


class Replaced(NamedTuple):
    detector: str
    secrets: int


@dataclass(frozen=True)
class Summary:
    """taken and left_out: the most files first. secrets: the most first."""

    taken: tuple[Taken, ...]
    left_out: tuple[Dropped, ...]
    secrets: tuple[Replaced, ...]


def summary(code: Code) -> Summary:
    languages: dict[str, list[SourceFile]] = defaultdict(list)
    for file in code.files:
        languages[file.language or "text"].append(file)
    reasons: dict[Reason, list[LeftOut]] = defaultdict(list)
    for each in code.left_out:
        reasons[each.reason].append(each)
    taken = [_taken(language, files) for language, files in languages.items()]
    dropped = [Dropped(reason, len(found), _example(found[0])) for reason, found in reasons.items()]
    replaced = [Replaced(detector, count) for detector, count in code.secrets.items()]
    return Summary(
        tuple(sorted(taken, key=lambda row: (-row.files, row.language))),
        tuple(sorted(dropped, key=lambda row: (-row.files, row.reason))),
        tuple(sorted(replaced, key=lambda row: (-row.secrets, row.detector))),
    )


def commonest(left_out: Iterable[LeftOut]) -> str:
    """The three reasons that most files are left out for, for an error's line; "nothing" where all are used."""
    common = Counter(each.reason for each in left_out).most_common(3)
    return ", ".join(f"{reason.replace('_', ' ')} {n}" for reason, n in common) or "nothing"


def _taken(language: str, files: list[SourceFile]) -> Taken:
    return Taken(
        language,
        len(files),
        sum(file.is_test for file in files),
        sum(len(file.text.splitlines()) for file in files),
        sum(len(file.text.encode()) for file in files),
        tuple(sorted({file.licence for file in files if file.licence})),
    )


def _example(left_out: LeftOut) -> str:
    return f"{left_out.path} ({left_out.detail})" if left_out.detail else left_out.path
