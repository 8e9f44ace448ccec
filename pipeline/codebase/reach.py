"""Which tests can reach a symbol: by imports and names, without running anything.

A test reaches a symbol if its file imports the symbol's module, or a package above it, and the test, or what it stands
beside, names the symbol or one that leads to it inside of its file. Only Python; what is reached through registries,
entry points or strings is not found, and too many is no fault: a baseline run tells which of them notice.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TypeGuard

from pipeline.codebase.types import Code, SourceFile

MOST_TESTS = 24  # functions or files that one change is tried by
HOPS = 2  # from a symbol to whoever calls it in its own file


@dataclass(frozen=True)
class TestFile:
    """modules: what it imports, as dotted paths, relative ones from the codebase's root. tests: node id -> the names in
    it. shared: the names outside of all tests, such as in fixtures and base classes."""

    path: str
    modules: frozenset[str]
    tests: Mapping[str, frozenset[str]]
    shared: frozenset[str]


def reach(code: Code, path: str, symbol: str, most: int = MOST_TESTS) -> tuple[str, ...]:
    """Node ids of test functions, or whole files where a test's helpers name the symbol; the likeliest first.

    symbol: with what it stands in, such as `Graph.add_edge`. At most `most`.
    """
    wanted = names_of(code, path, symbol)
    last = symbol.rpartition(".")[2]
    found: list[tuple[tuple[int, int, int, str], str]] = []
    for file in code.files:
        if not file.is_test or file.language != "python" or file.path == path:
            continue
        read = _read(file.path, file.text)
        distance = _distance(read.modules, path, code.root.name)
        if distance is None:
            continue
        apart = len(set(PurePosixPath(path).parts) ^ set(PurePosixPath(file.path).parts))
        named = [test for test, names in read.tests.items() if names & wanted]
        found += [((int(last not in read.tests[test]), distance, apart, test), test) for test in named]
        if not named and read.shared & wanted:
            found.append(((1, distance, apart, file.path), file.path))
    return tuple(test for _, test in sorted(found))[:most]


def names_of(code: Code, path: str, symbol: str) -> frozenset[str]:
    """The symbol's name, its class where nobody calls it by its own (`__init__`), and who calls it in its own file."""
    file = next((file for file in code.files if file.path == path), None)
    above, _, last = symbol.rpartition(".")
    found = {above.rpartition(".")[2] if last.startswith("__") and above else last}
    for _ in range(HOPS):
        found |= {name for name, called in _callers(file) if called & found}
    return frozenset(found)


def _callers(file: SourceFile | None) -> Iterator[tuple[str, frozenset[str]]]:
    if file is not None and file.outline is not None:
        for symbol in file.outline.symbols:
            if symbol.kind != "class":
                yield symbol.name, frozenset(symbol.calls)


def _distance(modules: frozenset[str], path: str, root: str) -> int | None:
    """0 where the module itself is imported, else how many packages above it the nearest one is; None for none."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    whole = [root, *parts]
    for end in range(len(whole), 0, -1):  # written from any folder on the way: `src` may be in front or not
        if modules & {".".join(whole[start:end]) for start in range(end)}:
            return len(whole) - end
    return None


@lru_cache(maxsize=4096)
def _read(path: str, text: str) -> TestFile:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return TestFile(path, frozenset(), {}, frozenset())
    tests: dict[str, frozenset[str]] = {}
    shared: set[str] = set()
    for node in tree.body:
        if _is_test(node):
            tests[f"{path}::{node.name}"] = _names(node)
        elif isinstance(node, ast.ClassDef) and _holds_tests(node):
            own = {inner.name: _names(inner) for inner in node.body if _is_test(inner)}
            around: frozenset[str] = frozenset().union(*(_names(inner) for inner in node.body if not _is_test(inner)))
            tests |= {f"{path}::{node.name}::{name}": names | around for name, names in own.items()}
            shared |= around.union(*map(_names, node.bases))
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            shared |= _names(node)
    return TestFile(path, frozenset(_modules(tree, path)), tests, frozenset(shared))


def _is_test(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")


def _holds_tests(node: ast.ClassDef) -> bool:
    return node.name.startswith("Test") or any("TestCase" in ast.unparse(base) for base in node.bases)


def _names(node: ast.AST) -> frozenset[str]:
    """Every name and attribute."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        elif isinstance(inner, ast.Attribute):
            found.add(inner.attr)
    return frozenset(found)


def _modules(tree: ast.AST, path: str) -> Iterator[str]:
    folders = list(PurePosixPath(path).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folders[: len(folders) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" if module else alias.name for alias in node.names)
