"""How a task is put: as text that a base model goes on with, or as a conversation with the code in a fence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.codebase.types import Language, Room
from teachers.types import Chat, Conversation, Message, RawText

_TICKS = re.compile(r"`{3,}")


@dataclass(frozen=True)
class Asked:
    """shown: the code, up to where the answer follows in a raw text. tail: what then leads to the answer in a raw
    text. instruction: what is asked of one that chats, who is not shown the tail."""

    instruction: str
    shown: str
    tail: str = ""

    def text(self, room: Room, language: Language | None) -> str:
        """All that the student reads, but for what a chat template puts around it."""
        if not room.as_chat:
            return self.shown + self.tail
        return f"{self.instruction}\n\n{_in_fence(self.shown, language)}"

    def conversation(self, room: Room, language: Language | None) -> Conversation:
        text = self.text(room, language)
        return Chat((Message("user", text),)) if room.as_chat else RawText(text)


def _in_fence(code: str, language: Language | None) -> str:
    """A fence longer than any in the code."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in _TICKS.findall(code))])
    return f"{fence}{language or ''}\n{code}\n{fence}"
