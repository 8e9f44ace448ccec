"""YAML text -> plain Python values, the line of every key, and all that is wrong with the text as YAML.

Duplicate keys are collected rather than thrown at the first, so that one reading names every mistake. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

Key = tuple[str | int, ...]

_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_TEXT = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "timestamp", "value"))
_MERGE = "tag:yaml.org,2002:merge"

# The parser's phrases, and what a person has most likely done. The first that occurs in the phrase counts.
_SYNTAX = (
    ("mapping values are not allowed", "a colon where no key can stand; check the indentation, or quote the text"),
    ("'\\t'", "a tab; indent with spaces"),
    ("undefined alias", "an alias (*name) whose anchor (&name) does not come before it; write the value itself"),
    ("cannot start any token", "a text may not begin with this character; put the text in quotes"),
    ("another document", "a second document; remove the line --- and what follows it"),
    ("<stream end>", "a bracket that is never closed; close it"),
    ("unexpected end of stream", "a quote that is never closed; close it"),
    ("<block end>", "a line that does not fit the ones before it; check the indentation"),
    ("could not find expected ':'", "a key without a colon; write key: value"),
)


@dataclass(frozen=True)
class Document:
    """`data`: dicts, lists, text, numbers, booleans, None. `lines`: 1-based, by path from the root, which is ().

    `problems`: (line, path, text). After a mistake in the syntax itself `data` is None.
    """

    data: Any
    lines: dict[Key, int]
    problems: list[tuple[int, Key, str]]


def read_yaml(text: str) -> Document:
    """Read one YAML document. Never raises for what the text holds; an empty text gives data None and no problem."""
    document = Document(None, {}, [])
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
        data = None if root is None else _value(root, (), (), yaml, document)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return _broken(line, "a control character; remove it")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        opened = error.context_mark if _never_closed(error) else None
        return _broken((opened or mark).line + 1 if mark else 1, _syntax(error))
    except YAMLError as error:
        return _broken(1, " ".join(str(error).split()))
    except RecursionError:
        return _broken(1, "nested too deeply; a recipe needs a handful of levels")
    return Document(data, {(): 1, **document.lines}, document.problems)


def _broken(line: int, what: str) -> Document:
    return Document(None, {(): 1}, [(line, (), f"not valid YAML: {what}")])


def _never_closed(error: MarkedYAMLError) -> bool:
    """For what is never closed, the line where it opens helps; the parser reports the end of the file."""
    return "end of stream" in str(error.problem) or "stream end" in str(error.problem)


def _syntax(error: MarkedYAMLError) -> str:
    said = str(error.problem)
    return next((ours for theirs, ours in _SYNTAX if theirs in said), said)


def _value(node: Node, path: Key, above: tuple[Node, ...], yaml: YAML, document: Document) -> Any:
    """The node's plain value; notes lines and problems in `document`. `above`: the nodes it stands in."""
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    if any(node is other for other in above):
        document.problems.append((line, path, "an alias to a value that it is itself part of; write the value out"))
        return None
    if isinstance(node, MappingNode):
        return _mapping(node, path, (*above, node), yaml, document)
    if isinstance(node, SequenceNode):
        items = enumerate(node.value)
        return [_value(item, (*path, index), (*above, node), yaml, document) for index, item in items]
    assert isinstance(node, ScalarNode)
    return _scalar(node, path, yaml, document)


def _scalar(node: ScalarNode, path: Key, yaml: YAML, document: Document) -> Any:
    if node.tag in _TEXT:
        return node.value
    try:
        if node.tag in _PLAIN:
            return yaml.constructor.construct_object(node)
    except (YAMLError, ValueError):
        pass  # a text under a tag that it does not fit, `!!int abc`: the same problem as an unknown tag
    text = f"cannot read {node.value!r} under the tag {node.tag}; remove the tag"
    document.problems.append((node.start_mark.line + 1, path, text))
    return node.value


def _mapping(node: MappingNode, path: Key, above: tuple[Node, ...], yaml: YAML, document: Document) -> dict[str, Any]:
    """Keys are the text they are written with, so that a domain may be called 1 or null. The first of two wins."""
    result: dict[str, Any] = {}
    merged: list[Node] = []
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            document.problems.append((line, path, "a key that is not a name; write name: value"))
        elif key.tag == _MERGE:
            merged.extend(value.value if isinstance(value, SequenceNode) else [value])
        elif key.value in result:
            first = document.lines[*path, key.value]
            text = f"is written twice (first on line {first}); remove one of the two"
            document.problems.append((line, (*path, key.value), text))
        else:
            document.lines.setdefault((*path, key.value), line)
            result[key.value] = _value(value, (*path, key.value), above, yaml, document)
    for other in merged:  # `<<: *anchor`: what the mapping itself says comes first
        added = _value(other, path, above, yaml, document)
        result = {**added, **result} if isinstance(added, dict) else result
    return result
