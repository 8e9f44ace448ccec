"""Outlines of Python: over the sources of networkx and the standard library, and over all that the syntax can hold."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

from pipeline.codebase.outline import outline_of
from pipeline.codebase.types import Outline, Span, Symbol

NETWORKX = sorted(Path(networkx.__file__).parent.rglob("*.py"))
STANDARD = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
TESTS_OF_PYTHON = sorted(Path(sysconfig.get_path("stdlib")).glob("test/test_*.py"))

MESSY = '''#!/usr/bin/env python
# -*- coding: latin-1 -*-
"""Größe — 日本語 🙂."""
import os, os.path as p; from . import (a,
    b as c)
from ..deep.er import *

é = "🙂"; ü = 2;  x = 3; y = (z := 5)
@property  # @ not this one
@(  # @ nor this: one
    functools . wraps
)
async def über(self, größe: "a:b" = {1: 2}, /, *, k=(lambda: 1), **kw) -> (  # :
    dict[str, int]
):  # noqa: E501
    # about : what follows
    r"""Sagt \\d "über" — 🙂."""

    if (n := größe) > 1: return self.graph.añadir(n)
    elif n: pass
    else:
        await f"{n!r:>{kw['w']}} {self.name}"
    match n:
        case {"x": [1, *rest]} if rest:
            raise ValueError("日本") from None
        case _:
            pass
def one(): return 1
def two(): "only a docstring"
def three(): "é"; x = "é"; return x;
class Outer(Base, metaclass = Meta): # c: d
\tclass Inner:
\t\tdef method(self): ...
\tif True:
\t\t@overload
\t\tdef f(self, x: int) -> int: ...
\t\t@overload
\t\tdef f(self, x: str) -> str: ...
\tdef f(self, x):
\t\tdef nested():
\t\t\treturn Inner.method(x)[0].last
\t\treturn nested
\f
try:
    pass
except* E as e:
    print("a" \\
        "b")
finally:
    for i in range(3): continue
    else: x = """
not : indented
"""; del x
'''


# ---- what holds for every outline ----


def check(text: str) -> Outline:
    outline = outline_of(text, "python")
    assert outline is not None
    by_start = {span.start: span for span in outline.statements}
    assert list(outline.statements) == sorted(set(outline.statements))
    assert len(by_start) == len(outline.statements)
    assert_nested(list(outline.statements))
    assert_nested([symbol.whole for symbol in outline.symbols])
    for symbol in outline.symbols:
        check_symbol(symbol, text, by_start)
    for span in outline.statements:
        assert text[: span.start] + text[span.start : span.end] + text[span.end :] == text
        assert text[span.start] not in " \t\f\n"
        assert text[span.end - 1] not in " \t\f\n"
    for each in outline.imports:
        assert by_start[each.span.start] == each.span
    return outline


def assert_nested(spans: list[Span]) -> None:
    """In order, outer before inner, and never half in one another."""
    open_until: list[int] = []
    for before, span in zip([Span(-1, -1), *spans], spans, strict=False):
        assert before.start < span.start < span.end
        while open_until and open_until[-1] <= span.start:
            open_until.pop()
        assert not open_until or span.end <= open_until[-1]
        open_until.append(span.end)


def check_symbol(symbol: Symbol, text: str, statements: dict[int, Span]) -> None:
    whole, head = symbol.whole, symbol.head
    assert statements[whole.start] == whole
    assert head.start == whole.start
    assert text[head.end - 1] == ":"
    assert symbol.path.split(".")[-1] == symbol.name
    parts = [head, *(part for part in (symbol.docstring, symbol.body) if part is not None)]
    assert len(parts) > 1
    for before, part in zip(parts, parts[1:], strict=False):
        assert before.end <= part.start
        between = text[before.end : part.start]
        assert all(not line.strip("; \t\f\\") or line.strip().startswith("#") for line in between.split("\n"))
    assert text[parts[-1].end : whole.end].strip(" \t;\\") == ""
    if symbol.docstring is not None:
        assert statements[symbol.docstring.start] == symbol.docstring
        assert isinstance(ast.literal_eval(text[slice(*symbol.docstring)]), str)
    if symbol.body is not None:
        inside = [span for start, span in statements.items() if symbol.body.start <= start < symbol.body.end]
        assert inside[0].start == symbol.body.start
        assert max(span.end for span in inside) == symbol.body.end


def alone(text: str, span: Span) -> ast.stmt:
    """A statement parsed again, under an `if` that its own indentation fits to."""
    indentation = text[text.rfind("\n", 0, span.start) + 1 : span.start].rpartition("\f")[2]
    if not indentation or indentation.strip(" \t"):
        (found,) = ast.parse(text[slice(*span)]).body
        return found
    (around,) = ast.parse(f"if 1:\n{indentation}{text[slice(*span)]}").body
    assert isinstance(around, ast.If)
    (found,) = around.body
    return found


def naive_statements(text: str) -> Iterator[tuple[int, ast.stmt]]:
    """Every statement but an elif's, with the line it begins on."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            line = text.encode().split(b"\n")[node.lineno - 1]
            if not line[node.col_offset :].startswith(b"elif"):
                yield node.lineno, node


def check_against_ast(text: str) -> None:
    """Each statement of the outline, parsed alone, is one that the file has, and none is missing."""
    outline = check(text)
    wanted = sorted(ast.dump(node) for _, node in naive_statements(text))
    assert sorted(ast.dump(alone(text, span)) for span in outline.statements) == wanted
    definitions = [node for node in ast.walk(ast.parse(text)) if hasattr(node, "decorator_list")]
    assert sorted(symbol.name for symbol in outline.symbols) == sorted(str(vars(node)["name"]) for node in definitions)
    for symbol in outline.symbols:
        node = alone(text, symbol.whole)
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        assert (symbol.kind == "class") == isinstance(node, ast.ClassDef)
        assert (symbol.docstring is None) == (ast.get_docstring(node, clean=False) is None)
        body = node.body[0 if symbol.docstring is None else 1 :]
        read = {each for statement in body for each in names_read(statement)}
        assert set(symbol.calls) == read
        assert len(symbol.calls) == len(read)


def names_read(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Name | ast.Attribute) and isinstance(each.ctx, ast.Load):
            yield each.id if isinstance(each, ast.Name) else each.attr


@pytest.fixture(autouse=True)
def _warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


# ---- real trees ----


def texts(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            ast.parse(text)
        except (UnicodeDecodeError, SyntaxError):
            continue
        yield text


def test_every_file_of_networkx() -> None:
    symbols = 0
    for path in NETWORKX:
        outline = check(path.read_text(encoding="utf-8"))
        symbols += len(outline.symbols)
    assert len(NETWORKX) > 300
    assert symbols > 5000


@pytest.mark.parametrize(
    "paths", [NETWORKX[::12], STANDARD[::6], TESTS_OF_PYTHON[::40]], ids=["networkx", "standard", "tests"]
)
def test_statements_parse_again_alone(paths: list[Path]) -> None:
    for text in texts(paths):
        check_against_ast(text)
