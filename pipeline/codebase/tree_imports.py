"""What the import statements of the languages that tree-sitter parses take from where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node

Imported = tuple[str, str | None]  # the module as written, and the name, None for the module itself
ImportReader = Callable[["Node"], Iterator[Imported]]


def text_of(node: Node) -> str:
    return (node.text or b"").decode(errors="replace")


def _field(node: Node, name: str) -> str:
    found = node.child_by_field_name(name)
    return text_of(found) if found is not None else ""


def _quoted(node: Node) -> str:
    return text_of(node).strip("\"'`<>")


def _of_kind(node: Node, *kinds: str) -> list[Node]:
    return [child for child in node.children if child.type in kinds]


# ---- JavaScript, TypeScript ----


def _import_statement(node: Node) -> Iterator[Imported]:
    source = node.child_by_field_name("source")
    for clause in _of_kind(node, "import_require_clause"):
        source = clause.child_by_field_name("source")
    if source is None:
        return
    module = _quoted(source)
    clauses = _of_kind(node, "import_clause")
    if not clauses:  # for its effects, or `import x = require("module")`
        yield module, None
    for clause in clauses:
        for part in clause.named_children:
            if part.type == "identifier":
                yield module, "default"
            elif part.type == "namespace_import":
                yield module, None
            elif part.type == "named_imports":
                for specifier in _of_kind(part, "import_specifier"):
                    yield module, _field(specifier, "name")


def _export_statement(node: Node) -> Iterator[Imported]:
    source = node.child_by_field_name("source")
    if source is None:
        return
    clauses = _of_kind(node, "export_clause")
    if not clauses:
        yield _quoted(source), "*"
    for clause in clauses:
        for specifier in _of_kind(clause, "export_specifier"):
            yield _quoted(source), _field(specifier, "name")


def _required(node: Node) -> Iterator[Imported]:
    """`const name = require("module")`, also of several, or of some of its names."""
    for declarator in _of_kind(node, "variable_declarator"):
        call = declarator.child_by_field_name("value")
        if call is None or call.type != "call_expression" or _field(call, "function") != "require":
            continue
        arguments = call.child_by_field_name("arguments")
        strings = _of_kind(arguments, "string") if arguments is not None else []
        if len(strings) != 1:
            continue
        target = declarator.child_by_field_name("name")
        names = target.named_children if target is not None and target.type == "object_pattern" else []
        taken = [_field(each, "key") or text_of(each) for each in names]
        yield from ((_quoted(strings[0]), name) for name in taken or (None,))


# ---- Go, Java, C, C++ ----


def _go_import(node: Node) -> Iterator[Imported]:
    specs = [node, *_of_kind(node, "import_spec_list")]
    for spec in (spec for each in specs for spec in _of_kind(each, "import_spec")):
        yield _field(spec, "path").strip('"`'), None


def _java_import(node: Node) -> Iterator[Imported]:
    for target in _of_kind(node, "scoped_identifier", "identifier"):
        written = "".join(text_of(target).split())
        if _of_kind(node, "asterisk"):
            yield written, "*"
        else:
            module, _, name = written.rpartition(".")
            yield (module, name) if module else (name, None)


def _include(node: Node) -> Iterator[Imported]:
    path = node.child_by_field_name("path")
    if path is not None and path.type in ("string_literal", "system_lib_string"):  # else a macro's name
        yield _quoted(path), None


# ---- Rust ----


def _use_declaration(node: Node) -> Iterator[Imported]:
    argument = node.child_by_field_name("argument")
    stack = [("", argument)] if argument is not None else []
    while stack:
        above, tree = stack.pop()
        if tree.type == "use_as_clause":
            path = tree.child_by_field_name("path")
            stack += [(above, path)] if path is not None else []
        elif tree.type in ("scoped_use_list", "use_list"):
            inside = _joined(above, _field(tree, "path"))
            lists = [tree] if tree.type == "use_list" else _of_kind(tree, "use_list")
            stack += [(inside, each) for part in lists for each in reversed(part.named_children)]
        elif tree.type == "use_wildcard":
            yield _joined(above, text_of(tree).removesuffix("*").strip().removesuffix("::")), "*"
        elif tree.type == "self" and above:
            yield above, None
        elif tree.type in ("identifier", "scoped_identifier", "crate", "super", "self"):
            module, _, name = _joined(above, text_of(tree)).rpartition("::")
            yield (module, name) if module else (name, None)


def _joined(*parts: str) -> str:
    return "::".join("".join(part.split()) for part in parts if part)


def _rust_module(node: Node) -> Iterator[Imported]:
    """`mod name;` takes in a file, `mod name { }` does not."""
    if node.child_by_field_name("body") is None:
        yield _field(node, "name"), None


JAVASCRIPT: Mapping[str, ImportReader] = {
    "import_statement": _import_statement,
    "export_statement": _export_statement,
    "lexical_declaration": _required,
    "variable_declaration": _required,
}
GO: Mapping[str, ImportReader] = {"import_declaration": _go_import}
JAVA: Mapping[str, ImportReader] = {"import_declaration": _java_import}
C: Mapping[str, ImportReader] = {"preproc_include": _include}
RUST: Mapping[str, ImportReader] = {"use_declaration": _use_declaration, "mod_item": _rust_module}
