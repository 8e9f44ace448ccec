"""What the tokens of one tokenizer are in bytes, and text cut into its tokens without losing or adding any.

Two tokenizers have nothing in common but the bytes that their tokens stand for, so these have to be exact: every
entry is held against the tokenizer's own decoder when it is read, every text that is cut against the bytes of its
tokens. Known are byte-level BPE and what sentencepiece trains (▁ for a space, <0xNN> for a byte), with any
pre-tokenizer; a tokenizer that drops or changes text (lower case, WordPiece) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from teachers.errors import TeacherError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Integers = NDArray[np.int64]

_BYTE_ENTRY = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What decoders do to the first or the last token of a text only, or to none: nothing that belongs to an entry.
_NO_SPELLING = {"Fuse", "Strip"}


@dataclass(frozen=True, eq=False)
class Pieces:
    """The entries of a tokenizer, in bytes.

    entries: by id; an id that the tokenizer does not use, and a special token, stand for no text: b"".
    lengths (V,): of the entries. special: names of special tokens by id; they are never text.
    fallback: entries like <0x0A>, which stand for one byte of what has no entry of its own.
    byte_ids: the entry for each single byte that has one. encoder: cuts text; no special token comes out of it.
    marks: what entries have for a space, and a text therefore cannot have for itself.
    """

    entries: tuple[bytes, ...]
    lengths: Integers
    special: dict[int, str]
    fallback: frozenset[int]
    byte_ids: dict[int, int]
    encoder: Tokenizer
    marks: tuple[bytes, ...]

    def text(self, token_ids: Sequence[int]) -> bytes:
        """The bytes that these tokens stand for, one after the other."""
        return b"".join(map(self.entries.__getitem__, token_ids))


def pieces(tokenizer: PreTrainedTokenizerBase, *, name: str) -> Pieces:
    """The entries of a tokenizer, proven. `name` is whose it is, in messages.

    Raises:
        TeacherError: not a fast tokenizer, or one whose entries are not exact bytes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TeacherError(
            f"{name}: {type(tokenizer).__name__} does not say which bytes its tokens stand for; "
            "use a model with a tokenizer.json"
        )
    spec = json.loads(backend.to_str())
    spelling = _spelling(spec, name)
    added = tokenizer.added_tokens_decoder
    special = {index: token.content for index, token in added.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    vocabulary = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
    entries = [b""] * (max(vocabulary) + 1)
    fallback: set[int] = set()
    for index, token in vocabulary.items():
        if index in special:
            continue
        # Tokens that were added are found in the text as they are written, whatever the alphabet of the others.
        entries[index] = token.encode() if index in added else spelling.bytes_of(token)
        if spelling.fallback and index not in added and _BYTE_ENTRY.fullmatch(token):
            fallback.add(index)
    _prove(backend, entries, fallback, special.keys() | added.keys(), name)
    single: dict[int, int] = {}
    for index in sorted(range(len(entries)), key=lambda index: index not in fallback):
        if len(entries[index]) == 1:
            single.setdefault(entries[index][0], index)
    return Pieces(
        entries=tuple(entries),
        lengths=np.fromiter(map(len, entries), dtype=np.int64, count=len(entries)),
        special=special,
        fallback=frozenset(fallback),
        byte_ids=single,
        encoder=_plain_encoder(spec, special),
        marks=spelling.marks,
    )


# ---- entries to bytes ----


class _Spelling(NamedTuple):
    """How entries are written. fallback: <0xNN> is a byte. marks: as in `Pieces`."""

    bytes_of: Callable[[str], bytes]
    fallback: bool
    marks: tuple[bytes, ...]


def _spelling(spec: dict[str, Any], name: str) -> _Spelling:
    """Read from the decoder, which is what makes text of entries."""
    parts = _flat(spec["decoder"], "decoders")
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"]:
        return _Spelling(_byte_level, fallback=False, marks=())
    replaced: list[tuple[str, str]] = []
    for part in parts:
        if part["type"] == "Metaspace":
            replaced.append((part["replacement"], " "))
        elif part["type"] == "Replace" and "String" in part["pattern"]:
            replaced.append((part["pattern"]["String"], part["content"]))
        elif part["type"] not in {"ByteFallback", *_NO_SPELLING}:
            raise _unknown(name, part["type"])
    if not parts:
        raise _unknown(name, "none")
    fallback = "ByteFallback" in kinds

    def bytes_of(token: str) -> bytes:
        if fallback and (byte := _BYTE_ENTRY.fullmatch(token)):
            return bytes.fromhex(byte[1])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return _Spelling(bytes_of, fallback, tuple(old.encode() for old, _ in replaced))


def _unknown(name: str, decoder: str) -> TeacherError:
    return TeacherError(
        f"{name}: its tokenizer's decoder ({decoder}) does not say which bytes a token stands for; "
        "use a teacher with a byte-level or sentencepiece tokenizer"
    )


def _flat(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """A part of a tokenizer.json, sequences taken apart."""
    if part is None:
        return []
    return [inner for one in part[members] for inner in _flat(one, members)] if part["type"] == "Sequence" else [part]


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: what can be printed stands for itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    alphabet = _byte_alphabet()
    if all(letter in alphabet for letter in token):
        return bytes(alphabet[letter] for letter in token)
    return token.encode()


def _prove(backend: Tokenizer, entries: list[bytes], fallback: set[int], skipped: set[int], name: str) -> None:
    """Every entry behind a letter decodes to the letter and its own bytes; half a character to a mark for it.

    Behind a letter, because decoders treat the first token of a text differently.
    """
    letters = (index for index, entry in enumerate(entries) if len(entry) == 1 and entry.isalpha())
    letter = next((index for index in letters if index not in fallback), None)
    if letter is None:
        raise TeacherError(f"{name}: its tokenizer has no entry for a single letter; use a teacher with another one")
    asked = [index for index, entry in enumerate(entries) if entry and index not in skipped]
    found = backend.decode_batch([[letter, index] for index in asked], skip_special_tokens=False)
    first = entries[letter].decode()
    for index, text in zip(asked, found, strict=True):
        if _marks(text) != _marks(first + entries[index].decode(errors="replace")):
            raise TeacherError(
                f"{name}: its tokenizer writes {backend.id_to_token(index)!r} ({index}) as {text[1:]!r}, which are not "
                "the bytes of the entry; use a teacher with a byte-level or sentencepiece tokenizer"
            )


def _marks(text: str) -> str:
    """Decoders differ in how many marks they write for bytes that are no character."""
    return re.sub("\ufffd+", "\ufffd", text)


# ---- text to tokens ----


def _plain_encoder(spec: dict[str, Any], special: dict[int, str]) -> Tokenizer:
    """The tokenizer without what changes text: a space in front, Unicode's normal forms, special tokens, templates.

    Special tokens keep their ids under names that no text has, so that a text which spells one stays text.
    """
    hidden = {token: f"\U0010fffe{index}\U0010ffff" for index, token in special.items()}
    plain = spec | {"post_processor": None, "truncation": None, "padding": None}
    plain["normalizer"] = {
        "type": "Sequence",
        "normalizers": [part for part in _flat(spec["normalizer"], "normalizers") if _keeps_bytes(part)],
    }
    plain["pre_tokenizer"] = _without_prefix(spec["pre_tokenizer"])
    plain["added_tokens"] = [
        token | {"content": hidden.get(token["content"], token["content"]), "lstrip": False, "rstrip": False}
        for token in spec["added_tokens"]
    ]
    plain["model"] = _renamed(spec["model"], hidden)
    return Tokenizer.from_str(json.dumps(plain))


def _keeps_bytes(normalizer: dict[str, Any]) -> bool:
    """A space to ▁ and bytes to letters can be undone; normal forms and a ▁ put in front cannot."""
    kind: str = normalizer["type"]
    return kind == "ByteLevel" or (kind == "Replace" and normalizer["pattern"] == {"String": " "})


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None:
        return None
    if part["type"] == "Sequence":
        return part | {"pretokenizers": [_without_prefix(one) for one in part["pretokenizers"]]}
    if part["type"] == "ByteLevel":
        return part | {"add_prefix_space": False}
    if part["type"] == "Metaspace":
        return part | {"prepend_scheme": "never"}
    return part


def _renamed(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Unigram and whole-word look-ups would find a special token's name in a text."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return model | {"vocab": [[names.get(token, token), score] for token, score in vocabulary]}
    renamed = {names.get(token, token): index for token, index in vocabulary.items()}
    unknown = model.get("unk_token")
    return model | {"vocab": renamed, "unk_token": None if unknown is None else names.get(unknown, unknown)}


def encode(vocabulary: Pieces, texts: Sequence[bytes]) -> list[list[int] | None]:
    """The tokens of each text, whose bytes are exactly the text's; None where this tokenizer cannot write it.

    Bytes that are no UTF-8, as of an answer that was cut off inside a character, become tokens of single bytes; so
    does a ▁ in the text.
    """
    cuts = [_parts(text, vocabulary.marks) for text in texts]
    encoded = iter(
        vocabulary.encoder.encode_batch_fast(
            [part for cut in cuts for part in cut if isinstance(part, str)], add_special_tokens=False
        )
    )
    found: list[list[int] | None] = []
    for text, cut in zip(texts, cuts, strict=True):
        ids: list[int] = []
        for part in cut:
            # A byte without a token is left out here, and so found by the comparison below.
            ids += next(encoded).ids if isinstance(part, str) else _byte_token(vocabulary, part)
        found.append(ids if vocabulary.text(ids) == text else None)
    return found


def _byte_token(vocabulary: Pieces, byte: int) -> Sequence[int]:
    return (vocabulary.byte_ids[byte],) if byte in vocabulary.byte_ids else ()


def _parts(text: bytes, marks: Sequence[bytes]) -> list[str | int]:
    """Stretches that the encoder takes, and single bytes."""
    if not marks:
        return _valid_parts(text)
    parts: list[str | int] = []
    for place, stretch in enumerate(re.split(b"(%s)" % b"|".join(map(re.escape, marks)), text)):
        parts += stretch if place % 2 else _valid_parts(stretch)
    return parts


def _valid_parts(text: bytes) -> list[str | int]:
    """Stretches of UTF-8, and single bytes that belong to none."""
    parts: list[str | int] = []
    while text:
        try:
            parts.append(text.decode())
            break
        except UnicodeDecodeError as error:
            if error.start:
                parts.append(text[: error.start].decode())
            parts += text[error.start : error.end]
            text = text[error.end :]
    return parts


# ---- spans ----


def match(student: Integers, teacher: Integers) -> tuple[Integers, Integers]:
    """Where a token of the one is a token of the other, byte for byte: indices into both, ascending, in pairs.

    student (N,), teacher (M,): lengths in bytes of the tokens of one text. A pair begins and ends at the same byte, so
    that what stands before it is the same text for both. A token without bytes is in a pair only where it is the
    first of both.
    """
    ends, other_ends = student.cumsum(), teacher.cumsum()
    place = np.searchsorted(other_ends, ends).clip(max=max(len(teacher) - 1, 0))
    if not len(teacher):
        return place[:0], place[:0]
    starts, other_starts = ends - student, other_ends - teacher
    # Of tokens that end at one byte the place is that of the first: those behind it have no bytes.
    same = (other_ends[place] == ends) & (other_starts[place] == starts)
    same &= (student > 0) | (np.arange(len(student)) == 0)
    (found,) = same.nonzero()
    return found, place[found]
