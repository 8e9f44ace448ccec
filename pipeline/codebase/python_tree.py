"""A Python file's syntax tree, parsed once for all that looks at it."""

from __future__ import annotations

import ast
import warnings
from functools import lru_cache


@lru_cache(maxsize=1)
def python_tree(text: str) -> ast.Module | None:
    """None where it does not parse, or nests deeper than the parser goes. For reading only; offsets are those behind a
    byte order mark. The last one is kept, since an outline and normal forms are made of a text one after the other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on escapes such as "\d"; as errors they would fail the file
            return ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # ValueError: a NUL, a lone surrogate. MemoryError: the parser's own word for too deeply nested.
        return None
