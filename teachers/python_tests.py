"""What a Python answer and its tests are: out of markdown, a reference and a prompt, into pieces that run."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass

from teachers.types import Chat, Conversation

FENCE = re.compile(
    r"^[ \t]*(?P<mark>`{3,}|~{3,})[^\n]*\n(?P<content>.*?)(?:^[ \t]*(?P=mark)[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
AFTER_BODY = re.compile(r"^(?:class |def |#|if |print)", re.MULTILINE)  # what ends a continuation (2107.03374, §2.1)


@dataclass(frozen=True)
class Tests:
    """stub: code that the prompt gave: imports, helpers, the function's head. entry: the function that is tested."""

    test: str
    stub: str = ""
    entry: str | None = None


def read_tests(reference: str | None, conversation: Conversation) -> Tests | None:
    """A reference in JSON {test, prompt, entry_point}, or the tests' code alone.

    Where it does not say them, the prompt's code is the conversation's last message, if it is Python or has some in a
    fence, and what is tested is the last function that this code defines.
    """
    if reference is None:
        return None
    try:
        told = json.loads(reference)
    except ValueError:
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("test"), str):
        told = {"test": reference}
    stub = told.get("prompt")
    if not isinstance(stub, str):
        text = prompt_text(conversation)
        stub = next((code for code in (text, "\n".join(fenced(text))) if _functions(code)), "")
    entry = told.get("entry_point")
    return Tests(told["test"], stub, entry if isinstance(entry, str) else next(reversed(_functions(stub)), None))


def parts_of(completion: str, tests: Tests) -> list[str]:
    """The answer as pieces of Python that run one after the other: the prompt's code first, for what it imports.

    An answer that defines what is tested stands by itself; any other continues the prompt, up to where a new statement
    begins that cannot belong to the function's body. Of several fenced blocks those count that define it, else all.
    """
    blocks = fenced(completion)
    if tests.entry is None:
        return [tests.stub, "\n".join(blocks) or completion]
    name = re.escape(tests.entry)
    defined = re.compile(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*=", re.MULTILINE)
    if whole := [block for block in blocks or [completion] if defined.search(block)]:
        return [tests.stub, whole[-1]]
    body = "\n".join(blocks) or completion
    if end := AFTER_BODY.search(body):
        body = body[: end.start()]
    return [tests.stub + body]


def fenced(text: str) -> list[str]:
    """The contents of the fenced blocks; of one that is cut off, what there is."""
    return [match["content"] for match in FENCE.finditer(text)]


def _functions(code: str) -> list[str]:
    """The functions that a piece of Python defines at its top; none where it is not Python."""
    try:
        return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def prompt_text(conversation: Conversation) -> str:
    return conversation.messages[-1].content if isinstance(conversation, Chat) else conversation.text
