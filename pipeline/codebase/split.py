"""Which files may teach and which measure, so that what is measured was not taught.

By file or by module, what belongs together is put on one side by the hash of its name alone: the same in every run, on
every machine, and no file moves because another came. By time, what the newest commits wrote is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from pipeline.codebase.duplicates import Profile, groups, nearest, profile
from pipeline.codebase.history import untouched_since
from pipeline.codebase.mirrors import mirrored, modules
from pipeline.codebase.summary import commonest
from pipeline.codebase.types import Change, Code, Language, Sketch, SourceFile, Split
from pipeline.codebase.workers import without_collection
from pipeline.errors import DataError
from pipeline.recipe import Codebase

_TOLERATED: Final = 2.0  # the share that chance gives may be this many times what was asked for, or that part of it


class _Group(NamedTuple):
    """Files that stay together. name: what decides its side."""

    name: str
    members: tuple[int, ...]

    @property
    def place(self) -> float:
        """In [0, 1), by its name."""
        return (
            int.from_bytes(hashlib.blake2b(self.name.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64
        )


def split(code: Code, config: Codebase) -> Split:
    """DataError where one of the sides would be empty.

    - file: near-duplicates, and a test and the file that it mirrors, stay together.
    - module: a folder stays together, with the tests of its files.
    - time: the newest commits are held out, and every file in which something was written since the first of them.

    Training files that are near to a held-out one, or to one in a held-out commit, are dropped: by file there are none.
    A change teaches where nothing in it is held out, dropped, or near to what is held out, as it was before and after.
    It measures where all of it is held out and nothing in it is near to what teaches; by time, where it is among the
    newest. What does both is on neither side.
    """
    if len(code.files) < 2:
        raise DataError(
            f"source.path: {code.root}: one file cannot be split into training and held out "
            f"(left out: {commonest(code.left_out)}): widen source.include, source.languages or source.licences"
        )
    files = sorted(code.files, key=lambda file: file.path)
    compared = Compared({PurePosixPath(file.path).suffix: file.language for file in files})
    profiles = [compared.of(file.text, file.path, file.sketch) for file in files]
    if config.split == "time":
        newest = _newest(code, config.held_out)
        held_out = _written_by(code, newest)
        seen = [*_texts(newest)]
    else:
        chosen = held_out_groups(groups_of(files, profiles, config), config.held_out)
        held_out = {files[number].path for group in chosen for number in group.members}
        seen = []
    kept = [number for number, file in enumerate(files) if file.path not in held_out]
    seen = [*((file.path, file.text) for file in files if file.path in held_out), *seen]
    near = nearest([profiles[number] for number in kept], [compared.of(text, path) for path, text in seen])
    dropped = {files[kept[one]].path: seen[other][0] for one, other in sorted(near.items())}
    train = {files[number].path: profiles[number] for number in kept if files[number].path not in dropped}
    if not train or not held_out:
        side = "held out" if train else "left for training"
        raise DataError(
            f"source.split: {code.root}: no file is {side}; change source.held_out, or source.split from {config.split}"
        )
    if config.split != "time":
        newest = _measuring(code.changes, held_out, list(train.values()), compared)
    measuring = {change.commit for change in newest}
    older = [change for change in code.changes if change.commit not in measuring]
    teaching = _teaching(older, {*held_out, *dropped}, [*seen, *_texts(newest)], compared)
    sides = dict.fromkeys(train, "train") | dict.fromkeys(held_out, "held out") | dict.fromkeys(dropped, "dropped")
    commits = dict.fromkeys(teaching, "train") | dict.fromkeys(measuring, "held out")
    return Split(
        train=frozenset(train),
        held_out=frozenset(held_out),
        dropped=dropped,
        train_changes=frozenset(teaching),
        held_out_changes=frozenset(measuring),
        fingerprint=_fingerprint(sides, files, commits),
    )


def _fingerprint(sides: Mapping[str, str], files: Sequence[SourceFile], commits: Mapping[str, str]) -> str:
    """Of every file's side and text and every commit's side; 64 hexadecimal digits."""
    lines = [
        (sides[f.path], f.path, hashlib.sha256(f.text.encode("utf-8", "surrogatepass")).hexdigest()) for f in files
    ]
    lines += [(side, commit, "") for commit, side in commits.items()]
    return hashlib.sha256(repr(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()


# ---- files ----


def groups_of(files: Sequence[SourceFile], profiles: Sequence[Profile], config: Codebase) -> list[_Group]:
    """A group is named by the first of the files that are not tests, or by its folder: neither a test nor, in a folder,
    a file that comes later changes the name."""
    mirrors = mirrored(files)
    if config.split == "module":
        folders = modules(files, mirrors)
        labels: Sequence[str | int] = [folders[file.path] for file in files]
    else:
        number = {file.path: place for place, file in enumerate(files)}
        labels = groups(profiles, [(number[test], number[tested]) for test, tested in mirrors.items()])
    members: dict[str | int, list[int]] = {}
    for place, label in enumerate(labels):
        members.setdefault(label, []).append(place)
    found = []
    for label, places in members.items():
        first = min(places, key=lambda place: (files[place].is_test, files[place].path))
        found.append(_Group(label if isinstance(label, str) else files[first].path, tuple(places)))
    return found


def held_out_groups(found: Sequence[_Group], share: float) -> list[_Group]:
    """Those whose place is below the share: with many groups about that share of the files.

    A group of more files than that alone is not held out while there are others. Where chance gives less than half or
    more than double, groups are taken in the order of their places until the share is nearest. Groups: at least one,
    never all; [] where there is only one.
    """
    if len(found) < 2:
        return []
    total = sum(len(group.members) for group in found)
    most = max(1.0, share * total)
    ordered = sorted(found, key=lambda group: (group.place, group.name))
    small = [group for group in ordered if len(group.members) <= most]
    small = small or sorted(ordered, key=lambda group: len(group.members))[:1]
    small = small if len(small) < len(found) else small[:-1]
    held = [group for group in small if group.place < share]
    count = sum(len(group.members) for group in held)
    if most / _TOLERATED <= count <= most * _TOLERATED:
        return held
    sizes = [len(group.members) for group in small]
    best = min(range(1, len(small) + 1), key=lambda taken: abs(sum(sizes[:taken]) - most))
    return small[:best]


# ---- time ----


def _newest(code: Code, share: float) -> list[Change]:
    if code.revision is None:
        raise DataError(f"source.split: {code.root} is no git checkout and cannot be split by time: use file or module")
    if len(code.changes) < 2:
        found = len(code.changes)
        raise DataError(f"source.split: by time needs two commits at least, {found} were read: raise source.commits")
    return list(code.changes[: min(max(round(share * len(code.changes)), 1), len(code.changes) - 1)])


def _written_by(code: Code, newest: Sequence[Change]) -> set[str]:
    """Files that the newest changes touch, or in which anything else was written since the first of them."""
    assert code.revision is not None
    paths = [file.path for file in code.files]
    touched = {edit.path for change in newest for edit in change.edits}
    return set(paths) - (untouched_since(code.root, code.revision, newest[-1].commit, paths) - touched)


# ---- changes ----


class Compared:
    """Profiles of texts, each made once: most texts of a history stand in two changes, after one and before the next.

    languages: of endings, since a change may name a file that is no more.
    """

    def __init__(self, languages: Mapping[str, Language | None]) -> None:
        self._languages = languages
        self._profiles: dict[tuple[str, str], Profile] = {}

    def of(self, text: str, path: str, known: Sketch | None = None) -> Profile:
        """known: the text's sketch, where the reading made it."""
        key = PurePosixPath(path).suffix, text
        if key not in self._profiles:
            with without_collection():
                self._profiles[key] = profile(text, self._languages.get(key[0]), known)
        return self._profiles[key]


def _texts(changes: Iterable[Change]) -> Iterator[tuple[str, str]]:
    """(path, text), once each."""
    found = ((edit.path, text) for change in changes for edit in change.edits for text in (edit.before, edit.after))
    yield from dict.fromkeys((path, text) for path, text in found if text is not None)


def _measuring(
    changes: Sequence[Change], held_out: Collection[str], train: Sequence[Profile], compared: Compared
) -> list[Change]:
    """Those of held-out files alone, where nothing that they show was in a file that teaches."""
    within = [change for change in changes if change.edits and all(edit.path in held_out for edit in change.edits)]
    return _without_near(within, train, compared)


def _teaching(
    changes: Sequence[Change], apart: Collection[str], held_out: Sequence[tuple[str, str]], compared: Compared
) -> list[str]:
    """The commits that touch nothing in `apart` and have no text near to a held-out one.

    A file that is gone may have become a held-out one, and a function may have come from elsewhere: so texts count, not
    paths alone.
    """
    left = [change for change in changes if change.edits and not any(edit.path in apart for edit in change.edits)]
    references = [compared.of(text, path) for path, text in held_out] if left else []
    return [change.commit for change in _without_near(left, references, compared)]


def _without_near(changes: Sequence[Change], references: Sequence[Profile], compared: Compared) -> list[Change]:
    texts = list(_texts(changes))
    near = nearest([compared.of(text, path) for path, text in texts], references)
    bad = {texts[number] for number in near}
    return [change for change in changes if bad.isdisjoint(_texts([change]))]
