"""From an import as it is written to the files of the codebase that it means.

Python's modules are resolved by package paths and relative levels, exactly but for namespace packages; other languages
by relative paths and by the last parts of a path, as well as that goes without their build systems.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from posixpath import dirname, join, normpath

from pipeline.codebase.types import Import, Language, SourceFile

_ENDINGS: dict[Language, tuple[str, ...]] = {
    "javascript": (".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx"),
    "typescript": (".ts", ".tsx", ".d.ts", ".mts", ".cts", ".js", ".jsx"),
    "rust": (".rs",),
    "java": (".java",),
}
_INDEX: dict[Language, str] = {"javascript": "index", "typescript": "index", "rust": "mod"}
_SEPARATORS = re.compile(r"::|[./\\]")
_OF_RUST = frozenset({"crate", "self", "super"})
_SOURCES_OF_JS = re.compile(r"\.[cm]?[jt]sx?$")


@dataclass
class Modules:
    """Tables over the files of a codebase.

    by_name: a Python module's dotted name -> files, several where the codebase holds copies. by_last: the last part of
    a path without its ending -> files. by_folder: the last part of a folder -> folders, each of one language's files.
    """

    files: Sequence[SourceFile]
    root_name: str
    numbers: dict[str, int] = field(default_factory=dict)
    by_name: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    by_last: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    folders: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    by_folder: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def resolve(self, importer: int, found: Import) -> tuple[int, ...]:
        """The files that an import means, none where it means nothing of the codebase. Never the importer itself."""
        language = self.files[importer].language
        if language == "python":
            numbers = self._python(importer, found)
        elif language == "go":
            numbers = self._folder(found.module)
        elif language in ("c", "cpp"):
            numbers = self._header(importer, found.module)
        else:
            numbers = self._by_path(importer, found)
        return tuple(number for number in numbers if number != importer)

    # ---- Python ----

    def _python(self, importer: int, found: Import) -> list[int]:
        if found.level:
            folder = dirname(self.files[importer].path)
            for _ in range(found.level - 1):
                folder = dirname(folder)
            base = join(folder, *found.module.split(".")) if found.module else folder
            inner = self._module_at(join(base, found.name)) if found.name and found.name != "*" else []
            return inner or self._module_at(base)
        if found.name and found.name != "*" and (inner := self._named(importer, f"{found.module}.{found.name}")):
            return inner
        return self._named(importer, found.module)

    def _module_at(self, path: str) -> list[int]:
        tries = (f"{path}.py", f"{path}.pyi", join(path, "__init__.py"))
        return [self.numbers[each] for each in tries if each in self.numbers][:1]

    def _named(self, importer: int, name: str) -> list[int]:
        return self._nearest(importer, self.by_name.get(name, []))

    # ---- the others ----

    def _by_path(self, importer: int, found: Import) -> list[int]:
        language = self.files[importer].language
        if language is None:
            return []
        module = found.module
        if language in ("javascript", "typescript"):
            if not module.startswith("."):
                return []  # a package, or an alias that only the build knows
            base = normpath(join(dirname(self.files[importer].path), module))
            bare = _SOURCES_OF_JS.sub("", base)
            tries = [base, *(stem + end for stem in (base, bare) for end in _ENDINGS[language])]
            tries += [join(base, _INDEX[language] + end) for end in _ENDINGS[language]]
            return [self.numbers[each] for each in tries if each in self.numbers][:1]
        parts = [part for part in _SEPARATORS.split(module) if part and part not in _OF_RUST]
        last = [found.name] if found.name and found.name != "*" else []
        for tried in (parts + last, parts, parts[:-1]):
            if numbers := self._ending_in(importer, tried, language):
                return numbers
        return []

    def _ending_in(self, importer: int, parts: list[str], language: Language) -> list[int]:
        """The file whose path ends in most of these parts, at least in half of them."""
        if not parts:
            return []
        best: list[int] = []
        most = (len(parts) + 1) // 2 - 1
        for number in self.by_last.get(parts[-1], ()):
            if self.files[number].language == language:
                alike = _alike(_parts(self.files[number].path), parts)
                if alike > most:
                    best, most = [], alike
                if alike == most:
                    best.append(number)
        return self._nearest(importer, best)

    def _header(self, importer: int, name: str) -> list[int]:
        beside = normpath(join(dirname(self.files[importer].path), name))
        if beside in self.numbers:
            return [self.numbers[beside]]
        ends = [
            number
            for number in self.by_last.get(_parts(name)[-1], ())
            if f"/{self.files[number].path}".endswith(f"/{name.lstrip('./')}")
        ]
        return self._nearest(importer, ends)

    def _folder(self, module: str) -> list[int]:
        """All files of a Go package, by the longest end that its folder shares with the import's path."""
        parts = module.split("/")
        ranked = sorted((-_alike(folder.split("/"), parts), folder) for folder in self.by_folder.get(parts[-1], ()))
        return self.folders[ranked[0][1]] if ranked else []

    def _nearest(self, importer: int, numbers: list[int]) -> list[int]:
        if len(numbers) < 2:
            return numbers
        path = self.files[importer].path
        return [min(numbers, key=lambda n: (-_together(path, self.files[n].path), self.files[n].path))]


def modules_of(files: Sequence[SourceFile], root_name: str) -> Modules:
    """root_name: of the codebase's folder, which is the package's name where its root is itself a package."""
    modules = Modules(files, root_name, {file.path: number for number, file in enumerate(files)})
    for number, file in enumerate(files):
        if file.language is None:
            continue
        modules.by_last[_parts(file.path)[-1]].append(number)
        if file.language == "python":
            for name in _names(file.path, modules):
                modules.by_name[name].append(number)
        elif file.language == "go" and not file.is_test:
            modules.folders[dirname(file.path)].append(number)
    for folder in modules.folders:
        modules.by_folder[folder.rpartition("/")[2]].append(folder)
    return modules


def _names(path: str, modules: Modules) -> list[str]:
    """A Python file's dotted names: from its topmost package on, and from the codebase's root on."""
    parts = [part for part in _parts(path) if part != "__init__"]
    folder = dirname(path)
    top = len(path.split("/")) - 1
    while top and join(folder, "__init__.py") in modules.numbers:
        folder, top = dirname(folder), top - 1
    names = [".".join(parts[top:]), ".".join(parts)]
    if not top and "__init__.py" in modules.numbers:
        names = [".".join([modules.root_name, *parts])]
    return [name for name in dict.fromkeys(names) if name]


def _parts(path: str) -> list[str]:
    """A path's parts without the ending, and without what stands for the folder itself."""
    parts = path.split("/")
    parts[-1] = parts[-1].partition(".")[0] or parts[-1]
    return parts[:-1] if parts[-1] in ("__init__", "mod", "index") and len(parts) > 1 else parts


def _together(one: str, other: str) -> int:
    """How many folders two paths share, counted from the root."""
    return next((n for n, (a, b) in enumerate(zip(one.split("/"), other.split("/"), strict=False)) if a != b), 0)


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts they share, counted from the end."""
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        count += 1
    return count
