"""What one answer of a million tokens takes, for DeepSeek-V4-Flash's shape: `python -m tests.benchmark.million`.

Arithmetic, not a measurement: nothing of that size runs here. The shape is transformers' default `DeepseekV4Config`.
`tests/unit/test_million.py` holds the formulas against a tiny model of the same architecture, and README's table
against this program.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from transformers import DeepseekV4Config

from pipeline.rollout_file import write_lines
from pipeline.types import Prompt, Rollout
from teachers.types import RawText, Segment

MILLION = 1_000_000
BF16, FP32 = 2, 4


@dataclass(frozen=True)
class Item:
    """Bytes that a row of T tokens takes: per_token × T, and constant."""

    what: str
    per_token: float
    constant: int = 0

    def at(self, tokens: int) -> float:
        return self.per_token * tokens + self.constant


def cache(config: DeepseekV4Config, itemsize: int = BF16) -> Item:
    """The cache that decoding reads, which is attention's own state. One head of keys that are the values too: a window
    in every layer, an entry for each stretch of compress_rate tokens, and the indexer's where entries are chosen by it.
    """
    kinds = Counter(config.layer_types)
    rates = config.compress_rates
    chosen, heavy = "compressed_sparse_attention", "heavily_compressed_attention"
    per_token = kinds[chosen] * (config.head_dim + config.index_head_dim) / rates[chosen]
    per_token += kinds[heavy] * config.head_dim / rates[heavy]
    windows = config.num_hidden_layers * (config.sliding_window - 1) * config.head_dim
    return Item("the cache while it is written", per_token * itemsize, windows * itemsize)


def layer_inputs(config: DeepseekV4Config, itemsize: int = BF16) -> Item:
    """What gradient checkpointing keeps: each layer's input, hc_mult streams of the width."""
    streams = config.num_hidden_layers * config.hc_mult * config.hidden_size
    return Item("layers' inputs, kept by gradient checkpointing", streams * itemsize)


def hidden_states(config: DeepseekV4Config, itemsize: int = BF16) -> Item:
    return Item(
        "last hidden states: the student's and their gradient, one teacher's", 3 * config.hidden_size * itemsize
    )


def logits(config: DeepseekV4Config) -> Item:
    return Item("logits of one model in fp32, were they stored", config.vocab_size * FP32)


def chunk(config: DeepseekV4Config, megabytes: int = 64) -> Item:
    return Item("logits as the fused divergence has them (`objective.chunk_megabytes`)", 0.0, megabytes << 20)


def record_on_disk(config: DeepseekV4Config, tokens: int = 20_000) -> Item:
    """A rollout's file, by writing a shorter one: ids drawn from the vocabulary, fp32 log-probabilities."""
    import numpy

    generator = random.Random(0)
    ids = tuple(generator.randrange(config.vocab_size) for _ in range(tokens))
    logprobs = tuple(float(numpy.float32(-generator.expovariate(1.0))) for _ in range(tokens))
    segment = Segment("assistant", "answer", ids, True)
    rollout = Rollout(
        Prompt("p", "s", "d", RawText("")), 0, (1,), (segment,), "length", logprobs, logprobs, (0,) * tokens
    )
    return Item("the rollout's record on disk", sum(map(len, write_lines(1, [rollout]))) / tokens)


def record_in_memory() -> Item:
    """Python's own: 8 bytes for an id and for a version, whose objects are shared, 8 + 24 for a log-probability."""
    return Item("the rollout in memory", 8 + 8 + 8 + 24)


def items(config: DeepseekV4Config) -> tuple[Item, ...]:
    return (
        cache(config),
        layer_inputs(config),
        hidden_states(config),
        logits(config),
        chunk(config),
        record_on_disk(config),
        record_in_memory(),
    )


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f}" if size >= 1e10 else f"{size / 1e9:.2g}"


def table(config: DeepseekV4Config, tokens: int = MILLION) -> str:
    lines = ["| of one row | bytes a token | GB at a million tokens |", "|---|---:|---:|"]
    lines += [f"| {item.what} | {item.per_token:,.0f} | {gigabytes(item.at(tokens))} |" for item in items(config)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(DeepseekV4Config()))
