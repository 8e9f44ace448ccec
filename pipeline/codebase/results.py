"""What runs of a repository's tests came to, remembered: the same text under the same tests is never run twice."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import DataError
from teachers.repository_run import Ran, Trial, key_of, ran


class Results:
    """path: a file that is made where there is none, for its owner alone; None keeps them as long as this object lives.
    It holds names of tests and what they said when they failed. runs: how many were really run.

    A context manager. Raises DataError: a file that is none of these, or cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.runs = 0
        self._path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # sqlite's own files get its mode
            self._base = sqlite3.connect(path or ":memory:", timeout=60)
            self._base.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, ran TEXT NOT NULL)")
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"{path}: no file of remembered test results ({error}); delete it") from error

    async def of(self, trial: Trial) -> Ran:
        """Raises what `ran` raises; nothing is remembered then, nor where a part of the sandbox is missing."""
        key = key_of(trial)
        try:
            row = self._base.execute("SELECT ran FROM results WHERE key = ?", (key,)).fetchone()
            if row is not None:
                told: dict[str, Any] = json.loads(row[0])
                return Ran(**{**told, "touched": tuple(told["touched"])})
            found = await ran(trial)
            self.runs += 1
            if found.missing is None:
                with self._base:
                    self._base.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (key, json.dumps(asdict(found))))
        except sqlite3.Error as error:
            raise DataError(f"{self._path}: the remembered test results cannot be used ({error}); delete it") from error
        return found

    def close(self) -> None:
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
