"""One file's reading: opened, decoded, cleared of secrets, outlined. And where readings are kept, so that a file that
did not change is not read again.

A reading depends on the file's bytes, its language and this code alone, never on a recipe.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import sqlite3
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.codebase.classify import PEEK, decode, is_binary, of_text
from pipeline.codebase.duplicates import sketch
from pipeline.codebase.licences import licence_of_file
from pipeline.codebase.listing import Entry
from pipeline.codebase.secrets import redact
from pipeline.codebase.types import Import, Language, Outline, Reason, Sketch, Span, Symbol
from pipeline.codebase.workers import limited, without_collection
from pipeline.errors import DataError

Outliner = Callable[[str, Language], Outline | None]


@dataclass(frozen=True)
class Wanted:
    """A file to be read. language: None for a document, and for what is only looked at to tell a binary."""

    entry: Entry
    language: Language | None
    document: bool


@dataclass(frozen=True)
class Reading:
    """text: without secrets; "" where there is a reason to leave the file out. secrets: detector -> how many."""

    text: str = ""
    digest: str = ""
    licence: str | None = None
    outline: Outline | None = None
    sketch: Sketch | None = None
    secrets: Mapping[str, int] = field(default_factory=dict)
    reason: Reason | None = None
    detail: str = ""


TOO_MUCH: Final = Reading(reason="unparsable", detail="its parser crashed, or took too much time or memory")


# ---- reading ----


def read_file(root: Path, wanted: Wanted, outline: Outliner) -> Reading:
    """Whatever the file is or does meanwhile, a reading: one that cannot be used says why."""
    wants_text = wanted.language is not None or wanted.document
    try:
        data = _bytes(os.path.join(root, wanted.entry.path), wanted.entry.size if wants_text else PEEK)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        return Reading(reason="unreadable", detail="gone since" if gone else (error.strerror or str(error)).lower())
    if data is None:
        return Reading(reason="unreadable", detail="not a regular file")
    if is_binary(data):
        return Reading(reason="binary")
    if not wants_text:
        return Reading(reason="unknown_language")
    text = decode(data)
    if text is None:
        return Reading(reason="undecodable")
    if left_out := of_text(text, wanted.language):
        return Reading(reason=left_out[0], detail=left_out[1])
    try:
        return _of(text, hashlib.sha256(data).hexdigest(), wanted.language, outline)
    except (RecursionError, MemoryError):
        return TOO_MUCH


def read_chunk(root: Path, chunk: Sequence[Wanted], outline: Outliner) -> list[tuple[Wanted, Reading]]:
    """What another process is given: it imports this module and `outline`'s, and little else. A file that asks too much
    ends it."""
    readings = []
    with without_collection():
        for each in chunk:
            with limited(each.entry.size):
                readings.append((each, read_file(root, each, outline)))
    return readings


def _of(text: str, digest: str, language: Language | None, outline: Outliner) -> Reading:
    clean, secrets = redact(text)
    if language is None:
        return Reading(clean, digest, licence_of_file(clean), None, sketch(clean, None), secrets)
    found = outline(clean, language)
    if found is None:
        return Reading(reason="unparsable", secrets=secrets)
    return Reading(clean, digest, licence_of_file(clean), found, sketch(clean, language), secrets)


def _bytes(full: str, most: int) -> bytes | None:
    """The first `most` bytes; None of what is no regular file now, and is not read: a pipe would wait for ever."""
    descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


# ---- keeping ----


def version_of(outline: Outliner) -> str:
    """What readings depend on beside the files: this code, the outline's, the scanner, the parsers, Python."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    if (elsewhere := inspect.getsourcefile(outline)) is not None:
        sources.append(Path(elsewhere))
    installed = sorted(
        f"{found.name} {found.version}"
        for found in importlib.metadata.distributions()
        if found.name and found.name.lower().startswith(("detect", "tree-sitter", "tree_sitter"))
    )
    name = f"{outline.__module__}.{outline.__qualname__}"
    digest = hashlib.sha256(repr((sys.version_info, name, installed)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


class Shelf:
    """The readings of one codebase in an SQLite file, which may hold others'. It holds redacted texts only.

    Made by `open_shelf`, written by one process.
    """

    def __init__(self, database: sqlite3.Connection, root: Path, version: str) -> None:
        self._database = database
        self._root = str(root)
        self._version = version

    def get(self, wanted: Wanted) -> Reading | None:
        row = self._database.execute(
            "SELECT body FROM readings WHERE root = ? AND path = ? AND state = ?",
            (self._root, wanted.entry.path, self._state(wanted)),
        ).fetchone()
        return None if row is None else _unpacked(row[0])

    def put(self, readings: Iterable[tuple[Wanted, Reading]]) -> None:
        """Keeps them, but for those of files that could not be read, which may be for another reason than the file."""
        rows = [
            (self._root, wanted.entry.path, self._state(wanted), _packed(reading))
            for wanted, reading in readings
            if reading.reason != "unreadable"
        ]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?, ?)", rows)

    def keep_only(self, entries: Iterable[Entry]) -> None:
        """Forgets files that are no longer there: what was removed from the code does not live on here."""
        present = {entry.path for entry in entries}
        known = self._database.execute("SELECT path FROM readings WHERE root = ?", (self._root,)).fetchall()
        gone = [(self._root, path) for (path,) in known if path not in present]
        with self._database:
            self._database.executemany("DELETE FROM readings WHERE root = ? AND path = ?", gone)

    def _state(self, wanted: Wanted) -> str:
        entry = wanted.entry
        kind = wanted.language or ("document" if wanted.document else "")
        return f"{entry.size} {entry.mtime_ns} {entry.ctime_ns} {kind} {self._version}"


@contextmanager
def open_shelf(cache: Path, root: Path, version: str) -> Iterator[Shelf]:
    """The file is made for its owner alone, and a folder that is made for it too.

    Raises DataError: it cannot be made or is not such a file.
    """
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(cache, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # sqlite's own files get its mode
        database = sqlite3.connect(cache, timeout=60)
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"source: the cache {cache} cannot be made: {error}") from error
    try:
        database.execute("PRAGMA secure_delete = ON")
        database.execute(
            "CREATE TABLE IF NOT EXISTS readings "
            "(root TEXT, path TEXT, state TEXT, body BLOB, PRIMARY KEY (root, path))"
        )
        yield Shelf(database, root, version)
    except sqlite3.Error as error:
        raise DataError(f"source: the cache {cache} cannot be used: {error}; remove it") from error
    finally:
        database.close()


def _packed(reading: Reading) -> bytes:
    value: dict[str, Any] = {
        "text": reading.text,
        "digest": reading.digest,
        "licence": reading.licence,
        "secrets": dict(reading.secrets),
        "reason": reading.reason,
        "detail": reading.detail,
    }
    if reading.sketch is not None:
        value["sketch"] = [reading.sketch.signature.hex(), sorted(form.hex() for form in reading.sketch.forms)]
    if reading.outline is not None:
        found = reading.outline
        value["outline"] = [
            [[s.kind, s.name, s.path, s.whole, s.head, s.docstring, s.body, s.calls] for s in found.symbols],
            [[i.module, i.name, i.level, i.span] for i in found.imports],
            found.statements,
        ]
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def _unpacked(body: bytes) -> Reading:
    value = json.loads(zlib.decompress(body))
    outlined, sketched = value.pop("outline", None), value.pop("sketch", None)
    return Reading(
        **value,
        outline=None if outlined is None else _outline(*outlined),
        sketch=None if sketched is None else _sketch(*sketched),
    )


def _sketch(signature: str, forms: list[str]) -> Sketch:
    return Sketch(bytes.fromhex(signature), frozenset(map(bytes.fromhex, forms)))


def _outline(symbols: list[list[Any]], imports: list[list[Any]], statements: list[list[int]]) -> Outline:
    return Outline(
        tuple(
            Symbol(
                kind, name, path, Span(*whole), Span(*head),
                body=None if body is None else Span(*body),
                docstring=None if docstring is None else Span(*docstring),
                calls=tuple(calls),
            )
            for kind, name, path, whole, head, docstring, body, calls in symbols
        ),
        tuple(Import(module, name, level, Span(*span)) for module, name, level, span in imports),
        tuple(Span(*span) for span in statements),
    )  # fmt: skip
