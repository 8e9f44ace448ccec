"""Which files may teach and which measure, so that what is measured was not taught.

By file or by module, what belongs together is put on one side by the hash of its name alone: the same in every run, on
every machine, and no file moves because another came. By time, what the newest commits wrote is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from pipeline.codebase.duplicates import Profile, groups, nearest, profile
from pipeline.codebase.mirrors import mirrored, modules
from pipeline.codebase.types import Change, Code, Language, SourceFile, Split
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
    - module: a folder stays together, with the tests of its files. What is near to a held-out file is dropped.
    - time: see `_by_time`. What is near to a held-out file is dropped.

    A change teaches where nothing in it is held out, dropped, or near to what is held out, as it was before and after;
    it measures where all of it is held out. One that does both is on neither side.
    """
    if len(code.files) < 2:
        raise DataError(
            f"{code.root}: {len(code.files)} files cannot be split into training and held out; "
            "widen source.include, source.languages or source.licences"
        )
    files = sorted(code.files, key=lambda file: file.path)
    profiles = [profile(file.text, file.language) for file in files]
    chosen = groups_of(files, profiles, config)
    held = held_out_groups(chosen, config.held_out)
    held_out = {files[number].path for group in held for number in group.members}
    return _finished(code, files, profiles, held_out)


def _finished(
    code: Code,
    files: Sequence[SourceFile],
    profiles: Sequence[Profile],
    held_out: Collection[str],
) -> Split:
    """The sides as they are once training files that are near to a held-out one are dropped."""
    kept = [number for number, file in enumerate(files) if file.path not in held_out]
    held = [number for number, file in enumerate(files) if file.path in held_out]
    references = [profiles[number] for number in held]
    near = nearest([profiles[number] for number in kept], references)
    dropped = {files[kept[one]].path: files[held[other]].path for one, other in sorted(near.items())}
    train = frozenset(files[number].path for number in kept) - dropped.keys()
    if not train or not held:
        side = "held out" if train else "left for training"
        raise DataError(f"{code.root}: no file is {side}; change source.held_out or source.split")
    languages = {PurePosixPath(file.path).suffix: file.language for file in files}
    train_changes = _teaching(code.changes, {*held_out, *dropped}, references, languages)
    held_changes = [c.commit for c in code.changes if c.edits and all(edit.path in held_out for edit in c.edits)]
    sides = dict.fromkeys(train, "train") | dict.fromkeys(held_out, "held out") | dict.fromkeys(dropped, "dropped")
    return Split(
        train=train,
        held_out=frozenset(held_out),
        dropped=dropped,
        train_changes=frozenset(train_changes),
        held_out_changes=frozenset(held_changes),
        fingerprint=_fingerprint(sides, files, train_changes, held_changes),
    )


def _fingerprint(
    sides: Mapping[str, str], files: Sequence[SourceFile], train_changes: Sequence[str], held_changes: Sequence[str]
) -> str:
    """Of every file's side and text and every commit's side; 64 hexadecimal digits."""
    lines = [
        (sides[f.path], f.path, hashlib.sha256(f.text.encode("utf-8", "surrogatepass")).hexdigest()) for f in files
    ]
    lines += [("train", commit, "") for commit in train_changes] + [("held out", commit, "") for commit in held_changes]
    return hashlib.sha256(repr(sorted(lines)).encode()).hexdigest()


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


# ---- changes ----


def _teaching(
    changes: Sequence[Change],
    apart: Collection[str],
    references: Sequence[Profile],
    languages: Mapping[str, Language | None],
) -> list[str]:
    """Those that touch nothing in `apart` and none of whose texts is near to a reference. languages: of endings, since
    a change may name a file that is no more.

    A file that is gone may have become a held-out one, and a function may have come from elsewhere: so texts count, not
    paths alone.
    """
    left = [change for change in changes if change.edits and not any(edit.path in apart for edit in change.edits)]
    texts: dict[str, int] = {}
    profiles: list[Profile] = []
    for change in left:
        for edit in change.edits:
            for text in (edit.before, edit.after):
                if text is not None and text not in texts:
                    texts[text] = len(profiles)
                    profiles.append(profile(text, languages.get(PurePosixPath(edit.path).suffix)))
    near = nearest(profiles, references)
    return [
        change.commit
        for change in left
        if not any(
            texts[text] in near for edit in change.edits for text in (edit.before, edit.after) if text is not None
        )
    ]
