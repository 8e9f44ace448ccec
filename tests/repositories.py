<<<<<<< HEAD
"""Git repositories made on the fly: each commit is a folder's files as they then are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

<<<<<<< HEAD
START = 1_700_000_000


def git(root: Path, *arguments: str, time: int = START, message: str | None = None) -> str:
    """What git prints. Nothing of the user's own settings counts."""
    dates = {"GIT_AUTHOR_DATE": f"{time} +0000", "GIT_COMMITTER_DATE": f"{time} +0000"}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(root)}
    settings = ["-c", "user.name=A", "-c", "user.email=a@b.invalid", "-c", "init.defaultBranch=main"]
    settings += ["-c", "protocol.file.allow=always", "-c", "core.autocrlf=false"]
    return subprocess.run(
        ["git", "-C", str(root), *settings, *arguments],
        input=None if message is None else message.encode(),
=======
START = 1_700_000_000  # seconds since 1970, of what is committed without a time
IDENTITY = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


def run_git(folder: Path, *arguments: str, time: int = START, give: str = "") -> str:
    """What a git command prints in `folder`. give: its standard input."""
    command = ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *arguments]
    dates = {"GIT_AUTHOR_DATE": f"{time} +0000", "GIT_COMMITTER_DATE": f"{time} +0000"}
    environment = os.environ | IDENTITY | dates
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        input=give,
        check=True,
>>>>>>> af2c673e
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], **dates, **alone},
    ).stdout.decode(errors="surrogateescape")


def make(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q")
    return root


<<<<<<< HEAD
def write(root: Path, files: Mapping[str, str | bytes | None]) -> None:
    """None removes a file."""
    for name, content in files.items():
        path = root / name
=======
def write_files(folder: Path, files: Mapping[str, str | bytes | None]) -> None:
    """None removes a file."""
    for name, content in files.items():
        path = folder / name
>>>>>>> af2c673e
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


<<<<<<< HEAD
def commit(root: Path, files: Mapping[str, str | bytes | None], message: str = "A change", time: int = START) -> str:
    """Its name. An empty one is made as well."""
    write(root, files)
    git(root, "add", "-A")
    git(
        root,
        "commit",
        "-q",
        "--allow-empty",
        "--allow-empty-message",
        "--cleanup=verbatim",
        "-F-",
        time=time,
        message=message,
    )
    return git(root, "rev-parse", "HEAD").strip()


def make_repository(root: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """A repository with one commit of these files, those that git would ignore included."""
    write(make(root), files)
    git(root, "add", "-A", "-f")
    git(root, "commit", "-q", "--allow-empty", "-m", "first")
    return root


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file, git's own included: content and time of its last change."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
=======
def make_repository(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """A repository with one commit of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    run_git(folder, "init", "-q")
    write_files(folder, files)
    run_git(folder, "add", "-A", "-f")
    run_git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def empty_repository(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run_git(folder, "init", "-q")
    return folder


def commit(folder: Path, files: Mapping[str, str | bytes | None], message: str = "A change", time: int = START) -> str:
    """The name of a commit of all that is in the folder once these files are written. An empty one is made as well."""
    write_files(folder, files)
    run_git(folder, "add", "-A")
    allowed = ("--allow-empty", "--allow-empty-message", "--cleanup=verbatim")
    run_git(folder, "commit", "-q", *allowed, "-F-", time=time, give=message)
    return run_git(folder, "rev-parse", "HEAD").strip()


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file, git's own included: content and time of its last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
>>>>>>> af2c673e
        if path.is_file() and not path.is_symlink()
    }
=======
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
>>>>>>> a323a303
