"""The arithmetic about a million tokens, held against a tiny model of the same architecture, and README against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV4Config

from pipeline.activations import checkpoint_layers
from tests.benchmark import million
from tests.models import tiny_model

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_readme_has_what_the_program_prints() -> None:
    assert million.table(DeepseekV4Config()) in README


def test_the_cache_grows_as_the_formula_says() -> None:
    model = tiny_model("deepseek_v4")
    item = million.cache(model.config, million.FP32)
    sizes = {}
    for tokens in (32, 96):  # whole stretches of both rates: nothing waits in a buffer
        with torch.no_grad():
            found: Any = model(input_ids=torch.arange(tokens)[None], use_cache=True).past_key_values
        sizes[tokens] = sum(tensor.nbytes for layer in found.layers for tensor in kept(layer))
    assert sizes[96] - sizes[32] == item.per_token * 64
    assert sizes[96] == item.at(96)


def kept(layer: Any) -> Iterator[Tensor]:
    """The window once, for its keys are its values, and compressed entries; not what overlaps two stretches."""
    yield layer.keys
    yield from getattr(layer, "compressed_kv", {}).values()


def test_checkpointing_keeps_each_layers_input() -> None:
    model = tiny_model("deepseek_v4").train()
    checkpoint_layers(model)
    wide, width = {}, model.config.hidden_size
    for tokens in (32, 96):
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved, tokens: int = tokens) -> Tensor:
            if tensor.ndim == 4 and tensor.shape[1::2] == (tokens, width):  # (b, t, streams, D)
                saved[tensor.untyped_storage().data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model.model(input_ids=torch.arange(tokens)[None], use_cache=False)
        wide[tokens] = sum(saved.values())
        output.last_hidden_state.sum().backward()
    # The last layer's output as well, which what joins the streams keeps.
    item = million.layer_inputs(model.config, million.FP32)
    layers = model.config.num_hidden_layers
    assert wide[96] - wide[32] == item.per_token * 64 * (layers + 1) / layers


def test_a_record_is_as_long_as_the_program_says() -> None:
    config = DeepseekV4Config()
    longer, shorter = (million.record_on_disk(config, tokens).per_token for tokens in (40_000, 10_000))
    assert abs(longer - shorter) < 0.1
