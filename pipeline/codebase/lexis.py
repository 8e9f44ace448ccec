"""What is comment and string in a language, without a parser: for choosing lines, and for headings in its own style.

A scan by one pattern per family of languages. It errs where only a parser knows better (a regular expression in
JavaScript that holds a quote); what is chosen by it is only a place for a task, never what the task's answer is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.codebase.types import Language, Span

_C_COMMENTS = r"//[^\n]*|/\*.*?(?:\*/|\Z)"
_DOUBLE = r'"(?:\\.|[^"\\\n])*"?'
_SINGLE = r"'(?:\\.|[^'\\\n])*'?"
_TRIPLE = r'"""(?:\\.|[^\\])*?(?:"""|\Z)'
_LETTER = r"'(?:\\[^\n]+?|[^'\\\n])'"  # one character; a lifetime of Rust has no second quote
_BACKTICKS = r"`(?:\\.|[^`\\])*(?:`|\Z)"
_RAW_OF_GO = r"`[^`]*(?:`|\Z)"
_RAW_OF_RUST = r'r(?P<hashes>#*)".*?(?:"(?P=hashes)|\Z)'
_RAW_OF_CPP = r'R"(?P<mark>[^()\\ \n]*)\(.*?(?:\)(?P=mark)"|\Z)'


def _pattern(comments: str, *strings: str) -> re.Pattern[str]:
    return re.compile(f"(?P<comment>{comments})|(?P<string>{'|'.join(strings)})", re.DOTALL)


_PATTERNS: dict[Language, re.Pattern[str]] = {
    "python": _pattern(r"#[^\n]*", _TRIPLE, _TRIPLE.replace('"', "'"), _DOUBLE, _SINGLE),
    "javascript": _pattern(_C_COMMENTS, _BACKTICKS, _DOUBLE, _SINGLE),
    "typescript": _pattern(_C_COMMENTS, _BACKTICKS, _DOUBLE, _SINGLE),
    "go": _pattern(_C_COMMENTS, _RAW_OF_GO, _DOUBLE, _LETTER),
    "rust": _pattern(_C_COMMENTS, _RAW_OF_RUST, _DOUBLE.replace(r"\n", ""), _LETTER),
    "java": _pattern(_C_COMMENTS, _TRIPLE, _DOUBLE, _LETTER),
    "c": _pattern(_C_COMMENTS, _DOUBLE, _LETTER),
    "cpp": _pattern(_C_COMMENTS, _RAW_OF_CPP, _DOUBLE, _LETTER),
}


def comment(words: str, language: Language | None) -> str:
    """One line that the language takes for a comment, without its line end."""
    mark = "#" if language in (None, "python") else "//"
    return f"{mark} {words}"


def comments_and_strings(text: str, language: Language) -> Iterator[tuple[Span, bool]]:
    """Where each stands, and whether it is a comment, in order."""
    for match in _PATTERNS[language].finditer(text):
        yield Span(*match.span()), match["comment"] is not None
