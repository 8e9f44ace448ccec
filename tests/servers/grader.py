"""A grader that never varies, and is wrong only where that is wanted: it reads the parts of a question and compares
answer and reference."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256

_PART = re.compile(r"^<(\w+) ([0-9a-f]+)>\n(.*?)\n</\1 \2>$", re.DOTALL | re.MULTILINE)
_KEYS = ("feedback", "score", "rewrite")
_QUESTIONS = ("user", "text")  # the parts that say what was asked

Said = tuple[str, float, str | None]  # feedback, score, rewrite


def parts_of(material: str) -> dict[str, str]:
    """The named parts of a question. What stands inside a part opens no other."""
    return {match[1]: match[3] for match in _PART.finditer(material)}


@dataclass(frozen=True)
class Weakness:
    """What a weaker grader does not know: a share of the questions in which the pattern `among` is found."""

    share: float = 0.0
    among: str = ""


ALL_KNOWING = Weakness()


def reply_to(
    system: str,
    material: str,
    keys: Collection[str] | None,
    *,
    partial: bool = False,
    weakness: Weakness = ALL_KNOWING,
) -> str:
    """The reply to a question, as JSON. keys: what the schema wants; None: what the instructions name.
    partial: as for `judged`. weakness: as for `said_of`.

    What is no question about an answer gets its own first line back.
    """
    parts = parts_of(material)
    if "answer" not in parts:
        return f"You said: {material.strip().splitlines()[0] if material.strip() else 'nothing'}"
    wanted = keys if keys is not None else [key for key in _KEYS if f'"{key}":' in system]
    said = dict(zip(_KEYS, said_of(parts, weakness, partial=partial), strict=True))
    return json.dumps({key: said[key] for key in _KEYS if key in wanted}, ensure_ascii=False)


def judged(answer: str, reference: str | None, *, partial: bool = False) -> Said:
    """Without a reference nothing is known but whether there is an answer at all.

    partial: an answer of one line that begins right scores as much as it has right before its first mistake, not 0.
    """
    said = answer.strip()
    if reference is None:
        return ("There is nothing to compare it with.", 0.5, None) if said else ("It is empty.", 0.0, None)
    wanted = reference.strip()
    if said == wanted:
        return "Right.", 1.0, None
    *before, last = said.split("\n")
    if before and "\n" not in wanted:  # steps, and then a result
        right = last.strip() == wanted
        return ("Right.", 1.0, None) if right else (f"It ends with {last!r}.", 0.0, "\n".join([*before, wanted]))
    kept = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), min(len(said), len(wanted)))
    score = kept / max(len(said), len(wanted)) if partial else 0.0
    return f"Right for {kept} characters; then {wanted[kept:]!r} should follow.", score, wanted


def said_of(parts: dict[str, str], weakness: Weakness, *, partial: bool = False) -> Said:
    """What a grader says of the answer in `parts`, whoever gave it. Of the questions that it does not know, always the
    same ones, it is unsure about half; of the others it takes a wrong answer for the right one, and judges by that."""
    reference = parts.get("reference")
    question = next((parts[name] for name in _QUESTIONS if name in parts), "")
    drawn = int(sha256(f"{question}\n{reference}".encode()).hexdigest()[:12], 16) / 16**12
    if reference is None or drawn >= weakness.share or not re.search(weakness.among, question):
        return judged(parts["answer"], reference, partial=partial)
    if drawn < weakness.share / 2:
        return "I cannot tell.", 0.5, None
    return judged(parts["answer"], mistaken(reference), partial=partial)


def mistaken(reference: str) -> str:
    """What a weaker grader takes for the answer: it stops one short, or goes on where nothing would be left."""
    wanted = reference.strip()
    return wanted[:-1] or 2 * wanted


def in_prose(reply: str) -> str:
    """The reply of a server that is held to no format: thinking, a fence, words around it."""
    return f"<think>Is it {{right}}? Let me see.</think>Here is my judgment:\n```json\n{reply}\n```\nI hope it helps!"


def text_of(content: object) -> str:
    """A message's content: a text or a list of parts."""
    if isinstance(content, Iterable) and not isinstance(content, str):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
