"""What a chat remembers, and what its commands change."""

from __future__ import annotations

import pytest

from pipeline.chat.session import HELP, Session, is_command, obey, plain
from teachers.types import Chat, Message, RawText

START = Session(temperature=0.0, max_new_tokens=64)


def test_each_hears_its_own_answers() -> None:
    session = START.after("hi", {"student": "ho", "base": "hm"}).after("and?", {"student": "so"})
    assert session.asked == 2
    assert session.conversation("student", "why") == Chat(
        (
            *(Message("user", "hi"), Message("assistant", "ho")),
            *(Message("user", "and?"), Message("assistant", "so")),
            Message("user", "why"),
        )
    )
    assert session.conversation("base", "why") == Chat(
        (Message("user", "hi"), Message("assistant", "hm"), Message("user", "why"))
    ), "who did not answer has not heard it"


def test_system_and_reset() -> None:
    told = obey("/system Be short.", START.after("hi", {"student": "ho"})).session
    assert told.conversation("student", "x") == Chat(
        (Message("system", "Be short."), Message("user", "hi"), Message("assistant", "ho"), Message("user", "x"))
    )
    again = obey("/reset", told).session
    assert again.conversation("student", "x") == Chat((Message("system", "Be short."), Message("user", "x")))
    assert obey("/system", again).session.conversation("student", "x") == Chat((Message("user", "x"),))


def test_raw_text_stands_by_itself() -> None:
    raw = Session(0.0, 64, raw=True).after("def f(", {"student": "x):"})
    assert raw.conversation("student", "def g(") == RawText("def g(")
    outcome = obey("/system Be short.", raw)
    assert outcome.session == raw
    assert "raw text" in outcome.said


@pytest.mark.parametrize(
    ("line", "value"), [("/temperature 0.7", 0.7), ("/temperature 0", 0.0), ("/temperature  2", 2)]
)
def test_temperature(line: str, value: float) -> None:
    assert obey(line, START).session.temperature == value


@pytest.mark.parametrize("line", ["/temperature -1", "/temperature hot", "/temperature nan", "/temperature inf"])
def test_no_temperature(line: str) -> None:
    outcome = obey(line, START)
    assert outcome.session == START
    assert "write /temperature 0" in outcome.said


def test_tokens() -> None:
    assert obey("/tokens 7", START).session.max_new_tokens == 7
    for line in ("/tokens 0", "/tokens -3", "/tokens many", "/tokens ²"):
        assert obey(line, START).session == START
    assert "64" in obey("/tokens", START).said


def test_help_names_every_command_and_quit_ends() -> None:
    said = obey("/help", START).said
    assert all(name in said for name in HELP)
    for name in HELP:
        assert "there is no" not in obey(name.split()[0], START).said
    assert obey("/quit", START).over
    assert not obey("/help", START).over
    assert "/help lists" in obey("/nope", START).said


def test_a_text_may_begin_with_a_slash() -> None:
    assert is_command("/usr")
    assert not is_command("//usr/bin")
    assert plain("//usr/bin") == "/usr/bin"
    assert plain("a/b") == "a/b"
