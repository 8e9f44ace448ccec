"""`tutelage init`: a few questions, and a recipe with a comment at every key. What options answer is not asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from pipeline.errors import CallError
from pipeline.files import write_text
from pipeline.first_recipe import (
    MACHINES,
    USUAL_DATA,
    Answers,
    DataKind,
    Machine,
    TeacherKind,
    data_of,
    recipe_text,
    teaching,
    usual_student,
    usual_teacher,
)

Ask = Callable[[str, str], str]  # a question, the answer that Enter gives -> the answer


def init(
    file: Path, ask: Ask, *, student: str | None, teachers: Sequence[str], data: str | None, machine: str | None
) -> str:
    """Writes a recipe to `file`, and returns its text. Raises CallError: the file is there, or what was answered is
    not possible; nothing is written then."""
    require_new(file)
    chosen = _machine(machine or ask(f"machine: {_choices(MACHINES)}", "gpu"))
    kind, where = data_of(data or _data(ask))
    named = teachers or _teachers(ask, kind, chosen)
    model = student or ask("student, a name on the hub or a folder", usual_student(kind, chosen))
    answers = Answers(model, tuple(teaching(each, kind, chosen) for each in named), kind, where, chosen)
    text = recipe_text(answers, file)
    write_text(file, text)
    return text


def require_new(file: Path) -> None:
    """Raises CallError where a recipe would be overwritten, or the place is none for one."""
    if file.is_dir():
        raise CallError(f"{file} is a directory; name a file, such as {file / 'recipe.yaml'}")
    if file.exists():
        raise CallError(f"{file} is there already and is not overwritten; name another file: tutelage init FILE")
    if file.suffix not in (".yaml", ".yml"):
        raise CallError(f"{file}: a recipe's name ends in .yaml; write {file.with_suffix('.yaml')}")


def defaults(_question: str, default: str) -> str:
    """Answers every question by its default: for scripts."""
    return default


def _choices(names: dict[str, str]) -> str:
    return "; ".join(f"{name} ({says})" for name, says in names.items())


def _machine(text: str) -> Machine:
    for known in get_args(Machine):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise CallError(f"--machine {text}: no such machine; write one of {', '.join(MACHINES)}")


def _data(ask: Ask) -> str:
    kind = ask("data: dataset (questions, from the hub or a file); code (a repository)", "dataset")
    if kind not in get_args(DataKind):
        return kind  # which is refused
    return f"{kind}={ask('its name or file' if kind == 'dataset' else 'its folder', USUAL_DATA[kind])}"


def _teachers(ask: Ask, data: DataKind, machine: Machine) -> list[str]:
    found: list[str] = []
    while True:
        kinds = "model (in this process); server (vLLM, SGLang); chat (hosted); self (the student, shown the answer)"
        kind = ask(
            f"teacher {len(found) + 1}: {kinds}{'; none (enough)' if found else ''}", "none" if found else "model"
        )
        if kind == "none" and found:
            return found
        if kind == "self" or kind not in get_args(TeacherKind):
            found.append(kind)
        else:
            found.append(f"{kind}={ask('its model', usual_teacher(kind, data, machine))}")  # type: ignore[arg-type]
        if kind not in get_args(TeacherKind):
            return found  # which is refused
