"""Runs whose answers an engine writes that follows the student: whether they learn as those in process do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pipeline.display import Display
from pipeline.files import read_lines
from pipeline.recipe_file import load_recipe
from pipeline.run import check
from pipeline.student import Student
from pipeline.types import Rollout
from tests.exported import save_base
from tests.runs import DOMAINS, Settings, changed, distill_settings

STEPS = 12
SAME = 2e-4  # nats: fp32 on both sides


def settings_of(folder: Path, tune: str) -> Settings:
    """A student whose attention vLLM knows, and two teachers of random weights."""
    settings = distill_settings(folder)
    paths = {name: save_base(folder / name) for name in ("student", *DOMAINS)}
    for seed, domain in enumerate(DOMAINS, start=1):
        shift_weights(Path(paths[domain]), seed)
    changes = {
        "student": {"model": paths["student"], "tune": tune},
        "rollout": {"max_new_tokens": 12, "rows": 8},
        "training.steps": STEPS,
        "training.prompts_per_step": 8,
        "training.tokens_per_forward": 600,
        "training.learning_rate": 1e-2 if tune == "lora" else 2e-3,
        "training.checkpoint_every": STEPS,
        "data.held_out": 2,
        "data.sources": {domain: {"kind": "tasks", "task": domain, "count": 200} for domain in DOMAINS},
    }
    for domain in DOMAINS:
        changes[f"teachers.{domain}.model"] = paths[domain]
    return changed(settings, changes)


def shift_weights(folder: Path, seed: int) -> None:
    """Makes a model another one, in its folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws)
    model.save_pretrained(folder)


def lines_of(run: Path) -> list[dict[str, Any]]:
    return list(read_lines(run / "metrics.jsonl"))


def kl_of(line: dict[str, Any]) -> float:
    return sum(line["kl"]["domain"].values()) / len(line["kl"]["domain"])


def agrees(by_server: Path, in_process: Path) -> None:
    """Both learn, and at every step as much: what is left differs by less than the draws of 96 tokens make it."""
    server, local = lines_of(by_server), lines_of(in_process)
    assert len(server) == len(local) == STEPS
    assert all(line["mismatch"]["largest"] < SAME for line in server), [line["mismatch"] for line in server]
    assert all(0 <= line["mismatch"]["kl"] < 1e-6 for line in server)
    assert not any("mismatch" in line for line in local)
    first = kl_of(local[0])
    for ours, theirs in zip(server, local, strict=True):
        assert abs(kl_of(ours) - kl_of(theirs)) < 0.25 * first
    last = [sum(kl_of(line) for line in lines[-3:]) / 3 for lines in (server, local)]
    assert max(last) < 0.7 * first
    assert abs(last[0] - last[1]) < 0.1 * first


def checked(path: Path, *, offline: bool = False) -> str:
    """What `tutelage check` says of a recipe."""
    console = Console(file=io.StringIO(), width=500)
    check(load_recipe(path), offline=offline, step=False, display=Display(console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def scored(student: Student, rollout: Rollout) -> list[float]:
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    with torch.no_grad():
        logits = student.lm.model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].double()
    return [float(row[token]) for row, token in zip(logits.log_softmax(-1), rollout.completion_ids, strict=True)]
