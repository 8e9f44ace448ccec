"""A recipe with every kind of teacher, against servers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.new_model import new_model
from pipeline.recipe import NewModel
from tests.models import CONTEXT, save_adapter
from tests.runs import DOMAINS, Settings, changed, distill_settings

FAST = {"timeout": 60, "deadline": 120, "retries": 6, "rest": 0.05}


def mixed_settings(folder: Path, chat_url: str, served_url: str, served_model: str) -> Settings:
    """local, adapter, served, chat, program and self in one pool, three steps over two domains."""
    settings = distill_settings(folder)
    student = settings["student"]["model"]
    teachers: dict[str, Any] = {
        "local": settings["teachers"][DOMAINS[0]],
        "adapter": {"kind": "adapter", "base": student, "adapter": save_adapter(folder / "lora", student, seed=3)},
        "served": {"kind": "served", "url": served_url, "model": served_model, "top_k": 5, "limits": FAST},
        "critic": {
            "kind": "chat",
            "url": chat_url,
            "model": "grader",
            "limits": FAST,
            "price": {"input": 1.0, "output": 2.0},
            "fallback": "checker",
        },
        "checker": {"kind": "program", "check": "answer", "limits": FAST},
        "own": {"kind": "self", "weights": "average", "sees": "feedback:critic", "template": "{prompt} {seen}"},
    }
    return changed(
        settings,
        {
            "teachers": teachers,
            "routing": "all",
            "student.tune": "lora",
            "rollout.samples_per_prompt": 2,
            "training.prompts_per_step": 4,
            "objective": {"divergence": "forward_kl", "top_k": {"kind": "top_k_forward_kl", "tail": True}},
        },
    )


def scored_model(folder: Path) -> str:
    """The model behind the scoring server. Heads of 32 channels: vLLM's attention on the CPU knows no smaller ones."""
    shape = NewModel(architecture="qwen3", hidden_size=64, layers=2, heads=2, context=CONTEXT)
    model, tokenizer = new_model(shape, seed=11)
    place = folder / "scored"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)
