"""A local teacher with another tokenizer: built from a folder, what it answers, what it refuses, what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipeline.new_model import model_config, model_from_config
from pipeline.recipe import NewModel
from teachers.causal_lm import CausalLM, load_causal_lm
from teachers.config import TransformersTeacher
from teachers.crossing import CrossingTeacher, build
from teachers.errors import TeacherError
from teachers.models import Models
from teachers.spans import encode
from teachers.types import (
    Answer,
    Chat,
    LocalTeacher,
    Message,
    RawText,
    ScoreRequest,
    Segment,
    SegmentKind,
    TeacherFailure,
    TopK,
)
from tests.vocabularies import byte_level, sentencepiece

CHAT = Chat((Message("user", "hi"),))


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast, context: int = 128) -> str:
    shape = NewModel(architecture="qwen3", hidden_size=32, layers=2, heads=2, context=context)
    model_from_config(model_config(shape, len(tokenizer)), tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return load_causal_lm(saved(tmp_path_factory.mktemp("student"), byte_level()), name="student", dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("teacher"), sentencepiece(), context=64)


Build = Callable[..., CrossingTeacher]


@pytest.fixture
def built(student: CausalLM, folder: str) -> Build:
    def make(
        spans: tuple[str, ...] = ("think", "answer"), system: str | None = None, **align: float
    ) -> CrossingTeacher:
        config = TransformersTeacher.model_validate(
            {
                "kind": "transformers",
                "model": folder,
                "dtype": "float32",
                "align": {"least_coverage": 0.0, **align},
                "spans": spans,
                "system": system,
            }
        )
        models = Models(student, {}, torch.device("cpu"), lambda path, _: path, lambda _: None, 10_000)
        return build("math", config, models)

    return make


def request(teacher: CrossingTeacher, *parts: tuple[SegmentKind, str], name: str = "r", **more: object) -> ScoreRequest:
    """Segments of the student's tokens; the text of an end is left out."""
    texts = encode(teacher.bridge.student.pieces, [text.encode() for _, text in parts])
    segments = tuple(
        Segment("assistant", kind, (teacher.bridge.student.end,) if kind == "end" else tuple(ids or ()), trainable=True)
        for (kind, _), ids in zip(parts, texts, strict=True)
    )
    asked = ScoreRequest(name, "g", 0, 0, "d", CHAT, segments, "end")
    return replace(asked, **more)  # type: ignore[arg-type]


def answer_of(teacher: CrossingTeacher, asked: ScoreRequest) -> Answer | TeacherFailure:
    ((request_id, answer),) = teacher.score([asked])
    assert request_id == asked.request_id
    return answer


def top_k(teacher: CrossingTeacher, asked: ScoreRequest) -> TopK:
    answer = answer_of(teacher, asked)
    assert isinstance(answer, Answer), answer
    assert isinstance(answer.signal, TopK)
    return answer.signal


def failure(teacher: CrossingTeacher, asked: ScoreRequest) -> tuple[str, bool]:
    answer = answer_of(teacher, asked)
    assert isinstance(answer, TeacherFailure), answer
    assert answer.teacher == "math"
    assert "\n" not in answer.detail
    return answer.reason, answer.retryable


def test_a_teacher_from_a_folder(built: Build, student: CausalLM) -> None:
    teacher = built(top_k=5, least_coverage=0.3)
    assert isinstance(teacher, LocalTeacher)
    asked = request(teacher, ("answer", "def f(x)"), ("end", ""))
    answer = answer_of(teacher, asked)
    assert isinstance(answer, Answer)
    assert isinstance(answer.signal, TopK)
    assert answer.signal.ids.shape == (len(asked.token_ids), 5)
    assert int(answer.signal.ids.max()) < student.vocab_size
    assert bool(answer.signal.valid[-1])  # the end, whatever it is called
    assert answer.usage.input > len(asked.token_ids)
    assert answer.model_returned == "math"


def test_too_little_in_common_is_refused_at_the_start(built: Build) -> None:
    with pytest.raises(TeacherError, match=r"^teachers\.math: 80% of the student's .* is 90%; lower it") as caught:
        built(least_coverage=0.9)
    assert "\n" not in str(caught.value)


def test_only_its_segments_are_scored(built: Build) -> None:
    parts: tuple[tuple[SegmentKind, str], ...] = (("think", "a b c"), ("answer", "d e f"), ("end", ""))
    both = built()
    whole = top_k(both, request(both, *parts))
    only = built(spans=("answer",))
    asked = request(only, *parts)
    answer = top_k(only, asked)
    thinking = torch.arange(len(asked.token_ids)) < len(asked.segments[0].token_ids)
    assert bool(whole.valid[thinking].any())
    assert torch.equal(answer.valid, whole.valid & ~thinking)
    torch.testing.assert_close(answer.logprobs[answer.valid], whole.logprobs[answer.valid])
    result = replace(asked, segments=tuple(replace(segment, trainable=False) for segment in asked.segments))
    assert not top_k(only, result).valid.any()  # nothing to score is not a failure


def test_an_answer_with_too_little_in_common_is_a_failure_of_its_own(built: Build) -> None:
    any_share, least = built(least_coverage=0.0), built(least_coverage=0.75)
    found = []
    for text in ("def f(x):", "the arguments", "x", "import json", "a = (1, 2)", "zygote quorum"):
        asked = request(any_share, ("answer", text), ("end", ""))
        share = float(top_k(any_share, asked).valid.double().mean())
        found.append(share < 0.75)
        if share < 0.75:
            assert failure(least, asked) == ("low_coverage", False)
        else:
            assert bool(top_k(least, asked).valid.any())
    assert set(found) == {True, False}


def test_a_system_prompt_is_read(built: Build) -> None:
    plain, told = built(), built(system="be brief")
    asked = request(plain, ("answer", "import json"))
    first, second = top_k(plain, asked), top_k(told, asked)
    assert torch.equal(first.valid, second.valid)
    assert not torch.allclose(first.token_logprobs[first.valid], second.token_logprobs[second.valid])


def test_rows_together_are_the_rows_alone(built: Build) -> None:
    teacher = built()
    texts = ["x", "def f(x):\n  return x", "🙂 and é", "a much longer text about arguments"]
    asked = [request(teacher, ("answer", text), ("end", ""), name=str(n)) for n, text in enumerate(texts)]
    together = dict(teacher.score(asked))
    assert list(map(str, range(len(texts)))) == sorted(together)
    for one in asked:
        answer = together[one.request_id]
        assert isinstance(answer, Answer)
        torch.testing.assert_close(vars(answer.signal), vars(top_k(teacher, one)), atol=1e-5, rtol=1e-5)


def test_what_it_cannot_answer_is_a_failure(built: Build) -> None:
    teacher = built()
    assert failure(teacher, request(teacher, ("answer", "word " * 64))) == ("too_long", False)
    empty = request(teacher, ("answer", "a"), conversation=RawText(""))
    assert failure(teacher, empty) == ("empty_prompt", False)
    assert failure(teacher, request(teacher, ("answer", "<0x41>"))) == ("not_exact", False)
    # One token of the student, several of the teacher's.
    wide = next(
        index
        for index in range(300, 600)
        if len(encode(teacher.bridge.teacher.pieces, [teacher.bridge.student.pieces.entries[index]])[0] or ()) > 2
    )
    segments = (Segment("assistant", "answer", (wide,), trainable=True),)
    assert failure(teacher, request(teacher, segments=segments, conversation=RawText("a"))) == ("low_coverage", False)
    with torch.no_grad():
        teacher.lm.model.get_input_embeddings().weight.fill_(torch.nan)  # type: ignore[operator]
    assert failure(teacher, request(teacher, ("answer", "a"), ("end", ""))) == ("not_finite", False)
