"""The commits of a checkout as tasks: what a message says, and the files before and after.

Commits are taken from HEAD, the newest first and none before what came after it. Merges are left out, a change is
against its only parent, and a file that moved is one that went and one that came. Git is asked for many at once.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.codebase.classify import decode, is_binary, language_of, matcher, of_path, of_text
from pipeline.codebase.git import Repository, git, repository_of
from pipeline.codebase.licences import LICENCE_FILE, is_allowed, licence_of_file, licence_of_text
from pipeline.codebase.listing import readable
from pipeline.codebase.secrets import redact
from pipeline.codebase.types import Change, Edit
from pipeline.errors import DataError
from pipeline.recipe import Codebase

Redact = Callable[[str], tuple[str, Mapping[str, int]]]

MOST_FILES: Final = 20  # a commit of more is a sweep through the repository, and no task
_ROUND: Final = 500  # commits that are listed at once
_AT_ONCE: Final = 50  # whose texts are in memory as git gives them
_FILE_MODES: Final = frozenset({b"100644", b"100755"})  # no links, no submodules

_TRAILER = re.compile(
    r"^[ \t]*(?:(?:[a-z][a-z-]*-by|cc|change-id|git-svn-id|reviewed-on|reviewed-at):|\(cherry picked from commit).*$",
    re.IGNORECASE | re.MULTILINE,
)
_ADDRESS = re.compile(r"\s*<?\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+>?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class History:
    """changes: the newest first. secrets: detector -> how many it found and were replaced, a text of several commits
    counted once. ends_early: the checkout is a shallow clone, and older commits are not in it."""

    changes: tuple[Change, ...]
    secrets: Mapping[str, int] = field(default_factory=dict)
    ends_early: bool = False


class _Side(NamedTuple):
    """One side of a file in a commit, None in its place where the file is not there. blob: its text's name in git."""

    mode: bytes
    blob: bytes


class _Touched(NamedTuple):
    path: str
    before: _Side | None
    after: _Side | None


class _Commit(NamedTuple):
    commit: str
    time: int
    message: str
    touched: tuple[_Touched, ...]


def read_changes(root: Path, config: Codebase, redact: Redact = redact) -> History:
    """The newest `config.commits` commits that can serve as tasks: with a message, and with an edit of at least one and
    at most MOST_FILES files that `config` would have read. What of a commit is no such file is left out of its edits.

    root: of the checkout or a folder in it; paths are relative to it, and only what is in it counts. redact: a text ->
    (without its secrets, how many of each). Raises DataError: no checkout, no commit, none that can serve.
    """
    repository = repository_of(root)
    if repository is None:
        raise DataError(
            f"source.commits: {root} is no git checkout and has no history: set it to 0, or give a checkout"
        )
    head = git(repository, "rev-parse", "--revs-only", "HEAD").decode("ascii").strip()
    if not head:
        raise DataError(f"source.commits: {root} has no commit yet: set it to 0")
    cut = _cut_off(repository)
    texts = _Texts(repository, config, redact)
    changes: list[Change] = []
    for part in _in_parts(repository, head, config, cut):
        texts.fetch(side.blob for _, kept in part for file in kept for side in (file.before, file.after) if side)
        changes += [change for one, kept in part if (change := texts.change(one, kept))]
        if len(changes) >= config.commits:
            break
    if not changes:
        why = "a shallow clone: `git fetch --unshallow` gives it its history" if cut else "set it to 0"
        raise DataError(f"source.commits: no commit of {root} edits a file that is read; {why}")
    used = changes[: config.commits]
    return History(tuple(used), dict(sorted(texts.secrets.items())), bool(cut) and len(used) < config.commits)


def shallow(root: Path) -> bool:
    """Whether the checkout was cloned without its older commits. `git fetch --unshallow` fetches them."""
    repository = repository_of(root)
    return repository is not None and bool(_cut_off(repository))


def _cut_off(repository: Repository) -> frozenset[str]:
    """The commits whose parents a shallow clone is without: each looks as if it had made every file."""
    said, path = git(repository, "rev-parse", "--is-shallow-repository", "--git-path", "shallow").splitlines()
    if said != b"true":
        return frozenset()
    return frozenset((repository.folder / os.fsdecode(path)).read_text(encoding="ascii").split())


# ---- commits ----


def _in_parts(
    repository: Repository, head: str, config: Codebase, cut: Collection[str]
) -> Iterator[list[tuple[_Commit, list[_Touched]]]]:
    """Those that can serve, with what of them is read; so many that their texts fit into memory."""
    for commits in _in_rounds(repository, head, config):
        touched = [(one, _wanted(one, config)) for one in commits if one.commit not in cut and one.message]
        touched = [(one, kept) for one, kept in touched if 0 < len(kept) <= MOST_FILES]
        yield from (touched[begin : begin + _AT_ONCE] for begin in range(0, len(touched), _AT_ONCE))


def _in_rounds(repository: Repository, head: str, config: Codebase) -> Iterator[list[_Commit]]:
    below = [] if repository.folder == repository.top else ["--full-history", "--", "."]
    done, size = 0, min(_ROUND, config.commits + config.commits // 4 + 10)
    while True:
        commits = _log(repository, f"--max-count={size}", f"--skip={done}", head, *below)
        yield commits
        if len(commits) < size:
            return
        done, size = done + size, _ROUND


def _log(repository: Repository, *arguments: str) -> list[_Commit]:
    output = git(
        repository,
        *("-c", "log.showRoot=true", "-c", "log.follow=false", "-c", "diff.ignoreSubmodules=none"),
        *("log", "-z", "--raw", "--no-abbrev", "--no-renames", "--no-color", "--no-notes", "--no-mailmap"),
        *("--no-merges", "--date-order", "--relative", "--encoding=UTF-8", "--format=tformat:%H%x00%at%x00%B"),
        *arguments,
    )
    commits: list[_Commit] = []
    touched: list[_Touched] = []
    pieces = iter(output.split(b"\0"))
    for piece in pieces:
        piece = piece.lstrip(b"\n")
        if piece.startswith(b":"):
            touched.append(_read_touched(piece, next(pieces)))
        elif piece:
            if commits:
                commits[-1] = commits[-1]._replace(touched=tuple(touched))
            touched = []
            commits.append(_Commit(piece.decode("ascii"), int(next(pieces)), cleaned(next(pieces)), ()))
    if commits:
        commits[-1] = commits[-1]._replace(touched=tuple(touched))
    return commits


def _read_touched(entry: bytes, path: bytes) -> _Touched:
    """entry: `:mode mode blob blob status`."""
    old_mode, new_mode, old, new, _ = entry[1:].split(b" ", 4)
    before = None if not int(old_mode, 8) else _Side(old_mode, old)
    after = None if not int(new_mode, 8) else _Side(new_mode, new)
    return _Touched(readable(os.fsdecode(path)), before, after)


def cleaned(message: bytes) -> str:
    """A commit's message without trailers, mail addresses and control characters; at most one empty line in a row."""
    text = message.decode("utf-8", "replace").replace("\r\n", "\n")
    text = _CONTROL.sub("", _ADDRESS.sub("", _TRAILER.sub("", text)))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _wanted(commit: _Commit, config: Codebase) -> list[_Touched]:
    """What of a commit is an edit of a file that is read, as far as paths and modes tell."""
    include, exclude = matcher(config.include), matcher(config.exclude)
    return [
        file
        for file in commit.touched
        if all(side.mode in _FILE_MODES for side in (file.before, file.after) if side)
        and (file.before and file.before.blob) != (file.after and file.after.blob)
        and _is_read(file.path, config.languages)
        and include.match(file.path)
        and not exclude.match(file.path)
    ]


def _is_read(path: str, languages: Collection[str]) -> bool:
    language = language_of(path)
    return language is not None and (not languages or language in languages) and of_path(path) is None


# ---- texts ----


class _Texts:
    """Texts by their names in git: each is fetched, decoded and redacted once, however many commits it is in."""

    def __init__(self, repository: Repository, config: Codebase, redact: Redact) -> None:
        self.secrets: Counter[str] = Counter()
        self._repository, self._config, self._redact = repository, config, redact
        self._data: dict[bytes, bytes | None] = {}
        self._texts: dict[bytes, str | None] = {}
        self._licences: dict[Path, str | None] = {}

    def fetch(self, blobs: Iterable[bytes]) -> None:
        """Those that are not huge."""
        missing = [blob for blob in dict.fromkeys(blobs) if blob not in self._data and blob not in self._texts]
        self._data |= dict.fromkeys(missing)
        largest = self._config.largest_kilobytes * 1024
        sizes = git(self._repository, "cat-file", "--batch-check", give=b"\n".join([*missing, b""])).splitlines()
        fields = [line.split(b" ") for line in sizes]
        small = [field[0] for field in fields if field[1] == b"blob" and int(field[2]) <= largest]
        output = git(self._repository, "cat-file", "--batch", give=b"\n".join([*small, b""])) if small else b""
        at = 0
        for blob in small:
            begin = output.index(b"\n", at) + 1
            at = begin + int(output[at:begin].split()[2])
            self._data[blob] = output[begin:at]
            at += 1

    def change(self, commit: _Commit, touched: Iterable[_Touched]) -> Change | None:
        """None where nothing of it can be read."""
        edits = [edit for file in touched if (edit := self._edit(file))]
        if not edits:
            return None
        message, found = self._redact(commit.message)
        self.secrets.update(found)
        return Change(commit.commit, message, commit.time, tuple(edits))

    def _edit(self, file: _Touched) -> Edit | None:
        before, after = (side and self._text(file.path, side.blob) for side in (file.before, file.after))
        unread = (file.before and before is None) or (file.after and after is None)
        return None if unread or before == after else Edit(file.path, before, after)

    def _text(self, path: str, blob: bytes) -> str | None:
        if blob not in self._texts:
            data = self._data.pop(blob)
            text = None if data is None or is_binary(data) else decode(data)
            if text is not None and self._may_be_used(path, text):
                self._texts[blob], found = self._redact(text)
                self.secrets.update(found)
            else:
                self._texts[blob] = None
        return self._texts[blob]

    def _may_be_used(self, path: str, text: str) -> bool:
        """An edit may leave a file empty."""
        if not text.strip():
            return True
        if of_text(text, language_of(path)) is not None:
            return False
        allowed = self._config.licences
        return not allowed or is_allowed(licence_of_file(text) or self._licence_around(path), allowed)

    def _licence_around(self, path: str) -> str | None:
        """Of the nearest licence file as it is on disk today, up to the checkout's top."""
        folder = (self._repository.folder / path).parent
        while folder.is_relative_to(self._repository.top):
            if folder not in self._licences:
                names = sorted(folder.iterdir()) if folder.is_dir() else []
                texts = (
                    n.read_text("utf-8", "replace") for n in names if LICENCE_FILE.fullmatch(n.name) and n.is_file()
                )
                self._licences[folder] = next((name for text in texts if (name := licence_of_text(text))), None)
            if name := self._licences[folder]:
                return name
            folder = folder.parent
        return None


# ---- before and since ----


def untouched_since(root: Path, revision: str, oldest: str, paths: Iterable[str]) -> frozenset[str]:
    """Those of `paths` whose bytes on disk are as they were before the commit `oldest` and before all that are newer.

    revision: the commit that is checked out. Merges count as well, and so does what is not committed yet: what is on
    disk is compared with the trees of the newest commits that are older than `oldest`. In the order of `read_changes`
    an older commit has no newer one among its ancestors, so that nothing in these trees was written later.
    """
    repository = repository_of(root)
    if repository is None:
        raise DataError(f"source.split: {root} is no git checkout and cannot be split by time: use file or module")
    newer: dict[str, list[str]] = {}
    for line in git(repository, "rev-list", "--date-order", "--parents", revision).decode("ascii").splitlines():
        commit, *parents = line.split()
        newer[commit] = parents
        if commit == oldest:
            break
    before = dict.fromkeys(parent for parents in newer.values() for parent in parents if parent not in newer)
    known: set[tuple[str, bytes]] = set()
    for commit in before:
        for entry in git(repository, "ls-tree", "-r", "-z", commit).split(b"\0"):
            about, _, path = entry.partition(b"\t")
            known.add((readable(os.fsdecode(path)), about.rpartition(b" ")[2]))
    return frozenset(path for path in paths if any((path, name) in known for name in _blob_names(root / path, oldest)))


def _blob_names(path: Path, commit: str) -> Iterator[bytes]:
    """What git may call a file's text: as it is on disk, and with the line ends that git keeps."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    algorithm = "sha1" if len(commit) == 40 else "sha256"
    for text in dict.fromkeys((data, data.replace(b"\r\n", b"\n"))):
        yield hashlib.new(algorithm, b"blob %d\0" % len(text) + text).hexdigest().encode("ascii")
