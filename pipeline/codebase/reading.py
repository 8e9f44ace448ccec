"""A checkout or a folder to `Code`: what is in it, read in as many processes as there are cores, and what was left out.

The checkout is opened for reading only. Every file ends in exactly one place, `files` or `left_out`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from pipeline.codebase import workers
from pipeline.codebase.classify import cpp_headers, is_document, is_test, language_of, matcher, of_path
from pipeline.codebase.history import History
from pipeline.codebase.licences import LICENCE_FILE, is_allowed, licence_of_text
from pipeline.codebase.listing import Entry, Listing, list_files, locate
from pipeline.codebase.readings import (
    TOO_MUCH,
    Outliner,
    Reading,
    Wanted,
    open_shelf,
    read_chunk,
    read_file,
    version_of,
)
from pipeline.codebase.summary import commonest
from pipeline.codebase.types import Code, Language, LeftOut, SourceFile
from pipeline.errors import DataError
from pipeline.recipe import Codebase

Advance = Callable[[int, int], None]
Chunk = list[Wanted]

_CHUNK_BYTES = 1_000_000
_CHUNK_FILES = 200
_ALONE = 4_000_000  # bytes up to which other processes are not worth their start
_HARMLESS = 16_000  # bytes in which no parser goes too deep


def read_code(
    config: Codebase,
    *,
    folder: Path,
    outline: Outliner,
    changes: Callable[[Path, Codebase], History],
    advance: Advance | None = None,
    cache: Path | None = None,
) -> Code:
    """The codebase that `config` describes.

    folder: what its path is relative to. outline: a text's symbols, None where it does not parse; a function at a
    module's level, since other processes run it. changes: (root, config) -> the history. advance: (files done, of how
    many). cache: a file that keeps readings, so that only what changed is read again; None: nothing is kept.
    Raises DataError: no such folder, an empty one, none of its files can be used, git cannot read it.
    """
    place = locate(config.path, folder)
    listing = list_files(place)
    if not listing.entries and not listing.left_out:
        raise DataError(f"source.path: {config.path} is empty: give the folder that its code is in")
    wanted, left_out = _choose(config, listing)
    with workers.without_collection():
        readings = _read_all(listing.root, wanted, outline, advance or _silent, cache, listing.entries)
    files, more, secrets = _sort(config, listing, readings)
    left_out = [*listing.left_out, *left_out, *more]
    if not files:
        raise DataError(
            f"source.path: {config.path} has no file that can be used (left out: {commonest(left_out)}): "
            "give another folder, or change source.include, source.languages or source.licences"
        )
    history = changes(listing.root, config) if config.commits else History(())
    secrets.update(history.secrets)
    return Code(
        root=listing.root,
        revision=listing.revision,
        files=tuple(files),
        left_out=tuple(sorted(left_out, key=lambda each: each.path)),
        secrets=dict(sorted(secrets.items())),
        changes=history.changes,
    )


def _silent(done: int, total: int) -> None:
    pass


# ---- which are read ----


def _choose(config: Codebase, listing: Listing) -> tuple[list[Wanted], list[LeftOut]]:
    """What has to be opened, and what its path and its size are enough to leave out."""
    includes = matcher(config.include)
    excludes = matcher(config.exclude)
    headers = cpp_headers(entry.path for entry in listing.entries)
    wanted: list[Wanted] = []
    left_out: list[LeftOut] = []
    for entry in listing.entries:
        language = language_of(entry.path, headers)
        known = language is not None or is_document(entry.path)
        if not includes.match(entry.path):
            left_out.append(LeftOut(entry.path, "excluded", "not in source.include"))
        elif excludes.match(entry.path):
            left_out.append(LeftOut(entry.path, "excluded", "in source.exclude"))
        elif found := of_path(entry.path):
            left_out.append(LeftOut(entry.path, *found))
        elif config.languages and known and language not in config.languages:
            left_out.append(LeftOut(entry.path, "excluded", "not in source.languages"))
        elif entry.size == 0:
            left_out.append(LeftOut(entry.path, "empty"))
        elif known and entry.size > config.largest_kilobytes * 1024:
            left_out.append(LeftOut(entry.path, "too_large", f"{entry.size / 1024:,.0f} kilobytes"))
        else:
            wanted.append(Wanted(entry, language, is_document(entry.path)))
    return wanted, left_out


def languages_of(config: Codebase, folder: Path, among: Collection[Language]) -> list[Language]:
    """Which of these languages the codebase has files of that would be parsed. Arguments and errors: as `read_code`."""
    listing = list_files(locate(config.path, folder))
    found: list[Language] = []

    def met(_: str, language: Language) -> None:
        found.append(language)

    for each in _choose(config, listing)[0]:
        if each.language in among and each.language not in found:
            read_file(listing.root, each, met)
    return found


# ---- reading them ----


def _read_all(
    root: Path, wanted: list[Wanted], outline: Outliner, advance: Advance, cache: Path | None, present: Iterable[Entry]
) -> list[tuple[Wanted, Reading]]:
    """In no order. What the cache has is not opened."""
    total = len(wanted)
    advance(0, total)
    readings: list[tuple[Wanted, Reading]] = []
    with open_shelf(cache, root, version_of(outline)) if cache else nullcontext() as shelf:
        missing: list[Wanted] = []
        for each in wanted:
            known = shelf.get(each) if shelf else None
            if known is None:
                missing.append(each)
            else:
                readings.append((each, known))
        advance(len(readings), total)
        for chunk in _read(root, missing, outline):
            readings += chunk
            advance(len(readings), total)
            if shelf:
                shelf.put(chunk)
        if shelf:
            shelf.keep_only(present)
    return readings


def _read(root: Path, wanted: list[Wanted], outline: Outliner) -> Iterator[list[tuple[Wanted, Reading]]]:
    chunks = list(_chunks(wanted))
    if sum(each.entry.size for each in wanted) < _ALONE and not any(map(_may_be_too_much, wanted)):
        yield from ([(each, read_file(root, each, outline)) for each in chunk] for chunk in chunks)
        return
    unfinished: list[Chunk] = []
    with workers.pool(min(len(os.sched_getaffinity(0)), len(chunks))) as pool:
        futures = {pool.submit(read_chunk, root, chunk, outline): chunk for chunk in chunks}
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    unfinished.append(futures[future])
                else:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    rest = _read_one_by_one(root, list(chain.from_iterable(unfinished)), outline)
    while batch := list(islice(rest, _CHUNK_FILES)):
        yield batch


def _read_one_by_one(root: Path, left: list[Wanted], outline: Outliner) -> Iterator[tuple[Wanted, Reading]]:
    """Some file ends the process that reads it, as a parser that goes too deep does: only that one is lost."""
    while left:
        with workers.pool(1) as pool:
            try:
                while left:
                    yield pool.submit(read_chunk, root, left[:1], outline).result()[0]
                    del left[0]
            except BrokenProcessPool:
                yield left.pop(0), TOO_MUCH


def _may_be_too_much(wanted: Wanted) -> bool:
    """Python's own parser has limits of its own; the others' need a process to end."""
    return wanted.language not in (None, "python") and wanted.entry.size > _HARMLESS


def _chunks(wanted: list[Wanted]) -> Iterator[Chunk]:
    chunk: Chunk = []
    size = 0
    for each in wanted:
        if chunk and (size + each.entry.size > _CHUNK_BYTES or len(chunk) == _CHUNK_FILES):
            yield chunk
            chunk, size = [], 0
        chunk.append(each)
        size += each.entry.size
    if chunk:
        yield chunk


# ---- what becomes of them ----


def _sort(
    config: Codebase, listing: Listing, readings: list[tuple[Wanted, Reading]]
) -> tuple[list[SourceFile], list[LeftOut], Counter[str]]:
    """(used, by path; left out; secrets by detector, in what is used)."""
    nearest = _licences(listing)
    files: list[SourceFile] = []
    left_out: list[LeftOut] = []
    secrets: Counter[str] = Counter()
    for wanted, reading in sorted(readings, key=lambda pair: pair[0].entry.path):
        path, language = wanted.entry.path, wanted.language
        if reading.reason is not None:
            left_out.append(LeftOut(path, reading.reason, reading.detail))
            continue
        licence = reading.licence or nearest(path)
        if not is_allowed(licence, config.licences):
            left_out.append(LeftOut(path, "licence", licence or "none is named"))
            continue
        secrets.update(reading.secrets)
        tests = is_test(path, language)
        files.append(
            SourceFile(path, language, reading.text, reading.digest, reading.outline, licence, tests, reading.sketch)
        )
    return files, left_out, secrets


def _licences(listing: Listing) -> Callable[[str], str | None]:
    """The licence of the nearest licence file: in the file's own folder, else above it, up to the checkout's top."""
    found: dict[str, str | None] = {}
    for entry in listing.entries:
        path = PurePosixPath(entry.path)
        if LICENCE_FILE.fullmatch(path.name) and entry.size < 200_000:
            text = _plain_text(listing.root / path)
            folder = str(path.parent)
            found[folder] = found.get(folder) or (licence_of_text(text) if text else None)
    above = _above(listing)

    def nearest(path: str) -> str | None:
        folders = (str(folder) for folder in PurePosixPath(path).parents)
        return next((found[folder] for folder in folders if found.get(folder)), above)

    return nearest


def _above(listing: Listing) -> str | None:
    """Of a checkout's part: what stands in the folders above it. Of a package: what it says about itself."""
    folder = listing.root
    while listing.repository and folder != listing.repository.top:
        folder = folder.parent
        for path in sorted(folder.iterdir()):
            if LICENCE_FILE.fullmatch(path.name) and (text := _plain_text(path)) and (name := licence_of_text(text)):
                return name
    return listing.licence


def _plain_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    except OSError:
        return None
