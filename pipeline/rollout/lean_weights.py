"""The weights of a plain decoder, laid out for decoding.

Plain: RMS norm, rotary attention over grouped heads, RMS norm, gated MLP; with LoRA adapters on their projections.

Legend: H and G heads of queries and of keys, d channels of a head, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from teachers.causal_lm import CausalLM, decoder, unwrapped

# Their layers are what `lean.py` computes. Others that look alike scale, cap, or norm once more.
_ARCHITECTURES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # angles that do not depend on the length of the text


@dataclass(frozen=True, eq=False)
class Projection:
    """x Wᵀ + bias, and for each LoRA adapter x Aᵀ Bᵀ, B scaled."""

    weight: Tensor
    bias: Tensor | None
    adapters: tuple[tuple[Tensor, Tensor], ...]

    def __call__(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight, self.bias)
        for down, up in self.adapters:
            y = y + linear(linear(x.to(down.dtype), down), up).to(y.dtype)
        return y


@dataclass(frozen=True, eq=False)
class Norm:
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 1:
            return rms_norm(x, self.weight.shape, self.weight, self.eps)
        return rms_norm(x, self.weight.shape[-1:], None, self.eps) * self.weight


@dataclass(frozen=True, eq=False)
class Layer:
    """inputs: of queries, keys and values; gates: of the gate and what passes it; each one projection or several, side
    by side. turned_norm: of queries and keys, its weight (H + G, d); None where the architecture has none."""

    attention_norm: Norm
    inputs: tuple[Projection, ...]
    turned_norm: Norm | None
    output: Projection
    mlp_norm: Norm
    gates: tuple[Projection, ...]
    down: Projection
    activation: nn.Module


@dataclass(frozen=True, eq=False)
class Weights:
    """products: the dtype of projections and of the head (V, D); embedding and norms have the model's own. attention:
    that of keys, values and what is done with them. rotary: the model's own module: (x, positions) -> cosines and
    sines. turned: H + G, the heads that it turns."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Norm
    head: Tensor
    head_bias: Tensor | None
    rotary: nn.Module
    turned: int
    heads: int
    channels: int
    products: torch.dtype
    attention: torch.dtype


def read_weights(lm: CausalLM, products: torch.dtype | None) -> Weights:
    """The weights as they are now: the model's own tensors, or copies in `products` where that is another dtype.

    Raises LookupError where the model is not of a shape that is known here.
    """
    body: Any = decoder(lm.model)
    top = unwrapped(lm.model).get_output_embeddings()
    _require_known(body, top)
    heads, groups = body.config.num_attention_heads, body.config.num_key_value_heads
    own, size = body.embed_tokens.weight.dtype, lm.vocab_size
    wanted = products or own
    return Weights(
        embedding=body.embed_tokens.weight.detach(),
        layers=tuple(_layer(module, heads, groups, wanted, copied=wanted != own) for module in body.layers),
        norm=_norm(body.norm),
        head=top.weight.detach()[:size].to(wanted),
        head_bias=None if top.bias is None else top.bias.detach()[:size].float(),
        rotary=body.rotary_emb,
        turned=heads + groups,
        heads=heads,
        channels=body.layers[0].self_attn.head_dim,
        products=wanted,
        attention=own if top.weight.device.type == "cpu" else wanted,  # a CPU is quicker at it in fp32 than in bf16
    )


def _require_known(body: Any, top: Any) -> None:
    config = body.config
    _require(type(body).__name__ in _ARCHITECTURES)
    _require(getattr(body.rotary_emb, "rope_type", None) in _STATIC_ROPE)
    _require(set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"})
    _require(hasattr(config, "layer_types") or getattr(config, "sliding_window", None) is None)
    _require(type(top) is nn.Linear)


def _require(holds: bool) -> None:
    if not holds:
        raise LookupError("not a shape that is computed here")


def _layer(module: Any, heads: int, groups: int, wanted: torch.dtype, *, copied: bool) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    query, key, value, output, gate, up, down = (
        _projection(each, wanted, copied=copied)
        for each in (
            attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
            mlp.gate_proj, mlp.up_proj, mlp.down_proj,
        )
    )  # fmt: skip
    turned_norm = None
    if hasattr(attention, "q_norm"):
        of_queries, of_keys = _norm(attention.q_norm), _norm(attention.k_norm)
        weights = (of_queries.weight.expand(heads, -1), of_keys.weight.expand(groups, -1))
        turned_norm = Norm(torch.cat(weights), of_queries.eps)
    return Layer(
        attention_norm=_norm(module.input_layernorm),
        inputs=_side_by_side(query, key, value) if copied else (query, key, value),
        turned_norm=turned_norm,
        output=output,
        mlp_norm=_norm(module.post_attention_layernorm),
        gates=_side_by_side(gate, up) if copied else (gate, up),
        down=down,
        activation=mlp.act_fn,
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.variance_epsilon)


def _projection(module: Any, wanted: torch.dtype, *, copied: bool) -> Projection:
    base, found = _adapted(module)
    _require(type(base) is nn.Linear)
    adapters = tuple((a.detach(), b.detach() * scale) for a, b, scale in found)
    if copied:
        adapters = tuple((a.to(wanted), b.to(wanted)) for a, b in adapters)
    bias = None if base.bias is None else base.bias.detach().to(wanted)
    return Projection(base.weight.detach().to(wanted), bias, adapters)


def _side_by_side(*parts: Projection) -> tuple[Projection, ...]:
    """One where they are nothing but weights, and copies already: fewer, larger products."""
    if any(part.adapters or part.bias is not None for part in parts):
        return parts
    return (Projection(torch.cat([part.weight for part in parts]), None, ()),)


def _adapted(module: Any) -> tuple[Any, list[tuple[Tensor, Tensor, float]]]:
    """The plain layer under a module, and (A, B, scale) of the LoRA adapters that are on."""
    from peft.tuners.lora import Linear

    if not isinstance(module, Linear):
        return module, []
    _require(not module.merged and not module.fan_in_fan_out)
    if module.disable_adapters:
        return module.base_layer, []
    active = [name for name in module.active_adapters if name in module.lora_A]
    _require(not any(name in getattr(module, "lora_variant", {}) for name in active))
    _require(not any(module.lora_B[name].bias is not None for name in active))
    found = [(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]) for name in active]
    return module.base_layer, found
