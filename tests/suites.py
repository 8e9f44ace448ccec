"""Small repositories with tests, made on the fly, and their Code as the tests of grading need it."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent

from pipeline.codebase.types import Code, Outline, Place, SourceFile, Span, Symbol

CORE = '''
    """Sums."""

    import os
    import sys


    def total(items):
        """The sum."""
        result = 0  # the body that must be written
        for item in items:
            result += item
        return result


    def mean(items):
        return total(items) / len(items)
'''
HELPERS = """
    def same(left, right):
        assert left == right
"""
TEST_CORE = """
    from calc import total
    from calc.helpers import same


    def test_total():
        assert total([1, 2]) == 3


    def test_empty():
        same(total([]), 0)


    def test_unrelated():
        assert 1 + 1 == 2
"""
TEST_CASE = """
    import unittest
    from calc import core


    class TestTotal(unittest.TestCase):
        def test_many(self):
            self.assertEqual(core.total(range(5)), 10)
"""
FILES = {
    "calc/__init__.py": "from calc.core import mean, total\n",
    "calc/core.py": CORE,
    "calc/helpers.py": HELPERS,
    "tests/test_core.py": TEST_CORE,
    "tests/test_case.py": TEST_CASE,
    "README.md": "Sums.\n",
}
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]


def make(root: Path, files: Mapping[str, str] = FILES, *, git: bool = False) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).removeprefix("\n"), encoding="utf-8")
    if git:
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
            subprocess.run([*GIT, *words], cwd=root, check=True, capture_output=True)
    return root


def code_of(root: Path, *, keep: str = "") -> Code:
    """All Python files whose path contains `keep`, or `test`."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    files = [_file(root, name) for name in names if keep in name or "test" in name]
    return Code(root, None, tuple(files), ())


def _file(root: Path, name: str) -> SourceFile:
    text = (root / name).read_text(encoding="utf-8")
    outline = Outline(tuple(_symbols(text, ast.parse(text), "")), (), ())
    is_test = Path(name).name.startswith("test_")
    return SourceFile(name, "python", text, "", outline, is_test=is_test)


def _symbols(text: str, node: ast.AST, above: str) -> Iterator[Symbol]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(first: ast.AST, last: ast.AST) -> Span:
        return Span(starts[first.lineno - 1] + first.col_offset, starts[last.end_lineno - 1] + last.end_col_offset)

    for child in getattr(node, "body", ()):
        if isinstance(child, ast.ClassDef):
            yield from _symbols(text, child, f"{above}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            body = child.body[1:] if ast.get_docstring(child) else child.body
            calls = [n.id for n in ast.walk(child) if isinstance(n, ast.Name)]
            whole = span(child, child)
            head = Span(whole.start, whole.start)
            kind = "method" if above else "function"
            yield Symbol(
                kind, child.name, above + child.name, whole, head,
                span(body[0], body[-1]) if body else None, None, tuple(dict.fromkeys(calls)),
            )  # fmt: skip


def place_of(code: Code, path: str, symbol: str) -> Place:
    """Of a function's body."""
    for number, file in enumerate(code.files):
        if file.path == path and file.outline is not None:
            for index, found in enumerate(file.outline.symbols):
                if found.path == symbol and found.body is not None:
                    return Place(number, found.body, index)
    raise AssertionError(f"no {symbol} in {path}")
