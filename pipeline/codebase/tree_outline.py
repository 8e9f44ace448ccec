"""The outline of a file by tree-sitter: one walk for all its languages, told apart by the tables in `grammars.py`.

What holds a syntax error is in no outline; what stands beside it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pipeline.codebase.grammars import COMMENTS, IDENTIFIERS, RULES, Rules, load_grammar
from pipeline.codebase.offsets import characters_before
from pipeline.codebase.tree_names import declares_function, receiver_of, written_name
from pipeline.codebase.types import Import, Language, Outline, Span, Symbol, SymbolKind

if TYPE_CHECKING:
    from tree_sitter import Node, Tree

_MOST_ERRORS = 0.1  # of a file's bytes; C has some wherever a macro is used as syntax
_DEEPEST = 100  # symbols in one another, as in Python: what is generated to break parsers goes on without end
_MOST_OPEN = 200  # `<` that no `>` closes in one statement: Java's parser takes time and memory by their square
_ANGLE = re.compile(r"(?<!<)<(?![<=])")  # one that may open type arguments: no shift and no comparison with `=`
_CASE_PARTS = ("value", "type", "communication", "name", "condition", "alternative")


def tree_outline(text: str, language: Language) -> Outline | None:
    """None where too much of it is an error. Raises DataError as `load_grammar` does."""
    if language == "java" and _has_endless_types(text):
        return None
    data = text.encode(errors="replace")  # a lone surrogate becomes "?": one character, as before
    rules = RULES[language]
    tree = _parsed(data, rules)
    if tree is None:
        return None
    return _Walk(rules, data).outline(tree.root_node)


def _has_endless_types(text: str) -> bool:
    """`a<a<a<…` of 32 kB takes the parser 2.4 GB, and nothing interrupts it: its progress callback cannot cancel it."""
    if text.count("<") <= _MOST_OPEN:
        return False
    statements = re.split(r"[;{}]", text)
    return any(len(_ANGLE.findall(each)) - each.count(">") > _MOST_OPEN for each in statements)


def _parsed(data: bytes, rules: Rules) -> Tree | None:
    """By the first of its grammars that finds no error, else by the one that finds the least."""
    grammars = [load_grammar(module, function) for module, function in rules.parsers]

    from tree_sitter import Parser

    best, least = None, _MOST_ERRORS * len(data)
    for grammar in grammars:
        tree = Parser(grammar).parse(data)
        if not tree.root_node.has_error:
            return tree
        errors = _bytes_in_errors(tree.root_node)
        if errors <= least and (best is None or errors < least):
            best, least = tree, errors
    return best


def _bytes_in_errors(root: Node) -> int:
    total, stack = 0, [root]
    while stack:
        node = stack.pop()
        if node.is_error:
            total += node.end_byte - node.start_byte
        elif node.has_error:
            stack += node.children
    return total


class _Bytes(NamedTuple):
    start: int
    end: int


class _Place(NamedTuple):
    """Where a node stands for the reader: with what belongs to it, and below which comment. named: by whom, if not by
    itself."""

    start: int
    end: int
    comment: _Bytes | None
    named: Node | None = None


class _Piece(NamedTuple):
    node: Node
    place: _Place


@dataclass
class _Open:
    """A symbol, or a scope, while what it holds is walked. kind: None for a scope. names: a dict for its order."""

    path: tuple[str, ...]
    kind: SymbolKind | None
    place: _Place
    head_end: int
    body: _Bytes | None
    names: dict[str, None] = field(default_factory=dict)


class _Walk:
    """On a stack of its own: trees may be deeper than Python's."""

    def __init__(self, rules: Rules, data: bytes) -> None:
        self._rules = rules
        self._data = data
        self._open: list[_Open] = []
        self._naming: set[int] = set()  # the nodes that name a symbol, so that it does not refer to itself
        self._characters = characters_before(data)
        self._symbols: list[Symbol] = []
        self._imports: list[Import] = []
        self._statements: list[Span] = []

    def outline(self, root: Node) -> Outline:
        stack: list[_Piece | None] = [_Piece(root, _Place(0, len(self._data), None))]  # None ends a symbol
        while stack:
            piece = stack.pop()
            if piece is None:
                self._close(self._open.pop())
                continue
            node, place = piece
            kind = node.type
            if not node.child_count:
                if kind in IDENTIFIERS:
                    self._note(node)
                continue
            if kind in self._rules.imports and not node.has_error:
                found = self._rules.imports[kind](node)
                self._imports += [Import(module, name, 0, self._span(place)) for module, name in found]
            opened = self._opened(node, kind, place)
            if opened is not None:
                self._open.append(opened)
                stack.append(None)
            pieces = self._pieces(node)
            self._add_statements(node, kind, pieces)
            stack += self._wrapped(node, kind, place, pieces)[::-1]
        self._symbols.sort(key=lambda symbol: (symbol.whole.start, -symbol.whole.end))
        return Outline(tuple(self._symbols), tuple(self._imports), tuple(sorted(self._statements)))

    # ---- a node's children ----

    def _pieces(self, node: Node) -> list[_Piece]:
        """Its named children but comments, each with the comment above, what stands before it, and its semicolon."""
        children = node.children
        semicolons = node.type in self._rules.blocks or node.type in self._rules.cases
        pieces: list[_Piece] = []
        comment: _Bytes | None = None
        before: int | None = None
        for number, child in enumerate(children):
            if not child.is_named:
                comment = before = None
                continue
            kind = child.type
            if kind in COMMENTS:
                comment = self._comment_block(comment, child)
                continue
            if kind in self._rules.before:
                if before is None:
                    before = child.start_byte
                continue
            start, end = child.start_byte if before is None else before, self._trimmed(child)
            if semicolons and number + 1 < len(children) and children[number + 1].type == ";":
                end = children[number + 1].end_byte
            above = comment if comment is not None and self._touch(comment.end, start) else None
            pieces.append(_Piece(child, _Place(start, end, above)))
            comment = before = None
        return pieces

    def _comment_block(self, above: _Bytes | None, node: Node) -> _Bytes | None:
        """With the comments directly above it; none where it follows something on its line."""
        start, end = node.start_byte, self._trimmed(node)
        line = start
        while line and self._data[line - 1] in b" \t\f":
            line -= 1
        if line and self._data[line - 1] != ord("\n"):
            return None
        return _Bytes(above.start, end) if above is not None and self._touch(above.end, start) else _Bytes(start, end)

    def _touch(self, end: int, start: int) -> bool:
        between = self._data[end:start]
        return not between.strip() and between.count(b"\n") <= 1

    def _trimmed(self, node: Node) -> int:
        """Some nodes end with their line's end."""
        start, end = node.start_byte, node.end_byte
        while end > start and self._data[end - 1] in b" \t\r\n\f":
            end -= 1
        return end

    def _wrapped(self, node: Node, kind: str, place: _Place, pieces: list[_Piece]) -> list[_Piece]:
        """Children take the place of what wraps them."""
        if kind not in self._rules.wrappers or (kind in self._rules.lists and len(pieces) != 1):
            return pieces
        field_name = self._rules.wrappers[kind]
        named = node.child_by_field_name(field_name) if field_name is not None else place.named
        return [_Piece(each.node, place._replace(named=named)) for each in pieces]

    # ---- statements ----

    def _add_statements(self, node: Node, kind: str, pieces: list[_Piece]) -> None:
        if kind in self._rules.blocks:
            found = pieces
        elif kind in self._rules.cases:
            fields = (node.child_by_field_name(name) for name in _CASE_PARTS)
            parts = {each.id for each in fields if each is not None}
            found = [piece for piece in pieces if piece.node.id not in parts]
        elif kind in self._rules.branches:
            found = [piece for piece in pieces if self._is_bare_branch(piece.node)]
        else:
            return
        self._statements += [
            self._span(piece.place)
            for piece in found
            if not piece.node.has_error
            and piece.node.type not in self._rules.parts
            and piece.place.end > piece.place.start
        ]

    def _is_bare_branch(self, node: Node) -> bool:
        return node.type.endswith("_statement") and node.type not in self._rules.blocks

    # ---- symbols ----

    def _note(self, node: Node) -> None:
        if not self._open or node.id in self._naming:
            return
        start = node.start_byte
        name = self._data[start : node.end_byte].decode()
        for symbol in self._open:
            if symbol.body is not None and start >= symbol.body.start:
                symbol.names[name] = None

    def _opened(self, node: Node, kind: str, place: _Place) -> _Open | None:
        rules = self._rules
        is_function = kind in rules.functions
        if len(self._open) > _DEEPEST or not (is_function or kind in rules.classes or kind in rules.scopes):
            return None
        inside = self._open[-1] if self._open else None
        if kind in rules.declared and (
            not declares_function(node) or (inside and inside.kind in ("function", "method"))
        ):
            return None
        block = self._block(node)
        if kind in rules.classes and kind.endswith("_specifier") and block is None:
            return None  # in C the use of a type is written as its definition is
        name = written_name(node, rules.named_by.get(kind, "name"), place.named)
        if name is None:
            return None
        self._naming.add(name.node.id)
        owner = receiver_of(node) or name.scopes
        path = (*(inside.path if inside else ()), *owner, name.text)
        symbol_kind: SymbolKind | None = None
        if not node.has_error and kind not in rules.scopes:
            in_class = bool(owner) or (inside is not None and inside.kind == "class")
            symbol_kind = ("method" if in_class else "function") if is_function else "class"
        return _Open(path, symbol_kind, place, *self._head_and_body(node, block, is_function, place))

    def _block(self, node: Node) -> Node | None:
        """What holds its body, which may be itself."""
        body = node.child_by_field_name("body")
        if body is not None:
            return body
        for child in node.children:
            if child.type == "field_declaration_list":
                return child
            if child.type == "{":
                return node
        return None

    def _head_and_body(
        self, node: Node, block: Node | None, is_function: bool, place: _Place
    ) -> tuple[int, _Bytes | None]:
        if block is None:
            return place.end, None
        brace = next((child.end_byte for child in block.children if child.type == "{"), None)
        if brace is None:
            if not is_function:  # a tuple struct: all of it is its head
                return place.end, None
            return _end_before(node, block), _Bytes(block.start_byte, self._trimmed(block))
        pieces = self._pieces(block)
        if len(pieces) == 1 and pieces[0].node.type == "statement_list":
            pieces = self._pieces(pieces[0].node)
        pieces = [piece for piece in pieces if piece.node.start_byte >= brace]
        return brace, _Bytes(pieces[0].place.start, pieces[-1].place.end) if pieces else None

    def _close(self, closed: _Open) -> None:
        if closed.kind is None:
            return
        start, at = closed.place.start, self._characters
        self._symbols.append(
            Symbol(
                kind=closed.kind,
                name=closed.path[-1],
                path=".".join(closed.path),
                whole=self._span(closed.place),
                head=Span(at[start], at[closed.head_end]),
                body=self._span(closed.body) if closed.body is not None else None,
                docstring=self._span(closed.place.comment) if closed.place.comment is not None else None,
                calls=tuple(closed.names),
            )
        )

    def _span(self, place: _Place | _Bytes) -> Span:
        return Span(self._characters[place.start], self._characters[place.end])


def _end_before(node: Node, body: Node) -> int:
    """Of the token in front of an arrow function's expression."""
    end = node.start_byte
    for child in node.children:
        if child.id == body.id:
            break
        if not child.is_named:
            end = child.end_byte
    return end
