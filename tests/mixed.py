"""A recipe with every kind of teacher, against servers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models import save_adapter, save_tiny
from tests.runs import DOMAINS, Settings, changed, distill_settings

SCORER = "scorer"  # what the scoring server calls its model
FAST = {"timeout": 5, "deadline": 20, "retries": 6, "rest": 0.05}


def mixed_settings(folder: Path, chat_url: str, served_url: str, served_model: str = SCORER) -> Settings:
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
    """The model behind the scoring server."""
    return save_tiny(folder / "scored", seed=11)
