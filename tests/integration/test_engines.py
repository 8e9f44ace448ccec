"""The two ways to decode agree, and the lean one knows what it does not compute."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pipeline.rollout.cached import CachedEngine
from pipeline.rollout.decoding import Engine
from pipeline.rollout.lean import lean_engine
from pipeline.rollout.lean_weights import read_weights
from teachers.causal_lm import CausalLM
from teachers.probe import Tolerance
from teachers.switching import active_adapter, adapters_disabled
from tests.models import tiny_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
NTK = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
       "original_max_position_embeddings": 64}  # fmt: skip
PLAIN = {
    "qwen3": Qwen3Config(**SHAPE),
    "qwen2": Qwen2Config(**{**SHAPE, "head_dim": 8}),
    "llama": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama3": LlamaConfig(**SHAPE, rope_parameters=NTK, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
}
OTHERS = {
    "gemma2": Gemma2Config(**SHAPE),
    # Wider than the rows that are compared, which therefore cannot tell.
    "windows": MistralConfig(**SHAPE, sliding_window=256),
    "some windows": Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=256, max_window_layers=1),
    "dynamic": LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
}
PROMPTS = [tuple(range(7, 7 + length)) for length in (9, 3, 14)]


def lm_of(config: PretrainedConfig) -> CausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith("bias"):  # ones and zeros would hide a mistake
                    parameter.add_(torch.rand_like(parameter) * 0.5)
    return around(model)


def around(model: torch.nn.Module) -> CausalLM:
    tokenizer = tiny_tokenizer()
    return CausalLM("m", model, tokenizer, 390, frozenset([1]), 512, lambda: Tolerance(True, True, True))


def decoded(engine: Engine, order: Sequence[int], turns: int, drop_at: int | None = None) -> list[Tensor]:
    """The logits of every turn; tokens follow from the turn and the row's first place alone."""
    with torch.inference_mode():
        batch = engine.read(PROMPTS, order, turns)
        found, rows = [batch.logits], list(range(len(order)))
        for turn in range(turns - 1):
            if turn == drop_at:
                batch.keep(torch.tensor([2, 0]))
                rows = [rows[2], rows[0]]
            batch.advance(torch.tensor([(31 * turn + 7 * row) % 390 for row in rows]))
            found.append(batch.logits)
    return found


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], share: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= share * other.abs().max()


def lean(lm: CausalLM, products: torch.dtype | None = None) -> Engine:
    engine = lean_engine(lm, products)
    assert engine is not None
    return engine


@pytest.mark.parametrize("name", PLAIN)
def test_both_give_the_same_logits(name: str) -> None:
    """Prompts of different lengths, copies, rows that leave, and more tokens than there is room for at first."""
    lm = lm_of(PLAIN[name])
    for order, turns, drop_at in (([0, 1, 2], 6, None), ([2, 2, 0, 1], 6, 2), ([0, 1, 2], 300, 250)):
        found = decoded(lean(lm), order, turns, drop_at)
        assert_same(found, decoded(CachedEngine(lm), order, turns, drop_at), 1e-4)


def test_one_length_needs_no_mask() -> None:
    lm = lm_of(PLAIN["qwen3"])
    with torch.inference_mode():
        one, other = (engine.read([PROMPTS[0], PROMPTS[0][::-1]], [0, 1], 4) for engine in (lean(lm), CachedEngine(lm)))
        assert getattr(one, "hidden") is None  # noqa: B009
        for batch in (one, other):
            batch.advance(torch.tensor([5, 6]))
    assert_same([one.logits], [other.logits], 1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_products_in_bf16_are_those_of_autocast(name: str) -> None:
    lm = lm_of(PLAIN[name])
    found = decoded(lean(lm, torch.bfloat16), [0, 1, 2], 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = decoded(CachedEngine(lm), [0, 1, 2], 5)
    exact = decoded(CachedEngine(lm), [0, 1, 2], 5)
    assert_same(found, expected, 3e-2)
    worst = max(float((one - other).abs().max()) for one, other in zip(found, exact, strict=True))
    assert worst > 1e-4 * float(exact[0].abs().max()), "it was computed in the weights' own dtype"


@pytest.mark.parametrize("products", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_weights_too_large_to_be_packed_give_the_same(
    name: str, products: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = lm_of(PLAIN[name])
    if products is not None and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor packs no bf16")
    found = decoded(lean(lm, products), [2, 2, 0, 1], 6, 2)
    with torch.inference_mode():
        assert read_weights(lm, products).head.is_mkldnn
    monkeypatch.setattr("pipeline.rollout.lean_weights._MOST_PACKED", 1_000)
    plain = lean(lm, products)
    with torch.inference_mode():
        assert not read_weights(lm, products).head.is_mkldnn
    assert_same(found, decoded(plain, [2, 2, 0, 1], 6, 2), 1e-4 if products is None else 2e-2)


def test_weights_in_bf16() -> None:
    lm = lm_of(PLAIN["qwen3"])
    lm = around(lm.model.to(torch.bfloat16))
    assert_same(decoded(lean(lm), [0, 1, 2], 5), decoded(CachedEngine(lm), [0, 1, 2], 5), 3e-2)


def adapted() -> tuple[CausalLM, PeftModel]:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(lm_of(PLAIN["qwen3"]).model, config, adapter_name="one")  # type: ignore[arg-type]
    other = LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model.add_adapter("two", other)
    return around(model.eval()), model


@pytest.mark.parametrize("packs", [True, False])
def test_the_adapter_that_is_on_is_the_one_that_writes(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged into packed copies, or beside the model's own weights."""
    if not packs:
        monkeypatch.setattr("pipeline.rollout.lean_weights._MOST_PACKED", 0)
    lm, model = adapted()
    engine = lean(lm)
    found = {}
    for name, state in (
        ("one", active_adapter(model, "one")),
        ("two", active_adapter(model, "two")),
        ("none", adapters_disabled(model)),
    ):
        with state:
            found[name] = decoded(engine, [0, 1, 2], 4)
            assert_same(found[name], decoded(CachedEngine(lm), [0, 1, 2], 4), 1e-4)
    first = [values[0] for values in found.values()]
    assert all((one - other).abs().max() > 1e-2 for one, other in pairwise(first))


def test_an_adapter_in_another_dtype_than_its_base() -> None:
    """Against the same numbers in fp32: in bf16 transformers itself is further off where rows are padded."""
    lm, model = adapted()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data * 0.5 if "lora_" in name else parameter.data.bfloat16()
    exact = CachedEngine(around(copy.deepcopy(model).float()))
    assert_same(decoded(lean(lm), [0, 1, 2], 4), decoded(exact, [0, 1, 2], 4), 6e-2)


def test_it_follows_the_weights() -> None:
    lm = lm_of(PLAIN["llama"])
    engine = lean(lm)
    before = decoded(engine, [0, 1, 2], 3)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.3)
    after = decoded(engine, [0, 1, 2], 3)
    assert (before[0] - after[0]).abs().max() > 1e-2
    assert_same(after, decoded(CachedEngine(lm), [0, 1, 2], 3), 1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_does_not_compute_is_left_to_transformers(name: str) -> None:
    assert lean_engine(lm_of(OTHERS[name])) is None


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "bias"])
def test_adapters_of_other_kinds_are_left_to_peft(settings: dict[str, bool]) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, **settings)
    model = get_peft_model(lm_of(PLAIN["qwen3"]).model, config)  # type: ignore[arg-type]
    assert lean_engine(around(model.eval())) is None


def test_a_model_that_computes_something_else_is_not_taken_for_what_it_looks_like() -> None:
    lm = lm_of(PLAIN["qwen3"])
    layer: Any = lm.model.get_submodule("model.layers.1.self_attn")
    layer.scaling *= 2
    assert lean_engine(lm) is None


def test_a_context_too_short_to_compare_in_is_left_to_transformers() -> None:
    assert lean_engine(replace(lm_of(PLAIN["qwen3"]), context=4)) is None
