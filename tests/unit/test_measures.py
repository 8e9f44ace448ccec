"""Losses on references against a plain forward over the whole text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from pipeline.evaluate import evaluate_model, measure_table, measured_mean
from pipeline.measures import reference_losses
from pipeline.rollout.protocol import SamplingSettings
from pipeline.types import Prompt
from teachers.causal_lm import CausalLM, load_causal_lm, render
from teachers.types import Chat, Message, RawText
from tests.models import ARCHITECTURES, Architecture, save_tiny


def prompts() -> list[Prompt]:
    raw = [Prompt(f"raw{n}", "code", "code", RawText("x = f(" + "a, " * n), "b)" * (n + 1)) for n in range(4)]
    chat = Prompt("chat", "talk", "talk", Chat((Message("user", "say it"),)), "it")
    return [*raw, chat, Prompt("none", "code", "code", RawText("y"), None)]


def naive_loss(lm: CausalLM, prompt: Prompt) -> float:
    shown = list(render(prompt.conversation, lm.tokenizer))
    answer = lm.tokenizer.encode(prompt.reference, add_special_tokens=False)
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([shown + answer])).logits[0, :, : lm.vocab_size].double()
    logprobs = logits.log_softmax(-1)
    return -sum(float(logprobs[len(shown) + n - 1, token]) for n, token in enumerate(answer)) / len(answer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_a_reference_is_that_of_one_plain_forward(architecture: Architecture, tmp_path: Path) -> None:
    lm = load_causal_lm(save_tiny(tmp_path, architecture), name="tiny", dtype="float32")
    losses = reference_losses(lm, prompts())
    assert list(losses) == ["raw0", "raw1", "raw2", "raw3", "chat"]  # without a reference there is none
    for prompt in prompts()[:-1]:
        assert losses[prompt.prompt_id] == pytest.approx(naive_loss(lm, prompt), abs=2e-5)


def test_a_reference_beyond_the_context_has_no_loss(tmp_path: Path) -> None:
    lm = load_causal_lm(save_tiny(tmp_path), name="tiny", dtype="float32")
    long = Prompt("long", "code", "code", RawText("x"), "y" * lm.context)
    assert list(reference_losses(lm, [long, *prompts()[:1]])) == ["raw0"]


@cache
def longest_common(first: str, second: str) -> int:
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + longest_common(first[1:], second[1:])
    return max(longest_common(first[1:], second), longest_common(first, second[1:]))


def test_an_evaluation_keeps_the_measures_that_were_asked_for(tmp_path: Path) -> None:
    lm = load_causal_lm(save_tiny(tmp_path), name="tiny", dtype="float32")
    held_out = {"code": prompts()[:4]}
    settings = SamplingSettings(max_new_tokens=4)
    plain = evaluate_model(lm, held_out, settings=settings, prompts_per_domain=3)
    assert plain.domains["code"].measures == {}
    found = evaluate_model(
        lm, held_out, settings=settings, prompts_per_domain=3, measures=("loss", "similarity")
    ).domains["code"]
    assert found.measures["loss"] == reference_losses(lm, prompts()[:3])
    assert found.measures["similarity"].keys() == found.measures["loss"].keys()
    columns, rows = measure_table({"base": {"code": found}, "other": {}}, "loss")
    assert (columns, rows) == (["domain", "base", "other"], [["code", f"{measured_mean(found, 'loss'):.3f}", None]])
