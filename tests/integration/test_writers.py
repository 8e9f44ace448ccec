"""Completions that others than the student wrote, and the average of the teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.comparisons import average, sft_recipes
from pipeline.errors import DataError
from pipeline.recipe import DistillRecipe
from pipeline.recipe_file import load_recipe
from pipeline.rollout.protocol import SamplingSettings
from pipeline.types import Prompt
from pipeline.writers import reference_rollout, teacher_writer
from teachers.causal_lm import CausalLM, load_causal_lm
from teachers.config import AdapterTeacher, TransformersTeacher
from teachers.plan import Routes
from teachers.pool import Pool, build_pool
from teachers.types import Chat, Message, RawText
from tests.models import save_adapter, save_tiny
from tests.runs import distill_settings, write_recipe

CPU = torch.device("cpu")
CHAT = Chat((Message("user", "sort: cab"),))


@pytest.fixture
def lm(tmp_path: Path) -> CausalLM:
    return load_causal_lm(save_tiny(tmp_path / "student"), name="student", dtype="float32")


def pool_of(lm: CausalLM, tmp_path: Path) -> Pool:
    configs = {
        name: TransformersTeacher(kind="transformers", model=save_tiny(tmp_path / name, seed=seed), dtype="float32")
        for seed, name in ((1, "a"), (2, "b"))
    }
    return build_pool(configs, lm, shared={}, device=CPU, resolve=lambda path, _: path)


def test_a_reference_is_the_templates_own_assistant_turn(lm: CausalLM) -> None:
    rollout = reference_rollout(Prompt("p", "s", "d", CHAT, reference="abc"), lm)
    turns = [{"role": "user", "content": "sort: cab"}, {"role": "assistant", "content": "abc"}]
    whole = lm.tokenizer.apply_chat_template(turns, return_dict=False)
    assert [*rollout.prompt_ids, *rollout.completion_ids] == whole
    assert rollout.segments[-1].kind == "end"
    assert rollout.segments[-1].token_ids[0] in lm.end_ids
    assert all(rollout.trainable)


def test_a_raw_text_reference_follows_its_prompt(lm: CausalLM) -> None:
    rollout = reference_rollout(Prompt("p", "s", "d", RawText("ca"), reference="b"), lm)
    assert lm.tokenizer.decode(rollout.completion_ids[:-1]) == "b"
    assert rollout.completion_ids[-1] in lm.end_ids


def test_without_a_reference_there_is_nothing_to_train_on(lm: CausalLM) -> None:
    with pytest.raises(DataError, match=r"data\.sources\.s\.columns\.answer"):
        reference_rollout(Prompt("p", "s", "d", CHAT), lm)


def test_each_prompt_is_answered_by_its_own_teacher(lm: CausalLM, tmp_path: Path) -> None:
    pool = pool_of(lm, tmp_path)
    prompts = [Prompt(f"p{n}", "s", domain, CHAT) for n, domain in enumerate("abba")]
    settings = SamplingSettings(max_new_tokens=5)
    write = teacher_writer(pool, Routes({"a": {"a": 1.0}, "b": {"b": 2.0, "a": 1.0}}), lm, settings, seed=0)
    rollouts = write(prompts, 1)
    assert [rollout.prompt for rollout in rollouts] == prompts
    assert [rollout.writer for rollout in rollouts] == list("abba")
    assert all(rollout.sampling_logprobs == () for rollout in rollouts)
    # p0 and p3 differ in nothing but their ids, so their random numbers, and their answers, differ too.
    assert rollouts[0].completion_ids != rollouts[3].completion_ids


def test_the_average_is_the_mean_of_the_weights(lm: CausalLM, tmp_path: Path) -> None:
    averaged = average(pool_of(lm, tmp_path))
    parts = [AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float64).state_dict() for name in "ab"]
    for name, value in averaged.model.state_dict().items():
        torch.testing.assert_close(value.double(), (parts[0][name] + parts[1][name]) / 2, rtol=1e-6, atol=1e-7)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert averaged.model(ids).logits.isfinite().all()


def test_the_average_of_adapters_is_that_of_the_merged_models(lm: CausalLM, tmp_path: Path) -> None:
    from peft import PeftModel

    base = save_tiny(tmp_path / "base")
    folders = [save_adapter(tmp_path / f"adapter{n}", base, seed=n) for n in range(2)]
    configs = {
        f"t{n}": AdapterTeacher(kind="adapter", base=base, adapter=folder, dtype="float32")
        for n, folder in enumerate(folders)
    }
    pool = build_pool(configs, lm, shared={}, device=CPU, resolve=lambda path, _: path)
    merged = []
    for folder in folders:
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged.append(PeftModel.from_pretrained(plain, folder).merge_and_unload().state_dict())
    averaged = average(pool).model.state_dict()
    assert averaged.keys() == merged[0].keys()
    for name, value in averaged.items():
        torch.testing.assert_close(value, (merged[0][name] + merged[1][name]) / 2, rtol=1e-5, atol=1e-6)


def test_the_supervised_baseline_has_as_many_tokens(tmp_path: Path) -> None:
    settings = {**distill_settings(tmp_path), "compare": ["sft_on_teacher_samples"]}
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", settings)).recipe
    assert isinstance(recipe, DistillRecipe)
    (baseline,) = sft_recipes(recipe, tokens=1000, drawn=dict.fromkeys(recipe.data.sources, 30)).values()
    assert baseline.tokens == 1000
    assert baseline.training.steps * baseline.training.prompts_per_step >= 1000
    assert baseline.student == recipe.student
    assert baseline.training.learning_rate == recipe.training.learning_rate
    assert baseline.answers == "teachers"
