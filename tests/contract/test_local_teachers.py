"""What every kind of teacher in this process keeps to. A new kind joins by one line in KINDS."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from teachers.causal_lm import CausalLM, load_causal_lm, model_key, render
from teachers.config import AdapterTeacher, TeacherConfig, TransformersTeacher
from teachers.pool import Pool, build_pool
from teachers.types import (
    Answer,
    Chat,
    FinishReason,
    FullVocab,
    LocalTeacher,
    Message,
    RawText,
    ScoreRequest,
    Segment,
    SegmentKind,
    SignalKind,
    TeacherFailure,
)
from tests.models import CONTEXT, save_adapter, save_tiny

END = 1
CPU = torch.device("cpu")
Logits = Callable[[list[int]], Tensor]  # token ids of one row -> (length, V)


@dataclass(frozen=True)
class World:
    """Folders with models, and students over `base`: plain, and with a LoRA adapter of its own."""

    base: str
    other: str
    padded: str
    adapters: tuple[str, str]
    student: CausalLM
    lora_student: CausalLM


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("models")
    base = save_tiny(root / "base", "qwen3", seed=0)
    lora_student = load_causal_lm(base, name="student", dtype="float32")
    model = get_peft_model(lora_student.model, LoraConfig(task_type="CAUSAL_LM", r=2), adapter_name="student")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first: let it take part
            torch.nn.init.normal_(parameter, std=0.5)
    return World(
        base=base,
        other=save_tiny(root / "other", "llama", seed=1),
        padded=save_tiny(root / "padded", "gemma2", seed=2, padded_rows=6),
        adapters=(save_adapter(root / "a", base, seed=1), save_adapter(root / "b", base, seed=2)),
        student=load_causal_lm(base, name="student", dtype="float32"),
        lora_student=replace(lora_student, model=model),
    )


@dataclass(frozen=True)
class Case:
    """A pool whose teacher `name` is under test, and what a plain model of its own gives for one row."""

    pool: Pool
    name: str
    logits: Logits

    @property
    def teacher(self) -> LocalTeacher:
        return self.pool.teachers[self.name]


def pool_of(world: World, configs: dict[str, TeacherConfig], *, lora: bool = False) -> Pool:
    student = world.lora_student if lora else world.student
    shared = {model_key(world.base, None, "float32"): student} if lora else {}
    return build_pool(
        configs, student, shared=shared, device=CPU, resolve=lambda path, what: path, tokens_per_forward=90
    )


def plain(path: str, adapter: str | None = None) -> Logits:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()

    def logits(row: list[int]) -> Tensor:
        with torch.no_grad():
            result: Tensor = model(torch.tensor([row])).logits[0, :, :358]
        return result

    return logits


def transformers(path: str, **more: object) -> TransformersTeacher:
    return TransformersTeacher(kind="transformers", model=path, dtype="float32", **more)  # type: ignore[arg-type]


def adapter(world: World, which: int, **more: object) -> AdapterTeacher:
    return AdapterTeacher(  # type: ignore[arg-type]
        kind="adapter", base=world.base, adapter=world.adapters[which], dtype="float32", **more
    )


def both(world: World, **more: object) -> dict[str, TeacherConfig]:
    return {"first": adapter(world, 0, **more), "second": adapter(world, 1, **more)}


KINDS: dict[str, Callable[..., Case]] = {
    "transformers": lambda world, **more: Case(
        pool_of(world, {"t": transformers(world.other, **more)}), "t", plain(world.other)
    ),
    "transformers, padded rows": lambda world, **more: Case(
        pool_of(world, {"t": transformers(world.padded, **more)}), "t", plain(world.padded)
    ),
    "transformers on the base of adapters": lambda world, **more: Case(
        pool_of(world, {"t": transformers(world.base, **more), **both(world)}), "t", plain(world.base)
    ),
    "transformers on the student's base": lambda world, **more: Case(
        pool_of(world, {"t": transformers(world.base, **more)}, lora=True), "t", plain(world.base)
    ),
    "adapter": lambda world, **more: Case(
        pool_of(world, both(world, **more)), "second", plain(world.base, world.adapters[1])
    ),
    "adapter on the student's base": lambda world, **more: Case(
        pool_of(world, both(world, **more), lora=True), "first", plain(world.base, world.adapters[0])
    ),
}


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest, world: World) -> Case:
    return KINDS[request.param](world)


def a_request(name: str, length: int, *, prompt: str = "what is 1+1?", end: bool = True) -> ScoreRequest:
    rng = random.Random(name)
    think = tuple(rng.randrange(5, 358) for _ in range(length // 2))
    answer = tuple(rng.randrange(5, 358) for _ in range(length - length // 2))
    segments = [
        Segment("assistant", "think", think, trainable=True),
        Segment("assistant", "answer", answer, trainable=True),
    ]
    if end:
        segments.append(Segment("assistant", "end", (END,), trainable=True))
    finish: FinishReason = "end" if end else "length"
    conversation = Chat((Message("system", "be brief"), Message("user", prompt)))
    return ScoreRequest(name, name, 0, 0, "d", conversation, tuple(segments), finish)


def some_requests() -> list[ScoreRequest]:
    lengths = (9, 1, 0, 30, 14, 2, 22, 5)
    return [a_request(f"r{n}", length, prompt="x" * (n * 3), end=n % 3 > 0) for n, length in enumerate(lengths)]


def full(result: Answer | TeacherFailure) -> FullVocab:
    assert isinstance(result, Answer)
    assert isinstance(result.signal, FullVocab)
    return result.signal


def logits_of(signal: FullVocab) -> Tensor:
    return signal.head.logits(signal.head.load(), signal.hidden)


def expected(case: Case, request: ScoreRequest) -> Tensor:
    """(N, V): each completion token's logits from the row alone, by a plain model of its own."""
    prompt = list(render(request.conversation, case.pool.teachers[case.name].lm.tokenizer))
    row = prompt + list(request.token_ids)
    return case.logits(row)[len(prompt) - 1 : len(row) - 1]


def test_it_is_a_local_teacher(case: Case) -> None:
    assert isinstance(case.teacher, LocalTeacher)
    assert case.teacher.name == case.name
    assert case.teacher.signals == {SignalKind.FULL_VOCAB}


def test_each_request_is_answered_once_with_a_row_per_token(case: Case) -> None:
    requests = some_requests()
    results = list(case.teacher.score(requests))
    assert sorted(name for name, _ in results) == sorted(request.request_id for request in requests)
    for name, result in results:
        signal, length = full(result), len(next(r for r in requests if r.request_id == name).token_ids)
        assert signal.hidden.shape[0] == length
        assert signal.valid.shape == (length,)
        assert logits_of(signal).shape == (length, 358)


def test_no_requests_have_no_answers(case: Case) -> None:
    assert list(case.teacher.score([])) == []


def test_logits_are_those_of_a_plain_model_on_the_row_alone(case: Case) -> None:
    answers = dict(case.teacher.score(some_requests()))
    for request in some_requests():
        torch.testing.assert_close(
            logits_of(full(answers[request.request_id])), expected(case, request), atol=1e-4, rtol=0
        )


def test_eight_together_are_eight_alone(case: Case) -> None:
    together = dict(case.teacher.score(some_requests()))
    for request in some_requests():
        ((_, alone),) = case.teacher.score([request])
        torch.testing.assert_close(
            logits_of(full(together[request.request_id])), logits_of(full(alone)), atol=1e-5, rtol=0
        )


def test_states_may_take_part_in_a_backward_pass(case: Case) -> None:
    """Tensors of inference mode raise here."""
    signal = full(dict(case.teacher.score([a_request("r", 5)]))["r"])
    weight = torch.zeros(signal.hidden.shape[1], requires_grad=True)
    (signal.hidden @ weight).sum().backward()
    assert weight.grad is not None
    assert not logits_of(signal).requires_grad


def test_longer_than_the_context_is_a_failure_of_that_request_alone(case: Case) -> None:
    fitting = a_request("fits", 10)
    prompt = len(render(fitting.conversation, case.pool.teachers[case.name].lm.tokenizer))
    exact, long = (a_request(name, CONTEXT - prompt + more, end=False) for name, more in (("exact", 0), ("long", 1)))
    answers = dict(case.teacher.score([long, fitting, exact]))
    failure = answers.pop("long")
    assert isinstance(failure, TeacherFailure)
    assert (failure.teacher, failure.reason, failure.retryable) == (case.name, "too_long", False)
    assert str(CONTEXT + 1) in failure.detail
    assert {name: full(answer).hidden.shape[0] for name, answer in answers.items()} == {
        "fits": 11,
        "exact": CONTEXT - prompt,
    }


def test_a_prompt_without_tokens_is_a_failure(case: Case) -> None:
    empty = replace(a_request("empty", 4), conversation=RawText(""))
    ((_, result),) = case.teacher.score([empty])
    assert isinstance(result, TeacherFailure)
    assert result.reason == "empty_prompt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("spans", "scored"), [(("answer",), "answer end"), (("think",), "think")])
def test_only_trainable_tokens_of_its_spans_are_valid(
    world: World, kind: str, spans: tuple[str, ...], scored: str
) -> None:
    kinds: tuple[SegmentKind, ...] = ("think", "answer", "tool_result", "end")
    segments = tuple(
        Segment("assistant", kind, (7, 8, 9)[:n], trainable=kind != "tool_result" and n < 3)
        for n in (1, 2, 3)
        for kind in kinds
    )
    request = replace(a_request("r", 0), segments=segments)
    signal = full(dict(KINDS[kind](world, spans=spans).teacher.score([request]))["r"])
    assert signal.valid.tolist() == [
        segment.trainable and segment.kind in scored.split() for segment in segments for _ in segment.token_ids
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_system_prompt_is_read_before_the_conversations_own(world: World, kind: str) -> None:
    request = a_request("r", 6)
    assert isinstance(request.conversation, Chat)
    told = Chat((Message("system", "know all\n\nbe brief"), *request.conversation.messages[1:]))
    case = KINDS[kind](world, system="know all")
    signal = full(dict(case.teacher.score([request]))["r"])
    torch.testing.assert_close(
        logits_of(signal), expected(case, replace(request, conversation=told)), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_not_finite_are_a_failure(world: World, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = KINDS[kind](world)
    teacher = case.pool.teachers[case.name]
    table = teacher.lm.model.get_input_embeddings()  # type: ignore[operator]
    saved = table.weight.data.clone()
    table.weight.data[300] = float("nan")
    try:
        healthy, ill = a_request("healthy", 4), replace(a_request("ill", 0), segments=())
        ill = replace(ill, segments=(Segment("assistant", "answer", (300, 301), trainable=True),))
        healthy = replace(healthy, segments=(Segment("assistant", "answer", (301, 302), trainable=True),))
        answers = dict(teacher.score([healthy, ill]))
    finally:
        table.weight.data.copy_(saved)
    assert full(answers["healthy"]).hidden.isfinite().all()
    failure = answers["ill"]
    assert isinstance(failure, TeacherFailure)
    assert failure.reason == "not_finite"


def test_as_a_writer_its_forward_is_its_own(case: Case) -> None:
    row = list(range(5, 25))
    with case.pool.writing(case.name) as lm, torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([row])).logits[0, :, : lm.vocab_size]
        assert not lm.model.training
    torch.testing.assert_close(logits, case.logits(row), atol=1e-4, rtol=0)


def test_the_pool_answers_each_question_once(case: Case) -> None:
    requests = some_requests()
    random.Random(0).shuffle(requests)
    for name in case.pool.names:
        results = [request_id for request_id, _ in case.pool.score(name, requests)]
        assert sorted(results) == sorted(request.request_id for request in requests)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_twice_is_fine(world: World, kind: str) -> None:
    case = KINDS[kind](world)
    case.pool.close()
    case.pool.close()
