"""Python code without what a copyist changes: two pieces of code with one form do the same thing under other names.

Numbered by first use instead of named: variables, parameters, functions, classes. Reduced to their type: constants.
Left out: comments, layout, docstrings, annotations and decorators. Kept: attributes, keywords and imported modules,
which say what the code is about; without them most tests of a library would be one test.
"""

from __future__ import annotations

import ast
import hashlib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pipeline.codebase.python_tree import python_tree

LEAST_STATEMENTS: Final = 3  # a getter or a wrapper is written the same way by anybody
LEAST_NODES: Final = 30

_LEFT_OUT: Final = frozenset({"annotation", "returns", "decorator_list", "type_comment", "type_params", "ctx", "kind"})
_KEPT: Final = frozenset({("Attribute", "attr"), ("keyword", "arg"), ("ImportFrom", "module"), ("alias", "name")})


class _Piece(NamedTuple):
    """Where a function or the whole file begins and ends in the items, and how large it is."""

    begin: int
    end: int
    nodes: int
    statements: int


class _End(NamedTuple):
    """The place of a function's end on the stack: the counts as they were where it began."""

    begin: int
    nodes: int
    statements: int


class _Kind(NamedTuple):
    """A type of node. fields: names, and whether their texts are kept."""

    name: str
    fields: tuple[tuple[str, bool], ...]
    statement: bool
    function: bool


_KINDS: Final[Mapping[type, _Kind]] = {
    kind: _Kind(
        kind.__name__,
        tuple((name, (kind.__name__, name) in _KEPT) for name in kind._fields if name not in _LEFT_OUT),
        issubclass(kind, ast.stmt),
        kind in (ast.FunctionDef, ast.AsyncFunctionDef),
    )
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


@dataclass
class _Flat:
    """A tree as a list. items: a node's type with the lengths of its lists and its kept texts, or a name's place.
    names_at, names: the items that are numbered, with their places in order."""

    items: list[str] = field(default_factory=list)
    names_at: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    pieces: list[_Piece] = field(default_factory=list)


def normal_forms(text: str) -> frozenset[bytes]:
    """One of 16 bytes for each function and for the file as a whole, of those that are not too small to tell; none
    where the text is no Python."""
    tree = python_tree(text)
    if tree is None:
        return frozenset()
    flat = _flatten(tree)
    large = (p for p in flat.pieces if p.nodes >= LEAST_NODES and p.statements >= LEAST_STATEMENTS)
    return frozenset(_digest(flat, piece) for piece in large)


def _digest(flat: _Flat, piece: _Piece) -> bytes:
    items = flat.items[piece.begin : piece.end]
    numbers: dict[str, str] = {}
    for place in range(bisect_left(flat.names_at, piece.begin), bisect_left(flat.names_at, piece.end)):
        at, name = flat.names_at[place], flat.names[place]
        items[at - piece.begin] = numbers.setdefault(name, str(len(numbers)))
    return hashlib.blake2b("\n".join(items).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _flatten(tree: ast.Module) -> _Flat:
    """Without recursion: a sum of a thousand terms is a thousand levels deep."""
    flat, nodes, statements = _Flat(), 0, 0
    stack: list[ast.AST | _End] = [_End(0, 0, 0), tree]
    while stack:
        node = stack.pop()
        if isinstance(node, _End):
            piece = _Piece(node.begin, len(flat.items), nodes - node.nodes, statements - node.statements)
            flat.pieces.append(piece)
            continue
        kind = _KINDS[type(node)]
        if kind.function:
            stack.append(_End(len(flat.items), nodes, statements))
        nodes += 1
        statements += kind.statement
        if isinstance(node, ast.Name):  # every third node
            flat.items.append("Name")
            _write_name(node.id, flat)
        elif isinstance(node, ast.Constant):
            flat.items.append(f"Constant {type(node.value).__name__}")
        else:
            stack += _open(node, kind, flat)[::-1]
    return flat


def _open(node: ast.AST, kind: _Kind, flat: _Flat) -> list[ast.AST]:
    """Writes the node and its names; gives its children."""
    said = [kind.name]
    at = len(flat.items)
    flat.items.append("")
    children: list[ast.AST] = []
    for name, kept in kind.fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            children.append(value)
        elif isinstance(value, list):
            telling = [one for one in value if not _says_nothing(one)]
            said.append(str(len(telling)))
            for place, one in enumerate(telling):
                if isinstance(one, str):
                    _write_name(one, flat)
                elif one is None:
                    said.append(f"-{place}")
                else:
                    children.append(one)
        elif isinstance(value, str) and not kept:
            said.append("name")
            _write_name(value, flat)
        else:
            said.append("-" if value is None else str(value))
    flat.items[at] = " ".join(said)
    return children


def _write_name(name: str, flat: _Flat) -> None:
    flat.names_at.append(len(flat.items))
    flat.names.append(name)
    flat.items.append("")


def _says_nothing(node: object) -> bool:
    """A docstring, or any other text or number that stands for itself."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
