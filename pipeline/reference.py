"""The schema of a recipe -> a page of Markdown with every key of it: what it may be, its default, what it does.

    python -m pipeline.reference > recipes/REFERENCE.md

Nothing is said here about any one key: names, values, defaults, bounds, words and examples are the schema's own, so a
section that is added to `recipe.py` is on the page. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from pipeline.recipe import Recipe

Schema = Mapping[str, Any]

HEAD = """\
# Every key of a recipe

Made from the schema by `python -m pipeline.reference`; a test holds it to that. README shows recipes whole.

A recipe is YAML. Keys are written here by their path: `training.steps` is `steps` in the section `training`, and the
same path overrides a key on the command line, `training.steps=50`. NAME stands for a name of your own. Where a section
has kinds, `kind` says which one it is, and each kind has keys of its own. A key that is not here is refused, with its
line.
"""
TABLE = "| key | value | default | what it does |\n|---|---|---|---|"
EXAMPLE_NAME = "mine"  # what stands for NAME in examples
MOST_DEFAULTS = 4  # of a section without an example of its own, shown as one


@dataclass(frozen=True)
class Chapter:
    """A section of a recipe, or a union of them. path: where it stands, dotted. members: names of their definitions."""

    path: str
    members: tuple[str, ...]
    example: str | None  # the field's own, where the section has none

    @property
    def title(self) -> str:
        return f"`{self.path}`"


def recipe_schema() -> Schema:
    return TypeAdapter[Any](Recipe).json_schema()


def reference(schema: Schema) -> str:
    """The whole page. `schema`: JSON Schema of a union of methods, each a model with the same sections."""
    page = _Page(schema["$defs"], tuple(_chapters(schema)))
    parts = [HEAD, page.top_level(_methods(schema))]
    return "\n".join([*parts, *(page.chapter(each) for each in page.chapters)])


# ---- which chapters there are ----


def _methods(schema: Schema) -> dict[str, Schema]:
    """Each method's model, by its name."""
    models = {method: schema["$defs"][_name(ref)] for method, ref in schema["discriminator"]["mapping"].items()}
    return dict(sorted(models.items()))


def _top_keys(methods: Mapping[str, Schema]) -> dict[str, dict[str, Schema]]:
    """Every key of any method, in the order of the models: by key, then by method."""
    keys = dict.fromkeys(key for model in methods.values() for key in model["properties"] if key != "method")
    return {
        key: {m: model["properties"][key] for m, model in methods.items() if key in model["properties"]} for key in keys
    }


def _chapters(schema: Schema) -> Iterator[Chapter]:
    """In the order of the page. A section has one chapter: at the top level where it stands there, else where it is
    met first."""
    definitions: Mapping[str, Schema] = schema["$defs"]
    top = [_chapter(key, next(iter(by.values()))) for key, by in _top_keys(_methods(schema)).items()]
    seen = {name for chapter in top for name in chapter.members}
    waiting = [chapter for chapter in reversed(top) if chapter.members]
    while waiting:
        chapter = waiting.pop()
        yield chapter
        inner = []
        for member in chapter.members:
            for key, field in definitions[member].get("properties", {}).items():
                found = _chapter(f"{chapter.path}.{key}", field)
                if not set(found.members) <= seen:
                    seen.update(found.members)
                    inner.append(found)
        waiting += reversed(inner)


def _chapter(path: str, field: Schema) -> Chapter:
    suffix, members = _sections(field)
    return Chapter(path + suffix, members, next(iter(field.get("examples", ())), None))


def _sections(node: Schema) -> tuple[str, tuple[str, ...]]:
    """The definitions that may stand in a field, and what its path grows by on the way, such as `.NAME`."""
    if "$ref" in node:
        return "", (_name(node["$ref"]),)
    found = [_sections(choice) for choice in (*node.get("anyOf", ()), *node.get("oneOf", ()))]
    found += [(f".NAME{suffix}", members) for suffix, members in map(_sections, _values(node))]
    found += [_sections(node["items"])] if isinstance(node.get("items"), Mapping) else []
    members = tuple(dict.fromkeys(name for _, names in found for name in names))
    return next((suffix for suffix, names in found if names), ""), members


def _values(node: Schema) -> list[Schema]:
    """What the values of a mapping with free keys may be."""
    additional = node.get("additionalProperties")
    patterns = list(node.get("patternProperties", {}).values())
    return [*patterns, *([additional] if isinstance(additional, Mapping) else [])]


def _name(ref: str) -> str:
    return ref.rpartition("/")[2]


# ---- the page ----


@dataclass(frozen=True)
class _Page:
    definitions: Mapping[str, Schema]
    chapters: tuple[Chapter, ...]

    def top_level(self, methods: Mapping[str, Schema]) -> str:
        rows = [f"| `method` | {_any_of(_code(m) for m in methods)} | required | {self._methods(methods)} |"]
        for key, by in _top_keys(methods).items():
            required = [method for method in by if key in methods[method].get("required", ())]
            before = ""
            if len(by) < len(methods):
                before = f"only with `method: {next(iter(by))}`: "
            elif 0 < len(required) < len(by):
                before = f"required with `method: {required[0]}`: "
            rows.append(self._row(key, next(iter(by.values())), len(required) == len(by), before))
        return "\n".join(["## The top level", "", TABLE, *rows, ""])

    def _methods(self, methods: Mapping[str, Schema]) -> str:
        return " ".join(f"`{name}`: {_sentence(methods[name])}" for name in methods)

    def chapter(self, chapter: Chapter) -> str:
        """Heading, words, table and example; with kinds, what all have first and then each."""
        hashes = "###" if "." in chapter.path.removesuffix(".NAME") else "##"
        lines = [f"{hashes} {chapter.title}", ""]
        if len(chapter.members) == 1:
            return "\n".join([*lines, *self._section(chapter, chapter.members[0], ())])
        shared = self._shared(chapter.members)
        kinds = [self._label(member, chapter.members) for member in chapter.members]
        lines += [f"One of these kinds: {', '.join(kinds)}.", ""]
        if shared:
            first = self.definitions[chapter.members[0]]["properties"]
            lines += ["Every kind has:", "", TABLE, *(self._row(key, first[key], False) for key in shared), ""]
        for label, member in zip(kinds, chapter.members, strict=True):
            lines += [f"#### {label}", "", *self._section(chapter, member, shared)]
        return "\n".join(lines)

    def _shared(self, members: tuple[str, ...]) -> tuple[str, ...]:
        """Keys that every member has, with the same meaning."""
        first, *others = (self.definitions[member].get("properties", {}) for member in members)
        return tuple(key for key, field in first.items() if all(other.get(key) == field for other in others))

    def _label(self, member: str, members: tuple[str, ...]) -> str:
        """`served`; with what else tells members of one kind apart, `top_k_forward_kl` with `tail: true`."""
        fields = self.definitions[member].get("properties", {})
        kinds = _literals(fields.get("kind", {}))
        alike = [m for m in members if _literals(self.definitions[m].get("properties", {}).get("kind", {})) == kinds]
        text = _any_of(map(_code, kinds)) or self.definitions[member]["title"]
        others = {key: field["const"] for key, field in fields.items() if key != "kind" and "const" in field}
        tells = [f"`{key}: {_yaml(value)}`" for key, value in others.items()] if len(alike) > 1 else []
        return f"{text} with {_any_of(tells)}" if tells else text

    def _section(self, chapter: Chapter, member: str, left_out: tuple[str, ...]) -> list[str]:
        model = self.definitions[member]
        required = model.get("required", ())
        several = len(chapter.members) > 1
        fields = {key: field for key, field in model.get("properties", {}).items() if key not in left_out}
        if several and len(_literals(fields.get("kind", {}))) == 1:
            fields.pop("kind")  # it is the title
        keys = sorted(fields, key=lambda key: key not in required)  # what has to be written stands first
        rows = [self._row(key, fields[key], key in required) for key in keys]
        words = [_paragraph(model), ""] if model.get("description") else []
        return [*words, *([TABLE, *rows, ""] if rows else []), *self._example(chapter, model)]

    def _example(self, chapter: Chapter, model: Schema) -> list[str]:
        """The section's own example, else the field's, else its defaults written out."""
        own = next(iter(model.get("examples", ())), None)
        text = own or (chapter.example if len(chapter.members) == 1 else None) or _defaults(model)
        if not text:
            return []
        *above, last = chapter.path.replace("NAME", EXAMPLE_NAME).split(".")
        nested = [f"{'  ' * depth}{key}:" for depth, key in enumerate(above)]
        return ["```yaml", *nested, f"{'  ' * len(above)}{last}: {text}", "```", ""]

    # -- a row --

    def _row(self, key: str, field: Schema, required: bool, before: str = "") -> str:
        default = "required" if required else self._default(field)
        what = field.get("description") or self._inner_description(field)
        return f"| `{key}` | {_cell(self._value(field))} | {default} | {_cell(before + what)} |"

    def _inner_description(self, field: Schema) -> str:
        """Of the value itself, where the field says nothing; of the section, its first sentence."""
        for choice in field.get("anyOf", ()):
            if choice.get("description"):
                return str(choice["description"])
        _, members = _sections(field)
        return _sentence(self.definitions[members[0]]) if len(members) == 1 else ""

    def _default(self, field: Schema) -> str:
        value = field.get("default")
        if value in (None, [], {}):
            return "none"
        if isinstance(value, Mapping):
            return self._as_written(value, _sections(field)[1])
        return _code(_yaml(value))

    def _as_written(self, value: Schema, members: tuple[str, ...]) -> str:
        """A default section, as short as a recipe would write it: its kind, and what differs from that kind's own."""
        for member in members:
            model = self.definitions[member]
            if value.get("kind") not in (*_literals(model.get("properties", {}).get("kind", {})), None):
                continue
            fields = model["properties"]
            kept = {key: each for key, each in value.items() if fields.get(key, {}).get("default") != each}
            kept = {key: each for key, each in kept.items() if each not in ({}, [], None)}
            if not kept or list(kept) == ["kind"]:
                return _code(value["kind"]) if len(members) > 1 else "its defaults"
            if all(fields[key].get("const", each) == each for key, each in kept.items() if key in fields):
                return _code(f"{{{', '.join(f'{key}: {_yaml(each)}' for key, each in kept.items())}}}")
        return "its defaults"

    def _value(self, node: Schema) -> str:
        """What may be written there, in words, with its bounds."""
        if "$ref" in node:
            return self._link((_name(node["$ref"]),))
        choices = [
            choice for choice in (*node.get("anyOf", ()), *node.get("oneOf", ())) if choice.get("type") != "null"
        ]
        if choices:
            sections = tuple(_name(choice["$ref"]) for choice in choices if "$ref" in choice)
            texts = [self._value(choice) for choice in choices if "$ref" not in choice]
            return _any_of(dict.fromkeys([*texts, *([self._link(sections)] if sections else [])]))
        if literals := _literals(node):
            return _any_of(map(_code, map(_yaml, literals)))
        return self._simple(node)

    def _simple(self, node: Schema) -> str:
        match node.get("type"):
            case "integer":
                return f"whole number{_bounds(node)}"
            case "number":
                return f"number{_bounds(node)}"
            case "boolean":
                return "`true` or `false`"
            case "string":
                return {"path": "path"}.get(node.get("format", ""), "text")
            case "array" if "prefixItems" in node:
                return f"list of {len(node['prefixItems'])}: {', '.join(map(self._value, node['prefixItems']))}"
            case "array":
                return f"list{_sizes(node, 'Items')}: {self._value(node.get('items', {}))}"
            case "object":
                values = _values(node)
                return f"NAME: {self._value(values[0])}{_sizes(node, 'Properties')}" if values else "any keys"
        return "any value"

    def _link(self, members: tuple[str, ...]) -> str:
        chapter = next(each for each in self.chapters if set(members) & set(each.members))
        link = f"[{'kinds' if len(members) > 1 else 'section'}](#{_anchor(chapter.title)})"
        if len(members) == 1 and len(chapter.members) == 1:
            return link
        kinds = [self.definitions[member].get("properties", {}).get("kind", {}) for member in members]
        names = dict.fromkeys(name for kind in kinds for name in _literals(kind))
        return f"{link} {', '.join(map(_code, names))}"


# ---- words ----


def _literals(node: Schema) -> tuple[Any, ...]:
    return (node["const"],) if "const" in node else tuple(node.get("enum", ()))


def _bounds(node: Schema) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    said = [
        *([f"from {low:g} to {high:g}"] if low is not None and high is not None else []),
        *([f"from {low:g}"] if low is not None and high is None else []),
        *([f"above {above:g}"] if above is not None else []),
        *([f"up to {high:g}"] if high is not None and low is None else []),
        *([f"below {below:g}"] if below is not None else []),
    ]
    return f" {', '.join(said)}" if said else ""


def _sizes(node: Schema, of: str) -> str:
    low, high = node.get(f"min{of}"), node.get(f"max{of}")
    if low is not None and high is not None:
        return f" ({low} to {high})"
    return f" (at least {low})" if low else f" (up to {high})" if high else ""


def _yaml(value: Any) -> str:
    """A plain value as a recipe would write it."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return re.sub(
                r"e([+-])0+", r"e\1", f"{value:g}" if value != int(value) or abs(value) > 1e6 else f"{value:.1f}"
            )
        case list():
            return f"[{', '.join(map(_yaml, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{key}: {_yaml(each)}' for key, each in value.items())}}}"
        case None:
            return "null"
        case str() if not re.fullmatch(r"[\w./-][\w ./-]*", value):
            return f'"{value}"'
    return str(value)


def _defaults(model: Schema) -> str:
    """A section of its first scalar defaults, or nothing where a key is required."""
    if model.get("required"):
        return ""
    fields = {key: field["default"] for key, field in model.get("properties", {}).items() if "default" in field}
    plain = {key: value for key, value in fields.items() if isinstance(value, str | int | float)}
    return _yaml(dict([*plain.items()][:MOST_DEFAULTS])) if plain else ""


def _code(value: Any) -> str:
    return f"`{value}`"


def _any_of(words: Iterable[str]) -> str:
    *head, last = [*words] or [""]
    return f"{', '.join(head)} or {last}" if head else last


def _paragraph(model: Schema) -> str:
    return " ".join(str(model.get("description", "")).split())


def _sentence(model: Schema) -> str:
    return re.split(r"(?<=\.)\s", _paragraph(model))[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ").strip()


def _anchor(title: str) -> str:
    """As GitHub and most renderers of Markdown make it."""
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    print(reference(recipe_schema()), end="")
