"""What pydantic finds wrong with a recipe, in plain words: the key, what is wrong, what to write instead.

The schema (`recipe.py`) is read for what may stand where a mistake was made: allowed keys, kinds, examples.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.yaml_lines import Key
from teachers.config import Section

_DISCRIMINATORS = ("kind", "method")


@dataclass(frozen=True)
class Problem:
    """`text`: what is wrong; what to write instead."""

    path: Key
    text: str


@dataclass(frozen=True)
class Place:
    """Where in the schema an error is.

    section: the model that holds the last key. sections: the models that may stand there, others of the union too.
    or_text: a text may stand there as well.
    """

    path: Key
    section: type[Section] | None
    sections: tuple[type[Section], ...]
    field: FieldInfo | None
    is_key: bool = False
    or_text: bool = False


def problems_of(error: ValidationError, schema: Any) -> list[Problem]:
    """One problem per mistake. What a model's own validator raised is left out: `recipe_checks` finds the same."""
    details = error.errors(include_url=False)
    # A list of which an entry is wrong is told to be short of one as well.
    wrong = {detail["loc"][:-1] for detail in details}
    details = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in wrong]
    return [_problem(detail, _place(schema, detail["loc"])) for detail in details if detail["type"] != "value_error"]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean x?)`, or nothing where no choice is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def any_of(choices: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *head, last = choices
    return f"{', '.join(head)} or {last}" if head else last


def show(value: Any) -> str:
    """A wrong value as the recipe would write it, cut short."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "empty"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- the schema ----


def _members(annotation: Any) -> list[Any]:
    """What may stand there: a union's members, still with their tags, or the one annotation; None left out."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members if len(members) > 1 else _members(members[0])


def _bare(annotation: Any) -> Any:
    members = _members(annotation)
    return members[0] if len(members) == 1 else annotation


def _tags(member: Any) -> tuple[str, ...]:
    """The tags under which pydantic reports this member of a union."""
    if get_origin(member) is Annotated:
        tags = tuple(item.tag for item in get_args(member)[1:] if isinstance(item, Tag))
        if tags:
            return tags
    return _kinds(_bare(member))


def _kinds(section: Any) -> tuple[str, ...]:
    """What `kind` (or `method`) may be in a section."""
    fields: Mapping[str, FieldInfo] = getattr(section, "model_fields", {})
    literals = [fields[name].annotation for name in _DISCRIMINATORS if name in fields]
    return tuple(kind for literal in literals if get_origin(literal) is Literal for kind in get_args(literal))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _place(annotation: Any, loc: tuple[int | str, ...]) -> Place:
    """Follow pydantic's location, which mixes keys of the recipe with tags of unions, through the schema."""
    path: list[str | int] = []
    section: type[Section] | None = None
    sections: tuple[type[Section], ...] = ()
    field: FieldInfo | None = None
    or_text = False
    for part in loc:
        if part == "[key]":
            return Place(tuple(path), None, (), None, is_key=True)
        members = _members(annotation)
        if len(members) > 1:
            sections = tuple(bare for member in members if _is_section(bare := _bare(member)))
            or_text = any("text" in _tags(member) for member in members)
            annotation = next(member for member in members if part in _tags(member))
            continue
        annotation, or_text = _bare(annotation), False
        path.append(part)
        if _is_section(annotation):
            section = annotation
            sections = sections if section in sections else (section,)
            field = section.model_fields.get(str(part))
            annotation = field.annotation if field else None
        else:
            arguments = get_args(annotation)
            section, sections, field = None, (), None
            annotation = arguments[1] if get_origin(annotation) is dict else arguments[0]
    ends = tuple(bare for member in _members(annotation) if _is_section(bare := _bare(member)))
    return Place(tuple(path), section, sections if field is None and section else ends, field, or_text=or_text)


# ---- the words ----


def _problem(detail: ErrorDetails, place: Place) -> Problem:
    if place.is_key:
        return Problem(place.path, "is not a name; use letters, digits, - and _ only, and begin with a letter or digit")
    match detail["type"]:
        case "extra_forbidden":
            return Problem(place.path, _unknown_key(place))
        case "missing":
            remedy = _remedy(place)
            return Problem(place.path, f"is missing; {remedy}" if remedy else "is missing")
        case "union_tag_not_found" | "union_tag_invalid":
            return _kind_problem(detail, place)
    what = _what(detail, "text or " if place.or_text else "")
    remedy = "" if detail["type"] == "too_long" else _remedy(place)
    return Problem(place.path, f"{what}; {remedy}" if remedy else what)


def _unknown_key(place: Place) -> str:
    key = str(place.path[-1])
    assert place.section is not None
    allowed = sorted(place.section.model_fields)
    homes = [kind for other in place.sections if key in other.model_fields for kind in _kinds(other)]
    if homes:
        name = "method" if "method" in allowed else "kind"
        return f"belongs to {name}: {any_of(homes)}; remove it, or change {name}"
    return f"there is no such key{did_you_mean(key, allowed)}; the keys here are {', '.join(allowed)}"


def _kind_problem(detail: ErrorDetails, place: Place) -> Problem:
    sections = place.sections
    name = next((name for name in _DISCRIMINATORS if any(name in s.model_fields for s in sections)), "kind")
    kinds = list(dict.fromkeys(kind for section in sections for kind in _kinds(section)))
    value = detail["input"]
    written = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping):
        return Problem(place.path, f"must be a mapping, not {show(value)}; write {name}: {any_of(kinds)} in it")
    if name not in value:
        return Problem((*place.path, name), f"is missing; write {name}: {any_of(kinds)}")
    hint = did_you_mean(str(written), kinds)
    return Problem((*place.path, name), f"{show(written)} is not known{hint}; write {any_of(kinds)}")


def _what(detail: ErrorDetails, text_or: str) -> str:
    context = detail.get("ctx", {})
    shown = show(detail["input"])
    match detail["type"]:
        case "int_type" | "int_parsing" | "int_from_float":
            return f"must be a whole number, not {shown}"
        case "float_type":
            return f"must be a number, not {shown}"
        case "finite_number":
            return f"must be a finite number, not {shown}"
        case "bool_type":
            return f"must be true or false, not {shown}"
        case "string_type" | "path_type":
            return f"must be text, not {shown}"
        case "tuple_type":
            return f"must be {text_or}a list in [ ], not {shown}"
        case "dict_type" | "model_type":
            return f"must be {text_or}a mapping, not {shown}"
        case "literal_error":
            choices = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
            return f"{shown} is not known{did_you_mean(str(detail['input']), choices)}; write {any_of(choices)}"
        case "greater_than":
            return f"must be above {context['gt']:g}, not {shown}"
        case "greater_than_equal":
            return f"must be {context['ge']:g} or more, not {shown}"
        case "less_than":
            return f"must be below {context['lt']:g}, not {shown}"
        case "less_than_equal":
            return f"must be {context['le']:g} or less, not {shown}"
        case "too_long":
            return f"holds {len(detail['input'])} entries, {context['max_length']} is the most; remove the others"
        case "too_short":
            return f"holds {len(detail['input'])} entries, {context['min_length']} is the least"
        case "string_too_short":
            return "must not be empty"
        case "string_pattern_mismatch" if context["pattern"].startswith("^https?") and "@" in str(detail["input"]):
            return "an address holds no name and no password; export the key, and set `key` to the variable's name"
        case "string_pattern_mismatch" if context["pattern"].startswith("^https?"):
            return f"{shown} is not an address; begin it with http:// or https://"
        case "string_pattern_mismatch":
            return f"{shown} cannot be used"
        case _:
            return f"{shown} cannot be used ({detail['msg'].lower()})"


def _remedy(place: Place) -> str:
    """What to write, from the field's examples, its default, or its description."""
    field, key = place.field, place.path[-1] if place.path else ""
    if field is None:
        return ""
    if field.examples:
        return f"write for example {key}: {any_of(map(str, field.examples))}"
    if isinstance(field.default, bool | int | float | str):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        return f"the default is {default!s}"
    return f"write {key}: <{field.description}>" if field.description else ""
