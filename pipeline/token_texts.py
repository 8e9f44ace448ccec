"""What tokens are as text: each token of a completion, and an entry of the vocabulary by itself.

By the tokenizer's own decoder, so for any tokenizer. A character may lie across tokens, some decoders drop the space
that a text begins with, others clean up: so a token's text is what the decoded text grew by, never its entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from operator import eq

Decode = Callable[[Sequence[int]], str]

_WINDOW = 16  # tokens that are decoded together: all from the first on would take quadratic time


def token_texts(ids: Sequence[int], decode: Decode) -> list[str]:
    """One text per token; joined they are exactly `decode(ids)`.

    A character that lies across tokens belongs to the last of them; the others have an empty text, or what they have
    before it.
    """
    whole = decode(ids)
    ends: list[int] = []  # in `whole`, of each token's text
    start, base = 0, 0  # the window's first token, and where its text begins
    whole_characters = 0  # the last token so far that ends with one, counted from 1
    for count in range(1, len(ids) + 1):
        text = decode(ids[start:count])
        common = _common(text, whole, base)
        ends.append(max(base + common, ends[-1] if ends else 0))
        if common < len(text):
            continue
        if count - start > _WINDOW:
            # The next window begins one token early: what a decoder does to the first token of a text is done to that.
            head = decode(ids[whole_characters:count])
            if whole[: base + len(text)].endswith(head):
                start, base = whole_characters, base + len(text) - len(head)
        whole_characters = count
    if ends:
        ends[-1] = len(whole)
    return [whole[first:last] for first, last in zip([0, *ends], ends, strict=False)]


def entry_text(token: int, decode: Decode) -> str:
    """An entry as it reads inside a text: behind itself, since a decoder may drop a space in front."""
    return decode((token, token))[len(decode((token,))) :]


def _common(text: str, whole: str, base: int) -> int:
    """How far `text` is what stands in `whole` from `base` on."""
    if whole.startswith(text, base):
        return len(text)
    return sum(1 for _ in takewhile(bool, map(eq, text, whole[base : base + len(text)])))
