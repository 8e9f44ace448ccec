"""Tiny models and recipes that are built to go wrong, each in one known way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.chains import OTHERS, Chain, Following, prose, save_chain, saying
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
    changes = {"training.learning_rate": 3e-2, "rollout.max_new_tokens": 66}
    return longer(folder, teachers=dict.fromkeys(DOMAINS, teacher), **changes)


def flat(folder: Path) -> Settings:
    """A student that has learned one of two domains, and a teacher of uniform log-probabilities in the other."""
    student = save_echo(folder / "echo", 2)
    settings = longer(folder, **{"student.model": student, "rollout.samples_per_prompt": 2})
    models = {DOMAINS[0]: save_echo(folder / "flat", 0), DOMAINS[1]: student}
    return changed(settings, {f"teachers.{name}.model": model for name, model in models.items()})


def one_sided(folder: Path) -> Settings:
    """One domain's teacher pulls much harder than the other's."""
    return changed(longer(folder), {f"teachers.{DOMAINS[0]}.model": save_echo(folder / "echo", 30)})


def too_fast(folder: Path, rate: float = 0.3) -> Settings:
    """A student that has hardly anything to learn, and a learning rate that is too high once it is warm."""
    changes = {"training.learning_rate": rate, "training.warmup_steps": 12, "training.steps": 24}
    settings = longer(folder, **changes, **{"student.model": save_echo(folder / "echo", 2)})
    teacher = save_echo(folder / "louder", 2.2)
    return changed(settings, {f"teachers.{name}.model": teacher for name in DOMAINS})


# ---- chains that go wrong, each in a way that one guard is for ----


@dataclass(frozen=True)
class Fault:
    """A recipe that goes wrong, and what a student that has not would do."""

    settings: Settings
    good: Chain


def ranked(letters: str) -> Following:
    """The first is the likeliest, each next one less so."""
    return {letter: 0.85**place for place, letter in enumerate(letters)}


ENGLISH = ranked("etaoinshrdlcumwfgypbvkjxqz")
SWAPPED = ranked("teaonishrdlucmwfgypbvkjxqz")  # nearly the same
RARE = ranked("zqxjkvbpygfwmucldrhsnioate")
UNENDING = 1e-7


def taught(folder: Path, student: Chain, teachers: Sequence[Chain], rate: float, **changes: object) -> Settings:
    """A chain learns from others, one in each domain; its rate is reached after ten steps."""
    models = [save_chain(folder / f"teacher-{number}", chain) for number, chain in enumerate(teachers)]
    return longer(
        folder,
        teachers={
            domain: {"kind": "transformers", "model": model, "dtype": "float32"}
            for domain, model in zip(DOMAINS, models, strict=True)
        },
        **{
            "student.model": save_chain(folder / "chain", student),
            "rollout.rows": 16,
            "training.prompts_per_step": 16,
            "training.steps": 32,
            "training.learning_rate": rate,
            "training.warmup_steps": 10,
            **changes,
        },
    )


def told_apart_by_nothing(folder: Path, answers: Sequence[str], **weights: float) -> Settings:
    """`data` of two domains whose prompts look alike; the references are all the same in each."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for place, (domain, answer) in enumerate(zip(DOMAINS, answers, strict=True)):
        path = folder / f"{domain}.jsonl"
        lines = [{"prompt": f"say {number}", "answer": answer} for number in range(place, 100, 2)]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        sources[domain] = {"kind": "dataset", "path": str(path), "weight": weights.get(domain, 1.0)}
    return {"held_out": 8, "sources": sources}


def foreign_end(folder: Path) -> Fault:
    """The teachers end their answers with another token than the student."""
    good = prose(ENGLISH, 0.15)
    return Fault(taught(folder, good, [prose(ENGLISH, 0.15, "<|user|>")] * 2, 1e-3), good)


def endless(folder: Path) -> Fault:
    """Teachers that never end, of a student whose answers were long before."""
    good = prose(ENGLISH, 0.03)
    return Fault(taught(folder, good, [prose(ENGLISH, UNENDING)] * 2, 1e-3), good)


def one_letter(folder: Path, room: int = 40) -> Fault:
    """Teachers that have collapsed: they say one letter again and again."""
    teacher = prose({**ENGLISH, "e": 3e4}, UNENDING)
    good = prose(ENGLISH, 0.02)
    return Fault(taught(folder, good, [teacher] * 2, 5e-3, **{"rollout.max_new_tokens": room}), good)


def looping(folder: Path) -> Fault:
    """The same, with answers long enough for zlib to tell."""
    return one_letter(folder, room=66)


def dragged(folder: Path) -> Fault:
    """A student that is as the teacher of one domain wants it, and another's teacher, who has most prompts."""
    good = prose(ENGLISH, 0.05)
    data = told_apart_by_nothing(folder, ("", ""), **{DOMAINS[1]: 3.0})
    return Fault(taught(folder, good, [good, prose(RARE, 0.05)], 1e-3, data=data), good)


def forgetting(folder: Path) -> Fault:
    """A student that answers one domain right, and the teacher of another, where something else is right."""
    good = saying("yes")
    changes = {"data": told_apart_by_nothing(folder, ("yes", "nob")), "rollout.max_new_tokens": 8}
    return Fault(
        taught(
            folder,
            good,
            [good, saying("nob")],
            1e-3,
            **changes,
            **{"evaluation.prompts_per_domain": 8, "evaluation.samples": 4},
        ),
        good,
    )


def blind(folder: Path) -> Fault:
    """Good teachers whose eight best tokens are all that counts, and references that no teacher would write."""
    objective = {"reference": 1.0, "divergence": {"kind": "top_k_reverse_kl", "k": 8}}
    data = told_apart_by_nothing(folder, ("qzxjqkzvxqjzkvxqzjqx",) * 2)
    good = prose(SWAPPED, 0.05)
    return Fault(taught(folder, prose(ENGLISH, 0.05), [good] * 2, 3e-3, objective=objective, data=data), good)


def stuck(folder: Path) -> Fault:
    """One teacher gives the same answer at every token, and the student is as the other one wants it."""
    good = prose(ENGLISH, 0.05)
    return Fault(taught(folder, good, [{OTHERS: RARE}, good], 3e-3), good)
