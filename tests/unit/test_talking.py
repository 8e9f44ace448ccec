"""A remote teacher that answers a person: where its words go, what they cost, and what goes wrong."""

from __future__ import annotations

from typing import Any

import pytest

from teachers.catalog import catalog
from teachers.config import ChatTeacher, ServedTeacher
from teachers.errors import TeacherError
from teachers.guard import Guard
from teachers.talking import Line, Spoken, line_of, most, talk
from teachers.types import Chat, Message, RawText, TeacherFailure, Usage
from tests.servers.talker import Talker

HELLO = Chat((Message("user", "héllo"),))


def said(line: Line, conversation: Chat | RawText = HELLO, **settings: Any) -> tuple[Spoken | TeacherFailure, str]:
    heard: list[str] = []
    wanted = {"tokens": 8, "temperature": 0.0, "seconds": 30.0, **settings}
    return talk(line, conversation, say=heard.append, **wanted), "".join(heard)


def line(url: str, *, private: bool = False, guard: Guard | None = None, **more: Any) -> Line:
    return Line("critic", "loud", url, None, guard or Guard(), private, **more)


def test_a_conversation_and_raw_text() -> None:
    with Talker() as server:
        spoken, heard = said(line(server.url, options={"top_k": 3}))
        assert spoken == Spoken("HÉLLO", "end", Usage(1000, 0, 2000, 0))
        assert heard == "HÉLLO"
        raw, _ = said(line(server.url), RawText("def f("), temperature=0.5)
        assert isinstance(raw, Spoken)
        assert raw.text == "DEF F("
    chat, completion = server.asked
    assert (chat["path"], chat["top_k"], chat["temperature"]) == ("/v1/chat/completions", 3, 0)
    assert (completion["path"], completion["prompt"], completion["temperature"]) == ("/v1/completions", "def f(", 0.5)


def test_where_nobody_counts_the_most_is_charged() -> None:
    with Talker(counts=False) as server:
        spoken, _ = said(line(server.url))
    assert isinstance(spoken, Spoken)
    limit = most(HELLO, 8)
    assert spoken.usage == Usage(limit.input, 0, len("HÉLLO".encode()), 0)
    assert limit.input > len("héllo".encode())


def test_what_is_private_is_not_sent_where_it_may_not_go() -> None:
    """Known at the last moment, whoever has asked before; nothing listens there, so a try would be `unavailable`."""
    refused, heard = said(line("http://192.0.2.7:9/v1", private=True))
    assert isinstance(refused, TeacherFailure)
    assert (refused.reason, heard) == ("private", "")
    assert "privacy.allowed" in refused.detail
    allowed, _ = said(line("http://192.0.2.7:9/v1", private=True, guard=Guard(("192.0.2.7",))), seconds=0.2)
    assert isinstance(allowed, TeacherFailure)
    assert allowed.reason != "private"
    with Talker() as server:
        assert isinstance(said(line(server.url, private=True))[0], Spoken)


@pytest.mark.parametrize(("status", "reason"), [(401, "unauthorised"), (404, "not_found"), (503, "unavailable")])
def test_refusals_are_failures(status: int, reason: str) -> None:
    with Talker(status=status) as server:
        refused, _ = said(Line("critic", "loud", server.url, "sk-secret-1", Guard(), False))
    assert isinstance(refused, TeacherFailure)
    assert refused.reason == reason
    assert "sk-secret-1" not in refused.detail
    assert len(server.asked) == 1


def test_the_catalog_knows_addresses_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    name, entry = next(iter(catalog().items()))
    monkeypatch.setenv(entry.key, "sk-here")
    found = line_of("a", ChatTeacher(kind="chat", model=name), Guard(), private=True)
    assert (found.model, found.url, found.key, found.private) == (entry.model, entry.url, "sk-here", True)
    monkeypatch.delenv(entry.key)
    with pytest.raises(TeacherError, match=f"{entry.key} is not set"):
        line_of("a", ChatTeacher(kind="chat", model=name), Guard(), private=False)
    with pytest.raises(TeacherError, match="not in the catalog; name its server's url"):
        line_of("a", ChatTeacher(kind="chat", model="nobody"), Guard(), private=False)
    served = ServedTeacher(kind="served", url=("http://10.0.0.5:1/v1", "http://10.0.0.6:1/v1"), model="big")
    assert line_of("a", served, Guard(), private=False).url == "http://10.0.0.5:1/v1"
    assert not line_of("a", served, Guard(), private=False).here
