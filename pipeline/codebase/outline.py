"""What a file consists of: symbols, imports and statements, by the parser of its language."""

from __future__ import annotations

from pipeline.codebase.python_outline import python_outline
from pipeline.codebase.types import Language, Outline


def outline_of(text: str, language: Language) -> Outline | None:
    """None where the text does not parse, or too much of it is an error.

    Raises DataError where the language's grammar is not installed, and nothing else, whatever the text.
    """
    if language == "python":
        return python_outline(text)

    from pipeline.codebase.tree_outline import tree_outline

    return tree_outline(text, language)
