"""Which file imports which, who defines a name, and who calls it: by names, without running or typing anything.

A call is linked to one definition or to none: to the one in the same file, else to what the file imports under that
name, else to one in an imported file or passed on by an imported package, else to the only one beside it, else to the
only one that there is. A name that many files define (`get`, `__init__`) is linked only where the first three tell.
"""

from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from posixpath import dirname
from typing import NamedTuple

from pipeline.codebase.modules import modules_of
from pipeline.codebase.types import Code, Outline, SourceFile, Symbol

PASSES_ON = ("__init__.py", "index.ts", "index.js", "mod.rs", "lib.rs")
MOST_DEFINITIONS = 32  # of one name; what more files define says nothing by its name alone
# What calls are mostly to the language's own: `x.append(…)` is no use of the one `append` of a codebase.
_KINDS = (dict, list, set, str, bytes, tuple, int, float, object, builtins)
BUILT_IN = frozenset(name for kind in _KINDS for name in dir(kind))


class Ref(NamedTuple):
    """A symbol: the number of its file in `Code.files`, its own number in the file's outline."""

    file: int
    symbol: int


@dataclass(frozen=True)
class Links:
    """imports: for each file the files it imports, as written, without repetition.
    imported: for each file, a name that it imports -> the symbols this may be; a module's own name is not among them.
    defined: a name -> the symbols of that name, in order of files.
    callers: a symbol -> the innermost symbols that call it, in order of files; itself is not among them.
    folders: a folder -> the files that stand in it.
    """

    files: Sequence[SourceFile]
    imports: tuple[tuple[int, ...], ...]
    imported: tuple[Mapping[str, Ref], ...]
    defined: Mapping[str, tuple[Ref, ...]]
    callers: Mapping[Ref, tuple[Ref, ...]]
    folders: Mapping[str, tuple[int, ...]]
    _resolver: _Resolver = field(repr=False)

    def symbol(self, ref: Ref) -> Symbol:
        return outline(self.files[ref.file]).symbols[ref.symbol]

    def uses(self, ref: Ref) -> Iterator[Ref]:
        """What a symbol calls, as far as it is known, in the order of its body."""
        for name in self.symbol(ref).calls:
            found = self._resolver.resolve(ref.file, name)
            if found is not None and found != ref:
                yield found

    def beside(self, folder: str) -> tuple[int, ...]:
        """The files of a folder, not of those in it."""
        return self.folders.get(folder, ())


def outline(file: SourceFile) -> Outline:
    """A file's outline, an empty one without a parser for it."""
    return file.outline or _NOTHING


_NOTHING = Outline((), (), ())


def links_of(code: Code) -> Links:
    """One pass over all imports, one over all calls."""
    modules = modules_of(code.files, code.root.resolve().name)
    defined: dict[str, list[Ref]] = defaultdict(list)
    for number, file in enumerate(code.files):
        for index, symbol in enumerate(outline(file).symbols):
            defined[symbol.name].append(Ref(number, index))
    names = {name: tuple(refs) for name, refs in defined.items()}

    imports: list[tuple[int, ...]] = []
    wanted: list[list[tuple[str, tuple[int, ...]]]] = []
    for number, file in enumerate(code.files):
        targets: dict[int, None] = {}
        taken_here: list[tuple[str, tuple[int, ...]]] = []
        for each in outline(file).imports:
            found = modules.resolve(number, each)
            targets.update(dict.fromkeys(found))
            if each.name and found:
                taken_here.append((each.name, found))
        imports.append(tuple(targets))
        wanted.append(taken_here)
    exports = _Exports(code.files, names, wanted)
    imported = [{name: ref for name, modules_ in each if (ref := exports.taken(modules_, name))} for each in wanted]
    resolver = _Resolver(code.files, imports, imported, names, exports)
    folders: dict[str, list[int]] = defaultdict(list)
    for number, file in enumerate(code.files):
        folders[dirname(file.path)].append(number)
    return Links(
        code.files,
        tuple(imports),
        tuple(imported),
        names,
        _callers(code.files, resolver),
        {folder: tuple(numbers) for folder, numbers in folders.items()},
        resolver,
    )


class _Exports:
    """What a file gives to those that import from it: what it defines at the outer level, and what it passes on.

    wanted: for each file, the names that it imports and the files they are taken from; "*" for all of them.
    """

    def __init__(
        self,
        files: Sequence[SourceFile],
        defined: Mapping[str, tuple[Ref, ...]],
        wanted: Sequence[Sequence[tuple[str, tuple[int, ...]]]],
    ) -> None:
        self._outer: list[dict[str, Ref]] = [{} for _ in files]
        for refs in defined.values():
            for ref in refs:
                symbol = outline(files[ref.file]).symbols[ref.symbol]
                if symbol.path == symbol.name:
                    self._outer[ref.file].setdefault(symbol.name, ref)
        self._wanted = wanted
        self._passes_on = [file.path.endswith(PASSES_ON) for file in files]
        self._known: dict[tuple[int, str], Ref | None] = {}

    def taken(self, modules: Sequence[int], name: str) -> Ref | None:
        return next((ref for module in modules if (ref := self._of(module, name))), None)

    def of(self, module: int, name: str) -> Ref | None:
        """What `module.name` is, where the module is a package that passes names on."""
        return self._of(module, name) if self._passes_on[module] else None

    def _of(self, module: int, name: str) -> Ref | None:
        if name in self._outer[module]:
            return self._outer[module][name]
        key = (module, name)
        if key not in self._known:
            self._known[key] = None  # for what imports itself in a circle
            sources = (files for imported, files in self._wanted[module] if imported in (name, "*"))
            self._known[key] = next((ref for files in sources if (ref := self.taken(files, name))), None)
        return self._known[key]


class _Resolver:
    """Names to definitions, remembered per file and name."""

    def __init__(
        self,
        files: Sequence[SourceFile],
        imports: Sequence[tuple[int, ...]],
        imported: Sequence[Mapping[str, Ref]],
        defined: Mapping[str, tuple[Ref, ...]],
        exports: _Exports,
    ) -> None:
        self._files, self._imports, self._imported, self._defined = files, imports, imported, defined
        self._exports = exports
        self._sets: dict[int, frozenset[int]] = {}
        self._folders = [dirname(file.path) for file in files]

    def resolve(self, file: int, name: str) -> Ref | None:
        candidates = self._defined.get(name, ())
        if not candidates:
            return None
        for ref in candidates:
            if ref.file == file:
                return ref
        if known := self._imported[file].get(name):
            return known
        if name in BUILT_IN:
            return None
        if file not in self._sets:
            self._sets[file] = frozenset(self._imports[file])
        near = [ref for ref in candidates if ref.file in self._sets[file]]
        if near:
            return near[0]
        for module in self._imports[file]:
            if found := self._exports.of(module, name):
                return found
        if len(candidates) > MOST_DEFINITIONS:
            return None
        language = self._files[file].language
        rest = [
            ref
            for ref in candidates
            if self._files[ref.file].language == language and not self._files[ref.file].is_test
        ]
        beside = [ref for ref in rest if self._folders[ref.file] == self._folders[file]]
        if len(rest) == 1 or len(beside) == 1:
            return (beside or rest)[0]
        return None


def _callers(files: Sequence[SourceFile], resolver: _Resolver) -> Mapping[Ref, tuple[Ref, ...]]:
    callers: dict[Ref, list[Ref]] = defaultdict(list)
    for number, file in enumerate(files):
        symbols = outline(file).symbols
        resolved = {name: resolver.resolve(number, name) for name in {name for each in symbols for name in each.calls}}
        for index, own in enumerate(_own_calls(symbols)):
            ref = Ref(number, index)
            for name in own:
                target = resolved[name]
                if target is not None and target != ref:
                    callers[target].append(ref)
    return {ref: tuple(found) for ref, found in callers.items()}


def _own_calls(symbols: Sequence[Symbol]) -> list[list[str]]:
    """Each symbol's calls without those that a symbol inside it makes: a class does not call what its methods do."""
    inner: list[set[str]] = [set() for _ in symbols]
    open_: list[int] = []
    for index, symbol in enumerate(symbols):
        while open_ and symbols[open_[-1]].whole.end <= symbol.whole.start:
            open_.pop()
        for outer in open_:
            inner[outer].update(symbol.calls)
        open_.append(index)
    return [[name for name in symbol.calls if name not in inner[index]] for index, symbol in enumerate(symbols)]
