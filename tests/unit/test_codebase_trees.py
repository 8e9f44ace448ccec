"""Outlines by tree-sitter, over one realistic file per language in `tests/data/code`, whole, cut up and broken."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from pipeline.codebase.grammars import RULES, load_grammar
from pipeline.codebase.outline import outline_of
from pipeline.codebase.types import Import, Language, Outline, Span, Symbol

CODE = Path(__file__).parents[1] / "data" / "code"
LANGUAGES: dict[str, Language] = {
    "Graph.java": "java",
    "graph.c": "c",
    "graph.cpp": "cpp",
    "graph.go": "go",
    "graph.js": "javascript",
    "graph.rs": "rust",
    "graph.ts": "typescript",
    "view.tsx": "typescript",
}
FILES = sorted(LANGUAGES)


@functools.cache
def read(name: str) -> str:
    return (CODE / name).read_text(encoding="utf-8")


@functools.cache
def outlined(name: str) -> Outline:
    outline = outline_of(read(name), LANGUAGES[name])
    assert outline is not None
    return outline


def of_path(name: str, path: str, which: int = 0) -> Symbol:
    return [symbol for symbol in outlined(name).symbols if symbol.path == path][which]


def cut(name: str, span: Span | None) -> str | None:
    return None if span is None else read(name)[slice(*span)]


# ---- what holds for every outline ----


def check(text: str, outline: Outline) -> None:
    assert list(outline.statements) == sorted(set(outline.statements))
    assert_nested(list(outline.statements))
    assert_nested([symbol.whole for symbol in outline.symbols])
    statements = set(outline.statements)
    starts = {span.start for span in statements}
    ends = {span.end for span in statements}
    for symbol in outline.symbols:
        assert symbol.path.endswith(symbol.name)
        assert text[slice(*symbol.head)] == text[symbol.whole.start : symbol.head.end]
        assert symbol.head.end <= symbol.whole.end
        assert text[slice(*symbol.whole)].strip() == text[slice(*symbol.whole)]
        if symbol.docstring is not None:
            assert not text[symbol.docstring.end : symbol.whole.start].strip()
            assert text[slice(*symbol.docstring)].startswith(("/*", "//"))
        if symbol.body is not None:
            assert symbol.head.end <= symbol.body.start < symbol.body.end <= symbol.whole.end
            between = text[symbol.head.end : symbol.body.start].strip()
            assert not between or between.startswith(("/*", "//"))
            head = text[slice(*symbol.head)]
            assert head.endswith(("{", "=>"))
            if symbol.kind != "class" and head.endswith("{"):
                assert symbol.body.start in starts
                assert symbol.body.end in ends
    for span in outline.statements:
        assert text[slice(*span)].strip() == text[slice(*span)] != ""
    for each in outline.imports:
        assert each.span in statements
        assert each.module.split("::")[0].split(".")[-1] in text[slice(*each.span)]


def assert_nested(spans: list[Span]) -> None:
    """In order, outer before inner, and never half in one another."""
    open_until: list[int] = []
    for before, span in pairwise([Span(0, 0), *spans]):
        assert before.start <= span.start < span.end
        while open_until and open_until[-1] <= span.start:
            open_until.pop()
        assert not open_until or span.end <= open_until[-1]
        open_until.append(span.end)


@pytest.mark.parametrize("name", FILES)
def test_a_file(name: str) -> None:
    check(read(name), outlined(name))
    assert not read(name).isascii()  # so that bytes are no characters


def test_every_language_has_a_file() -> None:
    assert {*LANGUAGES.values(), "python"} == set(get_args(Language)) == {*RULES, "python"}


def shape(outline: Outline, text: str) -> list[object]:
    """The outline as texts, whatever its offsets."""
    spans = [span for each in outline.symbols for span in (each.whole, each.head, each.body, each.docstring)]
    texts = [None if span is None else text[slice(*span)] for span in (*spans, *outline.statements)]
    return [*texts, *((symbol.kind, symbol.path, symbol.calls) for symbol in outline.symbols)]


@pytest.mark.parametrize("name", FILES)
def test_characters_in_front_shift_all_alike(name: str) -> None:
    """The widest characters of UTF-8 and a letter shift offsets by the same."""
    wide, narrow = (f"// {letter * 50}\n\n{read(name).removeprefix('#!/usr/bin/env node')}" for letter in "🙂x")
    outlines = outline_of(wide, LANGUAGES[name]), outline_of(narrow, LANGUAGES[name])
    assert outlines[0] == outlines[1]
    assert outlines[0] is not None
    assert shape(outlines[0], wide) == shape(outlined(name), read(name))


@pytest.mark.parametrize("name", FILES)
def test_a_statement_is_parsed_where_it_stood(name: str) -> None:
    """Taken out and put back it gives the same text; without it, the file has exactly it and its parts less."""
    text, before = read(name), outlined(name)
    removed = 0
    for span in before.statements:
        gap = text[: span.start] + text[span.end :]
        assert gap[: span.start] + text[slice(*span)] + gap[span.start :] == text
        after = outline_of(gap, LANGUAGES[name])
        inside = [each for each in before.statements if span.start <= each.start and each.end <= span.end]
        if after is not None and len(after.statements) == len(before.statements) - len(inside):
            removed += 1
            left = [each for each in before.statements if each not in set(inside)]
            width = span.end - span.start
            moved = [
                Span(a - width * (a >= span.end), b - width * (b >= span.end))
                for a, b in left
            ]  # fmt: skip
            assert [s.start for s in after.statements] == [s.start for s in moved]
    assert removed > 0.8 * len(before.statements)


# ---- what each language's symbols are ----

PATHS = {
    "Graph.java": (
        "class Graph, method Graph.Graph, method Graph.addEdge, function Graph.addEdge.inner, method Graph.walk,"
        " class Graph.Visitor, method Graph.Visitor.accept, method Graph.Visitor.twice, class Graph.Kind,"
        " method Graph.Kind.weight, method Graph.Kind.weight, class Graph.Pair, method Graph.Pair.Pair,"
        " class Graph.Marked, class Graph.Empty"
    ),
    "graph.c": (
        "class node, class graph_t, class kind, class number, function add_edge, function add_node, function empty"
    ),
    "graph.cpp": (
        "class net.graph.Graph, method net.graph.Graph.Graph, method net.graph.Graph.~Graph,"
        " method net.graph.Graph.addEdge, method net.graph.Graph.front, method net.graph.Graph.operator==,"
        " class net.graph.Graph.Node, method net.graph.Graph.Node.get, method net.graph.Graph.addEdge,"
        " method net.graph.Graph.~Graph, class Kind, function plain, function helper"
    ),
    "graph.go": (
        "class Graph, class Walker, method Walker.Walk, class Pair, function New, method Graph.AddEdge,"
        " method Pair.Empty, function assembly"
    ),
    "graph.js": (
        "function add, class Graph, method Graph.constructor, method Graph.addEdge, function Graph.addEdge.weigh,"
        " method Graph.onChange, method Graph.size, method Graph.empty, class Inner, method Inner.deep,"
        " class Inner.deep.Deeper, method Inner.deep.Deeper.deepest, function square, function one, function two,"
        " function walk, function click, function key-down, function generate, function view"
    ),
    "graph.rs": (
        "class Graph, class Point, class Kind, class Walk, method Walk.walk, method Walk.twice, class Graph,"
        " method Graph.add_edge, function Graph.add_edge.helper, class Graph, method Graph.walk, class Point,"
        " method Point.fmt, function tests.it_works"
    ),
    "graph.ts": (
        "class Weighted, method Weighted.distance, class Kind, function pick, function pick, function pick,"
        " class Graph, method Graph.constructor, method Graph.walk, method Graph.distance, method Graph.handler,"
        " function Util.twice, function Util.once, function outside"
    ),
    "view.tsx": "function View, class Panel, method Panel.render",
}


@pytest.mark.parametrize("name", FILES)
def test_paths(name: str) -> None:
    assert ", ".join(f"{symbol.kind} {symbol.path}" for symbol in outlined(name).symbols) == PATHS[name]


@pytest.mark.parametrize(
    ("name", "path", "docstring", "head", "first"),
    [
        ("graph.js", "Graph", "// near one\n// near two", "export default class Graph extends Base {", "#edges = "),
        ("graph.js", "Graph.addEdge", "/** One more. */", "@logged addEdge(from, to) {", "if (!from)"),
        ("graph.js", "square", None, "const square = x =>", "x * x"),
        ("graph.js", "two", None, "two = () =>", "2"),
        ("graph.js", "walk", None, "Graph.prototype.walk = function* (start) {", "yield* "),
        ("graph.ts", "Graph.walk", None, "abstract walk(): void;", None),
        ("graph.ts", "Graph.distance", "// Looked at.", "@memo({ size: 1 })\n  public async distance(to: T):", "const"),
        ("view.tsx", "View", "/** Shows it. */", "export const View: React.FC<{ größe", "const [state"),
        ("graph.go", "Graph", "// Graph holds edges.\n// It is a graph.", "type Graph[T any] struct {", "nodes"),
        ("graph.go", "Walker.Walk", "// Walk goes on.", "Walk(from string) error", None),
        ("graph.go", "Graph.AddEdge", "// AddEdge — „hinzufügen“.", "func (g *Graph[T]) AddEdge(", "key := "),
        ("graph.rs", "Graph", "/// A graph — „Größe“.\n/// With edges.", "#[derive(Debug, Clone)]\n#[serde", "nodes"),
        ("graph.rs", "Point", None, "pub struct Point(i32, i32);", None),
        ("graph.rs", "Graph.add_edge", "/// Adds one.", "#[inline]\n    pub async fn add_edge<'a>", "let key"),
        ("Graph.java", "Graph.addEdge", "// Adds.\n    // One.", '@Override\n    @SuppressWarnings("unchecked")', "if"),
        ("Graph.java", "Graph.walk", None, "abstract void walk(int from);", None),
        ("graph.c", "add_node", "// Adds.\n// One.", "static int *add_node(graph_t *graph, int id)\n{", "struct node"),
        ("graph.c", "add_edge", None, "int add_edge(graph_t *graph, int from);", None),
        ("graph.c", "graph_t", None, "typedef struct {", "struct node *first;"),
        ("graph.cpp", "net.graph.Graph.Graph", None, "explicit Graph(int size) : size_(size), nodes_{} {", "init"),
        ("graph.cpp", "net.graph.Graph.addEdge", "// Adds.", "int addEdge(const T& from, T to) const override;", None),
    ],
)
def test_parts(name: str, path: str, docstring: str | None, head: str, first: str | None) -> None:
    symbol = of_path(name, path)
    assert cut(name, symbol.docstring) == docstring
    assert (cut(name, symbol.head) or "").startswith(head)
    assert (first is None) == (symbol.body is None)
    assert (cut(name, symbol.body) or "").startswith(first or "")


@pytest.mark.parametrize(
    ("name", "path", "calls"),
    [
        ("graph.js", "add", "plus a b"),
        ("graph.js", "Graph.addEdge", "from #edges set to i LIMIT touch weigh x weight"),
        ("graph.ts", "pick", "choose a Weighted"),
        ("graph.go", "New", "Graph int"),
        ("graph.rs", "Graph.add_edge.helper", "x"),
        ("graph.rs", "Point.fmt", "write f"),
        ("Graph.java", "Graph.Graph", "größe init"),
        ("graph.c", "add_node", "node new make_node id graph first i LIMIT visit next step one other free"),
        ("graph.cpp", "net.graph.Graph.front", "nodes_ front"),
        ("graph.cpp", "net.graph.Graph.Node", "id"),
    ],
)
def test_calls(name: str, path: str, calls: str) -> None:
    assert of_path(name, path, -1).calls == tuple(calls.split())


IMPORTS = {
    "Graph.java": "java.util:List java.util.concurrent:* org.junit.Assert:assertEquals",
    "graph.c": "stdio.h: graph.h:",
    "graph.cpp": "vector: graph.hpp:",
    "graph.go": "fmt: strings: os:",
    "graph.js": (
        "fs:default fs:readFile fs:join ./path: ./polyfill: ./heap:default ./heap:heapify ./search:* util:"
        " util/inspect:inspect util/inspect:format"
    ),
    "graph.rs": (
        "std::collections: std::collections:HashMap std::collections::hash_map:Entry std::collections::hash_map:*"
        " std:fmt serde: search: super:*"
    ),
    "graph.ts": "./node:Node fs: ../größe:default ../größe:Edge ../größe:weight",
    "view.tsx": "react:default",
}


@pytest.mark.parametrize("name", FILES)
def test_imports(name: str) -> None:
    found = outlined(name).imports
    assert " ".join(f"{each.module}:{each.name or ''}" for each in found) == IMPORTS[name]
    assert {each.level for each in found} == {0}


def test_a_span_of_an_import_is_its_statement() -> None:
    first = outlined("graph.go").imports[0]
    assert first == Import("fmt", None, 0, first.span)
    assert cut("graph.go", first.span) == 'import (\n\t"fmt"\n\tstr "strings"\n)'


# ---- broken sources ----

BROKEN: dict[Language, str] = {
    "javascript": "function bad( { return ; \n\nfunction good(x) { return call(x); }\n",
    "typescript": "class A { bad(: number { }\n good(x: number): number { return call(x); } }\n",
    "go": "package a\nfunc good(x int) int { return call(x) }\nfunc bad( { := }\n",
    "rust": "fn good(x: i32) -> i32 { call(x) }\nfn bad(x { let = ; }\n",
    "java": "class A { int good(int x) { return call(x); } int bad(int { return; } }\n",
    "c": "int good(int x) { return call(x); }\nint bad(int x { return ; }\n",
    "cpp": "int good(int x) { return call(x); }\nint A::bad(int x { return ; }\n",
}


@pytest.mark.parametrize("language", BROKEN)
def test_beside_an_error(language: Language) -> None:
    """What is whole stays, what is broken is left out; where most of it is broken, all of it."""
    whole = {"go": "package b\n"}.get(language, "") + "// ü\n" * 100
    text = BROKEN[language] + whole
    outline = outline_of(text, language)
    assert outline is not None
    check(text, outline)
    assert [symbol.name for symbol in outline.symbols if symbol.name in ("good", "bad")] == ["good"]
    assert [symbol.calls for symbol in outline.symbols if symbol.name == "good"] == [("call", "x")]
    assert not [span for span in outline.statements if "bad" in text[slice(*span)]]
    assert outline_of("Dies ist kein Programm, sondern (ein Satz: }} ) ] mit Zeichen; \\ @@ ?!\n" * 3, language) is None


def test_a_header_may_be_cpp() -> None:
    text = "#pragma once\n\nnamespace a {\nclass B {\n public:\n  int f() { return g(); }\n};\n}\n"
    outline = outline_of(text, "c")
    assert outline is not None
    assert [symbol.path for symbol in outline.symbols] == ["a.B", "a.B.f"]


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_raised_on_what_is_cut_up(name: str) -> None:
    """Pieces of real files, in any order, with all kinds of characters between them."""
    draw = random.Random(name)
    text = read(name)
    for _ in range(60):
        cuts = sorted(draw.choices(range(len(text)), k=6))
        pieces = [text[a:b] for a, b in pairwise(cuts)]
        draw.shuffle(pieces)
        mixed = draw.choice(["", "\0", "\ud800", "🙂", "\r", "{", '"', "\f", "\ufeff"]).join(pieces)
        outline = outline_of(mixed, LANGUAGES[name])
        if outline is not None:
            assert_nested(list(outline.statements))
            assert_nested([symbol.whole for symbol in outline.symbols])


@pytest.mark.parametrize("language", sorted(RULES))
@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "\0", "\ud800", "(" * 5_000, "{" * 5_000, "{" * 5_000 + "}" * 5_000, "f(" * 5_000, "a." * 5_000),
        *("function f() {" * 5_000 + "}" * 5_000, "/*" * 5_000, '"' * 5_001, 'x = "' + "ü" * 5_000_000 + '"'),
    ],
    ids=lambda text: f"{text[:14]!r}{len(text)}",
)
def test_nothing_is_raised_on_the_absurd(language: Language, text: str) -> None:
    outline = outline_of(text, language)
    if outline is not None:
        assert_nested(list(outline.statements))


def test_a_tree_deeper_than_the_stack() -> None:
    depth = 20 * sys.getrecursionlimit()
    outline = outline_of("x = " + "(" * depth + "1" + ")" * depth + ";\nfunction f() {}\n", "javascript")
    assert outline is not None
    assert [symbol.name for symbol in outline.symbols] == ["f"]


def test_types_without_end_do_not_take_all_memory() -> None:
    """Parsed, this takes more than 20 GB. A file with many comparisons and shifts is read as before."""
    assert outline_of("class A { void f() { " + "a<" * 100_000 + " } }", "java") is None
    body = "return a < 2 ? a << 3 : a <= 1 ? List.<A<B>>of() : 0;"
    plain = "".join(f"  int f{n}(int a) {{ {body} }}\n" for n in range(500))
    outline = outline_of(f"class A {{\n{plain}}}\n", "java")
    assert outline is not None
    assert len(outline.symbols) == 501


# ---- grammars that are not there ----

WITHOUT = """
import sys
sys.modules[{module!r}] = None
from pipeline.codebase.outline import outline_of
from pipeline.errors import DataError
assert outline_of("x = 1", "python") is not None
assert not {{name for name in sys.modules if name.startswith(("tree_sitter", "torch"))}} - {{{module!r}}}
try:
    outline_of("", {language!r})
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("language", "module"), [("go", "tree_sitter_go"), ("go", "tree_sitter"), ("typescript", "tree_sitter_typescript")]
)
def test_a_missing_grammar_names_the_extra(language: Language, module: str) -> None:
    code = WITHOUT.format(module=module, language=language)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    wanted = f'{module} is not installed; run: pip install "tutelage[code]", or set source.languages=[python]\n'
    assert result.stdout == wanted, result.stderr


def test_a_grammar_is_loaded_once() -> None:
    assert load_grammar("tree_sitter_go", "language") is load_grammar("tree_sitter_go", "language")
