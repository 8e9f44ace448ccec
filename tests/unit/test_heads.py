"""A head is more than a matrix: scales, softcaps, biases and padded rows, found in real architectures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

from teachers.causal_lm import decoder
from teachers.errors import TeacherError
from teachers.heads import find_head, with_ends_mapped
from teachers.types import Head

V, ROWS, D = 50, 56, 16
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
SHAPE = {
    "vocab_size": ROWS,
    "hidden_size": D,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FALCON_H1 = {"lm_head_multiplier": 0.25, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4}

# model type -> (settings, scale, softcap)
HEADS: dict[str, tuple[dict[str, Any], float, float | None]] = {
    "llama": ({}, 1.0, None),
    "qwen3": ({"tie_word_embeddings": True}, 1.0, None),
    "gemma2": ({"final_logit_softcapping": 3.0}, 1.0, 3.0),
    "gemma3_text": ({"final_logit_softcapping": 5.0}, 1.0, 5.0),
    "cohere": ({"logit_scale": 0.0625}, 0.0625, None),
    "cohere2": ({"logit_scale": 0.5}, 0.5, None),
    "granite": ({"logits_scaling": 8.0}, 0.125, None),
    "hyperclovax": ({"logits_scaling": 8.0}, 8.0, None),  # the same name as Granite's, and the other way round
    "falcon_h1": (FALCON_H1, 0.25, None),
    "phi": ({}, 1.0, None),  # a bias
    "llama4_text": ({"intermediate_size_mlp": 24, "num_local_experts": 2}, 1.0, None),  # its body hides
    "recurrent_gemma": ({"logits_soft_cap": 4.0, "lru_width": D}, 1.0, 4.0),
}


def tiny(model_type: str, dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    """Weights are large enough that a missed softcap or scale shows."""
    config = AutoConfig.for_model(model_type, **{**SHAPE, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        head = model.get_output_embeddings()
        nn.init.normal_(head.weight, std=1.0)
        if head.bias is not None:
            nn.init.normal_(head.bias)
    cast: nn.Module = model.to(dtype)
    return cast


@torch.no_grad()
def states_and_logits(model: Any) -> tuple[Tensor, Tensor]:
    hidden = decoder(model)(input_ids=IDS, use_cache=False).last_hidden_state
    return hidden[0], model(input_ids=IDS, use_cache=False).logits[0, :, :V].float()


@torch.no_grad()
def logits_of(head: Head, hidden: Tensor) -> Tensor:
    return head.logits(head.load(), hidden)


@pytest.mark.parametrize("model_type", HEADS)
def test_logits_are_the_models_own(model_type: str) -> None:
    settings, scale, softcap = HEADS[model_type]
    model = tiny(model_type, **settings)
    head = find_head(model, V, "key")
    assert (head.key, head.size, head.scale, head.softcap) == ("key", V, scale, softcap)
    hidden, expected = states_and_logits(model)
    torch.testing.assert_close(logits_of(head, hidden), expected, atol=1e-5, rtol=1e-5)
    # Would a plain product have passed? Then this architecture proves nothing here.
    naive = hidden @ head.load().weight[:V].T
    assert (scale, softcap, head.load().bias) == (1.0, None, None) or (naive - expected).abs().max() > 0.1


@pytest.mark.parametrize("model_type", ["gemma2", "granite"])
def test_half_precision_is_found_too(model_type: str) -> None:
    settings, scale, softcap = HEADS[model_type]
    head = find_head(tiny(model_type, torch.bfloat16, **settings), V, "key")
    assert (head.scale, head.softcap) == (scale, softcap)


def test_the_bias_is_part_of_it() -> None:
    head = find_head(tiny("phi"), V, "key")
    assert head.load().bias is not None
    without = replace(head, load=lambda: replace(head.load(), bias=None))
    hidden, expected = states_and_logits(tiny("phi"))
    assert (logits_of(without, hidden) - expected).abs().max() > 0.1


def test_it_follows_training_and_lets_gradients_through() -> None:
    model = tiny("gemma2", **HEADS["gemma2"][0])
    head = find_head(model, V, "key")
    hidden, _ = states_and_logits(model)
    head.logits(head.load(), hidden).sum().backward()
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    assert weight.grad is not None
    assert weight.grad[:V].abs().sum() > 0
    assert weight.grad[V:].abs().sum() == 0  # padded rows take no part
    with torch.no_grad():
        weight.mul_(-1)
    hidden, expected = states_and_logits(model)
    torch.testing.assert_close(logits_of(head, hidden), expected, atol=1e-5, rtol=1e-5)


def test_modes_stay_as_they_were() -> None:
    model = tiny("llama").train()
    model.get_output_embeddings().eval()  # type: ignore[operator]
    before = [module.training for module in model.modules()]
    find_head(model, V, "key")
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("model_type", ["bert", "electra"])
def test_an_architecture_with_another_head_is_named(model_type: str) -> None:
    """Bert puts a layer between its hidden states and the product, Electra's changes the width too."""
    model = tiny(model_type, is_decoder=True)
    with pytest.raises(TeacherError, match=rf"^math: the logits of {type(model).__name__} are not head\(hidden\)"):
        find_head(model, V, "math")


def test_logits_that_are_not_finite_are_named() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")  # type: ignore[operator]
    with pytest.raises(TeacherError, match=r"^math: LlamaForCausalLM gives logits that are not finite"):
        find_head(model, V, "math")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_lora_beside_the_head_is_fine_and_on_it_is_refused(targets: Any) -> None:
    model = get_peft_model(tiny("llama"), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets))
    if targets == "all-linear":
        hidden, expected = states_and_logits(model)
        torch.testing.assert_close(logits_of(find_head(model, V, "key"), hidden), expected, atol=1e-5, rtol=1e-5)
    else:
        with pytest.raises(TeacherError, match=r"leave lm_head out of its target_modules"):
            find_head(model, V, "key")


def test_ends_are_swapped_by_role() -> None:
    model = tiny("gemma2", **HEADS["gemma2"][0])
    head = find_head(model, V, "key")
    hidden, expected = states_and_logits(model)
    mapped = with_ends_mapped(head, 4, 9, torch.device("cpu"))
    found = logits_of(mapped, hidden)
    assert torch.equal(found[:, 4], logits_of(head, hidden)[:, 9])
    assert torch.equal(found[:, 9], logits_of(head, hidden)[:, 4])
    others = [index for index in range(V) if index not in (4, 9)]
    torch.testing.assert_close(found[:, others], expected[:, others], atol=1e-5, rtol=1e-5)
    assert mapped.key != head.key
    assert with_ends_mapped(head, 4, 4, torch.device("cpu")) is head


def test_an_end_token_past_the_students_vocabulary_is_scored_in_its_place() -> None:
    head = find_head(tiny("llama"), V, "key")
    hidden, _ = states_and_logits(tiny("llama"))
    found = logits_of(with_ends_mapped(head, 4, V + 2, torch.device("cpu")), hidden)
    assert found.shape[-1] == V
    torch.testing.assert_close(found[:, 4], hidden @ head.load().weight.detach()[V + 2])
