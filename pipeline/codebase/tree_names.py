"""What a symbol is called, in the languages that tree-sitter parses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.codebase.grammars import IDENTIFIERS
from pipeline.codebase.tree_imports import text_of

if TYPE_CHECKING:
    from tree_sitter import Node

_INSIDE = ("name", "type", "property", "declarator")  # fields that lead from a compound name to the name itself
_UNFIELDED = frozenset({"reference_declarator", "parenthesized_declarator", "attributed_declarator", "pointer_type"})
_AS_WRITTEN = IDENTIFIERS | {"destructor_name", "operator_name", "namespace_identifier", "primitive_type"}


class Name(NamedTuple):
    """scopes: the classes and namespaces that it is written with, as in `Graph::add`."""

    node: Node
    text: str
    scopes: tuple[str, ...] = ()


def written_name(node: Node, field_name: str, wrapper: Node | None) -> Name | None:
    """A symbol's name: its own, its declarator's, or that of what it is given to (`const name = () => 1`)."""
    own = node.child_by_field_name(field_name)
    if own is None:
        own = node.child_by_field_name("declarator") or wrapper
    return _name(own) if own is not None else None


def _name(node: Node) -> Name | None:
    scopes: list[str] = []
    inner: Node | None = node
    while inner is not None and inner.type not in _AS_WRITTEN:
        if inner.type == "nested_namespace_specifier":
            *outer, inner = inner.named_children
            scopes += map(text_of, outer)
        elif inner.type == "string":
            return Name(inner, text_of(inner).strip("\"'"), tuple(scopes))
        elif inner.type == "operator_cast":
            return Name(inner, text_of(inner).partition("(")[0].strip(), tuple(scopes))
        else:
            scope = inner.child_by_field_name("scope")
            outer_name = _name(scope) if scope is not None else None
            scopes += [*outer_name.scopes, outer_name.text] if outer_name is not None else []
            inner = _within(inner)
    return Name(inner, "".join(text_of(inner).split()), tuple(scopes)) if inner is not None else None


def _within(node: Node) -> Node | None:
    for field_name in _INSIDE:
        found = node.child_by_field_name(field_name)
        if found is not None:
            return found
    return node.named_children[-1] if node.type in _UNFIELDED and node.named_children else None


def receiver_of(node: Node) -> tuple[str, ...]:
    """The type that a Go method belongs to."""
    receiver = node.child_by_field_name("receiver")
    for parameter in receiver.named_children if receiver is not None else ():
        written = parameter.child_by_field_name("type")
        found = _name(written) if written is not None else None
        if found is not None:
            return (found.text,)
    return ()


def declares_function(node: Node) -> bool:
    """Whether a C declaration is of a function, not of a variable or a pointer to one."""
    inner = node.child_by_field_name("declarator")
    while inner is not None and inner.type not in ("function_declarator", "parenthesized_declarator"):
        inner = _within(inner)
    if inner is None or inner.type != "function_declarator":
        return False
    declared = inner.child_by_field_name("declarator")
    return declared is not None and declared.type != "parenthesized_declarator"
