"""Texts of tokens: joined they are the text, each character with the token that completes it, in linear time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.token_texts import Decode, entry_text, token_texts
from tests.models import tiny_tokenizer
from tests.vocabularies import byte_level, sentencepiece

TEXT = "def f(x):\n    return 'naïve café' # Straße, привет, 你好世界 👩‍💻🙂!  \n\tEnd"


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: it puts spaces between words and takes some of them out again."""
    words = ["[UNK]", "def", "re", "##turn", "f", "x", "(", ")", ".", ",", "'", "##s"]
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "characters": tiny_tokenizer,
    "byte-level": byte_level,
    "byte-level, nothing but bytes": lambda: byte_level(261),
    "unigram": sentencepiece,
    "merges": lambda: sentencepiece(unigram=False),
    "word pieces": word_piece,
}
every = pytest.mark.parametrize("name", TOKENIZERS)


def decoder(name: str, **options: bool) -> Decode:
    return partial(TOKENIZERS[name]().decode, clean_up_tokenization_spaces=False, **options)


def ids_of(name: str, text: str) -> list[int]:
    ids: list[int] = TOKENIZERS[name]().encode(text, add_special_tokens=False)
    return ids


@every
@pytest.mark.parametrize("times", [1, 5])
def test_joined_they_are_the_text(name: str, times: int) -> None:
    ids, decode = ids_of(name, TEXT * times), decoder(name)
    texts = token_texts(ids, decode)
    assert len(texts) == len(ids) > 16 * (times - 1)
    assert "".join(texts) == decode(ids) != ""


@every
def test_joined_they_are_the_text_whatever_the_tokens(name: str) -> None:
    """What a student may write that learns still: halves of characters, special tokens, anything."""
    generator, decode = random.Random(3), decoder(name)
    size = len(TOKENIZERS[name]())
    for length in (0, 1, 2, 17, 40, 150):
        for _ in range(20):
            ids = [generator.randrange(size) for _ in range(length)]
            texts = token_texts(ids, decode)
            assert len(texts) == length
            assert "".join(texts) == decode(ids)


@pytest.mark.parametrize("name", ["characters", "byte-level", "byte-level, nothing but bytes", "unigram", "merges"])
@pytest.mark.parametrize("times", [1, 9])
def test_each_token_has_its_own_bytes(name: str, times: int) -> None:
    """Against what decoding everything up to each token says: quadratic, and plain."""
    ids, decode = ids_of(name, TEXT * times)[:200], decoder(name)
    texts = token_texts(ids, decode)
    for count in range(1, len(ids)):
        so_far = decode(ids[:count])
        if not so_far.endswith("\ufffd"):
            assert "".join(texts[:count]) == so_far, count


def test_a_character_that_lies_across_tokens_is_the_last_ones() -> None:
    name = "byte-level, nothing but bytes"
    assert token_texts(ids_of(name, "aé你🙂b"), decoder(name)) == ["a", "", "é", "", "", "你", "", "", "", "🙂", "b"]


def test_a_text_that_ends_inside_a_character_is_whole_too() -> None:
    name = "byte-level, nothing but bytes"
    assert "".join(token_texts(ids_of(name, "a🙂")[:-1], decoder(name))) == "a\ufffd"


def test_special_tokens_are_text_of_their_own() -> None:
    tokenizer = tiny_tokenizer()
    ids = [*tokenizer.encode("7", add_special_tokens=False), tokenizer.eos_token_id]
    assert token_texts(ids, decoder("characters")) == ["7", "<|end|>"]


@pytest.mark.parametrize("name", ["characters", "byte-level", "unigram", "merges"])
def test_time_grows_with_the_length_and_no_faster(name: str) -> None:
    decode, asked = decoder(name), 0

    def counting(ids: Sequence[int]) -> str:
        nonlocal asked
        asked += len(ids)
        return decode(ids)

    ids = ids_of(name, TEXT * 30)
    token_texts(ids, counting)
    assert asked < 25 * len(ids)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("byte-level", " return", " return"),
        ("unigram", "a return", " return"),
        ("merges", "a return", " return"),
        ("characters", "7", "7"),
    ],
)
def test_an_entry_reads_as_it_does_inside_a_text(name: str, text: str, expected: str) -> None:
    token = ids_of(name, text)[-1]
    found = entry_text(token, decoder(name))
    assert expected.endswith(found)
    assert found == decoder(name)([*ids_of(name, "x"), token])[1:]
