"""A journal as people read it: what each teacher came to, every attempt as a line, and answers taken out again."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachers.encoding import decode
from teachers.journal import Totals, connect, explained, totals, transaction
from teachers.types import Answer, Judgment, TopK


@dataclass(frozen=True)
class Kept:
    """Answers that are stored: how many, how many bytes, from which steps on (None: none of this run's own)."""

    answers: int
    bytes: int
    first_step: int | None


class Records:
    """An open journal. Nothing in it changes but by `prune`: what is under way in a living run stays so."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path, self._connection = path, connection

    def totals(self) -> dict[str, Totals]:
        """By teacher. What is under way counts as in doubt."""
        with explained(self._path):
            return totals(self._connection)

    def outcomes(self) -> list[tuple[str, str, str | None, int]]:
        """(teacher, state, why, how often): answered, failed, doubtful, or intended, which is under way."""
        with explained(self._path):
            return self._connection.execute(
                "SELECT teacher, state, reason, COUNT(*) FROM attempts GROUP BY 1, 2, 3 ORDER BY 1, 2, 4 DESC, 3"
            ).fetchall()

    def attempts(self) -> Iterator[dict[str, Any]]:
        """Every attempt in order: its key, teacher, step, state, reason, dollars (as text) and seconds; no answers."""
        columns = ("key", "teacher", "step", "state", "reason", "dollars", "seconds")
        with explained(self._path):
            for row in self._connection.execute(f"SELECT {', '.join(columns)} FROM attempts ORDER BY id"):
                yield dict(zip(columns, row, strict=True))

    def questions(self, teachers: Collection[str]) -> int:
        """About how many completions at least one of these teachers was asked; each counts once."""
        places = ", ".join("?" * len(teachers))
        with explained(self._path):
            (count,) = self._connection.execute(
                f"SELECT COUNT(*) FROM (SELECT DISTINCT step, request_id FROM attempts WHERE teacher IN ({places}))",
                tuple(teachers),
            ).fetchone()
        return int(count)

    def kept(self) -> Kept:
        with explained(self._path):
            row = self._connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(LENGTH(payload)), 0), MIN(step) FROM answers"
            ).fetchone()
        return Kept(*row)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every attempt in order, with its answer where that is kept; then the answers that other runs shared.

        Plain JSON values: numbers that JSON has no word for are text ("nan", "-inf").
        """
        with explained(self._path):
            self._connection.row_factory = sqlite3.Row
            attempts = self._connection.execute(
                "SELECT attempts.*, payload FROM attempts LEFT JOIN answers"
                " ON answers.key = attempts.key AND state = 'answered' ORDER BY id"
            )
            for row in attempts:
                yield _line(dict(row))
            shared = self._connection.execute("SELECT key, payload FROM answers WHERE step IS NULL ORDER BY key")
            for row in shared:
                yield _line({"state": "shared", **dict(row)})

    def prune(self, step: int) -> int:
        """Takes out the answers of steps up to `step`, and gives their room back. Returns how many.

        Attempts stay: what was charged stays charged.
        """
        with explained(self._path):
            with transaction(self._connection):
                count = self._connection.execute("DELETE FROM answers WHERE step <= ?", (step,)).rowcount
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count


@contextmanager
def records(path: Path) -> Iterator[Records]:
    """The journal in a file. Raises TeacherError where there is none, or it is damaged."""
    connection = connect(path, make=False)
    try:
        yield Records(path, connection)
    finally:
        connection.close()


def _line(row: dict[str, Any]) -> dict[str, Any]:
    payload = row.pop("payload")
    if "private" in row:
        row["private"] = bool(row["private"])
    return row if payload is None else {**row, "answer": _answer(decode(payload))}


def _answer(answer: Answer) -> dict[str, Any]:
    signal = answer.signal
    said: dict[str, Any] = {"model": answer.model_returned, "latency": answer.latency}
    if isinstance(signal, Judgment):
        return {**said, "score": signal.score, "feedback": signal.feedback, "rewrite": signal.rewrite}
    assert isinstance(signal, TopK)
    names = ("token_logprobs", "ids", "logprobs", "log_tail", "valid")
    return {**said, **{name: _plain(getattr(signal, name).tolist()) for name in names}}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
