"""The learning rate, what decays, and AdamW on half-precision weights."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pipeline.optim import Masters, build_optimizer, learning_rate, parameter_groups, set_learning_rate
from pipeline.recipe import Training
from tests.models import tiny_model


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


def linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8).to(dtype)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_learning_rate(optimizer, 1e-5 * (step + 1))
        for index, parameter in enumerate(module.parameters()):
            generator = torch.Generator().manual_seed(100 * step + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()


def test_half_precision_weights_follow_fp32_adamw_where_plain_adamw_stands_still() -> None:
    training = Training(learning_rate=1e-5, weight_decay=0.1)
    half = linear(torch.bfloat16)
    exact = copy.deepcopy(half).float()
    before = copy.deepcopy(half)
    optimizer = build_optimizer(half, training)
    assert isinstance(optimizer, Masters)
    reference = torch.optim.AdamW(parameter_groups(exact, 0.1), lr=1e-5, betas=training.betas)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(dtype: torch.dtype) -> None:
    training = Training(learning_rate=1e-5, weight_decay=0.01)
    whole = linear(dtype)
    train(whole, build_optimizer(whole, training), range(8))

    first = linear(dtype)
    optimizer = build_optimizer(first, training)
    train(first, optimizer, range(5))
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second = linear(dtype)
    second.load_state_dict(saved[0])
    resumed = build_optimizer(second, training)
    resumed.load_state_dict(saved[1])
    train(second, resumed, range(5, 8))
    assert torch.equal(whole.weight, second.weight)
    assert torch.equal(whole.bias, second.bias)


def test_accelerate_takes_the_optimizer() -> None:
    module = linear(torch.bfloat16)
    optimizer = build_optimizer(module, Training(learning_rate=1e-2))
    accelerator = Accelerator(cpu=True)
    module, prepared = accelerator.prepare(module, optimizer)
    before = module.weight.detach().clone()
    accelerator.backward(module(torch.ones(2, 8, dtype=torch.bfloat16)).sum())
    prepared.step()
    prepared.zero_grad()
    assert not torch.equal(before, module.weight)
    assert module.weight.grad is None
