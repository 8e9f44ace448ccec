"""The student as its own teacher: what it is shown, with which weights it reads that, and what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline import recipe
from pipeline.averaging import averages_of, selves_of
from pipeline.student import Student, load_student
from teachers.config import SelfTeacher
from teachers.errors import TeacherError
from teachers.privileged import PrivilegedTeacher, build, seen_in, show
from teachers.types import (
    Answer,
    Chat,
    FullVocab,
    Judgment,
    LocalTeacher,
    Message,
    RawText,
    RemoteTeacher,
    ScoreRequest,
    Segment,
    SignalKind,
    TeacherFailure,
)
from tests.models import CONTEXT, save_tiny

CPU = torch.device("cpu")
LORA = {"kind": "lora", "rank": 4, "alpha": 8}
MODES = ("full", "lora")
SHORT = "{seen} | {prompt}"
SOURCES = {"reference": "no_reference", "privileged": "no_privileged", "feedback:critic": "no_feedback"}
SEGMENTS = (
    Segment("assistant", "think", (80, 81, 82), True),
    Segment("assistant", "answer", (60, 61, 62, 63), True),
    Segment("assistant", "end", (1,), True),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture(params=MODES)
def student(request: pytest.FixtureRequest, folder: str) -> Student:
    return student_of(folder, request.param)


def student_of(folder: str, mode: str) -> Student:
    config = recipe.Student(model=folder, tune=LORA if mode == "lora" else "full", dtype="float32")
    return load_student(config, model_path=folder, seed=0, chunk_bytes=20_000, device=CPU)


def teacher_of(student: Student, **settings: object) -> PrivilegedTeacher:
    config = SelfTeacher(kind="self", **{"template": SHORT, **settings})  # type: ignore[arg-type]
    return build("me", config, selves_of(student, averages_of(student, [config])))


def move(student: Student) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in student.trained_parameters().values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def request(name: str = "r", prompt: str = "3+4", **more: object) -> ScoreRequest:
    conversation = Chat((Message("system", "be brief"), Message("user", prompt)))
    upstream = {"critic": Judgment(score=0.2, feedback="seen by critic"), "other": Judgment(feedback="wrong one")}
    full = ScoreRequest(
        name,
        name,
        0,
        0,
        "d",
        conversation,
        SEGMENTS,
        "end",
        reference="seen by reference",
        privileged="seen by privileged",
        upstream=upstream,
    )
    return replace(full, **more)  # type: ignore[arg-type]


def full(result: Answer | TeacherFailure) -> FullVocab:
    assert isinstance(result, Answer), result
    assert isinstance(result.signal, FullVocab)
    return result.signal


def logits_of(signal: FullVocab) -> Tensor:
    return signal.head.logits(signal.head.load(), signal.hidden)


def score(teacher: PrivilegedTeacher, *requests: ScoreRequest) -> dict[str, Answer | TeacherFailure]:
    results = list(teacher.score(requests))
    assert sorted(name for name, _ in results) == sorted(each.request_id for each in requests)
    return dict(results)


def expected(model: nn.Module, prompt_ids: Sequence[int]) -> Tensor:
    """(N, V): whole logits of the row alone, of a plain model."""
    row = [*prompt_ids, *request().token_ids]
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    return logits[len(prompt_ids) - 1 : len(row) - 1, :358]


def rendered(student: Student, *messages: tuple[str, str]) -> list[int]:
    ids: list[int] = student.lm.tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
        return_dict=False,
    )
    return ids


# ---- what it is shown ----


def test_the_last_user_message_is_told_and_the_others_are_as_they_were() -> None:
    chat = Chat(
        (
            Message("system", "s"),
            Message("user", "first"),
            Message("assistant", "a"),
            Message("user", "second"),
            Message("assistant", "call"),
            Message("tool", "result"),
        ),
        tools=({"name": "t"},),
        template_options={"enable_thinking": False},
    )
    told = show(chat, "know {seen}: {prompt}!", "x")
    assert isinstance(told, Chat)
    assert told.messages == (*chat.messages[:3], Message("user", "know x: second!"), *chat.messages[4:])
    assert (told.tools, told.template_options) == (chat.tools, chat.template_options)


def test_a_chat_without_a_user_gets_a_message_at_its_end() -> None:
    told = show(Chat((Message("system", "s"),)), "{prompt} know {seen}", "x")
    assert told == Chat((Message("system", "s"), Message("user", " know x")))


def test_braces_and_the_placeholders_own_words_are_filled_in_as_they_are() -> None:
    told = show(Chat((Message("user", r"{seen} {0} \1 {"),)), r"\boxed{{seen}} {prompt} {else}", r"{prompt} \g<0>")
    assert told == Chat((Message("user", r"\boxed{{prompt} \g<0>} {seen} {0} \1 { {else}"),))


@pytest.mark.parametrize("sees", SOURCES)
def test_a_raw_text_still_ends_where_the_answer_begins(student: Student, sees: str) -> None:
    """With the words that come with each source: they cannot stand between a text and its continuation."""
    teacher = teacher_of(student, sees=sees, template=None)
    told = show(RawText("once upon "), teacher.raw, "THE SEEN")
    assert isinstance(told, RawText)
    assert told.text.endswith("\n\nonce upon ")
    assert "THE SEEN" in told.text


@pytest.mark.parametrize("sees", SOURCES)
def test_the_words_that_come_with_each_source_hold_both(student: Student, sees: str) -> None:
    teacher = teacher_of(student, sees=sees, template=None)
    for template in (teacher.chat, teacher.raw):
        assert template.count("{seen}") == template.count("{prompt}") == 1


def test_a_template_that_goes_on_after_a_raw_text_is_refused(student: Student) -> None:
    teacher = teacher_of(student, template="{prompt} and {seen}")
    with pytest.raises(TeacherError, match=r"teachers\.me\.template: .*end with \{prompt\}") as caught:
        list(teacher.score([request(conversation=RawText("2+2="))]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("template", "absent"), [("only {prompt}", "{seen}"), ("only {seen}", "{prompt}")])
def test_a_template_without_both_is_refused(student: Student, template: str, absent: str) -> None:
    with pytest.raises(TeacherError, match=rf"teachers\.me\.template: it has no \{absent}") as caught:
        teacher_of(student, template=template)
    assert "\n" not in str(caught.value)


def test_the_white_space_around_a_block_text_is_no_part_of_it(student: Student) -> None:
    signals = [
        full(score(teacher_of(student, template=template), request(conversation=RawText("2+2=")))["r"])
        for template in (SHORT, f"\n{SHORT}\n")
    ]
    assert torch.equal(signals[0].hidden, signals[1].hidden)


@pytest.mark.parametrize("sees", SOURCES)
def test_it_sees_what_it_says_and_nothing_else(sees: str) -> None:
    source = sees.partition(":")[2] or sees
    assert seen_in(request(), sees) == f"seen by {source}"


# ---- what it answers ----


@pytest.mark.parametrize("sees", SOURCES)
def test_its_logits_are_the_initial_models_behind_what_it_is_shown(student: Student, folder: str, sees: str) -> None:
    teacher = teacher_of(student, sees=sees)
    before = full(score(teacher, request())["r"])
    source = sees.partition(":")[2] or sees
    prompt = rendered(student, ("system", "be brief"), ("user", f"seen by {source} | 3+4"))
    plain = student_of(folder, "full").lm.model
    torch.testing.assert_close(logits_of(before), expected(plain, prompt), atol=1e-5, rtol=0)
    move(student)
    assert torch.equal(logits_of(full(score(teacher, request())["r"])), logits_of(before))
    assert (expected(student.lm.model, prompt) - logits_of(before)).abs().max() > 0.01
    unseen = rendered(student, ("system", "be brief"), ("user", "3+4"))
    assert (expected(plain, unseen) - logits_of(before)).abs().max() > 0.01


def test_a_raw_text_is_read_with_what_is_seen_before_it(student: Student, folder: str) -> None:
    teacher = teacher_of(student, template=None)
    signal = full(score(teacher, request(conversation=RawText("2+2="), reference="4"))["r"])
    text = teacher.raw.replace("{seen}", "4").replace("{prompt}", "2+2=")
    prompt = student.lm.tokenizer(text)["input_ids"]
    torch.testing.assert_close(
        logits_of(signal), expected(student_of(folder, "full").lm.model, prompt), atol=1e-5, rtol=0
    )


def test_its_own_system_prompt_and_spans_hold(student: Student, folder: str) -> None:
    signal = full(score(teacher_of(student, system="know all", spans=("answer",)), request())["r"])
    told = [("system", "know all\n\nbe brief"), ("user", "seen by reference | 3+4")]
    prompt = rendered(student, *told)
    torch.testing.assert_close(
        logits_of(signal), expected(student_of(folder, "full").lm.model, prompt), atol=1e-5, rtol=0
    )
    assert signal.valid.tolist() == [segment.kind != "think" for segment in SEGMENTS for _ in segment.token_ids]


def test_eight_together_are_eight_alone(student: Student) -> None:
    teacher = teacher_of(student)
    requests = [request(f"r{n}", "x" * n, reference="y" * (n + 1)) for n in range(8)]
    together = score(teacher, *requests)
    for each in requests:
        alone = score(teacher, each)[each.request_id]
        torch.testing.assert_close(
            logits_of(full(together[each.request_id])), logits_of(full(alone)), atol=1e-5, rtol=0
        )


def test_the_base_is_the_student_without_its_adapter(folder: str) -> None:
    student = student_of(folder, "lora")
    move(student)
    prompt = rendered(student, ("system", "be brief"), ("user", "seen by reference | 3+4"))
    signal = full(score(teacher_of(student, weights="base"), request())["r"])
    torch.testing.assert_close(
        logits_of(signal), expected(student_of(folder, "full").lm.model, prompt), atol=1e-5, rtol=0
    )


def test_a_student_without_an_adapter_has_no_base(folder: str) -> None:
    with pytest.raises(TeacherError, match=r"teachers\.me\.weights: base is .*; use initial") as caught:
        teacher_of(student_of(folder, "full"), weights="base")
    assert "\n" not in str(caught.value)


def test_the_initial_weights_are_copied_once_for_all(folder: str) -> None:
    student = student_of(folder, "full")
    config = SelfTeacher(kind="self", template=SHORT)
    selves = selves_of(student, averages_of(student, []))
    one, other = (build(name, config, selves) for name in ("one", "other"))
    assert one.own().lm.model is other.own().lm.model is selves.initial().lm.model
    assert one.own().lm.model is not student.lm.model
    assert (one.own().name, other.own().name) == ("one", "other")


# ---- what it cannot answer ----


NOTHING: dict[str, dict[str, object]] = {
    "reference": {"reference": None},
    "privileged": {"privileged": " \n"},
    "feedback:critic": {"upstream": {"other": Judgment(feedback="f"), "critic": Judgment(score=1.0)}},
}


@pytest.mark.parametrize("sees", SOURCES)
def test_nothing_to_see_is_a_failure_of_that_request_alone(student: Student, sees: str) -> None:
    results = score(teacher_of(student, sees=sees), request("blind", **NOTHING[sees]), request("seeing"))
    failure = results["blind"]
    assert isinstance(failure, TeacherFailure)
    assert (failure.teacher, failure.reason, failure.retryable) == ("me", SOURCES[sees], False)
    assert "blind" in failure.detail
    full(results["seeing"])


def test_a_critic_that_was_not_asked_or_failed_is_no_feedback(student: Student) -> None:
    ((_, result),) = teacher_of(student, sees="feedback:critic").score([request(upstream={})])
    assert isinstance(result, TeacherFailure)
    assert result.reason == "no_feedback"


def test_too_much_to_see_is_too_long(student: Student) -> None:
    fits = len(rendered(student, ("system", "be brief"), ("user", "3+4"))) + len(request().token_ids)
    assert fits < CONTEXT
    ((_, result),) = teacher_of(student).score([request(reference="y" * (CONTEXT - fits + 1))])
    assert isinstance(result, TeacherFailure)
    assert (result.teacher, result.reason) == ("me", "too_long")


# ---- what it leaves alone ----


@pytest.mark.parametrize("weights", ["initial", "average", "base"])
def test_the_student_is_as_it_was(folder: str, weights: str) -> None:
    student = student_of(folder, "lora")
    teacher = teacher_of(student, weights=weights)
    move(student)

    def state() -> list[object]:
        return [
            {name: parameter.requires_grad for name, parameter in student.named_parameters()},
            {name: module.training for name, module in student.named_modules()},
            student.lm.model.active_adapter,
            copy.deepcopy({name: tensor.tolist() for name, tensor in student.trained_parameters().items()}),
        ]

    before = state()
    score(teacher, request(), request("blind", reference=None))
    teacher.close()
    teacher.close()
    assert state() == before


def test_it_is_a_local_teacher(student: Student) -> None:
    teacher = teacher_of(student)
    assert isinstance(teacher, LocalTeacher)
    assert not isinstance(teacher, RemoteTeacher)
    assert teacher.signals == {SignalKind.FULL_VOCAB}
    assert list(teacher.score([])) == []
