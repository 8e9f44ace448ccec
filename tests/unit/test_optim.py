"""The learning rate, what decays, who moves by Muon, and half-precision weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pipeline.muon import Muon
from pipeline.optim import (
    Masters,
    build_optimizer,
    hidden_apart,
    learning_rate,
    parameter_groups,
    set_learning_rate,
    state_bytes,
)
from pipeline.recipe import Training
from tests.models import ARCHITECTURES, tiny_model

KINDS = ("adamw", "muon", "adamw_8bit")


def training(kind: str, **settings: Any) -> Training:
    if kind == "adamw_8bit":
        pytest.importorskip("torchao")
    return Training.model_validate({"optimizer": kind, **settings})


def rates(**settings) -> list[float]:
    training = Training(learning_rate=1.0, **settings)
    return [learning_rate(step, training) for step in range(training.steps)]


def test_schedules() -> None:
    assert rates(steps=4, schedule="constant", warmup_steps=2) == [0.5, 1.0, 1.0, 1.0]
    assert rates(steps=4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(steps=5, schedule="cosine", warmup_steps=1) == pytest.approx(
        [1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6
    )
    assert rates(steps=2, schedule="linear", warmup_steps=4) == [0.25, 0.5]
    assert learning_rate(9, Training(steps=4, schedule="cosine")) == 0.0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_update_moves_and_the_rate_is_never_above_the_recipes(schedule: str) -> None:
    values = rates(steps=50, warmup_steps=7, schedule=schedule)
    assert min(values) > 0
    assert max(values) == 1.0
    assert values[:7] == sorted(values[:7])
    assert values[7:] == sorted(values[7:], reverse=True)


def test_only_matrices_decay_and_each_parameter_comes_once() -> None:
    for architecture in ("qwen3", "llama", "deepseek_v4"):
        model = tiny_model(architecture)
        names = {id(p): name for name, p in model.named_parameters()}
        decayed, kept = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.1))
        assert sorted(decayed + kept) == sorted(names.values())
        assert not [name for name in decayed if "norm" in name or "embed" in name or name.endswith("bias")]
        assert "model.layers.0.self_attn.q_proj.weight" in decayed or architecture == "deepseek_v4"
        assert ("lm_head.weight" in decayed) == (architecture != "qwen3")
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    (only,) = parameter_groups(model, 0.1)
    assert only["params"] == [model.lm_head.weight]
    assert only["weight_decay"] == 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_every_parameter_is_in_one_group_and_hidden_matrices_in_muons(architecture: str, lora: bool) -> None:
    model = tiny_model(architecture)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=r".*layers.*kv?_proj"))
    names = {id(p): name for name, p in model.named_parameters()}
    trained = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    groups = hidden_apart(model, parameter_groups(model, 0.1))
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == trained
    hidden = {names[id(p)] for group in groups if group["hidden"] for p in group["params"]}
    assert all(group["weight_decay"] == 0.1 for group in groups if group["hidden"])
    # By its shape and its name, and by neither of the ways that the program looks for them.
    ends = ("embed_tokens", "lm_head", "bias", "norm", "sinks", ".base", ".scale", "hc_base", "hc_scale")
    assert hidden == {name for name in trained if not any(end in name for end in ends)}
    assert lora or any("experts" in name for name in hidden) == (architecture == "deepseek_v4")
    assert not lora or all("lora_A" in name or "lora_B" in name for name in hidden)
    assert hidden


def test_what_looks_like_a_hidden_matrix_and_is_none() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv1d(8, 8, 4)  # filters, no stack of matrices
            self.gate = nn.Linear(8, 1)  # a vector
            self.expert_bias = nn.Parameter(torch.zeros(3, 8))
            self.experts = nn.Parameter(torch.zeros(3, 8, 8))

    odd = Odd()
    (hidden,) = (group for group in hidden_apart(odd, parameter_groups(odd, 0.1)) if group["hidden"])
    assert len(hidden["params"]) == 1
    assert hidden["params"][0] is odd.experts


def linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 64).to(dtype)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_learning_rate(optimizer, 1e-5 * (step + 1))
        for index, parameter in enumerate(module.parameters()):
            generator = torch.Generator().manual_seed(100 * step + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()


def test_half_precision_weights_follow_fp32_adamw_where_plain_adamw_stands_still() -> None:
    settings = Training(learning_rate=1e-5, weight_decay=0.1)
    half = linear(torch.bfloat16)
    exact = copy.deepcopy(half).float()
    before = copy.deepcopy(half)
    optimizer = build_optimizer(half, settings)
    assert isinstance(optimizer, Masters)
    reference = torch.optim.AdamW(parameter_groups(exact, 0.1), lr=1e-5, betas=(0.9, 0.95))
    for step in range(40):
        set_learning_rate(optimizer, 1e-4)
        set_learning_rate(reference, 1e-4)
        for live, other in zip(half.parameters(), exact.parameters(), strict=True):
            live.grad = torch.full_like(live, 0.5 + step)
            other.grad = live.grad.float()
        optimizer.step()
        reference.step()
    for live, other in zip(half.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(live, other.bfloat16())
    assert not torch.equal(half.weight, before.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    settings = training(kind, learning_rate=1e-5, weight_decay=0.01)
    whole = linear(dtype)
    train(whole, build_optimizer(whole, settings), range(8))

    first = linear(dtype)
    optimizer = build_optimizer(first, settings)
    train(first, optimizer, range(5))
    torch.save((first.state_dict(), optimizer.state_dict()), tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    second = linear(dtype)
    second.load_state_dict(saved[0])
    resumed = build_optimizer(second, settings)
    resumed.load_state_dict(saved[1])
    train(second, resumed, range(5, 8))
    assert torch.equal(whole.weight, second.weight)
    assert torch.equal(whole.bias, second.bias)
    assert not torch.equal(whole.weight, linear(dtype).weight)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_the_weights(kind: str) -> None:
    """Against what a real update leaves in memory."""
    settings = training(kind)
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    optimizer = build_optimizer(module, settings)
    train(module, optimizer, range(1))
    kept = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    assert sum(map(bytes_of, kept)) == pytest.approx(state_bytes(module, settings), rel=0.25)  # with torchao's tables
    assert (optimizer.__class__ is Muon) == (kind == "muon")


def bytes_of(tensor: torch.Tensor) -> int:
    inner = [getattr(tensor, name) for name in getattr(tensor, "tensor_attrs", ())]  # torchao's are several in one
    return sum(part.numel() * part.element_size() for part in inner or [tensor])


def test_moments_of_eight_bits_move_weights_as_adamw_does() -> None:
    eight, exact = (nn.Linear(64, 64) for _ in range(2))
    exact.load_state_dict(eight.state_dict())
    before = eight.weight.detach().clone()
    for module, kind in ((eight, "adamw_8bit"), (exact, "adamw")):
        train(module, build_optimizer(module, training(kind, learning_rate=1e-3)), range(20))
    moved, apart = (exact.weight - before).norm(), (eight.weight - exact.weight).norm()
    assert 0 < apart < 0.1 * moved


@pytest.mark.parametrize("kind", KINDS)
def test_accelerate_takes_the_optimizer(kind: str) -> None:
    module = linear(torch.bfloat16)
    optimizer = build_optimizer(module, training(kind, learning_rate=1e-2))
    accelerator = Accelerator(cpu=True)
    module, prepared = accelerator.prepare(module, optimizer)
    before = module.weight.detach().clone()
    accelerator.backward(module(torch.ones(2, 64, dtype=torch.bfloat16)).sum())
    prepared.step()
    prepared.zero_grad()
    assert not torch.equal(before, module.weight)
    assert module.weight.grad is None
