"""Which file a test file tests, by names alone: `graphs/tests/test_paths.py` and `tests/graphs/test_paths.py` mirror
`graphs/paths.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from pipeline.codebase.types import SourceFile

TEST_FOLDERS = frozenset({"test", "tests", "__tests__", "spec"})
_FOR_ITS_FOLDER = frozenset({"__init__", "index", "mod", "lib"})  # a file that stands for the folder it is in
_MARKED = re.compile(r"^(?:tests?[_-])|(?:[_.-](?:unit)?(?:tests?|spec))$", re.IGNORECASE)
_MARKED_IN_CAPITALS = re.compile(r"^Test(?=[A-Z])|(?<=[a-z0-9])(?:Tests?|TestCase|IT|Spec)$")  # PathsTest.java


def mirrored(files: Sequence[SourceFile]) -> dict[str, str]:
    """A test file's path -> the path of the file that it mirrors, for those that mirror one.

    What a test is called is the end of a path, in words: `test_codebase_split` is `codebase/split`, and else
    `codebase_split` anywhere. Of several, the one whose place is most like the test's. Where there is none, the file in
    the test's own folder that has at least half of its words in common: `test_degree_centrality` is `degree`.
    """
    by_name: dict[str, list[str]] = {}
    by_folder: dict[tuple[str, ...], list[str]] = {}
    for file in files:
        if not file.is_test:
            parts = _parts(file.path)
            for begin in range(len(parts)):
                by_name.setdefault("_".join(parts[begin:]), []).append(file.path)
            if PurePosixPath(file.path).stem not in _FOR_ITS_FOLDER:
                by_folder.setdefault(own_folder(file.path), []).append(file.path)
    found: dict[str, str] = {}
    for test in (file.path for file in files if file.is_test):
        name = _tested_name(test)
        if name and name in by_name:
            found[test] = min(by_name[name], key=lambda path: (*_unlikeness(path, test), path))
        elif name and own_folder(test) in by_folder:
            share, path = min((-_shared_words(name, path), path) for path in by_folder[own_folder(test)])
            if share <= -0.5:
                found[test] = path
    return found


def _shared_words(name: str, path: str) -> float:
    left, right = set(name.split("_")), set(_parts(path)[-1].replace("-", "_").split("_"))
    return len(left & right) / len(left | right)


def _parts(path: str) -> list[str]:
    """In lower case; without the last where that stands for its folder."""
    pure = PurePosixPath(path)
    parts = [part.lower() for part in (*pure.parent.parts, pure.name.split(".")[0])]
    return parts[:-1] if parts[-1] in _FOR_ITS_FOLDER and len(parts) > 1 else parts


def _tested_name(path: str) -> str:
    """In lower case; empty for a test whose name tells nothing. A test's mark may be its folder alone."""
    pure = PurePosixPath(path)
    bare = _MARKED.sub("", pure.stem, count=1)
    if bare == pure.stem:
        bare = _MARKED_IN_CAPITALS.sub("", pure.stem, count=1)
    if bare == pure.stem and own_folder(path) == pure.parent.parts:
        return ""
    return bare.lower().replace("-", "_")


def _unlikeness(path: str, test: str) -> tuple[int, int]:
    """The steps from the one's folder to the other's, then minus the names of folders that they have in common."""
    left, right = own_folder(path), own_folder(test)
    shared = next((n for n, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), None)
    shared = min(len(left), len(right)) if shared is None else shared
    return len(left) + len(right) - 2 * shared, -len({*left} & {*right})


def own_folder(path: str) -> tuple[str, ...]:
    """The folder of a file, without those that only say that there are tests."""
    return tuple(part for part in PurePosixPath(path).parent.parts if part.lower() not in TEST_FOLDERS)


def modules(files: Iterable[SourceFile], mirrors: dict[str, str]) -> dict[str, str]:
    """A file's path -> its folder; a test's is the folder of what it tests."""
    return {file.path: "/".join(own_folder(mirrors.get(file.path, file.path))) for file in files}
