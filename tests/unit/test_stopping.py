"""Stop strings against a search in everything written so far, and completions split into segments."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pipeline.rollout.segments import ThinkTags, segment, think_tags
from pipeline.rollout.stopping import Finish, Stopping
from teachers.types import Segment
from tests.models import tiny_tokenizer

TEXT = "naïve café, 10 € déjà vu; ÀÉÎÕÜ\n\nÀÉ 日本語 日本\n### End\nreturn x\n" * 20


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges cut through characters, with thinking tags."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<think>", "</think>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def stopping(
    tokenizer: PreTrainedTokenizerFast, *stop: str, stop_ids: Sequence[int] = (), room: int = 1000
) -> Stopping:
    return Stopping(frozenset([tokenizer.eos_token_id]), frozenset(stop_ids), stop, room, decoder(tokenizer))


def decoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[Sequence[int]], str]:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def first_finish(rule: Stopping, token_ids: Sequence[int]) -> tuple[int, Finish] | None:
    """How many tokens are kept, and why."""
    for count in range(1, len(token_ids) + 1):
        if finish := rule.finish(token_ids[:count]):
            return count, finish
    return None


@pytest.mark.parametrize("stop", [("é",), ("\n\n",), ("日本", "### End"), (" €",), ("É\n", "x"), ("<think>",)])
def test_stop_strings_across_tokens_and_characters(byte_level: PreTrainedTokenizerFast, stop: tuple[str, ...]) -> None:
    """On random tokens, most of them pieces of the stop strings, against decoding the whole text every time."""
    draw, decode = random.Random(0), decoder(byte_level)
    alphabet = bytes_to_unicode()
    single_bytes = [byte_level.convert_tokens_to_ids(alphabet[byte]) for byte in "".join(stop).encode()]
    pieces = single_bytes + [token for text in stop for token in byte_level.encode(text)]
    rule, hits = stopping(byte_level, *stop), 0
    for _ in range(300):
        ids: list[int] = []
        while len(ids) < 12:
            ids += single_bytes if draw.random() < 0.05 else [draw.choice(pieces)]
            ids += [draw.randrange(1, len(byte_level))] if draw.random() < 0.2 else []
        expected = next((n for n in range(1, len(ids) + 1) if any(text in decode(ids[:n]) for text in stop)), None)
        found = first_finish(rule, ids)
        assert (found and found[0]) == expected
        if found:
            hits += 1
            text = decode(ids[: found[0]])
            ends = {text.index(part) + len(part) for part in stop if part in text}
            assert found[1] == Finish("stop", past_stop=len(text) not in ends)
    assert hits > 30


def test_stop_string_among_byte_tokens() -> None:
    """The characters tokenizer falls back to bytes; its decoder gives up on runs of bytes cut inside a character."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("aöäé")
    assert len(ids) == 7
    assert first_finish(stopping(tokenizer, "é"), ids) == (7, Finish("stop"))
    assert first_finish(stopping(tokenizer, "ä"), ids) == (5, Finish("stop"))
    assert first_finish(stopping(tokenizer, "a"), ids) == (1, Finish("stop"))


def test_text_past_a_stop_string_is_noticed(byte_level: PreTrainedTokenizerFast) -> None:
    (newlines,) = byte_level.encode("\n\n")
    assert first_finish(stopping(byte_level, "\n"), [newlines]) == (1, Finish("stop", past_stop=True))
    assert first_finish(stopping(byte_level, "\n", "\n\n"), [newlines]) == (1, Finish("stop"))


def test_ends_come_before_stops_and_both_before_length(byte_level: PreTrainedTokenizerFast) -> None:
    end = byte_level.eos_token_id
    assert stopping(byte_level, "<|end|>", stop_ids=[end], room=1).finish([end]) == Finish("end")
    assert stopping(byte_level, stop_ids=[9], room=1).finish([9]) == Finish("stop")
    assert stopping(byte_level, stop_ids=[9], room=1).finish([8]) == Finish("length")
    assert stopping(byte_level, stop_ids=[9], room=2).finish([8]) is None


TAGS = ThinkTags(open=1, close=2)
END = 0


def shape(segments: Sequence[Segment]) -> list[tuple[str, tuple[int, ...], bool]]:
    return [(part.kind, part.token_ids, part.trainable) for part in segments]


def test_an_ended_answer_has_an_end_and_a_truncated_one_has_none() -> None:
    assert shape(segment([5, 6, END], "end")) == [("answer", (5, 6), True), ("end", (END,), True)]
    assert shape(segment([5, 6], "length")) == [("answer", (5, 6), True)]
    assert shape(segment([END], "end")) == [("end", (END,), True)]


def test_thinking_is_told_from_the_answer() -> None:
    ids = [1, 5, 2, 6, 7, END]
    assert shape(segment(ids, "end", TAGS)) == [
        ("think", (1, 5, 2), True),
        ("answer", (6, 7), True),
        ("end", (END,), True),
    ]
    assert shape(segment([5, 2, 6], "length", TAGS, prompt_ids=[9, 1]))[0] == ("think", (5, 2), True)
    assert shape(segment([5, 6], "length", TAGS, prompt_ids=[1, 2])) == [("answer", (5, 6), True)]
    assert shape(segment([1, 5], "length", TAGS)) == [("think", (1, 5), True)]
    assert shape(segment([1, 2, 1, 2], "length", TAGS)) == [("think", (1, 2, 1, 2), True)]
    assert shape(segment([4, 1, 5], "length", TAGS)) == [("answer", (4,), True), ("think", (1, 5), True)]


def test_a_token_with_text_past_a_stop_string_is_not_trained_on() -> None:
    assert shape(segment([5, 6], "stop")) == [("answer", (5, 6), True)]
    assert shape(segment([5, 6], "stop", past_stop=True)) == [("answer", (5,), True), ("answer", (6,), False)]
    assert shape(segment([6], "stop", past_stop=True)) == [("answer", (6,), False)]
    assert shape(segment([1, 6], "stop", TAGS, past_stop=True)) == [("think", (1,), True), ("think", (6,), False)]


def test_thinking_tags_are_found_where_they_are_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    assert think_tags(byte_level) == (1, 2)
    assert think_tags(tiny_tokenizer()) is None
