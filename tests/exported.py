"""Small runs to export from: taught until greedy answers are far from a tie, so that any engine gives the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.new_model import new_model
from pipeline.opened_run import device_here, moment_of, open_student
from pipeline.recipe import NewModel
from pipeline.recorded import read_run
from pipeline.rollout.local import LocalGenerator
from pipeline.rollout.protocol import SamplingSettings
from pipeline.types import Prompt
from teachers.causal_lm import CausalLM, render
from teachers.types import Chat, Message
from tests.runs import changed, run_here, write_recipe

QUESTIONS = {f"What is {n}?": answer for n, answer in enumerate(["alpha", "beta rays", "gamma, of course", "6 + 7"])}
NEW = 24


@dataclass(frozen=True)
class Answered:
    """A question as ids, and the student's greedy answer with its end."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    question: str
    text: str


def save_base(folder: Path, architecture: Any = "qwen3") -> str:
    """A model whose heads have 32 channels: vLLM's attention on the CPU knows no smaller ones. qwen3 is tied."""
    model, tokenizer = new_model(NewModel(architecture=architecture, hidden_size=64, layers=2, heads=2, context=256), 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def taught(folder: Path, base: str, settings: Mapping[str, Any], shift: int = 0) -> Path:
    """A run that has learned QUESTIONS by heart, but one that is held out; with `shift` the answers of others. Returns
    its directory."""
    lines = [json.dumps({"question": q, "answer": a}) for q, a in zip(QUESTIONS, shifted(shift), strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.jsonl").write_text("\n".join(lines))
    recipe = {
        "method": "sft",
        "output": str(folder / "run"),
        "threads": 1,
        "student": {"model": base},
        "data": {"held_out": 1, "sources": {"by_heart": {"kind": "dataset", "path": str(folder / "questions.jsonl")}}},
        "rollout": {"max_new_tokens": NEW},
        "training": {"steps": 60, "prompts_per_step": 3, "learning_rate": 1e-2, "checkpoint_every": 60},
        "evaluation": {"prompts_per_domain": 1},
    }
    return run_here(write_recipe(folder / "recipe.yaml", changed(recipe, settings)))


def shifted(shift: int) -> list[str]:
    answers = list(QUESTIONS.values())
    return answers[shift:] + answers[:shift]


def answered(run: Path, shift: int = 0) -> list[Answered]:
    """What the student answers in the run to what it has learned, by the generator of rollouts and evaluations."""
    recorded = read_run(run)
    found = answers_of(open_student(recorded, moment_of(recorded, None), device_here()).lm)
    learned = [each for each, right in zip(found, shifted(shift), strict=True) if each.text == right]
    assert len(learned) >= len(QUESTIONS) - 1, [each.text for each in found]
    return learned


def answers_of(lm: CausalLM) -> list[Answered]:
    prompts = [Prompt(q, "by_heart", "by_heart", Chat((Message("user", q),))) for q in QUESTIONS]
    rendered = [(prompt, render(prompt.conversation, lm.tokenizer)) for prompt in prompts]
    settings = SamplingSettings(max_new_tokens=NEW, temperature=0.0)
    rollouts = LocalGenerator(lm).generate(rendered, settings, seed=0, step=0, policy_version=0)
    return [
        Answered(r.prompt_ids, r.completion_ids, q, lm.tokenizer.decode(r.completion_ids, skip_special_tokens=True))
        for r, q in zip(rollouts, QUESTIONS, strict=True)
    ]
