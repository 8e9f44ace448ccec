"""Drawing tokens: a rollout's own random numbers, and one of them turned into one token.

Legend: B rows, V vocabulary entries.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_BLOCK = 512  # entries whose probabilities are summed before one block is searched
_FIRST_CANDIDATES = 256  # most probable entries looked at first for top_p


def uniforms(seed: int, step: int, prompt_id: str, sample_index: int, count: int) -> NDArray[np.float64]:
    """(count,) numbers in [0, 1) that depend on the four values alone; number n does not depend on `count`.

    The counter-based generator Philox 4x64 (Salmon et al. 2011), keyed by a hash of the four.
    """
    name = f"{seed}/{step}/{sample_index}/{prompt_id}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    raw = np.random.Philox(key=key).random_raw(count)
    return np.asarray(raw >> np.uint64(11), dtype=np.float64) * 2.0**-53


def sample(
    logits: Tensor, uniforms: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws one token per row by inverting the cumulative distribution, in the order of the ids.

    One number per row, where torch.multinomial draws V of them.

    Args:
        logits: (B, V) fp32, without padded rows of the vocabulary.
        uniforms: (B,) float64 in [0, 1).
        temperature: 0 takes the most probable token, of several the one with the lowest id.
        top_p: keep the fewest most probable entries whose mass reaches top_p, at least one. After top_k.
        top_k: keep this many most probable entries; 0 keeps all. Among equals the lower id comes first.

    Returns:
        ids (B,) int64; model_logprobs (B,) fp32, of all V entries at `temperature` (at 1 for temperature 0);
        sampling_logprobs (B,) fp32, of what was kept (0 for temperature 0). Where a row's logits are not finite
        numbers its log-probabilities are NaN.
    """
    if temperature == 0.0:
        ids = logits.argmax(-1)
        chosen = logits.gather(-1, ids[:, None])[:, 0]
        model_logprobs = chosen - logits.logsumexp(-1)
        return ids, model_logprobs, torch.zeros_like(model_logprobs)
    masses = torch.softmax(logits if temperature == 1.0 else logits / temperature, -1)
    blocks = _block_sums(masses)
    model_total = blocks.sum(-1)
    total = model_total
    if top_k > 0 or top_p < 1.0:
        masses = _truncate(masses, model_total, top_p, top_k)
        blocks = _block_sums(masses)
        total = blocks.sum(-1)
    ids = _search(masses, blocks, uniforms)
    log_mass = masses.gather(-1, ids[:, None])[:, 0].double().log()
    return ids, (log_mass - model_total.log()).float(), (log_mass - total.log()).float()


def _block_sums(masses: Tensor) -> Tensor:
    """(B, V) fp32 -> (B, ceil(V / _BLOCK)) float64."""
    whole = masses.shape[-1] // _BLOCK * _BLOCK
    sums = torch.unflatten(masses[:, :whole], -1, (-1, _BLOCK)).sum(-1) if whole else masses[:, :0]
    if whole < masses.shape[-1]:
        sums = torch.cat([sums, masses[:, whole:].sum(-1, keepdim=True)], dim=-1)
    return sums.double()


def _search(masses: Tensor, blocks: Tensor, uniforms: Tensor) -> Tensor:
    """(B,) the first entry at which the cumulative mass passes uniforms · total; never one without mass.

    First among the blocks, then inside one. A cumulative sum over all V entries would be slow, and in fp32 its
    rounding would distort or lose improbable entries when V is large.
    """
    cumulative = blocks.cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    block = _first(cumulative > target, blocks > 0)
    before = cumulative.gather(-1, block) - blocks.gather(-1, block)
    places = block * _BLOCK + torch.arange(min(_BLOCK, masses.shape[-1]), device=masses.device)
    inside = masses.gather(-1, places.clamp_max(masses.shape[-1] - 1)).double()
    inside = inside.masked_fill(places >= masses.shape[-1], 0.0)
    # The block's sum was rounded to fp32: the part of the way through it is what carries over.
    part = (target - before) / blocks.gather(-1, block)
    cumulative = inside.cumsum(-1)
    return (block * _BLOCK + _first(cumulative > part * cumulative[:, -1:], inside > 0))[:, 0]


def _first(passed: Tensor, possible: Tensor) -> Tensor:
    """(B, 1) the first place where both hold; where there is none (rounding at the far end), the last possible one."""
    found = (passed & possible).to(torch.uint8)
    last = possible.shape[-1] - 1 - possible.to(torch.uint8).flip(-1).argmax(-1, keepdim=True)
    return torch.where(found.amax(-1, keepdim=True) > 0, found.argmax(-1, keepdim=True), last)


def _truncate(masses: Tensor, total: Tensor, top_p: float, top_k: int) -> Tensor:
    """(B, V) masses with zeros at all but the most probable entries, first by top_k, then by top_p of what is left.

    total: (B,) float64, the rows' sums.
    """
    vocab_size = masses.shape[-1]
    limit = min(top_k, vocab_size) if top_k > 0 else vocab_size
    width = limit if top_k > 0 else min(_FIRST_CANDIDATES, limit)
    while True:
        largest = masses.topk(min(width + 1, vocab_size), dim=-1).values
        cumulative = largest[:, :width].cumsum(-1, dtype=torch.float64)
        wanted = top_p * (cumulative[:, -1:] if width == limit else total[:, None])
        if width == limit or bool((cumulative[:, -1:] >= wanted).all()):
            break
        width = min(8 * width, limit)
    kept = ((cumulative < wanted).sum(-1, keepdim=True) + 1).clamp_max(width)
    threshold = largest.gather(-1, kept - 1)
    keep = masses >= threshold
    following = largest.gather(-1, kept.clamp_max(largest.shape[-1] - 1))
    if bool(((following == threshold) & (kept < vocab_size)).any()):
        # topk settles ties in an order of its own; here the lower ids are kept.
        above, equal = masses > threshold, masses == threshold
        keep = above | (equal & (equal.cumsum(-1) <= kept - above.sum(-1, keepdim=True)))
    return masses * keep
