"""The languages that tree-sitter parses: which types of nodes in each one's grammar are what. Data, and its loading."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.codebase import tree_imports
from pipeline.codebase.tree_imports import ImportReader
from pipeline.codebase.types import Language
from pipeline.errors import DataError

if TYPE_CHECKING:
    from tree_sitter import Language as Grammar

COMMENTS = frozenset({"comment", "line_comment", "block_comment", "html_comment"})
IDENTIFIERS = frozenset({
    "identifier", "property_identifier", "private_property_identifier", "shorthand_property_identifier",
    "field_identifier", "type_identifier",
})  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What the types of nodes in a grammar are; named as the grammar names them.

    parsers: the package and its function that gives the grammar. Where the first meets an error, the others try too.
    functions, classes: symbols. declared: functions without a body where their declarator is a function's.
    scopes: what lends its name to what stands in it, and is no symbol. named_by: where that is not the field `name`.
    blocks: what holds statements, one after another. cases: the same, behind what the case is of.
    branches: what holds a statement without a block. parts: what stands in a block and is no statement.
    wrappers: what a symbol is the essence of, so that it begins and ends there, with the field that may name it.
    lists: wrappers that may hold several, and then are no longer one symbol's. before: what stands in front of what
    it belongs to, as its sibling.
    """

    parsers: tuple[tuple[str, str], ...]
    functions: frozenset[str]
    classes: frozenset[str]
    blocks: frozenset[str]
    imports: Mapping[str, ImportReader]
    declared: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    named_by: Mapping[str, str] = field(default_factory=dict)
    cases: frozenset[str] = frozenset()
    branches: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    wrappers: Mapping[str, str | None] = field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _javascript(*parsers: tuple[str, str]) -> Rules:
    """JavaScript and TypeScript: the second's grammar extends the first's."""
    return Rules(
        parsers=parsers,
        functions=_set(
            "function_declaration generator_function_declaration function_expression generator_function arrow_function"
            " method_definition function_signature method_signature abstract_method_signature"
        ),
        classes=_set("class_declaration abstract_class_declaration class interface_declaration enum_declaration"),
        scopes=_set("internal_module module"),
        blocks=_set("program statement_block class_body interface_body"),
        cases=_set("switch_case switch_default"),
        branches=_set(
            "if_statement else_clause for_statement for_in_statement while_statement do_statement labeled_statement"
            " with_statement"
        ),
        parts=_set("hash_bang_line empty_statement"),
        wrappers={
            "export_statement": None,
            "ambient_declaration": None,
            "lexical_declaration": None,
            "variable_declaration": None,
            "expression_statement": None,
            "variable_declarator": "name",
            "assignment_expression": "left",
            "pair": "key",
            "field_definition": "property",
            "public_field_definition": "name",
        },
        lists=_set("lexical_declaration variable_declaration"),
        before=_set("decorator"),
        imports=tree_imports.JAVASCRIPT,
    )


def _c(*parsers: tuple[str, str]) -> Rules:
    """C and C++: the second's grammar extends the first's."""
    return Rules(
        parsers=parsers,
        functions=_set("function_definition declaration field_declaration"),
        declared=_set("declaration field_declaration"),
        classes=_set("struct_specifier union_specifier enum_specifier class_specifier"),
        scopes=_set("namespace_definition"),
        blocks=_set("translation_unit compound_statement declaration_list field_declaration_list"),
        cases=_set("case_statement preproc_ifdef preproc_if preproc_else preproc_elif preproc_elifdef"),
        branches=_set(
            "if_statement else_clause for_statement for_range_loop while_statement do_statement labeled_statement"
        ),
        parts=_set("access_specifier"),
        wrappers={"template_declaration": None, "type_definition": "declarator"},
        imports=tree_imports.C,
    )


RULES: Mapping[Language, Rules] = {
    "javascript": _javascript(("tree_sitter_javascript", "language")),
    "typescript": _javascript(
        ("tree_sitter_typescript", "language_typescript"), ("tree_sitter_typescript", "language_tsx")
    ),
    "go": Rules(
        parsers=(("tree_sitter_go", "language"),),
        functions=_set("function_declaration method_declaration method_elem"),
        classes=_set("struct_type interface_type"),
        blocks=_set("source_file statement_list field_declaration_list"),
        branches=_set("if_statement labeled_statement"),
        wrappers={"type_declaration": None, "type_spec": "name"},
        lists=_set("type_declaration"),
        imports=tree_imports.GO,
    ),
    "rust": Rules(
        parsers=(("tree_sitter_rust", "language"),),
        functions=_set("function_item function_signature_item"),
        classes=_set("struct_item enum_item union_item trait_item impl_item"),
        named_by={"impl_item": "type"},
        scopes=_set("mod_item"),
        blocks=_set("source_file block declaration_list"),
        parts=_set("empty_statement label shebang inner_attribute_item"),
        before=_set("attribute_item"),
        imports=tree_imports.RUST,
    ),
    "java": Rules(
        parsers=(("tree_sitter_java", "language"),),
        functions=_set("method_declaration constructor_declaration compact_constructor_declaration"),
        classes=_set(
            "class_declaration interface_declaration enum_declaration record_declaration annotation_type_declaration"
        ),
        blocks=_set(
            "program block class_body interface_body annotation_type_body enum_body_declarations constructor_body"
        ),
        cases=_set("switch_block_statement_group switch_rule"),
        branches=_set(
            "if_statement for_statement enhanced_for_statement while_statement do_statement labeled_statement"
        ),
        parts=_set("switch_label"),
        imports=tree_imports.JAVA,
    ),
    "c": _c(("tree_sitter_c", "language"), ("tree_sitter_cpp", "language")),  # a header may be the other one's
    "cpp": _c(("tree_sitter_cpp", "language")),
}


@functools.cache
def load_grammar(module: str, function: str) -> Grammar:
    """Raises DataError where a package is missing, or is of a version that does not fit tree-sitter's."""
    try:
        tree_sitter = importlib.import_module("tree_sitter")
        package = importlib.import_module(module)
        grammar: Grammar = tree_sitter.Language(getattr(package, function)())
    except ImportError as error:
        raise DataError(
            f'{error.name} is not installed; run: pip install "tutelage[code]", or set source.languages=[python]'
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{module} does not fit tree_sitter ({error}); run: pip install "tutelage[code]"') from None
    return grammar
