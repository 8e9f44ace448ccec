"""Every question that may cost something, before it is sent; every answer, the moment it is there.

One sqlite file, `journal.sqlite`. An attempt is durable as `intended` before the question leaves, and its answer is
stored in the same transaction that settles it. So a process that is killed at any moment leaves attempts that are
`intended`: whether those were charged nobody knows. The next one finds them, calls them `doubtful` and keeps them
charged with their estimate. Keys, prompts and addresses are never in it.

A second journal may be shared between runs on purpose: it holds answers alone, and never one to a private prompt.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from teachers.encoding import decode, encode
from teachers.errors import TeacherError
from teachers.types import Answer, TeacherFailure, Usage

T = TypeVar("T")

FILE = "journal.sqlite"
VERSION = 1
_APPLICATION = 0x7475746C  # "tutl" in the file's header, so that another program's file is not taken for a journal
_PATIENCE = 60.0  # seconds for another process that is writing into a shared journal
_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL, teacher TEXT NOT NULL, request_id TEXT NOT NULL, step INTEGER NOT NULL, at TEXT NOT NULL,
    private INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('intended', 'answered', 'failed', 'doubtful')), reason TEXT,
    dollars TEXT NOT NULL, tokens INTEGER NOT NULL, -- the estimate until settled, then what was charged
    input INTEGER NOT NULL DEFAULT 0, cached INTEGER NOT NULL DEFAULT 0,
    output INTEGER NOT NULL DEFAULT 0, reasoning INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    teacher TEXT, request_id TEXT, step INTEGER, -- none in a shared journal, and in what was found there
    model TEXT, private INTEGER NOT NULL, payload BLOB NOT NULL
);
"""
_KEEP = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Totals:
    """What a teacher came to. dollars and tokens are all that was charged, what is in doubt at its estimate included.

    tokens: input and output; more than their sum where something is in doubt. seconds: waited for answers.
    """

    requests: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    tokens: int = 0
    seconds: float = 0.0
    dollars: Decimal = Decimal(0)
    doubtful: int = 0
    doubtful_dollars: Decimal = Decimal(0)

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Doubtful:
    """An attempt of which nobody knows whether it was charged. reason: killed, or what it failed with."""

    teacher: str
    request_id: str
    step: int
    at: str
    reason: str
    dollars: Decimal
    tokens: int


class Journal:
    """The journal of one run. Every method may be called from any thread, and is durable when it returns.

    What several threads write at the same time goes to the disk in one transaction: one flush for all of them.
    """

    def __init__(self, path: Path, *, shared: Path | None = None) -> None:
        """Opens or makes it. shared: a journal that other runs read and write too.

        Raises TeacherError for a file that is damaged, something else, or cannot be written.
        """
        self._lock = threading.Lock()
        self._waiting: deque[_Write[Any]] = deque()
        self._path, self._shared_path = path, shared
        self._own = connect(path, make=True)
        self._shared = None if shared is None else connect(shared, make=True)
        with explained(path):
            with transaction(self._own):
                self._own.execute("UPDATE attempts SET state = 'doubtful', reason = 'killed' WHERE state = 'intended'")
            self._charged = totals(self._own)

    def find(self, key: str) -> Answer | None:
        """The answer to the question of this key, if it was ever given to this run, or shared by another one."""
        with self._lock:
            with explained(self._path):
                row = self._own.execute("SELECT payload FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None and self._shared is not None:
                row = self._borrow(key, self._shared)
        if row is None:
            return None
        try:
            return decode(row[0], key=key)
        except ValueError as error:
            raise TeacherError(f"{self._path}: the answer {key[:12]}… cannot be read: {error}; {_ADVICE}") from error

    def intend(
        self,
        key: str,
        *,
        teacher: str,
        request_id: str,
        step: int,
        dollars: Decimal,
        tokens: int,
        private: bool = True,
    ) -> int:
        """Notes that a question is about to be sent, and the most that it can cost. Returns the attempt's id.

        private: its answer stays in this run's own journal.
        """
        values = (key, teacher, request_id, step, _now(), private, str(dollars), tokens)
        return self._write(
            lambda: (
                self._own.execute(
                    "INSERT INTO attempts (key, teacher, request_id, step, at, private, state, dollars, tokens)"
                    " VALUES (?, ?, ?, ?, ?, ?, 'intended', ?, ?)",
                    values,
                ).lastrowid
                or 0
            )
        )

    def settle(self, attempt: int, result: Answer | TeacherFailure, dollars: Decimal) -> None:
        """Notes what came of an attempt, its answer, and what was charged for it.

        A failure in doubt stays charged with the attempt's tokens, and `dollars` should be its estimate too. The first
        answer to a question stays, so that a replay is given what was trained on.
        """
        payload = encode(result) if isinstance(result, Answer) else None
        question = self._write(partial(self._close, attempt, result, dollars, payload))
        with self._lock:
            self._charged[question.teacher] = self._charged.get(question.teacher, Totals()) + question.charged
            if isinstance(result, Answer) and self._shared is not None and not question.private:
                row = (question.key, None, None, None, _model(result), False, payload)
                with explained(self._shared_path), transaction(self._shared):
                    self._shared.execute(_KEEP, row)

    def doubtful(self) -> tuple[Doubtful, ...]:
        """All attempts in doubt, oldest first. They are charged with their estimate."""
        with self._lock, explained(self._path):
            rows = self._own.execute(
                "SELECT teacher, request_id, step, at, reason, dollars, tokens FROM attempts"
                " WHERE state = 'doubtful' ORDER BY id"
            ).fetchall()
        return tuple(
            Doubtful(teacher, request_id, step, at, reason, Decimal(dollars), tokens)
            for teacher, request_id, step, at, reason, dollars, tokens in rows
        )

    def charged(self, teacher: str) -> Totals:
        """What a teacher's settled attempts came to, over all processes that ever wrote into this journal."""
        with self._lock:
            return self._charged.get(teacher, Totals())

    def teachers(self) -> tuple[str, ...]:
        """All who were ever charged for anything."""
        with self._lock:
            return tuple(self._charged)

    def models(self) -> dict[str, str]:
        """Teacher -> the first model's name that it returned in this run; none for those who returned no name."""
        with self._lock, explained(self._path):
            rows = self._own.execute(
                "SELECT teacher, model FROM answers WHERE teacher IS NOT NULL AND model IS NOT NULL ORDER BY rowid DESC"
            ).fetchall()
        return dict(rows)

    def close(self) -> None:
        with self._lock:
            self._own.close()
            if self._shared is not None:
                self._shared.close()

    # ---- writing ----

    def _write(self, work: Callable[[], T]) -> T:
        """Does `work` on this run's own file, durably, in one transaction with what other threads brought meanwhile."""
        mine: _Write[T] = _Write(work)
        self._waiting.append(mine)
        with self._lock:
            if not mine.done:
                # Whoever waits while a transaction goes to the disk is in the next one, and then finds it done.
                self._commit([self._waiting.popleft() for _ in range(len(self._waiting))])
        if mine.error is not None:
            raise mine.error
        return cast("T", mine.result)

    def _commit(self, together: Sequence[_Write[Any]]) -> None:
        try:
            with explained(self._path), transaction(self._own):
                for one in together:
                    one.result = one.work()
        except BaseException as error:
            if len(together) > 1:  # one thread's mistake is not the others'
                for one in together:
                    self._commit([one])
            else:
                together[0].error = error
        for one in together:
            one.done = True

    def _close(
        self, attempt: int, result: Answer | TeacherFailure, dollars: Decimal, payload: bytes | None
    ) -> _Question:
        row = self._own.execute(
            "SELECT key, teacher, request_id, step, private, tokens FROM attempts WHERE id = ? AND state = 'intended'",
            (attempt,),
        ).fetchone()
        assert row is not None, f"attempt {attempt} was never intended, or is settled already"
        key, teacher, request_id, step, private, estimate = row
        usage = result.usage or Usage()
        state, reason = "answered", None
        if isinstance(result, TeacherFailure):
            state = "doubtful" if result.in_doubt and result.usage is None else "failed"
            reason = result.reason
        doubtful = state == "doubtful"
        tokens = estimate if doubtful else usage.input + usage.output
        seconds = result.latency if isinstance(result, Answer) else 0.0
        used = (usage.input, usage.cached, usage.output, usage.reasoning)
        self._own.execute(
            "UPDATE attempts SET state = ?, reason = ?, dollars = ?, tokens = ?, input = ?, cached = ?, output = ?,"
            " reasoning = ?, seconds = ? WHERE id = ?",
            (state, reason, str(dollars), tokens, *used, seconds, attempt),
        )
        if isinstance(result, Answer):
            self._own.execute(_KEEP, (key, teacher, request_id, step, _model(result), private, payload))
        more = Totals(1, *used, tokens, seconds, dollars, int(doubtful), dollars if doubtful else Decimal(0))
        return _Question(key, teacher, bool(private), more)

    def _borrow(self, key: str, shared: sqlite3.Connection) -> tuple[bytes] | None:
        """An answer from the shared journal, copied into this run's own: a replay must not depend on another run."""
        with explained(self._shared_path):
            row = shared.execute("SELECT model, payload FROM answers WHERE key = ? AND NOT private", (key,)).fetchone()
        if row is None:
            return None
        model, payload = row
        with explained(self._path), transaction(self._own):
            self._own.execute(_KEEP, (key, None, None, None, model, False, payload))
        return (payload,)


@dataclass(frozen=True)
class _Question:
    """What an attempt asked, and what it came to."""

    key: str
    teacher: str
    private: bool
    charged: Totals


@dataclass(eq=False)
class _Write(Generic[T]):
    """What one thread wants written, and what came of it."""

    work: Callable[[], T]
    done: bool = False
    result: T | None = None
    error: BaseException | None = None


# ---- the file ----


def totals(connection: sqlite3.Connection) -> dict[str, Totals]:
    """What each teacher came to, in the order of their names. An attempt that is under way counts as in doubt."""
    found: dict[str, Totals] = {}
    # Groups of equal amounts, added here: sqlite would add them as floats.
    rows = connection.execute(
        "SELECT teacher, state IN ('intended', 'doubtful'), dollars, COUNT(*), SUM(input), SUM(cached), SUM(output),"
        " SUM(reasoning), SUM(tokens), SUM(seconds) FROM attempts GROUP BY 1, 2, 3 ORDER BY 1"
    )
    for teacher, in_doubt, each, count, read, cached, written, reasoning, tokens, seconds in rows:
        dollars = Decimal(each) * count
        doubtful, doubtful_dollars = (count, dollars) if in_doubt else (0, Decimal(0))
        found[teacher] = found.get(teacher, Totals()) + Totals(
            count, read, cached, written, reasoning, tokens, seconds, dollars, doubtful, doubtful_dollars
        )
    return found


def connect(path: Path, *, make: bool) -> sqlite3.Connection:
    """A connection that is durable at each commit. make: a journal that is not there is made. Raises TeacherError."""
    if not make and not path.is_file():
        raise TeacherError(f"{path}: there is no journal here; a run without remote teachers keeps none")
    if path.is_dir():
        raise TeacherError(f"{path}: a folder stands where a journal should be; name a file")
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
    with explained(path):
        connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _set_up(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN")  # one look at all three: another process may be making the file
    application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    connection.execute("COMMIT")
    if application != _APPLICATION and (application or tables):
        raise TeacherError(f"{path}: another program's file, not a journal; name another file")
    if version > VERSION:
        raise TeacherError(f"{path}: written by a later version of tutelage (format {version}); install that one")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # WAL's default would lose the last answers in a power cut
    if version == 0:
        with transaction(connection):
            for statement in _SCHEMA.split(";")[:-1]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; durable when left."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # sqlite has rolled back itself where the disk is full
            connection.execute("ROLLBACK")
        raise


_ADVICE = "move the file away to go on; what it holds will be asked, and paid, again"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNWRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR)


@contextmanager
def explained(path: Path | None) -> Iterator[None]:
    """What sqlite raises for a file, a disk or another process becomes one line; a mistake in SQL stays what it is.

    Raises TeacherError; OSError where the disk is full.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the lowest byte is the kind, the rest details
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if code in _DAMAGED:
            raise TeacherError(f"{path}: this journal is damaged, or no journal ({error}); {_ADVICE}") from error
        if code in _UNWRITABLE:
            raise TeacherError(f"{path}: cannot be opened and written ({error}); correct its permissions") from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise TeacherError(f"{path}: another process holds this journal; wait for it, or name another") from error
        raise


def _model(answer: Answer) -> str | None:
    """The model's name for people to read; the answer itself keeps it as it came, which may be no valid text."""
    name = answer.model_returned
    return None if name is None else name.encode("utf-8", "backslashreplace").decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
