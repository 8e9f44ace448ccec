"""The weights of a plain decoder, laid out for decoding.

Plain: RMS norm, rotary attention over grouped heads, RMS norm, gated MLP; with LoRA adapters on their projections.

Decoding multiplies few rows by every weight, again and again. On a CPU most of that time goes into bringing each weight
into the order in which its kernels read it, so it is brought there once: `packed`.

Legend: H and G heads of queries and of keys, d channels of a head, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from teachers.causal_lm import CausalLM, decoder, unwrapped

# Their layers are what `lean.py` computes. Others that look alike scale, cap, or norm once more.
_ARCHITECTURES = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # angles that do not depend on the length of the text
_MOST_PACKED = 4 * 2**30  # bytes: packed weights are copies, and those of a large model are too much beside it


def packed(weight: Tensor) -> Tensor:
    """(out, in) in the order in which a CPU multiplies few rows by it; for `multiplied` alone."""
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return result


def multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (…, in) Wᵀ + bias -> (…, out); weight plain or packed."""
    if not weight.is_mkldnn:
        return linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@dataclass(frozen=True, eq=False)
class Projection:
    """x Wᵀ + bias, and for each LoRA adapter that is not merged into W x Aᵀ Bᵀ, B scaled."""

    weight: Tensor
    bias: Tensor | None
    adapters: tuple[tuple[Tensor, Tensor], ...]

    def __call__(self, x: Tensor) -> Tensor:
        y = multiplied(x, self.weight, self.bias)
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


@dataclass(frozen=True)
class _Layout:
    """products: the dtype to multiply in. copied: weights are copies, into which adapters are merged and where
    neighbours stand side by side. packed: see above."""

    products: torch.dtype
    copied: bool
    packed: bool


def read_weights(lm: CausalLM, products: torch.dtype | None) -> Weights:
    """The weights as they are now: the model's own tensors, or copies where they are packed or get another dtype.

    Raises LookupError where the model is not of a shape that is known here.
    """
    body: Any = decoder(lm.model)
    top = unwrapped(lm.model).get_output_embeddings()
    _require_known(body, top)
    heads, groups = body.config.num_attention_heads, body.config.num_key_value_heads
    own, size = body.embed_tokens.weight.dtype, lm.vocab_size
    layout = _layout(body, top.weight, products or own)
    head = top.weight.detach()[:size].to(layout.products)
    return Weights(
        embedding=body.embed_tokens.weight.detach(),
        layers=tuple(_layer(module, heads, groups, layout) for module in body.layers),
        norm=_norm(body.norm),
        head=packed(head) if layout.packed else head,
        head_bias=None if top.bias is None else top.bias.detach()[:size].float(),
        rotary=body.rotary_emb,
        turned=heads + groups,
        heads=heads,
        channels=body.layers[0].self_attn.head_dim,
        products=layout.products,
        attention=own if top.weight.device.type == "cpu" else layout.products,  # a CPU is quicker at it in fp32
    )


def _layout(body: Any, head: Tensor, products: torch.dtype) -> _Layout:
    entries = head.numel() + sum(parameter.numel() for parameter in body.layers.parameters())
    packs = head.device.type == "cpu" and copies_fit(entries, products)
    return _Layout(products, copied=packs or products != body.embed_tokens.weight.dtype, packed=packs)


def copies_fit(entries: int, products: torch.dtype) -> bool:
    """Whether a CPU packs weights of so many entries."""
    return entries * products.itemsize <= _MOST_PACKED and _can_pack(products)


def _can_pack(dtype: torch.dtype) -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


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


def _layer(module: Any, heads: int, groups: int, layout: _Layout) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    turned_norm = None
    if hasattr(attention, "q_norm"):
        of_queries, of_keys = _norm(attention.q_norm), _norm(attention.k_norm)
        weights = (of_queries.weight.expand(heads, -1), of_keys.weight.expand(groups, -1))
        turned_norm = Norm(torch.cat(weights), of_queries.eps)
    return Layer(
        attention_norm=_norm(module.input_layernorm),
        inputs=_projections(layout, attention.q_proj, attention.k_proj, attention.v_proj),
        turned_norm=turned_norm,
        output=_projections(layout, attention.o_proj)[0],
        mlp_norm=_norm(module.post_attention_layernorm),
        gates=_projections(layout, mlp.gate_proj, mlp.up_proj),
        down=_projections(layout, mlp.down_proj)[0],
        activation=mlp.act_fn,
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.variance_epsilon)


def _projections(layout: _Layout, *modules: Any) -> tuple[Projection, ...]:
    """What computes these modules of one input, side by side: fewer, larger products where they are copies."""
    found = [_projection(module, layout) for module in modules]
    if not layout.copied:
        return tuple(found)
    joined = [found] if len({part.bias is None for part in found}) == 1 else [[part] for part in found]
    return tuple(_joined(layout, parts) for parts in joined)


def _projection(module: Any, layout: _Layout) -> Projection:
    base, adapters = _adapted(module)
    _require(type(base) is nn.Linear)
    weight, bias = base.weight.detach(), None if base.bias is None else base.bias.detach().to(layout.products)
    if not layout.copied:
        return Projection(weight, bias, tuple((down.detach(), up.detach() * scale) for down, up, scale in adapters))
    for down, up, scale in adapters:
        weight = torch.addmm(weight.float(), up.detach().float(), down.detach().float(), alpha=scale)
    return Projection(weight.to(layout.products), bias, ())


def _joined(layout: _Layout, parts: Sequence[Projection]) -> Projection:
    weight = torch.cat([part.weight for part in parts]) if len(parts) > 1 else parts[0].weight
    biases = [part.bias for part in parts if part.bias is not None]
    return Projection(packed(weight) if layout.packed else weight, torch.cat(biases) if biases else None, ())


def _adapted(module: Any) -> tuple[Any, list[tuple[Tensor, Tensor, float]]]:
    """The plain layer under a module, and (A, B, scale) of the LoRA adapters that are on."""
    if not hasattr(module, "base_layer"):
        return module, []
    from peft.tuners.lora import Linear

    _require(isinstance(module, Linear))
    _require(not module.merged and not module.fan_in_fan_out)
    if module.disable_adapters:
        return module.base_layer, []
    active = [name for name in module.active_adapters if name in module.lora_A]
    _require(not any(name in getattr(module, "lora_variant", {}) for name in active))
    _require(not any(module.lora_B[name].bias is not None for name in active))
    found = [(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]) for name in active]
    return module.base_layer, found
