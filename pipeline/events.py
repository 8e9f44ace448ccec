"""events.jsonl: what happened in a run, a line each, never cut back. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.files import append_line, cut_end, read_lines

FILE = "events.jsonl"


@dataclass(frozen=True)
class Event:
    """what: of which kind. name: the guard's, or what it is about. subject: a domain or a teacher. said: one sentence.

    attempt: how many roll-backs there were before it, so that a step which is made again is told from one replayed.
    """

    step: int
    what: Literal["guard", "rollback", "fault", "checkpoint"]
    name: str
    said: str
    subject: str | None = None
    value: float | None = None
    threshold: float | None = None
    action: str | None = None
    attempt: int = 0


def happened(folder: Path, event: Event) -> bool:
    """Adds a line; not a second time where a resumed run comes to the same event again. Whether it was new."""
    path = folder / FILE
    line: Mapping[str, Any] = asdict(event)
    if any(before == line for before in read_lines(path)):
        return False
    cut_end(path)
    append_line(path, line)
    return True
