"""What runs of a repository's tests came to, remembered: the same text under the same tests is never run twice."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from teachers.config import Sandbox
from teachers.repository_run import Ran, Trial, key_of, ran


class Results:
    """path: a file that is made where there is none; None keeps them as long as this object lives. It holds names of
    tests and what they said when they failed, and no source. runs: how many were really run.

    Raises DataError: a file that is none of these.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.runs = 0
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path or ":memory:")
            self._base.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, ran TEXT NOT NULL)")
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"{path}: no file of remembered test results ({error}); delete it") from error

    async def of(self, trial: Trial, limits: Sandbox) -> Ran:
        """Raises what `ran` raises; nothing is remembered then, nor where a part of the sandbox is missing."""
        key = key_of(trial, limits)
        row = self._base.execute("SELECT ran FROM results WHERE key = ?", (key,)).fetchone()
        if row is not None:
            told: dict[str, Any] = json.loads(row[0])
            return Ran(**{**told, "touched": tuple(told["touched"])})
        found = await ran(trial, limits)
        self.runs += 1
        if found.missing is None:
            with self._base:
                self._base.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (key, json.dumps(asdict(found))))
        return found

    def close(self) -> None:
        self._base.close()
