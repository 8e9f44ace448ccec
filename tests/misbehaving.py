"""Tiny models and recipes that are built to go wrong, each in one known way."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models import tiny_model, tiny_tokenizer
from tests.runs import DOMAINS, Settings, changed, distill_settings


def save_echo(folder: Path, strength: float) -> str:
    """A model that says its last token again, the surer the stronger; at 0 it finds all tokens equally good."""
    model = tiny_model(seed=3)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.get_input_embeddings().weight.mul_(strength)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def longer(folder: Path, **changes: object) -> Settings:
    """The tiny recipe with answers of 40 tokens, sixteen steps, and a checkpoint every fourth."""
    return changed(
        distill_settings(folder),
        {
            "rollout.max_new_tokens": 40,
            "rollout.rows": 8,
            "training.steps": 16,
            "training.learning_rate": 1e-2,
            "training.schedule": "constant",
            "training.checkpoint_every": 4,
            "training.tokens_per_forward": 4000,
            "evaluation.prompts_per_domain": 1,
            **changes,
        },
    )


def repeating(folder: Path) -> Settings:
    """Both teachers pull to repetition."""
    teacher = {"kind": "transformers", "model": save_echo(folder / "echo", 12), "dtype": "float32"}
    return longer(folder, teachers=dict.fromkeys(DOMAINS, teacher), **{"training.learning_rate": 3e-2})


def flat(folder: Path) -> Settings:
    """A student that has learned one of two domains; in the other its teacher answers uniform log-probabilities."""
    student = save_echo(folder / "echo", 2)
    settings = longer(folder, **{"student.model": student, "rollout.samples_per_prompt": 2})
    models = {DOMAINS[0]: save_echo(folder / "flat", 0), DOMAINS[1]: student}
    return changed(settings, {f"teachers.{name}.model": model for name, model in models.items()})


def one_sided(folder: Path) -> Settings:
    """One domain's teacher pulls much harder than the other's."""
    return changed(longer(folder), {f"teachers.{DOMAINS[0]}.model": save_echo(folder / "echo", 30)})


def too_fast(folder: Path) -> Settings:
    """A student that has hardly anything to learn, and a learning rate that is much too high once it is warm."""
    changes = {"training.learning_rate": 0.3, "training.warmup_steps": 12, "training.steps": 24}
    settings = longer(folder, **changes, **{"student.model": save_echo(folder / "echo", 2)})
    teacher = save_echo(folder / "louder", 2.2)
    return changed(settings, {f"teachers.{name}.model": teacher for name in DOMAINS})
