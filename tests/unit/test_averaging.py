"""The student's moving averages: the numbers, what runs on them, what stays untouched, and a resume to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline import checkpoint as checkpoints
from pipeline import recipe
from pipeline.averaging import Averages, MovingAverage, averages_of, selves_of
from pipeline.errors import RunError
from pipeline.student import Student, load_student
from pipeline.student_state import load_trainable_state, trainable_state
from teachers.config import SelfTeacher, TransformersTeacher
from teachers.privileged import build
from teachers.types import Answer, Chat, FullVocab, Message, ScoreRequest, Segment
from tests.models import ARCHITECTURES, Architecture, save_tiny

CPU = torch.device("cpu")
LORA = {"kind": "lora", "rank": 4, "alpha": 8}
CASES: list[tuple[Architecture, str]] = [("qwen3", "full"), ("llama", "full"), ("qwen3", "lora")]  # tied, not tied
DECAY = 0.05


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def student(request: pytest.FixtureRequest, folders: dict[str, str]) -> Student:
    architecture, mode = request.param
    return student_of(folders[architecture], mode)


def student_of(path: str, mode: str, dtype: str = "float32") -> Student:
    config = recipe.Student(model=path, tune=LORA if mode == "lora" else "full", dtype=dtype)
    return load_student(config, model_path=path, seed=0, chunk_bytes=20_000, device=CPU)


def move(student: Student, seed: int, size: float = 0.05) -> None:
    """Changes every trained weight, as a step of an optimizer does."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.trained_parameters().values():
        change = torch.randn(parameter.shape, generator=generator) * size
        parameter.data.add_(change.to(parameter.dtype))


def request(name: str = "r", reference: str = "7") -> ScoreRequest:
    conversation = Chat((Message("user", "3+4"),))
    segments = (Segment("assistant", "answer", (60, 61, 62, 63), True), Segment("assistant", "end", (1,), True))
    return ScoreRequest(name, name, 0, 0, "d", conversation, segments, "end", reference=reference)


def answer(student: Student, average: MovingAverage) -> FullVocab:
    ((_, result),) = average.teacher().score([request()])
    assert isinstance(result, Answer)
    assert isinstance(result.signal, FullVocab)
    return result.signal


def logits_of(signal: FullVocab) -> Tensor:
    return signal.head.logits(signal.head.load(), signal.hidden)


def everything(student: Student) -> Iterator[tuple[str, object]]:
    """All of a student that a teacher's forward could change."""
    for name, parameter in student.named_parameters():
        yield name, (parameter.data_ptr(), parameter.requires_grad, parameter.detach().clone().numpy().tobytes())
    for name, module in student.named_modules():
        yield name, module.training


# ---- the numbers ----


def test_it_is_the_exponential_moving_average(student: Student) -> None:
    """Held against (1-d)^n w_0 + Σ d (1-d)^(n-i) w_i in float64."""
    average = MovingAverage(student, DECAY)
    seen = [{name: p.detach().double().clone() for name, p in student.trained_parameters().items()}]
    for step in range(9):
        move(student, step)
        average.update()
        seen.append({name: p.detach().double().clone() for name, p in student.trained_parameters().items()})
    for name, found in average.weights.items():
        shares = [(1 - DECAY) ** 9, *(DECAY * (1 - DECAY) ** (9 - step) for step in range(1, 10))]
        expected = sum((share * weights[name] for share, weights in zip(shares, seen, strict=True)), torch.zeros(()))
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
        assert (found - seen[-1][name].float()).abs().max() > 1e-3


def test_a_decay_of_one_is_the_student_itself(student: Student) -> None:
    average = MovingAverage(student, 1.0)
    move(student, 1)
    average.update()
    for name, parameter in student.trained_parameters().items():
        assert torch.equal(average.weights[name], parameter)


def test_it_moves_where_bf16_would_stand_still(folders: dict[str, str]) -> None:
    student = student_of(folders["qwen3"], "full", "bfloat16")
    average = MovingAverage(student, DECAY)
    before = {name: tensor.clone() for name, tensor in average.weights.items()}
    in_bf16 = {name: parameter.detach().clone() for name, parameter in student.trained_parameters().items()}
    for parameter in student.trained_parameters().values():
        parameter.data.mul_(1 + 2**-7)  # the smallest step up that all of them can make
    for _ in range(200):
        average.update()
        for name, parameter in student.trained_parameters().items():
            in_bf16[name].lerp_(parameter.detach(), DECAY)
    for name, parameter in student.trained_parameters().items():
        assert average.weights[name].dtype == torch.float32
        torch.testing.assert_close(average.weights[name], parameter.detach().float(), atol=0, rtol=1e-5)
    norms = [name for name in student.trained if "norm" in name]
    assert norms  # 1 to 1 + 1/128: a twentieth of that is less than bf16 has there
    assert all(torch.equal(in_bf16[name].float(), before[name]) for name in norms)


# ---- what runs on it ----


def plain_with(student: Student, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of the student's model that holds the given weights for good."""
    other = copy.deepcopy(student)
    parameters = other.trained_parameters()
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
    return other.lm.model.eval()


def expected_logits(student: Student, weights: dict[str, Tensor]) -> Tensor:
    """(N, V) from whole logits of a model of its own."""
    tokenizer = student.lm.tokenizer
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3+4"}], add_generation_prompt=True, return_dict=False
    )
    row = [*prompt, *request().token_ids]
    with torch.no_grad():
        logits = plain_with(student, weights)(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(row) - 1, : student.lm.vocab_size]


@pytest.mark.parametrize(("architecture", "mode"), [*((name, "full") for name in ARCHITECTURES), ("qwen3", "lora")])
def test_its_answers_are_those_of_a_model_with_its_weights(
    folders: dict[str, str], architecture: Architecture, mode: str
) -> None:
    student = student_of(folders[architecture], mode)
    average = MovingAverage(student, 0.3)
    for step in range(3):
        move(student, step)
        average.update()
    expected = expected_logits(student, average.weights)
    torch.testing.assert_close(logits_of(answer(student, average)), expected, atol=1e-5, rtol=0)
    live = {name: parameter.detach() for name, parameter in student.trained_parameters().items()}
    assert (expected_logits(student, live) - expected).abs().max() > 1e-2


def test_bf16_answers_are_those_of_a_bf16_model(folders: dict[str, str]) -> None:
    student = student_of(folders["llama"], "full", "bfloat16")
    average = MovingAverage(student, 0.3)
    move(student, 0)
    average.update()
    signal = answer(student, average)
    assert signal.hidden.dtype == torch.bfloat16
    torch.testing.assert_close(
        logits_of(signal), expected_logits(student, average.weights).float(), atol=0.05, rtol=0.05
    )


def test_an_answer_keeps_the_head_that_it_was_given_with(student: Student) -> None:
    """An update between an answer and its loss (staleness 1) must not mix old states with a new head."""
    average = MovingAverage(student, 0.5)
    move(student, 0)
    average.update()
    old = answer(student, average)
    before = logits_of(old)
    move(student, 1)
    average.update()
    assert torch.equal(logits_of(old), before)
    new = answer(student, average)
    assert not torch.equal(logits_of(new), before)
    assert new.head.key != old.head.key


def test_the_student_is_the_same_afterwards(student: Student) -> None:
    average = MovingAverage(student, DECAY)
    move(student, 0)
    average.update()
    before = dict(everything(student))
    answer(student, average)
    assert dict(everything(student)) == before
    with average.in_place():
        assert dict(everything(student)) != before
    assert dict(everything(student)) == before
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert dict(everything(student)) == before


def test_training_goes_on_as_if_it_had_not_been_asked(folders: dict[str, str]) -> None:
    def trained(mode: str, *, asked: bool) -> dict[str, Tensor]:
        student = student_of(folders["qwen3"], mode)
        average = MovingAverage(student, DECAY)
        optimizer = torch.optim.AdamW(student.trained_parameters().values(), lr=1e-2)
        ids = torch.tensor([[5, 60, 61, 62, 63, 1]])
        for _ in range(3):
            if asked:
                answer(student, average)
            optimizer.zero_grad()
            student.train()
            student.lm.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()  # type: ignore[operator]
            student.eval()
            optimizer.step()
            average.update()
        return trainable_state(student) | {f"average {name}": tensor for name, tensor in average.weights.items()}

    for mode in ("full", "lora"):
        quiet, asked = trained(mode, asked=False), trained(mode, asked=True)
        assert all(torch.equal(quiet[name], asked[name]) for name in quiet)


# ---- a run's averages ----


def self_teacher(**more: object) -> SelfTeacher:
    return SelfTeacher(kind="self", template="{seen}\n{prompt}", **more)  # type: ignore[arg-type]


def test_there_is_one_for_each_decay_that_a_teacher_names(student: Student) -> None:
    other = TransformersTeacher(kind="transformers", model="m")
    teachers = [
        other,
        self_teacher(weights="average", decay=0.5),
        self_teacher(weights="average", decay=0.5, sees="privileged"),
        self_teacher(weights="average", decay=0.1),
        self_teacher(weights="initial", decay=0.2),
    ]
    state = averages_of(student, teachers).state()
    assert {name.partition("/")[0] for name in state} == {"0.5", "0.1"}
    assert len(state) == 2 * len(student.trained)
    assert averages_of(student, [other]).state() == {}


def test_a_teacher_of_a_recipe_answers_with_the_average_of_the_moment(student: Student) -> None:
    config = self_teacher(weights="average", decay=0.5)
    averages = averages_of(student, [config])
    teacher = build("me", config, selves_of(student, averages))
    answers = []
    for step in range(2):
        move(student, step)
        averages.update()
        ((_, result),) = teacher.score([request()])
        assert isinstance(result, Answer)
        assert isinstance(result.signal, FullVocab)
        answers.append(logits_of(result.signal))
        told = Chat((Message("user", "7\n3+4"),))
        bare = ScoreRequest("r", "r", 0, 0, "d", told, request().segments, "end")
        ((_, alone),) = averages.of(0.5).teacher().score([bare])
        assert isinstance(alone, Answer)
        assert isinstance(alone.signal, FullVocab)
        assert torch.equal(answers[-1], logits_of(alone.signal))
    assert not torch.equal(*answers)


def test_resumed_from_a_checkpoint_it_goes_on_to_the_bit(
    student: Student, folders: dict[str, str], tmp_path: Path
) -> None:
    mode = "lora" if hasattr(student.lm.model, "peft_config") else "full"
    architecture = student.lm.model.config.model_type  # type: ignore[union-attr]
    averages = Averages(student, [0.05, 0.3])
    for step in range(3):
        move(student, step)
        averages.update()
    value = checkpoints.Checkpoint(3, trainable_state(student), {}, {}, averages.state())
    loaded = checkpoints.load(checkpoints.save(tmp_path, value, keep=1))

    resumed = student_of(folders[str(architecture)], mode)
    again = Averages(resumed, [0.05, 0.3])
    load_trainable_state(resumed, loaded.weights)
    again.load(loaded.averages)
    for each, theirs in ((student, averages), (resumed, again)):
        move(each, 3)
        theirs.update()
    ours, other = averages.state(), again.state()
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[name], other[name]) for name in ours)
    assert torch.equal(logits_of(answer(student, averages.of(0.3))), logits_of(answer(resumed, again.of(0.3))))


def test_what_was_saved_does_not_change(student: Student) -> None:
    averages = Averages(student, [0.5])
    state = averages.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    move(student, 0)
    averages.update()
    assert all(torch.equal(state[name], kept[name]) for name in state)
    averages.load(state)
    averages.update()
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_an_average_that_a_checkpoint_does_not_hold_begins_at_the_students_weights(student: Student) -> None:
    old, averages = Averages(student, [0.5]), Averages(student, [0.5, 0.1])
    move(student, 0)
    old.update()
    averages.load(old.state())
    assert all(torch.equal(averages.of(0.5).weights[name], old.of(0.5).weights[name]) for name in student.trained)
    for name, parameter in student.trained_parameters().items():
        assert torch.equal(averages.of(0.1).weights[name], parameter)


def test_another_students_averages_are_refused(student: Student) -> None:
    averages = Averages(student, [0.5])
    state = averages.state()
    name = next(iter(state))
    missing = {key: tensor for key, tensor in state.items() if key != name}
    for odd in (missing, state | {name: state[name][:1]}, state | {"0.5/stranger": torch.ones(1)}):
        with pytest.raises(RunError, match="the saved average is another student's") as caught:
            averages.load(odd)
        assert "\n" not in str(caught.value)


def test_a_damaged_file_of_averages_is_one_line(student: Student, tmp_path: Path) -> None:
    value = checkpoints.Checkpoint(1, trainable_state(student), {}, {}, Averages(student, [0.5]).state())
    path = checkpoints.save(tmp_path, value, keep=1)
    file = path / "averages.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(RunError, match="step-000001"):
        checkpoints.load(path)
    plain = checkpoints.Checkpoint(2, trainable_state(student), {}, {})
    assert checkpoints.load(checkpoints.save(tmp_path, plain, keep=1)).averages == {}
