"""Where a codebase is and which files it has: the tracked ones of a git checkout, or all of a folder's.

Nothing is opened here; a file's size and times are taken for whoever reads it. Links are not followed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import stat
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.codebase.classify import of_folder
from pipeline.codebase.git import Repository, git, repository_of
from pipeline.codebase.licences import LICENCE_FILE, licence_of_text
from pipeline.codebase.types import LeftOut, Reason
from pipeline.errors import DataError

_HISTORY = frozenset({".git", ".hg", ".svn", ".bzr"})  # a system's own files, no part of the code

# Of the standard library: its tests and its larger programs, which would be half of it, and what is not its own.
_NOT_THE_LIBRARY = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip",
    "lib-dynload",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A codebase's folder, resolved. plain: read as a folder, whatever repository it lies in. skips: folder names.
    licence: what an installed package says about itself."""

    root: Path
    plain: bool = False
    skips: Collection[str] = ()
    licence: str | None = None


@dataclass(frozen=True)
class Entry:
    """A regular file. size: bytes; the times in nanoseconds."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Listing:
    """repository: None for a plain folder. revision: None there and before the first commit. licence: where no file in
    it tells."""

    root: Path
    repository: Repository | None
    revision: str | None
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]
    licence: str | None


# ---- where ----


def locate(path: str, folder: Path) -> Place:
    """The folder that a recipe's `source.path` means, seen from `folder`. A package is found without importing it.

    Raises DataError: not there, not a folder, no such package.
    """
    if path.startswith("package:"):
        return _package(path.removeprefix("package:"))
    root = folder / Path(path).expanduser()
    try:
        mode = root.stat().st_mode
    except OSError as error:
        raise DataError(f"source.path: {path}: {_why(error)}; give a folder, or package:NAME") from error
    if not stat.S_ISDIR(mode):
        raise DataError(f"source.path: {path} is not a folder: give the folder that its code is in")
    return Place(root.resolve())


def _package(name: str) -> Place:
    if name == "stdlib":
        return Place(Path(sysconfig.get_paths()["stdlib"]).resolve(), True, _NOT_THE_LIBRARY)
    if not name.isidentifier():  # a dotted name would import what is before the dot
        raise DataError(f"source.path: package:{name}: give the name of a top-level package, such as package:networkx")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise DataError(f"source.path: package:{name}: there is no such package here: install it, or give a folder")
    places = list(spec.submodule_search_locations or ())
    if not places:
        raise DataError(f"source.path: package:{name} is a single module: give the folder that it is in")
    return Place(Path(places[0]).resolve(), True, licence=_licence_of_package(name))


def _licence_of_package(name: str) -> str | None:
    """Of the distribution of the same name: its SPDX expression, else its licence file."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if "License-Expression" in found.metadata:
        return found.metadata["License-Expression"]
    for path in found.files or ():
        if LICENCE_FILE.fullmatch(path.name) and ".dist-info" in str(path.parent):
            return licence_of_text(path.read_text(encoding="utf-8"))
    return None


def _why(error: OSError) -> str:
    return "there is nothing there" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()


# ---- which files ----


def list_files(place: Place) -> Listing:
    """Every file of it, as an entry or as left out. A folder that git ignores or does not know is left out as one.

    A folder in which git tracks nothing, below a checkout's top, was named on purpose: it is read as a plain folder.
    Raises DataError: a checkout that git cannot read, or that has no files.
    """
    repository = None if place.plain else repository_of(place.root)
    left_out: list[LeftOut] = []
    if repository is not None:
        tracked = _tracked(repository)
        if tracked or repository.top == repository.folder:
            entries = tuple(_entries(place.root, tracked, left_out))
            left_out += _untracked(repository)
            return Listing(place.root, repository, _revision(repository), entries, tuple(left_out), place.licence)
    names = _walk(place.root, place.skips, left_out)
    entries = tuple(_entries(place.root, [("", name) for name in names], left_out))
    return Listing(place.root, None, None, entries, tuple(left_out), place.licence)


def _tracked(repository: Repository) -> list[tuple[str, str]]:
    """(mode, path) of what is in the index, below the folder. A file in a conflict stands there several times."""
    lines = git(repository, "ls-files", "--stage", "-z").split(b"\0")
    found = {line.partition(b"\t")[2]: line.partition(b" ")[0] for line in lines if line}
    return [(mode.decode(), os.fsdecode(path)) for path, mode in found.items()]


def _untracked(repository: Repository) -> Iterator[LeftOut]:
    for name in git(repository, "ls-files", "--others", "--directory", "-z").split(b"\0"):
        if name:
            yield LeftOut(readable(os.fsdecode(name)), "untracked", "a folder" if name.endswith(b"/") else "")


def _revision(repository: Repository) -> str | None:
    return git(repository, "rev-parse", "--revs-only", "HEAD").decode("ascii").strip() or None


def _walk(root: Path, skips: Collection[str], left_out: list[LeftOut]) -> Iterator[str]:
    """Relative paths of all that is no folder. Whole folders of others' code are left out unseen, as one."""

    def unreadable(error: OSError) -> None:
        left_out.append(LeftOut(readable(os.path.relpath(error.filename, root)), "unreadable", _why(error)))

    for folder, folders, names in os.walk(root, onerror=unreadable):
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else f"{relative}/"
        kept = []
        for name in sorted(folders):
            full = os.path.join(folder, name)
            found: tuple[Reason, str] | None = ("excluded", "") if name in skips else of_folder(name)
            if os.path.exists(os.path.join(full, "pyvenv.cfg")):  # a virtual environment, by whatever name
                found = ("vendored", "")
            if os.path.islink(full):
                names.append(name)
            elif found:
                left_out.append(LeftOut(readable(f"{prefix}{name}/"), found[0], "a folder"))
            elif name not in _HISTORY:
                kept.append(name)
        folders[:] = kept
        yield from (f"{prefix}{name}" for name in sorted(names) if name not in _HISTORY)


def _entries(root: Path, names: Iterable[tuple[str, str]], left_out: list[LeftOut]) -> Iterator[Entry]:
    """The regular files among (mode in git, path); what is none goes to left_out."""
    inside = _is_inside(root)
    for mode, path in names:
        found = _entry(root, mode, path, inside)
        if isinstance(found, Entry):
            yield found
        else:
            left_out.append(found)


def _entry(root: Path, mode: str, path: str, inside: Callable[[str], bool]) -> Entry | LeftOut:
    said = readable(path)
    if said != path:
        return LeftOut(said, "undecodable", "its name")
    if mode == "160000":
        return LeftOut(path, "submodule")
    full = os.path.join(root, path)
    try:
        state = os.lstat(full)
    except OSError as error:
        return LeftOut(path, "unreadable", "not there" if isinstance(error, FileNotFoundError) else _why(error))
    if stat.S_ISLNK(state.st_mode):
        if not os.path.exists(full):
            return LeftOut(path, "unreadable", "a link to nothing")
        target = os.path.realpath(full)
        if not inside(target):
            return LeftOut(path, "outside", f"a link to {readable(target)}")
        return LeftOut(path, "link", f"to {readable(os.path.relpath(target, root))}")
    if not inside(os.path.dirname(full)):
        return LeftOut(path, "outside", "its folder is a link that leaves the tree")
    if not stat.S_ISREG(state.st_mode):
        return LeftOut(path, "unreadable", "not a regular file")
    return Entry(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _is_inside(root: Path) -> Callable[[str], bool]:
    known: dict[str, bool] = {}

    def inside(full: str) -> bool:
        if full not in known:
            real = os.path.realpath(full)
            known[full] = real == str(root) or real.startswith(str(root).rstrip("/") + "/")
        return known[full]

    return inside


_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def readable(path: str) -> str:
    """A path as it can be shown and stored: what is not UTF-8, and what ends or turns a line, is escaped."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), path)
