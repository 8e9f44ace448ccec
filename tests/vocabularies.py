"""Tokenizers that cut text differently, trained on modules of the standard library. Same arguments, same tokenizer."""

from __future__ import annotations

import argparse
import ast
import heapq
import json
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_MODULES = (argparse, ast, heapq, json, textwrap)
# Not Python: what byte-level merges make of other scripts is worth having too.
_OTHER = "Straße, naïve café, привет мир, 你好世界, 🙂 👩‍💻\n" * 20
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Llama 2: a space between the marker and the answer, written with the answer.
SPACED_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)


def sources() -> list[str]:
    return [Path(str(module.__file__)).read_text() for module in _MODULES]


@cache
def byte_level(
    size: int = 600, end: str = "<|end|>", template: str = TEMPLATE, splits_digits: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE in the manner of GPT-2; with `splits_digits` in the manner of Qwen, NFC included."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if splits_digits:
        backend.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    backend.decoder = decoders.ByteLevel()
    special = [end, "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*sources(), _OTHER], trainer)
    return _wrapped(backend, end, template)


@cache
def sentencepiece(
    size: int = 800, end: str = "</s>", template: str = SPACED_TEMPLATE, unigram: bool = True
) -> PreTrainedTokenizerFast:
    """A Llama-2-like tokenizer: ▁ in front of an answer, single bytes for what has no piece."""
    special = ["<unk>", "<s>", end]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [(token, score) for token, score in _unigram_pieces(size - 256) if token not in special]
    scored = [(token, 0.0) for token in special] + [(token, -20.0) for token in byte_tokens] + pieces
    if unigram:
        backend = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    else:
        tokens = list(dict.fromkeys(token for token, _ in scored))
        merges = list(_merges(tokens))
        backend = Tokenizer(
            models.BPE(
                {token: index for index, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True
            )
        )
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _wrapped(backend, end, template)


@cache
def _unigram_pieces(size: int) -> list[tuple[str, float]]:
    """With their log-probabilities."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(sources(), trainer)
    return [(token, score) for token, score in json.loads(trained.to_str())["model"]["vocab"]]


def _merges(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """A merge for each piece that two others make up, the shortest pieces first."""
    known = set(tokens)
    for token in sorted(tokens, key=len):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        if not token.startswith("<") and (pair := next((pair for pair in halves if set(pair) <= known), None)):
            yield pair


def _wrapped(backend: Tokenizer, end: str, template: str) -> PreTrainedTokenizerFast:
    values: dict[str, Any] = {"eos_token": end, "chat_template": template, "model_max_length": 512}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **values)
