"""Decoding in few operations, for plain decoders: what transformers computes for a token, without what surrounds it.

For architectures of one shape: RMS norm, rotary attention over grouped heads, RMS norm, gated MLP; with LoRA adapters
on their projections. A token of a small model costs some sixty small operations per layer otherwise, which take longer
than its products. Whether this computes what the model does is not assumed: `lean_engine` compares the two on rows of
different lengths, and says None where they differ.

Legend: b rows, t tokens of each, H and G heads of queries and of keys, d channels of a head, D hidden size, w tokens in
the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad, scaled_dot_product_attention

from pipeline.rollout.cached import CachedEngine
from pipeline.rollout.decoding import Engine
from pipeline.rollout.lean_weights import Layer, Projection, Weights, multiplied, read_weights
from teachers.caching import eval_mode
from teachers.causal_lm import CausalLM
from teachers.probe import rounding_of

_GROWTH = 128  # tokens: the least by which a cache grows


# ---- rows that decode ----


@dataclass(eq=False)
class LeanBatch:
    """See `decoding.Batch`.

    keys, values: per layer (b, G, room, d), of which `width` tokens are filled. hidden (b, 1, 1, room): what is added
    to the scores of padding, or None where no row is padded. lengths (b,): each row's tokens so far, without padding.
    turns: cosines and signed sines (places, d) of every place that a row can reach.
    """

    weights: Weights
    keys: list[Tensor]
    values: list[Tensor]
    width: int
    hidden: Tensor | None
    lengths: Tensor
    turns: tuple[Tensor, Tensor]
    logits: Tensor

    def advance(self, ids: Tensor) -> None:
        if self.width == self.keys[0].shape[2]:
            self._make_room()
        here = self.width
        self.width += 1
        cosines, sines = (turn[self.lengths][:, None, None] for turn in self.turns)
        self.lengths = self.lengths + 1
        hidden = None if self.hidden is None else self.hidden[..., : self.width]
        weights = self.weights
        x = embedding(ids[:, None], weights.embedding)
        for layer, all_keys, all_values in zip(weights.layers, self.keys, self.values, strict=True):
            queries, keys, values = _projected(weights, layer, x, cosines, sines)
            all_keys[:, :, here] = keys[:, 0]
            all_values[:, :, here] = values[:, 0]
            grouped = queries.to(weights.attention).view(len(x), all_keys.shape[1], -1, weights.channels)
            attended = _attend(grouped, all_keys[:, :, : self.width], all_values[:, :, : self.width], hidden)
            x = _finished(weights, layer, x, attended.reshape(len(x), 1, -1))
        self.logits = _logits(weights, x[:, 0])

    def keep(self, rows: Tensor) -> None:
        self.lengths = self.lengths[rows]
        self.hidden = None if self.hidden is None else self.hidden[rows]
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]

    def _make_room(self) -> None:
        more = max(_GROWTH, self.width // 2)
        self.keys = [pad(keys, (0, 0, 0, more)) for keys in self.keys]
        self.values = [pad(values, (0, 0, 0, more)) for values in self.values]
        self.hidden = None if self.hidden is None else pad(self.hidden, (0, more))


def _attend(queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention of queries (b, G, H / G, d) over keys and values (b, G, w, d); on a CPU as the products that it is,
    which are quicker there where so few tokens ask."""
    if queries.device.type != "cpu":
        return scaled_dot_product_attention(queries, keys, values, attn_mask=hidden)
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(2, 3))
    if hidden is not None:
        scores += hidden
    return torch.matmul(torch.softmax(scores, -1), values)


def _projected(
    weights: Weights, layer: Layer, x: Tensor, cosines: Tensor, sines: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x (b, t, D) to queries (b, t, H, d), keys and values (b, t, G, d), the first two turned to their places."""
    projected = _side_by_side(layer.inputs, layer.attention_norm(x).to(weights.products))
    all_heads = projected.view(*x.shape[:2], -1, weights.channels)
    turned = all_heads[:, :, : weights.turned].to(x.dtype)
    if layer.turned_norm is not None:
        turned = layer.turned_norm(turned)
    turned = torch.addcmul(turned * cosines, turned.roll(weights.channels // 2, -1), sines)
    return turned[:, :, : weights.heads], turned[:, :, weights.heads :], all_heads[:, :, weights.turned :]


def _side_by_side(projections: tuple[Projection, ...], x: Tensor) -> Tensor:
    return projections[0](x) if len(projections) == 1 else torch.cat([part(x) for part in projections], -1)


def _finished(weights: Weights, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """What follows attention in a layer: attended (b, t, H d) to the next layer's x."""
    x = x + layer.output(attended.to(weights.products))
    gate, up = _side_by_side(layer.gates, layer.mlp_norm(x).to(weights.products)).chunk(2, -1)
    return x + layer.down(layer.activation(gate) * up)


def _logits(weights: Weights, x: Tensor) -> Tensor:
    """(b, D) -> (b, V) fp32."""
    logits = multiplied(weights.norm(x).to(weights.products), weights.head, None).float()
    return logits if weights.head_bias is None else logits + weights.head_bias


@dataclass(frozen=True, eq=False)
class LeanEngine:
    """See `decoding.Engine`. Made by `lean_engine`."""

    lm: CausalLM
    products: torch.dtype | None
    mixes_lengths: bool = True
    drops_rows: bool = True

    def read(self, prompts: Sequence[tuple[int, ...]], order: Sequence[int], new: int) -> LeanBatch:
        """As in the protocol: prompts padded on the left, all copies of one run once."""
        weights = read_weights(self.lm, self.products)
        device = weights.embedding.device
        longest = max(map(len, prompts))
        pads = torch.tensor([longest - len(ids) for ids in prompts], device=device)
        ids = torch.tensor([ids[:1] * (longest - len(ids)) + ids for ids in prompts], device=device)
        places = torch.arange(longest + new, device=device)
        own = (places[:longest] - pads[:, None]).clamp_min(0)
        x = embedding(ids, weights.embedding)
        turns = _turns(weights, places, x)
        cosines, sines = (turn[own][:, :, None] for turn in turns)
        padding = _hidden_where(places[:longest] < pads[:, None], weights.attention) if pads.any() else None
        room = longest + min(new, _GROWTH)
        all_keys, all_values = [], []
        for layer in weights.layers:
            projected = _projected(weights, layer, x, cosines, sines)
            queries, keys, values = (part.to(weights.attention).transpose(1, 2) for part in projected)
            attended = _read_together(queries, keys, values, padding)
            x = _finished(weights, layer, x, attended.transpose(1, 2).flatten(2))
            all_keys.append(_with_room(keys, room))
            all_values.append(_with_room(values, room))
        hidden = None if padding is None else pad(padding, (0, room - longest))
        batch = LeanBatch(
            weights, all_keys, all_values, longest, hidden, longest - pads, turns, _logits(weights, x[:, -1])
        )
        if list(order) != list(range(len(prompts))):
            rows = torch.tensor(order, device=device)
            batch.keep(rows)
            batch.logits = batch.logits[rows]
        return batch


def _turns(weights: Weights, places: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (places, d) by which channels are turned; a pair is half of the channels apart."""
    cosines, sines = (turn[0] for turn in weights.rotary(x, places[None]))
    half = weights.channels // 2
    return cosines, torch.cat((-sines[:, :half], sines[:, half:]), -1)


def _hidden_where(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, w) bool -> (b, 1, 1, w): 0, or so little that nothing of it is seen.

    Half of the least number: two of them add up, and -inf would leave NaN in rows that see nothing else.
    """
    scores = torch.zeros(padding.shape, dtype=dtype, device=padding.device)
    return scores.masked_fill(padding, torch.finfo(dtype).min / 2)[:, None, None]


def _read_together(queries: Tensor, keys: Tensor, values: Tensor, padding: Tensor | None) -> Tensor:
    """Causal attention, (b, H, t, d) and (b, G, t, d), without the padding."""
    if padding is None:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    t = queries.shape[2]
    later = torch.ones(t, t, dtype=torch.bool, device=queries.device).triu(1)
    mask = padding + _hidden_where(later[None], padding.dtype)[0]
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)


def _with_room(read: Tensor, room: int) -> Tensor:
    """(b, G, t, d) -> (b, G, room, d)."""
    kept = read.new_empty(*read.shape[:2], room, read.shape[3])
    kept[:, :, : read.shape[2]] = read
    return kept


# ---- whether it is the model ----


def engine_for(lm: CausalLM, products: torch.dtype | None = None) -> Engine:
    """The lean one where it computes what the model does, else transformers."""
    return lean_engine(lm, products) or CachedEngine(lm)


def lean_engine(lm: CausalLM, products: torch.dtype | None = None) -> LeanEngine | None:
    """The engine for `lm` as it is now, adapters included; None where its shape is not known, or its logits differ.

    products: the dtype of the projections, as autocast would have it; None: the weights' own.
    """
    engine = LeanEngine(lm, None if products == next(lm.model.parameters()).dtype else products)
    with torch.inference_mode(), eval_mode(lm.model):
        try:
            return engine if _agrees(engine) else None
        except LookupError:
            return None


def _agrees(engine: LeanEngine) -> bool:
    """Compares the logits of some rows, read and decoded in one batch, with the model's own for each row alone."""
    lm = engine.lm
    weights = read_weights(lm, engine.products)
    device, size = weights.embedding.device, lm.vocab_size
    decoded = 4
    lengths = [min(length, lm.context - decoded) for length in (5, 11, 8)]
    if min(lengths) < 1:
        return False
    rows = [((torch.arange(n + decoded) * 7919 + 31 * n) % size).tolist() for n in lengths]
    batch = engine.read([tuple(row[:-decoded]) for row in rows], range(len(rows)), decoded)
    found = [batch.logits]
    for turn in range(decoded - 1):
        batch.advance(torch.tensor([row[turn - decoded] for row in rows], device=device))
        found.append(batch.logits)
    noise = rounding_of(weights.products)
    for index, row in enumerate(rows):
        with torch.autocast(device.type, engine.products, enabled=engine.products is not None):
            logits: Tensor = lm.model(input_ids=torch.tensor([row], device=device), use_cache=False).logits
        expected = logits[0, -decoded - 1 : -1, :size].float()
        mine = torch.stack([each[index] for each in found])
        if not bool((mine - expected).abs().max() <= noise * expected.abs().max()):  # False for NaN
            return False
    return True
