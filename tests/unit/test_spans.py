"""Tokens to bytes and back, exactly, whatever the tokenizer; spans against a table of them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from teachers.alignment import PROBES
from teachers.errors import TeacherError
from teachers.spans import encode, match, pieces
from tests.models import tiny_tokenizer
from tests.vocabularies import byte_level, sentencepiece, sources

TOKENIZERS = {
    "byte level": byte_level,
    "byte level with NFC": lambda: byte_level(900, splits_digits=True),
    "unigram": sentencepiece,
    "sentencepiece BPE": lambda: sentencepiece(900, unigram=False),
    "characters": tiny_tokenizer,
}
HARD = (
    "", " ", "  \n\n \t ", "▁", "a▁" * 3000, "Ġword Ċ", "a\u0301 e\u0301 ﬁ ① ½", "\x00\x7f\r\n", "🙂👩‍💻🏳️‍🌈", 
    "\U0010fffd", "</s> <|end|> <unk>", "İstanbul ǅ ß", "\u200b\ufeff\u2028", "   x = 1   # two",
)  # fmt: skip


def tokens_of(text: bytes, name: str) -> list[int] | None:
    (found,) = encode(pieces(TOKENIZERS[name](), name=name), [text])
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_comes_back_byte_for_byte(name: str) -> None:
    table = pieces(TOKENIZERS[name](), name=name)
    rng = random.Random(0)
    letters = "".join(sources())[:20_000] + "äöüß€你好🙂👩‍💻\u0301\u200d ▁Ġ" * 200
    drawn = ["".join(rng.choices(letters, k=rng.randrange(200))) for _ in range(100)]
    texts = [text.encode() for text in (*PROBES, *HARD, *drawn)]
    for text, ids in zip(texts, encode(table, texts), strict=True):
        assert ids is not None, text
        assert table.text(ids) == text
        assert int(table.lengths[ids].sum()) == len(text)
        assert not table.special.keys() & set(ids)  # a text that spells a special token stays text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokens_are_those_of_the_tokenizer_itself(name: str) -> None:
    """Where nothing was normalised and nothing put in front, cutting exactly changes no token."""
    tokenizer = TOKENIZERS[name]()
    table = pieces(tokenizer, name=name)
    for text in PROBES[:3]:
        own = tokenizer.encode(text, add_special_tokens=False)
        leads = table.text(own) != text.encode()
        assert table.text(own) == b" " * leads + text.encode()
        assert encode(table, [table.text(own)]) == [own]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "text", [b"ok \xf0\x9f\x99", b"\xff\xfe", b"\x80a\x80", "🙂".encode()[1:], b"\xe4\xbd\xa0\xe5"]
)
def test_bytes_that_are_no_characters_become_tokens_of_their_own(name: str, text: bytes) -> None:
    """An answer that was cut off inside a character."""
    table = pieces(TOKENIZERS[name](), name=name)
    (ids,) = encode(table, [text])
    assert ids is not None
    assert table.text(ids) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_spelled_out_byte_is_not_that_byte(name: str) -> None:
    """Unigram finds its entry <0x41> in the text: such a text is refused, not scored as an A."""
    table = pieces(TOKENIZERS[name](), name=name)
    (ids,) = encode(table, [b"x <0x41>"])
    assert (ids is None) == (name == "unigram")
    assert ids is None or table.text(ids) == b"x <0x41>"


def test_a_character_over_several_tokens() -> None:
    table = pieces(tiny_tokenizer(), name="t")
    (ids,) = encode(table, ["🙂".encode()])
    assert ids is not None
    assert [table.entries[index] for index in ids] == [b"\xf0", b"\x9f", b"\x99", b"\x82"]


def with_added(*tokens: AddedToken) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    backend.add_tokens(list(tokens))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def test_added_tokens_are_text_unless_they_are_special() -> None:
    tokenizer = with_added(
        AddedToken("<think>", special=False),
        AddedToken("né", special=False, lstrip=True, rstrip=True),
        AddedToken("<hidden>", special=True),
        AddedToken("<late>", special=False),
    )
    table = pieces(tokenizer, name="t")
    text = "a <think> né  <hidden> <late>".encode()
    (ids,) = encode(table, [text])
    assert ids is not None
    assert table.text(ids) == text
    names = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    assert [index for index in ids if index in names.values()] == [names["<think>"], names["né"], names["<late>"]]


def plain(decoder: object, **parts: object) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<unk>", "a", "b", "ab", "▁", "##b", "</s>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.decoder = decoder
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (None, r"decoder \(none\) does not say"),
        (decoders.WordPiece(), r"decoder \(WordPiece\) does not say"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("b"), "c")]), r"decoder \(Replace\) does not say"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip("b", 0, 1)]), r"writes 'b' \(2\) as '', which are not"),
    ],
)
def test_entries_that_are_no_bytes_are_refused(decoder: object, message: str) -> None:
    with pytest.raises(TeacherError, match=r"^teachers\.x: its tokenizer.*" + message) as caught:
        pieces(plain(decoder), name="teachers.x")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_backend_is_refused() -> None:
    class Slow:
        pass

    with pytest.raises(TeacherError, match=r"^teachers\.x: Slow does not say .* tokenizer\.json$"):
        pieces(Slow(), name="teachers.x")  # type: ignore[arg-type]


def test_text_that_cannot_be_written_is_said_not_changed() -> None:
    lowering = pieces(plain(decoders.Fuse(), normalizer=normalizers.Lowercase()), name="t")
    assert encode(lowering, [b"ab", b"AB", b"\xff", b""]) == [[3], None, None, []]
    dropping = pieces(plain(decoders.Fuse(), pre_tokenizer=pre_tokenizers.WhitespaceSplit()), name="t")
    assert encode(dropping, [b"ab", b"a b", b"</s>"]) == [[3], None, None]


# ---- spans ----


def naive_pairs(ours: list[int], theirs: list[int]) -> list[tuple[int, int]]:
    def spans(lengths: list[int]) -> list[tuple[int, int]]:
        return [(sum(lengths[:place]), sum(lengths[: place + 1])) for place in range(len(lengths))]

    return [
        (i, j)
        for i, span in enumerate(spans(ours))
        for j, other in enumerate(spans(theirs))
        if span == other and (ours[i] > 0 or i == j == 0)
    ]


def cuts(rng: random.Random, total: int) -> list[int]:
    inner = sorted(rng.sample(range(1, total), rng.randrange(total)))
    return [end - start for start, end in zip([0, *inner], [*inner, total], strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_pairs_are_equal_spans(seed: int) -> None:
    rng = random.Random(seed)
    total = rng.randrange(1, 40)
    ours, theirs = ([0] * rng.randrange(2) + cuts(rng, total) for _ in range(2))
    if seed % 4 == 0:  # tokens without bytes, anywhere
        ours.insert(rng.randrange(len(ours) + 1), 0)
        theirs.insert(rng.randrange(len(theirs) + 1), 0)
    student_at, teacher_at = match(np.array(ours), np.array(theirs))
    found = list(zip(student_at.tolist(), teacher_at.tolist(), strict=True))
    assert found == naive_pairs(ours, theirs)
    assert len(set(teacher_at.tolist())) == len(found)


def test_one_token_without_bytes_is_one_pair() -> None:
    student_at, teacher_at = match(np.array([0, 0, 3, 0]), np.array([0, 3, 0]))
    assert (student_at.tolist(), teacher_at.tolist()) == ([0, 2], [0, 1])


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1], []), ([], [1])])
def test_nothing_has_no_pairs(ours: list[int], theirs: list[int]) -> None:
    student_at, teacher_at = match(np.array(ours, np.int64), np.array(theirs, np.int64))
    assert len(student_at) == len(teacher_at) == 0
