"""Estimates of a run's time and memory: arithmetic by hand, and memory against a real optimizer's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.optim import build_optimizer
from pipeline.pace import StepTime, Tried, step_time, training_bytes
from pipeline.recipe import DistillRecipe, Training
from pipeline.types import Prompt, Rollout
from teachers.types import RawText


def recipe(**pool: Any) -> DistillRecipe:
    served = {"kind": "served", "url": "http://127.0.0.1:8", "model": "m", "limits": {"concurrency": 4}}
    return DistillRecipe.model_validate(
        {
            "method": "distill",
            "student": {"model": "org/m"},
            "teachers": {
                "far": served,
                "near": {"kind": "transformers", "model": "org/t"},
                "checker": {"kind": "program", "check": "answer"},
            },
            "routing": "all",
            "data": {"sources": {"sorting": {"kind": "tasks", "task": "sorting"}}},
            "rollout": {"samples_per_prompt": 3, "rows": 8},
            "training": {"prompts_per_step": 10},
            "pool": pool,
        }
    )


def tried() -> Tried:
    rollout = Rollout(Prompt("p", "s", "d", RawText("x"), None), 0, (1,), (), "end")
    return Tried([rollout, rollout], writing=2.0, forward=0.1)


@pytest.mark.parametrize(("processes", "rows", "batches"), [(1, 30, 4), (2, 15, 2)])
def test_a_step_from_two_answers(processes: int, rows: int, batches: int) -> None:
    asked = {"far": 30.0, "checker": 30.0}
    found = step_time(
        recipe(), tried(), scoring=0.5, latencies={"far": 3.0, "checker": 99.0}, questions=asked, processes=processes
    )
    expected = StepTime(2.0 * batches, 0.5 * rows / 2, 0.3 * rows / 2, 30 * 3.0 / 4)
    assert vars(found) == pytest.approx(vars(expected))
    assert found.total == pytest.approx(sum(vars(found).values()))


@pytest.mark.parametrize(("latency", "left"), [(1.0, 0.0), (10.0, 75.0 - 20.0)])
def test_a_step_ahead_only_what_is_longer_than_the_rest_is_waited_for(latency: float, left: float) -> None:
    asked = {"far": 30.0}
    found = step_time(recipe(staleness=1), tried(), scoring=0.5, latencies={"far": latency}, questions=asked)
    assert found.waiting == pytest.approx(left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_adds_gradients_and_the_optimizer(dtype: torch.dtype) -> None:
    """Against what a real update leaves in memory."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8)).to(dtype)
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, Training())
    model(torch.ones(1, 16, dtype=dtype)).sum().backward()
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    inner = getattr(optimizer, "_inner", optimizer)
    moments = [state[name] for state in inner.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = sum(tensor.numel() * tensor.element_size() for tensor in gradients + moments)
    while_it_steps = 0 if dtype == torch.float32 else 4 * sum(tensor.numel() for tensor in gradients)
    assert training_bytes(model, Training()) == held + while_it_steps
