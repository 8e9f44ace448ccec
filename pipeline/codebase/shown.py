"""An example as a person reads it on a terminal."""

from __future__ import annotations

from pipeline.codebase.listing import readable
from pipeline.codebase.types import Example, Room
from teachers.types import RawText

LINES_BEFORE, LINES_AFTER = 16, 8


def shown_example(example: Example, room: Room) -> str:
    """The answer in ⟦ ⟧ in its place: between what stands before and after it, where the prompt has both. What would
    command a terminal is escaped."""
    asked = example.conversation
    prompt = asked.text if isinstance(asked, RawText) else "\n".join(message.content for message in asked.messages)
    front, back = prompt, ""
    if room.fim is not None:
        front, _, back = prompt.partition(room.fim.suffix)
        front, back = front.removeprefix(room.fim.prefix), back.removesuffix(room.fim.middle)
    before, after = front.split("\n"), back.split("\n")
    if len(before) > LINES_BEFORE:
        before = ["…", *before[-LINES_BEFORE:]]
    if len(after) > LINES_AFTER:
        after = [*after[:LINES_AFTER], "…"]
    shown = "\n".join(before) + f"⟦{example.reference}⟧" + "\n".join(after)
    if example.retrieved:
        shown = f"({len(example.retrieved.splitlines())} lines of other files belong to it)\n{shown}"
    return "\n".join(readable(line.expandtabs(4)) for line in shown.split("\n"))
