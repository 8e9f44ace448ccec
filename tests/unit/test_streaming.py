"""An answer shown while it is written is the answer that a rollout writes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.rollout.lean import engine_for
from pipeline.rollout.local import LocalGenerator
from pipeline.rollout.protocol import SamplingSettings
from pipeline.rollout.streaming import Readable, write_answer
from pipeline.types import Prompt
from teachers.causal_lm import CausalLM, load_causal_lm
from teachers.types import RawText
from tests.models import Architecture, save_tiny


@pytest.fixture(scope="module", params=["qwen3", "deepseek_v4"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    architecture: Architecture = request.param
    return load_causal_lm(save_tiny(tmp_path_factory.mktemp("m") / "m", architecture), name="student", dtype="float32")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("prompt", ["Hello", "What is 3 + 4?"])
def test_it_is_the_generators_answer(prompt: str, temperature: float, lm: CausalLM) -> None:
    settings = SamplingSettings(max_new_tokens=20, temperature=temperature, stop=("q",), top_p=0.95)
    ids = tuple(lm.tokenizer.encode(prompt))
    (expected,) = LocalGenerator(lm).generate(
        [(Prompt("student", "s", "d", RawText(prompt)), ids)], settings, seed=3, step=2, policy_version=0
    )
    pieces: list[str] = []
    written = write_answer(lm, engine_for(lm), ids, settings, seed=3, step=2, name="student", on_text=pieces.append)
    assert written.token_ids == expected.completion_ids
    assert written.finish_reason == expected.finish_reason
    assert written.text == lm.tokenizer.decode(written.token_ids, skip_special_tokens=True)
    if "\ufffd" not in written.text:  # bytes that are no text change, as decoders see more of them
        assert "".join(pieces) == written.text
    assert all(pieces)


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    text = "a é 六🙂 z"
    raw = text.encode()

    def decode(ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    readable = Readable(decode)
    pieces = [readable.add(byte) for byte in raw]
    assert "".join(pieces) + readable.rest() == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[2:4] == ["", "é"]


def test_what_never_becomes_whole_is_shown_at_the_end() -> None:
    readable = Readable(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    assert [readable.add(byte) for byte in "a六".encode()[:-1]] == ["a", "", ""]
    assert readable.rest() == "\ufffd"


def test_a_decoder_that_drops_the_first_space_loses_none_between() -> None:
    words = [" one", " two", " three"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[index] for index in ids).removeprefix(" ")

    readable = Readable(decode)
    assert [readable.add(index) for index in range(3)] == ["one", " two", " three"]
