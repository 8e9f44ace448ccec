"""What a shell completes on Tab: recipes, runs, and the dotted keys of overrides. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def recipes(incomplete: str) -> list[str]:
    """Recipes below what is typed, and the directories on the way to them; those of a checkout for nothing typed."""
    if not incomplete and (found := sorted(map(str, Path("recipes").glob("*.yaml")))):
        return found
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else ".")).expanduser()
    return [
        f"{folder}/{path.name}" if "/" in incomplete else path.name
        for path in _inside(place)
        if path.name.startswith(start) and path.suffix in (".yaml", ".yml")
    ] + [
        f"{folder}/{path.name}/" if "/" in incomplete else f"{path.name}/"
        for path in _inside(place)
        if path.name.startswith(start or path.name) and path.is_dir() and path.name[0] not in "._"
    ]


def runs(incomplete: str) -> list[str]:
    """Directories with a run in them, of `runs` and below what is typed."""
    folder = incomplete.rpartition("/")[0] or "runs"
    found = [f"{folder}/{path.name}" for path in _inside(Path(folder).expanduser()) if (path / "run.json").is_file()]
    return [name for name in found if name.startswith(incomplete)]


def overrides(recipe: str | None, incomplete: str) -> list[str]:
    """Dotted keys that a recipe may have, with `=`, and the values of those that are a choice.

    recipe: the file before them on the line, whose own names of teachers and sources are known then.
    """
    from pipeline.reference import recipe_schema

    schema = recipe_schema()
    data = _data(recipe)
    key, assigned, _ = incomplete.partition("=")
    found = dict(keys(schema, data))
    if assigned:
        return [text for value in found.get(key, ()) if (text := f"{key}={value}").startswith(incomplete)]
    return [f"{name}=" for name in found if name.startswith(incomplete)]


def keys(schema: Mapping[str, Any], data: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(dotted key, the values it may have, where they are few) of everything that a recipe with this data may say."""
    definitions = schema.get("$defs", {})
    seen: set[str] = set()

    def walk(node: Mapping[str, Any], data: Any, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        if "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        inside = data if isinstance(data, Mapping) else {}
        if _is_another(node, inside, prefix):
            return
        for choice in (*node.get("anyOf", ()), *node.get("oneOf", ())):
            yield from walk(choice, data, prefix)
        named = _named(node)
        fields = dict(node.get("properties", {}))
        if isinstance(named, Mapping):
            fields |= {str(name): named for name in inside}
        for name, field in fields.items():
            path = f"{prefix}{name}"
            if path not in seen and not _is_section(field, definitions):
                seen.add(path)
                yield path, _values(field)
            yield from walk(field, inside.get(name), f"{path}.")

    yield from walk(schema, data, "")


def _named(node: Mapping[str, Any]) -> Any:
    """What stands under names that the recipe chooses."""
    return next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties"))


def _is_another(node: Mapping[str, Any], data: Mapping[str, Any], prefix: str) -> bool:
    """Whether this is a kind that the recipe's section is not."""
    kind = node.get("properties", {}).get("kind" if prefix else "method", {}).get("const")
    said = data.get("kind" if prefix else "method")
    return None not in (kind, said) and kind != said


def _is_section(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    if "$ref" in field:
        field = definitions[field["$ref"].rpartition("/")[2]]
    return "properties" in field or isinstance(_named(field), Mapping)


def _values(field: Mapping[str, Any]) -> tuple[str, ...]:
    if field.get("type") == "boolean":
        return "true", "false"
    choices = field.get("enum", [field["const"]] if "const" in field else [])
    return tuple(map(str, choices))


def _data(recipe: str | None) -> Any:
    """A recipe's own mapping; nothing where it cannot be read: on Tab nothing is said of mistakes."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(Path(recipe).read_text(encoding="utf-8")) if recipe else None
    except (OSError, UnicodeDecodeError, YAMLError):
        return None


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
