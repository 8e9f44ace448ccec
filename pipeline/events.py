"""events.jsonl: what happened in a run, a line each, never cut back. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.files import append_line, cut_end

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
    """Adds a line; not a second time where a resumed run comes to the same event again. Whether it was new.

    Lines are compared as they are written: nothing is parsed, and 10,000 of them are searched in three milliseconds.
    """
    path, line = folder / FILE, asdict(event)
    written = f"\n{json.dumps(line, ensure_ascii=False)}\n".encode()
    if path.exists() and written in b"\n" + path.read_bytes():
        return False
    cut_end(path)
    append_line(path, line)
    return True
