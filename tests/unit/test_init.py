"""`tutelage init`: every recipe that it can write is valid, every key has a comment, nothing is overwritten."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import CallError
from pipeline.first_recipe import (
    Answers,
    DataKind,
    Machine,
    TeacherKind,
    Teaching,
    recipe_text,
    require_possible,
    usual_student,
    usual_teacher,
)
from pipeline.init_command import defaults, init
from pipeline.privacy import examine_all
from pipeline.recipe_file import load_recipe


def combinations() -> Iterator[Answers]:
    """Every set of kinds of teachers, two of one kind too, on every kind of data and machine."""
    kinds = get_args(TeacherKind)
    sets = [each for count in range(1, len(kinds) + 1) for each in itertools.combinations(kinds, count)]
    for data, machine in itertools.product(get_args(DataKind), get_args(Machine)):
        for chosen in [*sets, ("model", "model"), ("server", "chat", "chat")]:
            teachers = tuple(Teaching(kind, usual_teacher(kind, data, machine)) for kind in chosen)
            where = "our repo" if data == "code" else "openai/gsm8k" if machine != "cpu" else "./questions.jsonl"
            yield Answers(usual_student(data, machine), teachers, data, where, machine)


def possible(answers: Answers) -> bool:
    return not (answers.data == "code" and any(teacher.kind == "chat" for teacher in answers.teachers))


def test_what_does_not_fit_together_is_refused() -> None:
    refused = [answers for answers in combinations() if not possible(answers)]
    assert refused
    for answers in refused:
        with pytest.raises(CallError, match=r"a codebase is private.*use a teacher of kind"):
            require_possible(answers)


@pytest.mark.parametrize("answers", [each for each in combinations() if possible(each)], ids=lambda answers: "")
def test_every_recipe_is_valid_lawful_and_commented(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("our repo").mkdir()
    Path("questions.jsonl").write_text('{"question": "1+1", "answer": "2"}\n', encoding="utf-8")
    text = recipe_text(answers, Path("mine.yaml"))
    Path("mine.yaml").write_text(text, encoding="utf-8")
    loaded = load_recipe(Path("mine.yaml"))
    assert examine_all(loaded).problems == ()
    assert len(loaded.recipe.teachers) == len(answers.teachers)
    keys = [line for line in text.splitlines() if re.match(r" *[\w]+:", line)]
    names = {f"{name}:" for name in (*loaded.recipe.teachers, *loaded.recipe.data.sources)}
    assert [line for line in keys if "  # " not in line and line.strip() not in names] == []
    assert max(map(len, text.splitlines())) <= 120


def test_check_accepts_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "first.yaml", "--yes", "--teacher", "model", "--teacher", "chat"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "first.yaml is written; next: tutelage check first.yaml\n"
    checked = CliRunner().invoke(app, ["check", "first.yaml", "--offline"])
    assert (checked.exit_code, "no problem found" in checked.stdout) == (0, True), checked.output


def test_questions_have_defaults_and_options_are_not_asked(tmp_path: Path) -> None:
    asked: list[str] = []
    replies = iter(["cpu", "dataset", "our.jsonl", "server", "big/model", "self", "none", "small/model"])

    def ask(question: str, usual: str) -> str:
        asked.append(question)
        return next(replies)

    text = init(tmp_path / "a.yaml", ask, student=None, teachers=(), data=None, machine=None)
    assert next(replies, None) is None
    assert all(said in text for said in ("big/model", "small/model", "our.jsonl", "kind: self", "dtype: float32"))
    asked.clear()
    given = {"student": "s", "teachers": ["model=m"], "data": "dataset=d", "machine": "gpu"}
    init(tmp_path / "b.yaml", ask, **given)  # type: ignore[arg-type]
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["there.yaml"], "not overwritten; name another file"),
        (["folder"], "is a directory; name a file, such as folder/recipe.yaml"),
        (["mine.txt"], "write mine.yaml"),
        (["a.yaml", "--teacher", "oracle"], "write model=NAME, server=NAME, chat=NAME or self"),
        (["a.yaml", "--data", "web"], "write dataset=NAME, dataset=FILE.jsonl or code=FOLDER"),
        (["a.yaml", "--machine", "phone"], "write one of cpu, gpu, gpus"),
        (["a.yaml", "--teacher", "chat=nobody"], "name one that it does"),
        (["a.yaml", *["--teacher", "self"] * 2], "leave the other `self` out"),
        (["a.yaml", *["--teacher", "model"] * 11], "leave some out"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text("mine", encoding="utf-8")
    Path("folder").mkdir()
    done = CliRunner().invoke(app, ["init", *arguments, "--yes"])
    assert done.exit_code == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert Path("there.yaml").read_text(encoding="utf-8") == "mine"
    assert not Path("a.yaml").exists()


def test_without_a_question_defaults_make_a_recipe(tmp_path: Path) -> None:
    text = init(tmp_path / "a.yaml", defaults, student=None, teachers=(), data=None, machine=None)
    assert "Qwen/Qwen3-1.7B" in text
    assert "openai/gsm8k" in text
