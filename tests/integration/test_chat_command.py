"""`tutelage chat`: a run's student, its base, teachers here and on servers; by a person, by a pipe, once."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from pipeline.chat.screen import NARROWEST, board, harmless
from pipeline.chat.speakers import Said
from pipeline.cli import app
from tests.exported import QUESTIONS, answered, save_base, taught
from tests.runs import command, environment
from tests.servers.talker import Talker

FIRST, ANSWER = next(iter(QUESTIONS.items()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full run that has learned the answers; a student of LoRA over it has learned others."""
    root = tmp_path_factory.mktemp("chat")
    return taught(root / "full", save_base(root / "base"), {})


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat-lora")
    return taught(root / "lora", str(base / "model"), {"student.tune": "lora"}, shift=1)


def with_teachers(run: Path, folder: Path, **teachers: Any) -> Path:
    """A copy of a run, whose recipe has these teachers."""
    from ruamel.yaml import YAML

    subprocess.run(["cp", "-r", str(run), str(folder)], check=True)
    recipe = YAML(typ="safe").load((folder / "recipe.yaml").read_text())
    recipe |= {"method": "distill", "teachers": teachers, "routing": {"kind": "all"}, "objective": {}}
    recipe["objective"]["grades"] = {"baseline": "running"}
    for key in ("answers", "average", "tokens"):
        recipe.pop(key, None)
    with (folder / "recipe.yaml").open("w") as file:
        YAML().dump(recipe, file)
    return folder


def chat(run: Path, *arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, ["chat", str(run), *arguments], input=typed)


def failed(run: Path, *arguments: str, typed: str | None = None) -> str:
    result = chat(run, *arguments, typed=typed)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr.strip().splitlines()[-1]


# ---- who answers ----


def test_once_is_the_answer_and_nothing_else(base: Path) -> None:
    result = chat(base, "--once", FIRST)
    assert (result.exit_code, result.stdout) == (0, f"{ANSWER}\n")


def test_lines_of_a_pipe_are_answered_in_turn_and_remembered(base: Path) -> None:
    known = [asked.question for asked in answered(base)]
    result = chat(base, typed=f"{known[0]}\n\n/reset\n{known[1]}\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [QUESTIONS[known[0]], QUESTIONS[known[1]]]


def test_what_was_said_is_remembered_until_reset(base: Path) -> None:
    """By its length: the context has 256 tokens, and a token is a character."""
    first, second = "x" * 120, "y" * 120
    assert "its context has 256; /reset begins a new one" in failed(base, typed=f"{first}\n{second}\n")
    assert chat(base, typed=f"{first}\n/reset\n{second}\n").exit_code == 0


def test_the_base_beside_the_student(base: Path, lora: Path) -> None:
    (asked, *_) = answered(lora, shift=1)
    before = QUESTIONS[asked.question]
    said = chat(lora, "--against", "base", "--once", asked.question).stdout
    assert [part.split("\n")[1] for part in said.strip().split("\n\n")] == [asked.text, before]
    full = chat(base, "--against", "base", "--once", FIRST).stdout
    student, untaught = (part.partition("\n")[2] for part in full.strip().split("\n\n", 1))
    assert student == ANSWER
    assert untaught != ANSWER


def test_teachers_in_this_process(base: Path, lora: Path, tmp_path: Path) -> None:
    """A whole model, and an adapter over the student's own base, each as itself whoever was loaded before."""
    (asked, *_) = answered(lora, shift=1)
    teachers = {
        "whole": {"kind": "transformers", "model": str(base / "model"), "dtype": "float32"},
        "adapted": {
            "kind": "adapter",
            "base": str(base / "model"),
            "adapter": str(lora / "adapter"),
            "dtype": "float32",
        },
    }
    run = with_teachers(lora, tmp_path / "run", **teachers)
    names = ["adapted", "base", "whole", "base"]
    said = chat(run, *(word for name in names for word in ("--against", name)), "--once", asked.question).stdout
    found = dict(part.split("\n")[:2] for part in said.strip().split("\n\n"))
    other = QUESTIONS[asked.question]
    assert found == {"student": asked.text, "adapted": asked.text, "base": other, "whole": other}
    assert list(found) == ["student", "adapted", "base", "whole"]


# ---- on servers ----


@pytest.fixture
def talker() -> Iterator[Talker]:
    with Talker() as server:
        yield server


def remote(server: Talker, **more: Any) -> dict[str, Any]:
    return {"kind": "chat", "url": server.url, "model": "loud", **more}


def test_a_remote_teacher_is_asked_by_name_and_costs(base: Path, talker: Talker, tmp_path: Path) -> None:
    price = {"input": 1.0, "output": 2.0}
    run = with_teachers(base, tmp_path / "run", critic=remote(talker, price=price, system="Be loud."))
    assert chat(run, "--once", FIRST).exit_code == 0
    assert talker.asked == [], "nobody is asked who is not named"
    result = chat(run, "--against", "critic", typed=f"{FIRST}\nand now?\n")
    assert result.exit_code == 0, result.output
    assert FIRST.upper() in result.stdout
    assert "$1.00 a million tokens in, $2.00 out" in result.stderr
    assert "in all $0.01" in result.stderr  # 2 · (1,000 · $1 + 2,000 · $2) / 1,000,000
    first, second = talker.asked
    assert first["messages"] == [{"role": "system", "content": "Be loud."}, {"role": "user", "content": FIRST}]
    assert [turn["role"] for turn in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][2]["content"] == FIRST.upper(), "its own answer, not the student's"


def test_a_price_that_nobody_knows_is_said(base: Path, talker: Talker, tmp_path: Path) -> None:
    run = with_teachers(base, tmp_path / "run", critic=remote(talker))
    assert "nothing is charged that is known" in chat(run, "--against", "critic", "--once", "x").stderr


def test_a_server_with_manners_of_its_own(base: Path, tmp_path: Path) -> None:
    with Talker(picky=True) as server:
        run = with_teachers(base, tmp_path / "run", critic=remote(server))
        assert "HI" in chat(run, "--against", "critic", "--once", "hi").stdout
        assert [("max_tokens" in asked, "max_completion_tokens" in asked) for asked in server.asked] == [
            *((True, False), (False, True)),
        ]


def test_a_server_that_fails_is_told_and_the_student_answers(base: Path, tmp_path: Path) -> None:
    with Talker(status=500) as server:
        run = with_teachers(base, tmp_path / "run", critic=remote(server))
        result = chat(run, "--against", "critic", "--once", FIRST)
        assert result.exit_code == 1
        assert ANSWER in result.stdout
        assert result.stderr.strip().splitlines()[-1].startswith("critic: unavailable: HTTP 500")


def test_a_key_that_is_not_set(base: Path, talker: Talker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_teachers(base, tmp_path / "run", critic=remote(talker, key="A_KEY"))
    monkeypatch.delenv("A_KEY", raising=False)
    assert "A_KEY is not set" in failed(run, "--against", "critic", "--once", "x")
    monkeypatch.setenv("A_KEY", "sk-secret-123")
    assert chat(run, "--against", "critic", "--once", "x").exit_code == 0
    assert talker.asked[-1]["key"] == "Bearer sk-secret-123"


def test_a_private_run_asks_nobody_who_is_not_allowed(base: Path, talker: Talker, tmp_path: Path) -> None:
    far = {"kind": "chat", "url": "https://api.example/v1", "model": "loud"}
    run = with_teachers(base, tmp_path / "run", far=far, near=remote(talker))
    assert "far: " in chat(run, "--against", "far", "--once", "x").stderr  # not private: it is tried
    (run / "tutelage.json").write_text('{"private": true}')
    line = failed(run, "--against", "far", "--once", "x")
    assert "the run is private, and api.example is not this machine" in line
    assert "privacy.allowed=[api.example]" in line
    assert chat(run, "--against", "near", "--once", "x").exit_code == 0


# ---- what a user can get wrong ----


def test_mistakes_are_one_line(base: Path, tmp_path: Path) -> None:
    assert "no such folder" in failed(tmp_path / "nothing", "--once", "x")
    assert "step 7 is not kept; kept: 0, 60" in failed(base, "--step", "7", "--once", "x")
    assert "there is base" in failed(base, "--against", "ada", "--once", "x")
    self_taught = with_teachers(base, tmp_path / "run", me={"kind": "self"})
    assert "is the student itself" in failed(self_taught, "--against", "me", "--once", "x")
    assert "its context has 256; /reset" in failed(base, "--once", "x" * 300)
    assert "no tokens" not in chat(base, typed="\n\n").output


def test_an_answer_is_cut_where_the_context_ends(base: Path) -> None:
    assert chat(base, "--once", "x" * 200, "--max-new-tokens", "100000", "--temperature", "2").exit_code == 0


# ---- raw text ----


def test_without_a_chat_template_prompts_are_raw_text(tmp_path: Path) -> None:
    model = save_base(tmp_path / "base")
    for name in ("chat_template.jinja",):
        (tmp_path / "base" / name).unlink()
    settings = {"data.sources.by_heart.as_chat": False, "training.steps": 2, "training.checkpoint_every": 2}
    run = taught(tmp_path / "raw", model, settings)
    first = chat(run, typed="def f(\ndef f(\n")
    assert first.exit_code == 0, first.output
    whole = first.stdout
    assert whole == 2 * whole[: len(whole) // 2], "each prompt stands by itself"
    assert "raw text" in chat(run, typed="/system x\n").stderr


# ---- a person at a terminal ----


def test_a_person_talks(lora: Path) -> None:
    """A real terminal: prompts, commands, answers one below the other, Ctrl-D."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment(), TERM="dumb", COLUMNS="60")
        os.execv(sys.executable, command("chat", str(lora), "--against", "base"))
    seen = ""

    def until(*wanted: str) -> None:
        nonlocal seen
        start, end = len(seen), time.monotonic() + 120
        while not all(words in seen[start:] for words in wanted):
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")

    def type_(line: str) -> None:
        os.write(terminal, line.encode())

    until("/help lists the commands", "> ")
    type_("/temperature 0.5\n")
    until("the temperature is 0.5", "> ")
    type_("/temperature 0\n")
    until("the temperature is 0\r", "> ")
    (asked, *_) = answered(lora, shift=1)
    type_(asked.question + "\n")
    until("student", asked.text, "base", QUESTIONS[asked.question], "tokens in", "> ")
    type_("\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


# ---- how it is shown ----


def show(width: int, names: Sequence[str], *, terminal: bool = True) -> str:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    with board(console, names) as shown:
        for name in names:
            shown.begin(name)
            for piece in (f"{name} says\n", "[bold]this[/bold] ", "\x1b[31mand that"):
                shown.text(name, piece)
            shown.end(name, Said("", 12, 2.0, 0.5, "length"))
    return out.getvalue()


def test_side_by_side_where_there_is_room() -> None:
    wide = show(2 * NARROWEST, ["student", "base"]).splitlines()
    assert any("student says" in line and "base says" in line for line in wide)
    narrow = show(2 * NARROWEST - 1, ["student", "base"]).splitlines()
    assert not any("student says" in line and "base says" in line for line in narrow)


@pytest.mark.parametrize("width", [30, 2 * NARROWEST])
def test_a_models_words_are_shown_and_not_obeyed(width: int) -> None:
    text = show(width, ["student", "base"])
    assert text.count("[bold]this") >= 2
    assert "\x1b[31m" not in text
    assert "\\x1b[31mand" in text
    assert harmless("a\r\nb\tc\x07") == "a\nb\tc\\x07"


def test_blank_lines_at_the_end_are_not_shown() -> None:
    out = StringIO()
    with board(Console(file=out, width=80), ["student"]) as shown:
        shown.begin("student")
        for piece in ("a\n", "\n", "  b", "\n\n", "\n"):
            shown.text("student", piece)
        shown.end("student", Said("a\n\n  b\n\n\n", 9, 1.0, 0.5, "length"))
    assert out.getvalue() == "a\n\n  b\n"


def test_numbers_are_for_people() -> None:
    assert "12 tokens in 2.00 s, 6 a second, the first after 0.50 s, cut off" in show(100, ["student"])
    assert show(100, ["student"], terminal=False) == "student says\n[bold]this[/bold] \\x1b[31mand that\n"
