"""Less is held between forward and backward, and the gradients are those that they were."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import recipe
from pipeline.activations import moved_to_memory, split_mlps
from pipeline.errors import ModelError, RunError
from pipeline.recipe_file import load_recipe
from pipeline.sharding import make_accelerator
from pipeline.student import load_student
from tests.integration.test_student import LENGTHS, MODES, assert_same, batch_of, gradients, student_of
from tests.models import ALL_ARCHITECTURES, Architecture, save_tiny, tiny_model

TOKENS = 7  # none of the rows is a multiple


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_mlps_in_parts_give_the_same_gradients(architecture: Architecture, mode: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model", architecture)
    plain = student_of(path, mode)
    saving = student_of(path, mode, mlp_tokens=TOKENS, gradient_checkpointing=mode == "lora")
    batch = batch_of(LENGTHS, tiny_model(architecture, seed=9))
    expected = gradients(plain, plain(batch).loss)
    widths: list[int] = []
    inner = next(module for name, module in saving.named_modules() if name.endswith(INNER[architecture]))
    # Before, not after: computing again ends where the last tensor that is needed is there.
    inner.register_forward_pre_hook(lambda _, given: widths.append(max(given[0].shape[:-1])))
    saving.train()
    assert_same(gradients(saving, saving(batch).loss), expected)
    # Rows are padded to the longest: so many parts, each no longer than asked, and each computed again.
    padded = len(LENGTHS) * max(map(sum, LENGTHS))
    assert max(widths) <= len(LENGTHS) * TOKENS < padded
    assert len(widths) >= 2 * -(-max(map(sum, LENGTHS)) // TOKENS)


INNER = {
    **dict.fromkeys(("qwen3", "llama", "mistral", "gemma2", "gemma3"), "layers.0.mlp.act_fn"),
    **dict.fromkeys(("qwen3_moe", "gpt_oss", "deepseek_v4"), "layers.0.mlp.experts"),
}


def test_a_copy_of_a_model_in_parts_has_its_own_weights(tmp_path: Path) -> None:
    """The frozen first student is a deep copy: were its MLPs the trained ones, an anchor would follow the student."""
    student = student_of(save_tiny(tmp_path / "model"), "full", mlp_tokens=TOKENS)
    ids = torch.arange(40)[None]
    frozen = copy.deepcopy(student.lm.model)
    before = frozen(ids).logits
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(frozen(ids).logits, before)


def test_layers_without_an_mlp_are_refused() -> None:
    from transformers import AutoModelForCausalLM, GPTNeoConfig

    config = GPTNeoConfig(
        vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global"], 2]], bos_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"student.mlp_tokens: the layers of GPTNeoForCausalLM have no"):
        split_mlps(model, 4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "deepseek_v4"])
def test_what_is_moved_comes_back_and_weights_stay(
    architecture: Architecture, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny(tmp_path / "model", architecture)
    student = student_of(path, "full", gradient_checkpointing=checkpointing)
    student.train()
    batch = batch_of(LENGTHS, tiny_model(architecture, seed=9))
    expected = gradients(student, student(batch).loss)
    moved: list[int] = []
    real = torch.empty

    def counted(*arguments: object, **settings: object) -> torch.Tensor:
        if "pin_memory" in settings:
            moved.append(1)
        return real(*arguments, **settings)

    monkeypatch.setattr(torch, "empty", counted)
    student.offloads = True
    found = gradients(student, student(batch).loss)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert moved


def test_a_products_weight_is_not_copied() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)
    with moved_to_memory(layer):
        y = layer(x)
    saved = [y.grad_fn._saved_mat1, y.grad_fn._saved_mat2]  # x, and the weight turned round
    pointers = {tensor.untyped_storage().data_ptr() for tensor in saved if tensor is not None}
    assert layer.weight.untyped_storage().data_ptr() in pointers
    assert x.untyped_storage().data_ptr() not in pointers


def test_on_a_cpu_there_is_nowhere_to_move_to(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model")
    config = recipe.Student(model=path, offload_activations=True)
    with pytest.raises(ModelError, match=r"student.offload_activations: the student is on the CPU") as caught:
        load_student(config, model_path=path, seed=0, chunk_bytes=1 << 20, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_context_parallelism_from_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else accelerate would take it up, and every process would train on rows of which it has a part."""
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    loaded = load_recipe(Path(__file__).parents[2] / "recipes" / "long-answers.yaml")
    with pytest.raises(RunError, match=r"context parallelism .* is not supported") as caught:
        make_accelerator(loaded.recipe)
    assert "\n" not in str(caught.value)
