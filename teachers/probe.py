"""Which shortcuts an architecture computes right: padding on the left, packing, taking rows out of the cache.

Transformers promises none of them. Each is compared here with rows that run alone, and with itself beside other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from teachers.caching import eval_mode, select_rows

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Tolerance:
    """What an architecture computes right, found by comparing with single rows at load.

    left_padding: rows padded on the left give the same logits, so prompts of different lengths may decode together.
    packing: rows laid end to end with their own positions do not see each other.
    row_removal: rows may be taken out of the cache between decoding steps.
    Right padding is safe for every causal model.
    """

    left_padding: bool
    packing: bool
    row_removal: bool


# Logits (t, V) of a stretch of one row: the row, the place of its first token, the logits.
Piece: TypeAlias = "tuple[int, int, Tensor]"
# Runs rows in one way, in the company of a stranger: tokens that the rows must not see.
Run: TypeAlias = "Callable[[nn.Module, Sequence[Tensor], Tensor], Iterator[Piece]]"

# Relative errors. _ROUNDING: what another order of operations may cost, measured on tiny and small models.
# _INFLUENCE: what another stranger may change; dense models change by exactly nothing, so this is the sharper test in
# bfloat16, where real mistakes of weakly coupled layers hide in the rounding.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_INFLUENCE = 1e-3
# What a shortcut that an architecture does not know ends in. Out of memory is none of them: it is passed on.
_REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)
_DECODED = 8  # tokens decoded one at a time
_LONGEST_WINDOW = 256  # sliding windows and compression up to this many tokens are filled, longer ones cost too much


def rounding_of(dtype: torch.dtype) -> float:
    """How far two ways to the same logits may be apart in `dtype`, as a share of the largest one."""
    return _ROUNDING.get(dtype, 5e-2)


def probe(model: nn.Module, vocab_size: int) -> Tolerance:
    """Compares left-padded, packed and row-removed runs of `model` with single rows, in its own dtype, on its device.

    Not tolerated: a shortcut that raises; logits further from the single rows' than the dtype's rounding; logits that
    depend on tokens of another row or of the padding. Four times what right padding costs is allowed on top: routed
    experts and sparse attention choose differently after the smallest change. The model's mode and weights and the
    random state stay as they are.

    Args:
        model: a transformers causal LM, or the peft model around one.
        vocab_size: ids are drawn below it.
    """
    parameter = next(model.parameters())
    rounding = rounding_of(parameter.dtype)
    with torch.inference_mode(), eval_mode(model), _same_random_state(parameter.device):
        *rows, stranger, other = _random_rows(vocab_size, _window(model), parameter.device)
        alone = [_logits(model, row[None])[0] for row in rows]

        def errors(run: Run) -> tuple[float, float]:
            first, second = list(run(model, rows, stranger)), list(run(model, rows, other))
            same = [(row, start, alone[row][start : start + len(logits)]) for row, start, logits in first]
            return _worst(first, same), _worst(first, second)

        noise = errors(_right_padded)

        def tolerated(run: Run) -> bool:
            try:
                error, influence = errors(run)
            except torch.OutOfMemoryError:
                raise
            except _REFUSALS:
                return False
            # A comparison with NaN is False.
            return error <= rounding + 4 * noise[0] and influence <= _INFLUENCE + 4 * noise[1]

        return Tolerance(
            left_padding=tolerated(_left_padded), packing=tolerated(_packed), row_removal=tolerated(_rows_removed)
        )


@contextmanager
def _same_random_state(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _window(model: nn.Module) -> int:
    """The longest sliding window, chunk or compression of the config that is short enough to fill; at least 16."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    lengths = [getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)]
    lengths += list((getattr(config, "compress_rates", None) or {}).values())
    window: int = max([16, *(length for length in lengths if length is not None and length <= _LONGEST_WINDOW)])
    context: int | None = getattr(config, "max_position_embeddings", None)
    return window if context is None else max(4, min(window, (context - 20) // 2))


def _random_rows(vocab_size: int, window: int, device: torch.device) -> list[Tensor]:
    """Three rows of different lengths, none a multiple of a window apart, and two strangers, all over two windows."""
    shortest = 2 * window + 5
    generator = torch.Generator().manual_seed(0)
    # Special tokens stand at the ends of a vocabulary, and some (an image's place) change how a model runs.
    low, high = vocab_size // 8, max(vocab_size // 2, vocab_size // 8 + 1)
    lengths = (shortest + 14, shortest + 11, shortest, shortest + 15, shortest + 15)
    return [torch.randint(low, high, (length,), generator=generator).to(device) for length in lengths]


def _logits(model: nn.Module, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """(B, T) ids -> (B, T, V) logits of one forward without cache and mask."""
    logits: Tensor = model(input_ids=input_ids, position_ids=positions, use_cache=False).logits
    return logits


def _worst(pieces: Iterable[Piece], expected: Iterable[Piece]) -> float:
    """The largest root mean square difference at one token, relative to the spread of the logits there."""
    worst = []
    for (_, _, got), (_, _, wanted) in zip(pieces, expected, strict=True):
        error = (got.float() - wanted.float()).square().mean(-1).sqrt() / wanted.float().std(-1).clamp_min(1e-12)
        worst.append(error.max())
    return float(torch.stack(worst).max())  # NaN where one is


def _right_padded(model: nn.Module, rows: Sequence[Tensor], stranger: Tensor) -> Iterator[Piece]:
    padded = torch.stack([torch.cat([row, stranger[len(row) :]]) for row in rows])
    for index, logits in enumerate(_logits(model, padded)):
        yield index, 0, logits[: len(rows[index])]


def _packed(model: nn.Module, rows: Sequence[Tensor], stranger: Tensor) -> Iterator[Piece]:
    lengths = [len(row) for row in (stranger, *rows)]
    positions = torch.cat([torch.arange(length, device=stranger.device) for length in lengths])
    logits = _logits(model, torch.cat([stranger, *rows])[None], positions[None])[0]
    for index, part in enumerate(torch.split(logits, lengths)[1:]):
        yield index, 0, part


def _left_padded(model: nn.Module, rows: Sequence[Tensor], stranger: Tensor) -> Iterator[Piece]:
    """Prompts of different lengths in one batch, the last tokens decoded from the cache."""
    whole = len(stranger)
    longest = whole - _DECODED
    pads = [whole - len(row) for row in rows]
    padded = torch.stack([torch.cat([stranger[:pad], row]) for row, pad in zip(rows, pads, strict=True)])
    mask = torch.stack([(torch.arange(whole) >= pad).long() for pad in pads]).to(padded.device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    output: Any = model(
        input_ids=padded[:, :longest],
        attention_mask=mask[:, :longest],
        position_ids=positions[:, :longest],
        use_cache=True,
    )
    for index, pad in enumerate(pads):
        yield index, 0, output.logits[index, pad:]
    for place in range(longest, whole):
        output = model(
            input_ids=padded[:, place : place + 1],
            attention_mask=mask[:, : place + 1],
            position_ids=positions[:, place : place + 1],
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        for index, pad in enumerate(pads):
            yield index, place - pad, output.logits[index]


def _rows_removed(model: nn.Module, rows: Sequence[Tensor], stranger: Tensor) -> Iterator[Piece]:
    """After one decoded token the stranger goes, the last row comes first, and the first row is there twice."""
    length = min(len(row) for row in rows)
    batch = torch.stack([row[:length] for row in (*rows, stranger)])
    order = list(range(len(batch)))
    output: Any = model(input_ids=batch[:, : length - _DECODED], use_cache=True)
    for place in range(length - _DECODED, length):
        output = model(
            input_ids=batch[order, place : place + 1],
            position_ids=torch.full((len(order), 1), place, device=batch.device),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        for index, logits in zip(order, output.logits, strict=True):
            if index < len(rows):
                yield index, place, logits
        if place == length - _DECODED:
            order = [len(rows) - 1, 0, 0]
            select_rows(output.past_key_values, torch.tensor(order, device=batch.device))
