"""The outline of a Python file, by `ast`: as the Python that runs this reads it, so older syntax does not parse."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.codebase.offsets import characters_before
from pipeline.codebase.python_tree import python_tree
from pipeline.codebase.types import Import, Outline, Span, Symbol, SymbolKind

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_LINE_END = re.compile(rb"\r\n?|\n")  # what the tokenizer takes for one; the last two are rare, but shift nothing so
_TO_COLON = re.compile(r"[^:#]*(?:#[^\r\n]*[^:#]*)*:")  # a comment in a signature may hold a colon of its own
_NO_NODES = frozenset({"ctx", "op", "ops", "id", "attr", "arg", "name", "names", "lineno", "end_lineno"})
_FIELDS = {
    kind: tuple(name for name in kind._fields if name not in _NO_NODES)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


def python_outline(text: str) -> Outline | None:
    """None where it does not parse, or nests deeper than the parser goes."""
    shift = int(text.startswith("\ufeff"))  # a mark of the encoding, which the parser takes for a character
    tree = python_tree(text)
    return None if tree is None else _Walk(_Places(text, text[shift:].encode(), shift)).outline(tree)


class _Places:
    """From the parser's lines and columns, in bytes, to characters of the text."""

    def __init__(self, text: str, data: bytes, shift: int) -> None:
        self.text = text
        self._shift = shift
        self._characters = characters_before(data)
        self._lines = [0, *(match.end() for match in _LINE_END.finditer(data))]

    def start(self, node: ast.stmt) -> int:
        """Where it begins, with its first decorator."""
        if isinstance(node, _DEFINITIONS) and node.decorator_list:
            return self._at_sign(node.decorator_list[0])
        return self._character(node.lineno, node.col_offset)

    def end(self, node: ast.AST) -> int:
        return self._character(*_end(node))

    def span(self, node: ast.stmt) -> Span:
        return Span(self.start(node), self.end(node))

    def head_end(self, node: Definition) -> int:
        """Behind the colon that ends its signature: the first one after all that can hold another."""
        line, column = max(map(_end, _signature(node)), default=(node.lineno, node.col_offset))
        found = _TO_COLON.match(self.text, self._character(line, column))
        assert found is not None, "a definition has a colon"
        return found.end()

    def _at_sign(self, decorator: ast.expr) -> int:
        """The line it stands on begins with "@", but may be above: parentheses are no part of an expression's place."""
        line, below = decorator.lineno, self._character(decorator.lineno, decorator.col_offset)
        while True:
            start = self._character(line, 0)
            written = self.text[start:below].lstrip(" \t\f")
            if written.startswith("@"):
                return below - len(written)
            line, below = line - 1, start

    def _character(self, line: int, column: int) -> int:
        return self._characters[self._lines[line - 1] + column] + self._shift


def _end(node: ast.AST) -> tuple[int, int]:
    line, column = getattr(node, "end_lineno", None), getattr(node, "end_col_offset", None)
    assert line is not None
    assert column is not None
    return line, column


def _signature(node: Definition) -> Iterator[ast.AST]:
    """All expressions between a definition's keyword and its colon, in no order."""
    yield from getattr(node, "type_params", ())  # from Python 3.12 on
    if isinstance(node, ast.ClassDef):
        yield from node.bases
        yield from node.keywords
        return
    named = node.args
    optional: Iterable[ast.AST | None] = (named.vararg, named.kwarg, *named.kw_defaults, node.returns)
    yield from (*named.posonlyargs, *named.args, *named.kwonlyargs, *named.defaults)
    yield from (each for each in optional if each is not None)


@dataclass
class _Open:
    """A symbol while its body is walked. names: a dict for its order."""

    node: Definition
    path: str
    kind: SymbolKind
    names: dict[str, None] = field(default_factory=dict)


class _Walk:
    """One pass over a tree in the order of its source, on a stack of its own: chains of elif nest without limit."""

    def __init__(self, places: _Places) -> None:
        self._places = places
        self._open: list[_Open] = []
        self._symbols: list[Symbol] = []
        self._imports: list[Import] = []
        self._statements: list[Span] = []

    def outline(self, tree: ast.Module) -> Outline:
        # An _Open begins a symbol's body, None ends the last one's, a string is a name that comes after what it is of.
        stack: list[ast.AST | _Open | str | None] = [*reversed(tree.body)]
        while stack:
            node = stack.pop()
            if node is None:
                self._symbols.append(_symbol(self._open.pop(), self._places))
            elif isinstance(node, _Open):
                self._open.append(node)
            elif isinstance(node, str):
                for symbol in self._open:
                    symbol.names[node] = None
            elif isinstance(node, ast.expr):
                if self._open:  # elsewhere names are of no use
                    stack += _named(node)
                    stack += reversed(_children(node))
            elif isinstance(node, _DEFINITIONS):
                self._statements.append(self._places.span(node))
                around = [child for child in _children(node) if not isinstance(child, ast.stmt)]
                stack += [None, *reversed(node.body), self._opened(node), *reversed(around)]
            else:
                if isinstance(node, ast.stmt):
                    self._statement(node)
                stack += reversed(_children(node))
        self._symbols.sort(key=lambda symbol: (symbol.whole.start, -symbol.whole.end))
        return Outline(tuple(self._symbols), tuple(self._imports), tuple(sorted(self._statements)))

    def _opened(self, node: Definition) -> _Open:
        outer = self._open[-1] if self._open else None
        path = f"{outer.path}.{node.name}" if outer else node.name
        if isinstance(node, ast.ClassDef):
            return _Open(node, path, "class")
        return _Open(node, path, "method" if outer and outer.kind == "class" else "function")

    def _statement(self, node: ast.stmt) -> None:
        span = self._places.span(node)
        if not (isinstance(node, ast.If) and self._places.text.startswith("elif", span.start)):  # a part of another
            self._statements.append(span)
        if isinstance(node, ast.Import):
            self._imports += [Import(alias.name, None, 0, span) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            self._imports += [Import(node.module or "", alias.name, node.level, span) for alias in node.names]


def _named(node: ast.expr) -> tuple[str, ...]:
    """The name that an expression reads, not one that it sets."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return (node.id,)
    return (node.attr,) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) else ()


def _children(node: ast.AST) -> list[ast.AST]:
    """Those that can hold names or statements."""
    children: list[ast.AST] = []
    for name in _FIELDS[type(node)]:
        value = getattr(node, name)
        if isinstance(value, list):
            children += [each for each in value if isinstance(each, ast.AST)]
        elif isinstance(value, ast.AST):
            children.append(value)
    return children


def _symbol(closed: _Open, places: _Places) -> Symbol:
    node = closed.node
    whole = places.span(node)
    first, rest = node.body[0], node.body
    docstring = None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        docstring, rest = places.span(first), node.body[1:]
    return Symbol(
        kind=closed.kind,
        name=node.name,
        path=closed.path,
        whole=whole,
        head=Span(whole.start, places.head_end(node)),
        body=Span(places.start(rest[0]), places.end(rest[-1])) if rest else None,
        docstring=docstring,
        calls=tuple(closed.names),
    )
