"""Answers to bytes and back: every bit of every tensor, every character; damage is found."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from teachers.encoding import decode, encode
from teachers.types import Answer, FullVocab, Head, Judgment, TopK, Usage

NAMES = ("token_logprobs", "ids", "logprobs", "log_tail", "valid")
ODD_FLOATS = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -3.4e38)


def bits(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().numpy().tobytes()


def random_top_k(rng: random.Random, n: int, k: int, dtype: torch.dtype = torch.float32) -> TopK:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def floats(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=dtype) * 10
        flat = values.view(-1)
        for place in range(flat.numel()):
            if rng.random() < 0.2:
                flat[place] = rng.choice(ODD_FLOATS)
        return values

    largest = rng.choice((2**15, 2**31, 2**62))
    ids = torch.randint(0, largest, (n, k), generator=generator)
    return TopK(floats(n), ids, floats(n, k), floats(n), torch.rand(n, generator=generator) < 0.5)


def random_text(rng: random.Random) -> str | None:
    if rng.random() < 0.2:
        return None
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) for _ in range(rng.randrange(40)))


def random_answer(rng: random.Random) -> Answer:
    signal: TopK | Judgment = random_top_k(rng, rng.randrange(6), rng.randrange(5))
    if rng.random() < 0.5:
        signal = Judgment(rng.choice((None, 0.0, 1.0, rng.random())), random_text(rng), random_text(rng))
    usage = Usage(*(rng.randrange(10**6) for _ in range(4)))
    return Answer(signal, usage, random_text(rng), rng.random() * 100)


def same(left: Answer, right: Answer) -> bool:
    if isinstance(left.signal, TopK) and isinstance(right.signal, TopK):
        pairs = [(bits(getattr(left.signal, name)), bits(getattr(right.signal, name))) for name in NAMES]
        return replace(left, signal=Judgment()).__dict__ == replace(right, signal=Judgment()).__dict__ and all(
            a == b for a, b in pairs
        )
    return left.__dict__ == right.__dict__


@pytest.mark.parametrize("seed", range(200))
def test_an_answer_comes_back_bit_by_bit(seed: int) -> None:
    answer = random_answer(random.Random(seed))
    assert same(decode(encode(answer)), answer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "k"), [(0, 0), (0, 3), (4, 0), (1, 1), (5, 7)])
def test_shapes_and_dtypes_stay(n: int, k: int, dtype: torch.dtype) -> None:
    signal = random_top_k(random.Random(n * 10 + k), n, k, dtype)
    found = decode(encode(Answer(signal))).signal
    assert isinstance(found, TopK)
    assert [bits(getattr(found, name)) for name in NAMES] == [bits(getattr(signal, name)) for name in NAMES]


def test_nan_keeps_its_payload_and_zero_its_sign() -> None:
    values = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 1], dtype=torch.int32).view(torch.float32)
    signal = TopK(values, torch.zeros(4, 0, dtype=torch.int64), values.new_zeros(4, 0), values, values == values)
    found = decode(encode(Answer(signal))).signal
    assert isinstance(found, TopK)
    assert torch.equal(found.token_logprobs.view(torch.int32), values.view(torch.int32))


def test_a_view_of_a_larger_tensor_is_kept_alone() -> None:
    large = torch.arange(10_000, dtype=torch.float32).view(100, 100)
    signal = TopK(
        large[:2, 5], torch.tensor([[1], [2]]), large[3:5, 7:8], large[0, :2], torch.ones(2, dtype=torch.bool)
    )
    payload = encode(Answer(signal))
    assert len(payload) < 1_000
    found = decode(payload).signal
    assert isinstance(found, TopK)
    assert found.token_logprobs.tolist() == [5.0, 105.0]


def test_token_ids_take_four_bytes_each() -> None:
    def size(largest: int) -> int:
        ids = torch.full((100, 20), largest)
        floats = torch.zeros(100)
        return len(encode(Answer(TopK(floats, ids, torch.zeros(100, 20), floats, floats == 0))))

    assert size(2**31) - size(2**31 - 1) == 100 * 20 * 4


def test_numbers_are_little_endian_behind_the_header() -> None:
    one = torch.tensor([1.5])
    signal = TopK(one, torch.tensor([[258]]), one[None], one, torch.tensor([True]))
    assert encode(Answer(signal)).endswith(
        struct.pack("<f", 1.5) + b"\x02\x01\x00\x00" + struct.pack("<ff", 1.5, 1.5) + b"\x01"
    )


def test_the_journals_key_is_given_back_where_it_is_known() -> None:
    answer = Answer(Judgment(score=0.5), journal_key="elsewhere")
    assert decode(encode(answer)).journal_key is None
    assert decode(encode(answer), key="abc").journal_key == "abc"


def test_every_changed_byte_is_found() -> None:
    payload = encode(Answer(Judgment(0.25, "feedback", "rewrite"), Usage(1, 2, 3, 4), "model", 0.5))
    for place in range(len(payload)):
        damaged = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
        with pytest.raises(ValueError, match=r"not an answer|checksum|later version"):
            decode(damaged)


def test_every_lost_byte_is_found() -> None:
    payload = encode(Answer(random_top_k(random.Random(0), 3, 2)))
    for length in range(len(payload)):
        with pytest.raises(ValueError, match=r"not an answer|checksum"):
            decode(payload[:length])


def test_a_later_version_says_so() -> None:
    payload = encode(Answer(Judgment()))
    with pytest.raises(ValueError, match="later version of this program"):
        decode(payload[:3] + b"\x02" + payload[4:])


def test_what_no_remote_teacher_gives_is_refused() -> None:
    hidden = FullVocab(torch.zeros(1, 2), Head("k", 2, load=lambda: None), torch.ones(1, dtype=torch.bool))  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="FullVocab"):
        encode(Answer(hidden))
    half = torch.zeros(1, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="token_logprobs is bfloat16"):
        encode(Answer(TopK(half, torch.zeros(1, 0, dtype=torch.int64), half[:, None], half, half == 0)))
