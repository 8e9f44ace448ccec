"""Outlines of Python: over the sources of networkx and the standard library, and over all that the syntax can hold."""

from __future__ import annotations

import ast
import random
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import pairwise
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
@(  # not @ this: one
    # nor @ this
    functools . wraps
)
@property  # @ nor this one
async def über(self, größe: "a:b" = {1: 2}, /, *, k=(lambda: 1), **kw) -> (  # :
    dict[str, int]  # a: b
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
class Outer(Base, metaclass = META["x:y"]): # c: d
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
    for before, span in pairwise([Span(-1, -1), *spans]):
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
    for before, part in pairwise(parts):
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


# ---- all that the syntax can hold ----


def cut(span: Span | None, text: str = MESSY) -> str | None:
    return None if span is None else text[slice(*span)]


def test_a_messy_file_is_what_ast_says() -> None:
    check_against_ast(MESSY)


def test_paths_and_kinds() -> None:
    assert [f"{symbol.kind} {symbol.path}" for symbol in check(MESSY).symbols] == [
        "function über",
        "function one",
        "function two",
        "function three",
        "class Outer",
        "class Outer.Inner",
        "method Outer.Inner.method",
        "method Outer.f",
        "method Outer.f",
        "method Outer.f",
        "function Outer.f.nested",
    ]


def test_parts_of_symbols() -> None:
    found = {symbol.path: symbol for symbol in check(MESSY).symbols}
    decorated = found["über"]
    assert (cut(decorated.whole) or "").startswith(
        "@(  # not @ this: one\n    # nor @ this\n    functools . wraps\n)\n@property"
    )
    assert (cut(decorated.head) or "").endswith("-> (  # :\n    dict[str, int]  # a: b\n):")
    assert cut(decorated.docstring) == 'r"""Sagt \\d "über" — 🙂."""'
    assert (cut(decorated.body) or "").startswith("if (n := größe) > 1: return self.graph.añadir(n)\n    elif n: pass")
    assert decorated.calls == ("größe", "self", "graph", "añadir", "n", "kw", "name", "rest", "ValueError")
    assert [cut(part) for part in (found["one"].head, found["one"].body)] == ["def one():", "return 1"]
    assert (found["two"].body, cut(found["two"].docstring)) == (None, '"only a docstring"')
    assert cut(found["three"].body) == 'x = "é"; return x'
    assert cut(found["Outer"].head) == 'class Outer(Base, metaclass = META["x:y"]):'
    assert found["Outer.f.nested"].calls == ("Inner", "method", "x", "last")


def test_imports() -> None:
    found = check(MESSY).imports
    assert [(each.module, each.name, each.level) for each in found] == [
        ("os", None, 0),
        ("os.path", None, 0),
        ("", "a", 1),
        ("", "b", 1),
        ("deep.er", "*", 2),
    ]
    assert [cut(each.span) for each in found[::2]] == [
        "import os, os.path as p",
        "from . import (a,\n    b as c)",
        "from ..deep.er import *",
    ]


def test_an_elif_is_no_statement_of_its_own() -> None:
    text = "if a:\n    b\nelif c:\n    d\nelse:\n    if e:\n        f\n"
    assert [cut(span, text) for span in check(text).statements] == [text.strip(), "b", "d", "if e:\n        f", "f"]


def test_a_gap_leaves_its_indentation() -> None:
    """What is cut for fill-in-the-middle begins behind its line's indentation, and `pass` in its place parses."""
    for text in [MESSY, *texts(NETWORKX[::100])]:
        for span in check(text).statements:
            line = text[text.rfind("\n", 0, span.start) + 1 : span.start]
            assert not line.strip() or line.rstrip()[-1] in ":;"
            if "__future__" not in text[slice(*span)]:
                ast.parse(f"{text[: span.start]}pass{text[span.end :]}")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are syntax from Python 3.12 on")
def test_type_parameters() -> None:
    text = "def f[T: (int, str)](x: T) -> T:\n    return x\nclass A[T: int]:\n    pass\ntype B[T] = list[T]\n"
    check_against_ast(text)
    assert [cut(symbol.head, text) for symbol in check(text).symbols] == [text.split("\n")[0], "class A[T: int]:"]


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_of_others_shift_nothing(line_end: str) -> None:
    text = "def é():\n    '''ü\n    '''\n    return 1\nclass B:\n    x = 2\n".replace("\n", line_end)
    outline = outline_of(text, "python")
    assert outline is not None
    found = [cut(span, text) for span in outline.statements]
    assert found[2:] == ["return 1", text[text.index("class") :].rstrip(), "x = 2"]


def test_a_mark_of_the_encoding_in_front() -> None:
    outline = outline_of("\ufeffdef é(): return 1\n", "python")
    assert outline is not None
    assert (outline.symbols[0].whole, outline.symbols[0].body) == ((1, 18), (10, 18))


# ---- what is no Python ----

NO_PYTHON = [
    *("print 'two'\n", "exec code in d\n", "try:\n  f()\nexcept A, e:\n  pass\n", "def f(:\n", "x = '\ud800'\n", "\0"),
    *("(" * 50_000, "x = " + "-" * 100_000 + "1", "x" + ".y" * 100_000, "if a:\n" * 10, "'" * 100_001),
]


@pytest.mark.parametrize("text", NO_PYTHON, ids=lambda text: ascii(text[:10]))
def test_no_python(text: str) -> None:
    assert outline_of(text, "python") is None


LITTLE = ["", "\n", "# only a comment", "\f", "\ufeff", "x = '" + "ü" * 5_000_000 + "'"]


@pytest.mark.parametrize("text", LITTLE, ids=lambda text: ascii(text[:10]))
def test_little(text: str) -> None:
    outline = outline_of(text, "python")
    assert outline is not None
    assert outline.symbols == ()
    assert len(outline.statements) == ("x" in text)


def test_a_chain_of_elif_is_walked() -> None:
    chain = "if a: f()\n" + "elif b: g()\n" * 700
    outline = outline_of(chain, "python")
    assert outline is not None
    assert len(outline.statements) == 702


def test_many_statements_on_a_line_of_wide_characters() -> None:
    text = "é = 1; " * 20_000
    outline = outline_of(text, "python")
    assert outline is not None
    assert [span.start for span in outline.statements] == list(range(0, len(text), 7))


def test_nothing_is_raised_on_what_is_cut_up() -> None:
    draw = random.Random(0)
    sources = [MESSY, *texts(NETWORKX[::100])]
    between = ["", "", "\0", "\ud800", "🙂", "(", "\t", "\f", '"""', "\\\n"]
    parsed = 0
    for _ in range(400):
        lines = draw.choice(sources).splitlines(keepends=True)
        first = draw.choice([number for number, line in enumerate(lines) if not line[0].isspace()])
        text = "".join(lines[first : first + draw.randrange(1, 60)])
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(between) + text[at:]
        if outline_of(text, "python") is not None:
            check(text)
            parsed += 1
    assert parsed > 20


def test_warnings_of_the_parser_stay_inside() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outline_of("x = '\\d'\n", "python") is not None
