"""Codebases for tests: networkx as it is installed, and small ones from a table of texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath

import networkx

from pipeline.codebase.links import Links, links_of
from pipeline.codebase.outline import outline_of
from pipeline.codebase.types import Change, Code, FillInTheMiddle, Language, Room, SourceFile

LANGUAGES: Mapping[str, Language] = {
    ".py": "python",
    ".js": "javascript",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".go": "go",
    ".rs": "rust",
    ".java": "java",
    ".c": "c",
    ".h": "c",
    ".cpp": "cpp",
}
FIM = FillInTheMiddle("<PRE>", "<SUF>", "<MID>")
_TOKEN = re.compile(r"\w{1,6}| ?[^\w\s]|\s+")


def count(text: str) -> int:
    """Tokens of a tokenizer that cuts long words, in the manner of most."""
    return len(_TOKEN.findall(text))


def room(
    prompt: int = 600,
    retrieved: int = 200,
    reference: int = 200,
    fim: FillInTheMiddle | None = FIM,
    as_chat: bool = False,
    shows_retrieved: bool = False,
) -> Room:
    return Room(prompt, retrieved, reference, count, fim, as_chat, shows_retrieved)


def code_of(texts: Mapping[str, str], root: str = "project", changes: tuple[Change, ...] = ()) -> Code:
    files = []
    for path, text in sorted(texts.items()):
        language = LANGUAGES.get(PurePosixPath(path).suffix)
        is_test = PurePosixPath(path).name.startswith("test_")
        outline = outline_of(text, language) if language else None
        files.append(SourceFile(path, language, text, "", outline, is_test=is_test))
    return Code(Path(root), None, tuple(files), (), changes=changes)


@cache
def networkx_code() -> Code:
    """As it lies in site-packages: its root is the package itself."""
    root = Path(networkx.__file__).parent
    texts = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in root.rglob("*.py")}
    return code_of(texts, str(root))


@cache
def networkx_links() -> Links:
    return links_of(networkx_code())


def paths_of(code: Code) -> frozenset[str]:
    return frozenset(file.path for file in code.files)
