"""A student of each architecture, full and LoRA, held against the plain model run row by row with whole logits."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import recipe
from pipeline.averaging import frozen_initial
from pipeline.checkpoint import whole_folder
from pipeline.errors import ModelError, RunError
from pipeline.export.form import Form
from pipeline.export.weights import kinds_of, merged, write_weights
from pipeline.student import Student, load_student, packed_hidden, padded_hidden
from pipeline.student_state import load_trainable_state, trainable_state
from pipeline.types import Divergence, Target, TrainingBatch
from teachers.adapters import add_adapter
from teachers.heads import find_head
from teachers.switching import active_adapter
from teachers.types import Answer, FullVocab, RawText, ScoreRequest, Segment
from tests.models import ARCHITECTURES, Architecture, save_adapter, save_tiny, tiny_model
from tests.runs import in_processes

CPU = torch.device("cpu")
LORA = {"kind": "lora", "rank": 4, "alpha": 8}
MODES = ("full", "lora")
LENGTHS = ((5, 40), (3, 2), (20, 13), (1, 1))  # prompt and completion tokens of each row


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {architecture: save_tiny(root / architecture, architecture, padded_rows=6) for architecture in ARCHITECTURES}


def student_of(path: str, mode: str, *, stir: bool = True, **settings: object) -> Student:
    """`stir`: give a fresh adapter's B, which is zero, random values, so that it takes part."""
    config = recipe.Student(model=path, tune=LORA if mode == "lora" else "full", dtype="float32", **settings)
    student = load_student(config, model_path=path, seed=0, chunk_bytes=20_000, device=CPU)
    if stir and mode == "lora":
        generator = torch.Generator().manual_seed(1)
        for name, parameter in student.trained_parameters().items():
            if "lora_B" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return student


def batch_of(lengths: Sequence[tuple[int, int]], teacher: torch.nn.Module | None = None) -> TrainingBatch:
    """Rows of random tokens. Every completion token is supervised a little; with a teacher, every other one (reverse
    KL) is scored as well."""
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randint(5, 358, (prompt + answer,), generator=generator) for prompt, answer in lengths]
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    predictors = [
        start + prompt - 1 + offset
        for start, (prompt, answer) in zip(starts.tolist(), lengths, strict=False)
        for offset in range(answer)
    ]
    ids = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
    place = torch.tensor(predictors, dtype=torch.int64)
    count = len(place)
    targets: tuple[Target, ...] = ()
    if teacher is not None and count:
        with torch.no_grad():
            states = torch.cat([teacher.get_decoder()(row[None]).last_hidden_state[0] for row in rows])
        chosen = torch.arange(0, count, 2)
        signal = FullVocab(states[place[chosen]], find_head(teacher, 358, "teacher"), torch.ones(len(chosen)).bool())
        weights = torch.rand(len(chosen), generator=generator)
        targets = (Target("teacher", chosen, weights, Divergence("reverse_kl"), signal),)
    return TrainingBatch(
        input_ids=ids,
        positions=torch.cat([torch.arange(len(row)) for row in rows]) if rows else ids,
        cu_seqlens=starts,
        predictors=place,
        labels=ids[place + 1],
        sampling_logprobs=torch.full((count,), float("nan")),
        nll_weights=torch.rand(count, generator=generator) / 10,
        group=torch.zeros(count, dtype=torch.int64),
        domains=("d",),
        part=torch.zeros(count, dtype=torch.int64),
        parts=("rollout",),
        targets=targets,
    )


def naive_loss(student: Student, batch: TrainingBatch, teacher: torch.nn.Module) -> Tensor:
    """The same loss from whole logits of rows that run alone."""

    def logits(model: torch.nn.Module) -> Tensor:
        bounds = batch.cu_seqlens.tolist()
        rows = [batch.input_ids[start:end] for start, end in pairwise(bounds)]
        whole = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        return whole[batch.predictors, :358].log_softmax(-1)

    ours = logits(student.lm.model)
    loss = -(batch.nll_weights * ours.gather(-1, batch.labels[:, None])[:, 0]).sum()
    with torch.no_grad():
        theirs = logits(teacher)
    for target in batch.targets:
        p, q = ours[target.positions], theirs[target.positions]
        loss = loss + (target.weights * (p.exp() * (p - q)).sum(-1)).sum()
    return loss


def gradients(student: Student, loss: Tensor) -> dict[str, Tensor]:
    student.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in student.trained_parameters().items() if p.grad is not None}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = other[name].abs().max().clamp_min(1e-6)
        assert (value - other[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_is_the_naive_loss(architecture: Architecture, mode: str, folders: dict[str, str]) -> None:
    student = student_of(folders[architecture], mode)
    teacher = tiny_model(architecture, seed=9)
    batch = batch_of(LENGTHS, teacher)
    output = student(batch)
    expected = naive_loss(student, batch, teacher)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert_same(gradients(student, output.loss), gradients(student, expected))
    assert set(gradients(student, student(batch).loss)) == set(student.trained)
    assert output.targets[0].divergence.min() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_do_not_see_each_other(architecture: Architecture, folders: dict[str, str]) -> None:
    student = student_of(folders[architecture], "full")
    whole = student(batch_of(LENGTHS)).label_logprobs
    changed = batch_of(LENGTHS)
    first = slice(0, int(changed.cu_seqlens[1]))
    ids = changed.input_ids.clone()
    ids[first] = 400 - ids[first].clamp(50, 350)
    again = student(replace(changed, input_ids=ids)).label_logprobs
    answer = LENGTHS[0][1]
    torch.testing.assert_close(whole[answer:], again[answer:], rtol=0, atol=1e-6)
    assert (whole[:answer] - again[:answer]).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packing_is_used_only_where_it_is_right(architecture: Architecture, folders: dict[str, str]) -> None:
    student = student_of(folders[architecture], "full")
    batch = batch_of(LENGTHS)
    with torch.no_grad():
        same = torch.allclose(packed_hidden(student.lm, batch), padded_hidden(student.lm, batch), atol=1e-4)
    assert student.lm.tolerance.packing == same
    assert same == (architecture != "deepseek_v4")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_batch_gives_every_parameter_a_gradient_of_zero(
    architecture: Architecture, mode: str, folders: dict[str, str]
) -> None:
    student = student_of(folders[architecture], mode)
    output = student(batch_of(()))
    assert output.loss.item() == 0
    assert output.entropy.shape == (0,)
    output.loss.backward()
    for parameter in student.trained_parameters().values():
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_nothing(architecture: Architecture, mode: str, folders: dict[str, str]) -> None:
    plain = student_of(folders[architecture], mode)
    saving = student_of(folders[architecture], mode, gradient_checkpointing=True)
    batch = batch_of(LENGTHS)
    expected = gradients(plain, plain(batch).loss)
    saving.train()
    calls = []
    layer = saving.lm.model.get_decoder().layers[0] if mode == "full" else None
    if layer is not None:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    assert_same(gradients(saving, saving(batch).loss), expected, tolerance=1e-6)
    assert len(calls) in ((2,) if layer is not None else (0,))


def test_training_mode_has_no_dropout_but_the_recipes(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.attention_dropout = 0.5
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(save_tiny(tmp_path / "t")).save_pretrained(tmp_path)
    student = student_of(str(tmp_path), "lora")
    batch = batch_of(LENGTHS)
    quiet = student(batch).loss
    student.train()
    assert torch.equal(student(batch).loss, quiet)
    config = recipe.Student(model=str(tmp_path), tune={**LORA, "dropout": 0.5}, dtype="float32")
    noisy = load_student(config, model_path=str(tmp_path), seed=0, chunk_bytes=20_000, device=CPU)
    load_trainable_state(noisy, trainable_state(student))
    assert torch.equal(noisy(batch).loss, quiet)
    noisy.train()
    assert not torch.equal(noisy(batch).loss, quiet)


# ---- bfloat16, autocast, two processes ----


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_weights_give_about_the_same(mode: str, folders: dict[str, str]) -> None:
    config = recipe.Student(model=folders["qwen3"], tune=LORA if mode == "lora" else "full", dtype="bfloat16")
    half = load_student(config, model_path=folders["qwen3"], seed=0, chunk_bytes=20_000, device=CPU)
    dtypes = {parameter.dtype for parameter in half.trained_parameters().values()}
    assert dtypes == {torch.float32 if mode == "lora" else torch.bfloat16}
    assert half.lm.model.get_input_embeddings().weight.dtype == torch.bfloat16
    exact = student_of(folders["qwen3"], mode, stir=False)
    batch = batch_of(LENGTHS, tiny_model("qwen3", seed=9))
    loss, reference = half(batch).loss, exact(batch).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=2e-2, atol=0)
    cosines = []
    ours, expected = gradients(half, loss), gradients(exact, reference)
    for name, value in expected.items():
        if value.any():
            cosines.append(torch.cosine_similarity(ours[name].float().flatten(), value.flatten(), dim=0))
    assert min(cosines) > 0.98


def test_autocast_trains_fp32_weights(folders: dict[str, str]) -> None:
    student = student_of(folders["gemma2"], "full", gradient_checkpointing=True)
    batch = batch_of(LENGTHS, tiny_model("gemma2", seed=9))
    reference = student(batch).loss
    student.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = student(batch).loss
    torch.testing.assert_close(loss, reference, rtol=2e-2, atol=0)
    ours = gradients(student, loss)
    assert all(value.dtype == torch.float32 for value in ours.values())
    expected = gradients(student, reference)
    for name, value in expected.items():
        assert torch.cosine_similarity(ours[name].flatten(), value.flatten(), dim=0) > 0.98, name


TWO_PROCESSES = """
import sys
import warnings
import torch
from accelerate import Accelerator
from tests.integration.test_student import LENGTHS, TWO_PROCESS_CASES, batch_of, student_of
from tests.models import tiny_model

folder = sys.argv[1]
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2, accelerator.num_processes
rank = accelerator.process_index
for architecture, mode in TWO_PROCESS_CASES:
    teacher = tiny_model(architecture, seed=9)
    student = student_of(f"{folder}/{architecture}", mode, gradient_checkpointing=True)
    model = accelerator.prepare(student)
    model.train()
    for lengths in [LENGTHS if rank == 0 else (), LENGTHS[rank * 2 :][:2]]:  # an empty rank, then both at work
        accelerator.backward(model(batch_of(lengths, teacher)).loss * 2)
        grads = {name: parameter.grad for name, parameter in student.trained_parameters().items()}
        assert all(grad is not None for grad in grads.values()), [n for n, g in grads.items() if g is None]
    torch.save(grads, f"{folder}/{architecture}-{mode}-{rank}.pt")
"""
TWO_PROCESS_CASES: tuple[tuple[Architecture, str], ...] = (("llama", "full"), ("deepseek_v4", "lora"))


def test_two_processes_average_and_one_may_be_empty(tmp_path: Path) -> None:
    for architecture, _ in TWO_PROCESS_CASES:
        save_tiny(tmp_path / architecture, architecture, padded_rows=6)
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [*in_processes(2), str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]

    for architecture, mode in TWO_PROCESS_CASES:
        student = student_of(str(tmp_path / architecture), mode)
        teacher = tiny_model(architecture, seed=9)
        losses = [student(batch_of(lengths, teacher)).loss for lengths in (LENGTHS, LENGTHS[:2], LENGTHS[2:])]
        expected = gradients(student, torch.stack(losses).sum())
        for rank in range(2):
            assert_same(torch.load(tmp_path / f"{architecture}-{mode}-{rank}.pt"), expected)


# ---- state and export ----


def test_products_in_bfloat16_come_in_few_shapes(folders: dict[str, str]) -> None:
    """On a CPU each new shape is compiled and kept. In float32 nothing is added to the rows."""
    student = student_of(folders["qwen3"], "full")
    widths: set[int] = set()
    body = student.lm.model.get_decoder()
    body.register_forward_pre_hook(lambda _, __, given: widths.add(given["input_ids"].shape[1]), with_kwargs=True)
    batches = [batch_of([(answer, answer), (2, 3)]) for answer in range(4, 20)]
    for batch in batches:
        student(batch)
    assert widths == {2 * answer for answer in range(4, 20)}
    widths.clear()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            student(batch)
    assert widths == {16, 32, 48}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_state_comes_back_bit_by_bit(architecture: Architecture, mode: str, folders: dict[str, str]) -> None:
    student = student_of(folders[architecture], mode)
    state = trainable_state(student)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert not [name for name in state if "lm_head" in name] or architecture == "llama"
    for parameter in student.trained_parameters().values():
        parameter.data.add_(1)
    fresh = student_of(folders[architecture], mode, stir=False)
    load_trainable_state(fresh, state)
    assert all(torch.equal(value, trainable_state(fresh)[name]) for name, value in state.items())
    name = next(iter(state))
    with pytest.raises(RunError, match="only in one of them"):
        load_trainable_state(fresh, {key: value for key, value in state.items() if key != name})
    with pytest.raises(RunError, match="another student's"):
        load_trainable_state(fresh, {**state, name: state[name].bfloat16()})


@pytest.mark.parametrize("seed", [0, 1])
def test_an_adapters_first_weights_depend_on_the_seed_alone(seed: int, folders: dict[str, str]) -> None:
    config = recipe.Student(model=folders["qwen3"], tune=LORA)

    def first_weights() -> dict[str, Tensor]:
        torch.rand(3)
        return trainable_state(
            load_student(config, model_path=folders["qwen3"], seed=seed, chunk_bytes=1 << 20, device=CPU)
        )

    before = torch.random.get_rng_state()
    one, same = first_weights(), first_weights()
    torch.random.set_rng_state(before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(not value.any() for name, value in one.items() if "lora_B" in name)
    if seed:
        zero = trainable_state(student_of(folders["qwen3"], "lora", stir=False))
        assert any(not torch.equal(zero[name], one[name]) for name in one)


def export(student: Student, folder: Path) -> None:
    for kind in kinds_of(student):
        with whole_folder(folder / kind) as whole:
            write_weights(student, whole, Form(kind))


def answers(model: torch.nn.Module) -> Tensor:
    prompts = torch.tensor([[10, 40, 70, 31], [99, 98, 3, 17]])
    return model.generate(prompts, max_new_tokens=24, do_sample=False, attention_mask=torch.ones_like(prompts))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_export_answers_like_the_student(
    architecture: Architecture, mode: str, folders: dict[str, str], tmp_path: Path
) -> None:
    student = student_of(folders[architecture], mode)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    export(student, tmp_path)
    export(student, tmp_path)  # over an older one
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == (["adapter", "model"] if mode == "lora" else ["model"])

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    expected = answers(student.lm.model)
    assert torch.equal(answers(plain), expected)
    assert type(plain) is type(tiny_model(architecture))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == student.lm.tokenizer.chat_template
    assert plain.generation_config.eos_token_id == tokenizer.eos_token_id
    if mode == "lora":
        base = AutoModelForCausalLM.from_pretrained(folders[architecture])
        assert not torch.equal(answers(base), expected)
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert torch.equal(answers(adapted), expected)


def test_merging_in_bfloat16_rounds_once(folders: dict[str, str]) -> None:
    config = recipe.Student(model=folders["llama"], tune=LORA, dtype="bfloat16")
    student = load_student(config, model_path=folders["llama"], seed=0, chunk_bytes=1 << 20, device=CPU)
    layer = student.lm.model.get_base_model().model.layers[0].self_attn.q_proj
    layer.lora_B["student"].weight.data.fill_(0.01)
    exact = layer.base_layer.weight.double() + 2 * (
        layer.lora_B["student"].weight.double() @ layer.lora_A["student"].weight.double()
    )
    weight = merged(student.lm.model).model.layers[0].self_attn.q_proj.weight
    assert torch.equal(weight, exact.float().bfloat16())


def test_loading_a_student_warns_of_nothing(folders: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student_of(folders["qwen3"], "lora", gradient_checkpointing=True)


def test_lora_leaves_the_base_untouched(folders: dict[str, str]) -> None:
    student = student_of(folders["qwen3"], "lora")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1.0)
    student(batch_of(LENGTHS)).loss.backward()
    optimizer.step()
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".lora_" in name and ".student." in name for name in changed)


# ---- beside teachers on the same base ----


def test_teachers_on_the_same_base_change_nothing_of_the_student(folders: dict[str, str], tmp_path: Path) -> None:
    student = student_of(folders["llama"], "lora")
    (base,) = student.shared_bases().values()
    assert not student_of(folders["llama"], "full").shared_bases()
    batch = batch_of(LENGTHS)
    before, expected = trainable_state(student), gradients(student, student(batch).loss)
    answered = answers(student.lm.model)

    other = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folders["llama"]),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    )
    for name, parameter in other.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.add_(0.3)
    other.save_pretrained(str(tmp_path / "teacher"))
    for folder in (str(tmp_path / "teacher"), save_adapter(tmp_path / "second", folders["llama"], seed=3)):
        model, name = add_adapter(base.model, folder, name="teacher")
        with torch.no_grad(), active_adapter(model, name):
            assert not torch.equal(answers(model), answered)

    assert all(torch.equal(value, before[name]) for name, value in trainable_state(student).items())
    assert trainable_state(student).keys() == before.keys()
    again = gradients(student, student(batch).loss)
    assert again.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.items())
    export(student, tmp_path / "out")
    assert torch.equal(answers(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()), answered)
    plain = AutoModelForCausalLM.from_pretrained(folders["llama"])
    assert torch.equal(answers(PeftModel.from_pretrained(plain, tmp_path / "out" / "adapter").eval()), answered)


# ---- the initial student as a teacher ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ["gemma2", "llama"])
def test_the_initial_student_stays_what_it_was(architecture: Architecture, mode: str, folders: dict[str, str]) -> None:
    student = student_of(folders[architecture], mode)
    start = AutoModelForCausalLM.from_pretrained(folders[architecture])
    teacher = frozen_initial(student, name="initial")
    for parameter in student.trained_parameters().values():
        parameter.data.add_(0.05)
    batch = batch_of(LENGTHS)
    student.train()
    loss = student(batch).loss

    completion = (30, 31, 32, 1)
    segment = Segment("assistant", "answer", completion, trainable=True)
    request = ScoreRequest("r", "g", 0, 1, "d", RawText("What?"), (segment,), "end")
    ((request_id, answer),) = teacher.score([request])
    assert request_id == "r"
    assert isinstance(answer, Answer)
    assert isinstance(answer.signal, FullVocab)
    head = answer.signal.head
    ids = torch.tensor([[*student.lm.tokenizer.encode("What?"), *completion]])
    with torch.no_grad():
        expected = start(ids).logits[0, -5:-1, :358]
        assert (student.lm.model(ids).logits[0, -5:-1, :358] - expected).abs().max() > 0.1
    torch.testing.assert_close(head.logits(head.load(), answer.signal.hidden), expected, rtol=1e-4, atol=1e-4)

    assert not answer.signal.hidden.requires_grad
    assert student.training
    assert gradients(student, student(batch).loss).keys() == gradients(student, loss).keys() == set(student.trained)


# ---- what a user can get wrong ----


@pytest.mark.parametrize(
    ("architecture", "targets", "words"),
    [
        ("llama", ("q_proj", "lm_head"), "lm_head is an embedding or the head"),
        ("qwen3", ("embed_tokens",), "embed_tokens is an embedding or the head"),
        ("qwen3", ("qq_proj",), "does not fit this model"),
        ("deepseek_v4", ("o_a_proj",), "o_a_proj is a DeepseekV4GroupedLinear"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(
    architecture: Architecture, targets: tuple[str, ...], words: str, folders: dict[str, str]
) -> None:
    config = recipe.Student(model="m", tune={**LORA, "targets": targets})
    with pytest.raises(ModelError, match=words) as caught:
        load_student(config, model_path=folders[architecture], seed=0, chunk_bytes=1 << 20, device=CPU)
    assert "\n" not in str(caught.value)


def test_a_missing_template_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    config = recipe.Student(model="m", chat_template=tmp_path / "no.jinja")
    with pytest.raises(ModelError, match=r"no\.jinja"):
        load_student(config, model_path=folders["qwen3"], seed=0, chunk_bytes=1 << 20, device=CPU)


def test_files_that_are_not_there_are_named_in_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    with pytest.raises(ModelError, match="nothing") as caught:
        load_student(recipe.Student(model=missing), model_path=missing, seed=0, chunk_bytes=1 << 20, device=CPU)
    assert "\n" not in str(caught.value)


def test_the_recipes_template_replaces_the_tokenizers(folders: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}!")
    config = recipe.Student(model="m", chat_template=tmp_path / "t.jinja")
    student = load_student(config, model_path=folders["qwen3"], seed=0, chunk_bytes=1 << 20, device=CPU)
    rendered = student.lm.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert rendered == "a!"
    export(student, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "model").chat_template == "{{ messages[0].content }}!"
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["model_type"] == "qwen3"
