"""A data set, from the hub or a local file, to examples: which column holds what, and what a row of it says.

Forms understood, in this order: `messages` or `conversations` (lists of {role, content} or ShareGPT's {from, value}),
`prompt` (a text or such a list), a question column, a `text` column; the answer beside it by its usual names. Rows stay
in the memory-mapped table until they are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.recipe import DatasetSource
from teachers.types import Chat, Conversation, Message, RawText, Role

if TYPE_CHECKING:
    from datasets import Dataset

FILE_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
PROMPT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt",),
    "question": ("question", "problem", "query", "instruction"),
    "text": ("text",),
}
ANSWER_COLUMNS = ("completion", "response", "answer", "output", "solution")
ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """What a row says. domain: None where the row does not name one."""

    conversation: Conversation
    reference: str | None
    domain: str | None
    privileged: str | None


@dataclass(frozen=True)
class Layout:
    """Which column holds what. prompt: None where everything is in the answer; extra: Alpaca's `input`."""

    prompt: str | None
    answer: str | None
    extra: str | None
    domain: str | None
    privileged: str | None

    @property
    def columns(self) -> list[str]:
        named = (self.prompt, self.answer, self.extra, self.domain, self.privileged)
        return list(dict.fromkeys(column for column in named if column is not None))


# ---- the table ----


def open_table(source: DatasetSource, name: str, folder: Path) -> Dataset:
    """The rows of `source`, memory-mapped. A path that exists, seen from `folder`, is a local file or folder.

    Raises DataError: nothing there, no such split or config, not readable as what its name says, no rows.
    """
    import datasets

    path = folder / Path(source.path).expanduser()
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = FILE_KINDS.get(suffixes[-1]) if suffixes else None
    at = f"data.sources.{name}: {source.path}"
    if path.is_file() and kind is None:
        raise DataError(f"{at} is not a data file: give one that ends in {', '.join(FILE_KINDS)}")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{at} is empty: give a file with at least one row")
    if not path.exists() and (kind is not None or source.path.startswith((".", "/", "~"))):
        raise DataError(f"{at}: there is no file {path}; give an existing file or a hub name")
    with _quiet():
        try:
            if path.is_file():
                table = datasets.load_dataset(kind, source.config, data_files=str(path), split=source.split)
            else:
                place = str(path) if path.is_dir() else source.path
                table = datasets.load_dataset(place, source.config, split=source.split)
        except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{at}: {_advice(error, source)}") from error
    if len(table) == 0:
        raise DataError(f"{at} has no rows in split {source.split}: give one with at least one row")
    return table if source.limit is None else table.take(min(source.limit, len(table)))


def _advice(error: Exception, source: DatasetSource) -> str:
    """One line for what `datasets` could not do."""
    text = " ".join(str(error.__cause__ or error).split())
    if isinstance(error, ConnectionError):
        return "cannot be reached on the hub; check the name and the network, or give a local file"
    if isinstance(error, FileNotFoundError):
        return f"is neither a local file nor a data set on the hub that can be read ({text}); check the name"
    if isinstance(error, StopIteration) or "corresponds to no data" in text:
        return "has no rows; give a file with at least one row"
    if "Unknown split" in text:
        return f"{text[0].lower()}{text[1:]} Set `split` to one of these"
    if "BuilderConfig" in text or "Config name is missing" in text:
        return f"config {source.config or '(none)'} does not fit: {text}"
    return f"cannot be read as {source.path.rpartition('.')[2]}: {text or type(error).__name__}; mend the file"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no log lines of the libraries: what goes wrong is said once, in our own line."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


# ---- its columns ----


def find_layout(source: DatasetSource, name: str, columns: Sequence[str]) -> Layout:
    """Which column holds what: those that the recipe names, the rest by the ecosystem's usual names.

    A column named as the answer is never taken for the prompt. With `as_chat: false` and `columns.answer` alone, as
    for documents, the prompt is empty and the whole text is the reference.
    Raises DataError listing the columns found and the key to set.
    """
    at = f"data.sources.{name}: {source.path}"
    found = f"it has the columns {', '.join(columns)}"
    named = {key: column for key, column in source.columns.model_dump().items() if column is not None}
    for key, column in named.items():
        if column not in columns:
            raise DataError(f"{at} has no column {column!r}, which columns.{key} names; {found}")
    prompts = [key for key in PROMPT_COLUMNS if key in named]
    if len(prompts) > 1:
        raise DataError(f"{at}: columns.{prompts[0]} and columns.{prompts[1]} both name the prompt; keep one of them")
    answer = named.get("answer")
    guesses = [column for names in PROMPT_COLUMNS.values() for column in names if column in columns]
    prompt = named[prompts[0]] if prompts else next((column for column in guesses if column != answer), None)
    if prompt is None and (answer is None or source.as_chat):
        keys = ", ".join(f"columns.{key}" for key in PROMPT_COLUMNS)
        raise DataError(f"{at}: which column is the prompt? {found}; set one of {keys}")
    if answer is None and prompt is not None and prompt not in PROMPT_COLUMNS["messages"] and "messages" not in named:
        answer = next((column for column in ANSWER_COLUMNS if column in columns and column != prompt), None)
    extra = "input" if prompt == "instruction" and "input" in columns and answer != "input" else None
    return Layout(prompt, answer, extra, named.get("domain"), named.get("privileged"))


# ---- its rows ----


def reader(source: DatasetSource, name: str, layout: Layout) -> Callable[[Mapping[str, Any], int], Example | None]:
    """A function from (row, its number) to an Example; None for a row without a prompt. It raises DataError."""

    def read(row: Mapping[str, Any], number: int) -> Example | None:
        try:
            return _example(row, layout, source)
        except _Unusable as problem:
            raise DataError(f"data.sources.{name}: {source.path}, row {number}: {problem}") from problem

    return read


class _Unusable(Exception):
    """What is wrong with a row; `reader` says where."""


def _example(row: Mapping[str, Any], layout: Layout, source: DatasetSource) -> Example | None:
    messages = [] if layout.prompt is None else _messages(row[layout.prompt], layout.prompt)
    reference = None
    if messages and messages[-1].role == "assistant":
        reference = messages.pop().content
    if layout.answer is not None:
        reference = _answer(row[layout.answer], layout.answer)
    if layout.extra is not None and messages and (extra := _text(row[layout.extra], layout.extra)):
        messages[-1] = Message("user", f"{messages[-1].content}\n\n{extra}")
    empty = not any(message.content.strip() for message in messages if message.role != "system")
    if empty and (layout.prompt is not None or not reference):
        return None
    return Example(
        _conversation(messages, source),
        reference or None,
        layout.domain and (_text(row[layout.domain], layout.domain) or None),
        layout.privileged and (_text(row[layout.privileged], layout.privileged) or None),
    )


def _conversation(messages: list[Message], source: DatasetSource) -> Conversation:
    if not source.as_chat:
        if source.system is not None:
            raise _Unusable("a system prompt needs a conversation; remove `system`, or set `as_chat: true`")
        if len(messages) > 1:
            raise _Unusable("a conversation of several messages is not raw text; set `as_chat: true`")
        return RawText(messages[0].content if messages else "")
    if source.system is not None:
        own = messages[0].content if messages[0].role == "system" else None
        system = source.system if own is None else f"{source.system}\n\n{own}"
        messages = [Message("system", system), *messages[own is not None :]]
    return Chat(tuple(messages))


def _messages(value: Any, column: str) -> list[Message]:
    """A text is one message of the user; a list is read as OpenAI's {role, content} or ShareGPT's {from, value}."""
    if not isinstance(value, list):
        text = _text(value, column)
        return [Message("user", text)] if text else []
    return [_message(item, column) for item in value]


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, dict):
        raise _Unusable(f"column {column!r} holds a list of {type(item).__name__}; a list of messages is needed")
    role = item.get("role", item.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise _Unusable(f"column {column!r} has a message of role {role!r}; known are {', '.join(ROLES)}")
    if item.get("tool_calls"):
        raise _Unusable(
            f"column {column!r} has a message with tool calls, which are not supported; leave such rows out"
        )
    content = item.get("content", item.get("value"))
    if isinstance(content, list):
        content = "".join(_part(part, column) for part in content)
    return Message(ROLES[role], _text(content, column))


def _part(part: Any, column: str) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _Unusable(f"column {column!r} has a message with a part that is not text; leave such rows out")


def _answer(value: Any, column: str) -> str:
    """A text, or a conversational completion: the content of its last message."""
    if isinstance(value, list):
        messages = _messages(value, column)
        return messages[-1].content if messages else ""
    return _text(value, column)


def _text(value: Any, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, (str, int, float)):
        return str(value)
    raise _Unusable(f"column {column!r} holds a {type(value).__name__} where a text is needed; name another column")
