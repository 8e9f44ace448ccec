"""Many adapters over one base: what switching leaves behind, what is shared, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.new_model import create_model
from pipeline.recipe import NewModel
from teachers.adapters import add_adapter
from teachers.causal_lm import CausalLM, load_causal_lm, model_key
from teachers.config import AdapterTeacher, TransformersTeacher
from teachers.errors import TeacherError
from teachers.pool import Pool, build_pool
from teachers.switching import active_adapter, adapters_disabled, current_adapter
from tests.models import save_adapter, save_tiny

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("base"), "qwen3")


@pytest.fixture(scope="module")
def folders(base: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [save_adapter(tmp_path_factory.mktemp("adapter"), base, seed=seed) for seed in range(3)]


@pytest.fixture
def student(base: str, folders: list[str]) -> Any:
    """A peft model in the middle of training: its own adapter with dropout, two frozen ones, one frozen half."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_dropout=0.1, target_modules="all-linear")
    model = get_peft_model(model, config, adapter_name="student")
    for folder in folders[:2]:
        model, _ = add_adapter(model, folder, name="t")
    model.train()
    model.base_model.model.model.layers[0].eval()  # some parts of a model may stay in eval mode
    for name, parameter in model.named_parameters():
        if "layers.1" in name:
            parameter.requires_grad_(False)
        if ".student." in name and "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    return model


def state(model: Any) -> tuple[object, ...]:
    """All that switching could leave changed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (
        model.active_adapter,
        model.base_model.active_adapter,
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {
            name: (list(module.active_adapters), module.disable_adapters, module.merged)
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer)
        },
    )


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(input_ids=IDS, use_cache=False).logits
    return result


def alone(base: str, folder: str | None) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits((PeftModel.from_pretrained(model, folder) if folder else model).eval())


def test_inside_the_adapter_computes_and_outside_nothing_has_changed(
    student: Any, base: str, folders: list[str]
) -> None:
    before = state(student)
    assert any(parameter.requires_grad for parameter in student.parameters())
    for name, folder in (("teacher_00", folders[0]), ("teacher_01", folders[1])):
        with active_adapter(student, name):
            assert current_adapter(student) == name
            assert not any(parameter.requires_grad for parameter in student.parameters())
            torch.testing.assert_close(logits(student), alone(base, folder), atol=1e-5, rtol=0)
        assert state(student) == before
    with adapters_disabled(student):
        assert current_adapter(student) is None
        torch.testing.assert_close(logits(student), alone(base, None), atol=1e-5, rtol=0)
    assert state(student) == before


def test_adapters_give_clearly_different_logits(base: str, folders: list[str]) -> None:
    """Else the comparisons here would prove nothing."""
    every = [alone(base, folder) for folder in (None, *folders)]
    for place, one in enumerate(every):
        for other in every[place + 1 :]:
            assert (one - other).abs().max() > 0.1


def test_switching_may_be_nested_and_interrupted(student: Any, base: str, folders: list[str]) -> None:
    before = state(student)
    with active_adapter(student, "teacher_00"):
        with adapters_disabled(student):
            with active_adapter(student, "teacher_01"):
                torch.testing.assert_close(logits(student), alone(base, folders[1]), atol=1e-5, rtol=0)
            torch.testing.assert_close(logits(student), alone(base, None), atol=1e-5, rtol=0)
        torch.testing.assert_close(logits(student), alone(base, folders[0]), atol=1e-5, rtol=0)
    assert state(student) == before
    for entered in (active_adapter(student, "teacher_00"), adapters_disabled(student)):
        with pytest.raises(KeyboardInterrupt), entered:
            raise KeyboardInterrupt
        assert state(student) == before
    with pytest.raises(ValueError, match="nobody"), active_adapter(student, "nobody"):
        pass
    assert state(student) == before


def test_a_teachers_forward_leaves_the_students_gradients_as_they_would_be(student: Any) -> None:
    """The trap this is about: after a plain set_adapter the student's parameters have no gradient at all."""

    def gradients() -> dict[str, Tensor | None]:
        student.zero_grad()
        torch.manual_seed(0)
        student(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return {name: parameter.grad for name, parameter in student.named_parameters()}

    expected = gradients()
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in expected.values())
    with active_adapter(student, "teacher_00"):
        logits(student)
    with adapters_disabled(student):
        logits(student)
    found = gradients()
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None
        else:
            assert torch.equal(gradient, found[name]), name


def test_an_adapter_joins_a_model_in_training_without_a_trace(student: Any, folders: list[str]) -> None:
    before = state(student)
    model, name = add_adapter(student, folders[2], name="t")
    assert model is student
    added = {key for key, _ in student.named_parameters() if f".{name}." in key}
    assert added
    after = state(student)
    assert after[:2] == before[:2]
    flags_before, flags_after = before[2], after[2]
    assert isinstance(flags_before, dict)
    assert isinstance(flags_after, dict)
    assert {key: flags_after[key] for key in flags_before} == flags_before
    assert not any(flags_after[key] for key in added)


# ---- a pool of them ----


def config(base: str, folder: str, **more: str) -> AdapterTeacher:
    return AdapterTeacher(kind="adapter", base=base, adapter=folder, dtype="float32", **more)  # type: ignore[arg-type]


def pool_of(configs: dict[str, Any], student: CausalLM, shared: dict[Any, CausalLM] | None = None) -> Pool:
    return build_pool(
        configs, student, shared=shared or {}, device=torch.device("cpu"), resolve=lambda path, what: path
    )


@pytest.fixture(scope="module")
def plain_student(base: str) -> CausalLM:
    return load_causal_lm(base, name="student", dtype="float32")


def parameters(pool: Pool) -> set[torch.nn.Parameter]:
    return {parameter for teacher in pool.teachers.values() for parameter in teacher.lm.model.parameters()}


def test_the_base_is_in_memory_once(base: str, folders: list[str], plain_student: CausalLM) -> None:
    configs: dict[str, Any] = {str(n): config(base, folder) for n, folder in enumerate(folders)}
    configs["original"] = TransformersTeacher(kind="transformers", model=base, dtype="float32")
    pool = pool_of(configs, plain_student)
    size = sum(parameter.numel() for parameter in plain_student.model.parameters())
    adapter = sum(tensor.numel() for tensor in load_file(f"{folders[0]}/adapter_model.safetensors").values())
    assert sum(parameter.numel() for parameter in parameters(pool)) == size + 3 * adapter
    heads = [teacher.head for teacher in pool.teachers.values()]
    assert len({head.key for head in heads}) == 1
    assert len({head.load().weight.data_ptr() for head in heads}) == 1


def test_a_lora_student_lends_its_base(base: str, folders: list[str], student: Any, plain_student: CausalLM) -> None:
    lora = CausalLM(**{**plain_student.__dict__, "model": student})
    before, own = state(student), {id(parameter) for parameter in student.parameters()}
    pool = pool_of({"t": config(base, folders[2])}, lora, {model_key(base, None, "float32"): lora})
    assert pool.teachers["t"].lm.model is student
    new = [parameter for parameter in student.parameters() if id(parameter) not in own]
    assert sum(p.numel() for p in new) < 0.5 * sum(p.numel() for p in plain_student.model.parameters())
    assert state(student)[:2] == before[:2]
    assert pool.teachers["t"].lm.name == "t"


def test_another_dtype_or_folder_is_another_base(base: str, folders: list[str], plain_student: CausalLM) -> None:
    other = AdapterTeacher(kind="adapter", base=base, adapter=folders[1], dtype="bfloat16")
    pool = pool_of({"a": config(base, folders[0]), "b": other}, plain_student)
    a, b = (teacher.lm.model for teacher in pool.teachers.values())
    assert {parameter.data_ptr() for parameter in a.parameters()}.isdisjoint(p.data_ptr() for p in b.parameters())
    assert model_key(base, None, "float32") == model_key(f"{base}/../{Path(base).name}", None, "float32")


def save_with_head(folder: Path, base: str, **lora: Any) -> str:
    """An adapter that changes the head."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, **lora))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    model.save_pretrained(str(folder))
    return str(folder)


def test_an_adapter_with_a_head_of_its_own(tmp_path: Path, plain_student: CausalLM) -> None:
    base = save_tiny(tmp_path / "base", "llama")  # an untied head
    folders = [
        save_adapter(tmp_path / "plain", base),
        save_with_head(tmp_path / "own", base, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ]
    pool = pool_of({str(n): config(base, folder) for n, folder in enumerate(folders)}, plain_student)
    shared, own = (teacher.head for teacher in pool.teachers.values())
    assert shared.key != own.key
    assert not torch.equal(shared.load().weight, own.load().weight)
    for name, folder in zip(pool.names, folders, strict=True):
        with pool.writing(name) as lm:
            torch.testing.assert_close(logits(lm.model), alone(base, folder), atol=1e-5, rtol=0)


def test_lora_on_the_head_is_refused(tmp_path: Path, plain_student: CausalLM) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    folder = save_with_head(tmp_path / "bad", base, target_modules=["q_proj", "lm_head"])
    with pytest.raises(TeacherError, match=r"leave lm_head out of its target_modules"):
        pool_of({"t": config(base, folder)}, plain_student)


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def edit_config(**values: object) -> Any:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def edit_weights(change: Any) -> Any:
    def edit(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return edit


BROKEN = {
    "no folder": (shutil.rmtree, r"there is no folder .*; name one that a PeftModel was saved to"),
    "no config": (without("adapter_config.json"), r"has no adapter_config\.json; name a folder"),
    "no weights": (without("adapter_model.safetensors"), r"has no adapter_model\.safetensors; name a folder"),
    "truncated": (truncate, r"adapter_model\.safetensors is truncated or damaged \(.*\); fetch or train it again"),
    "bad config": (lambda folder: (folder / "adapter_config.json").write_text("{"), r"cannot load .*; fetch or train"),
    "not lora": (edit_config(peft_type="IA3"), r"is a .*IA3 adapter and only LoRA can share a base; merge it"),
    "biases": (edit_config(bias="all"), r"was trained with bias: all, which changes the base that others share; merge"),
    "other layers": (edit_config(target_modules=["query"]), r"cannot load .*query.*; fetch or train it again"),
    "other rank": (edit_config(r=2), r"was made for another base; set base to its own: its matrices have other sizes"),
    "too few": (
        edit_weights(lambda tensors: dict(list(tensors.items())[1:])),
        r"was made for another base.* is only in one of them \(1 such",
    ),
    "too many": (
        edit_weights(lambda tensors: tensors | {k.replace("s.1.", "s.7."): v.clone() for k, v in tensors.items()}),
        r"was made for another base.*layers\.7.* is only in one of them \(14 such",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_adapter_is_one_line(
    what: str, base: str, folders: list[str], plain_student: CausalLM, tmp_path: Path
) -> None:
    damage, message = BROKEN[what]
    folder = tmp_path / "adapter"
    shutil.copytree(folders[0], folder)
    damage(folder)
    with pytest.raises(TeacherError, match=message) as caught:
        pool_of({"math": config(base, str(folder))}, plain_student)
    assert "\n" not in str(caught.value)
    assert "teachers.math" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_an_adapter_of_another_shape_is_one_line(base: str, plain_student: CausalLM, tmp_path: Path) -> None:
    create_model(NewModel(hidden_size=64, layers=2, heads=2), 0, tmp_path / "wide")
    folder = save_adapter(tmp_path / "adapter", str(tmp_path / "wide"))
    with pytest.raises(TeacherError, match=r"^teachers\.t: .*was made for another base; set base to its own") as caught:
        pool_of({"t": config(base, folder)}, plain_student)
    assert "\n" not in str(caught.value)
