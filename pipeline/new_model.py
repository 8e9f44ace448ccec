"""Small causal LMs with random weights and a tokenizer: what a recipe trains without a download.

Everything is a pure function of (shape, seed), and for a tokenizer that is learned of the texts. One of characters has
a token per printable ASCII character and 256 byte tokens for the rest; in either every text comes back exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    DeepseekV4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pipeline.checkpoint import whole_folder
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from pipeline.recipe import NewModel

PAD, END = "<pad>", "<|end|>"
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
FILL_IN_THE_MIDDLE = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
# Line ends alone, so that an answer of one line ends with a token of its own; indentation in one piece, but for the
# space that a word takes along; digits one by one.
CODE_PIECES = r"\n|[ \t]+(?=[ \t]\S)|[ \t]+(?=\n)|[ _]?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9_]+|_+|\s"
CHARACTERS = [chr(code) for code in range(0x20, 0x7F)] + ["\n", "\t"]

# Only the assistant's turn is closed by the end token: it is the one a model has to learn to end.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ('system', 'user', 'assistant') -%}
{{- raise_exception('this template knows the roles system, user and assistant, not ' ~ message.role) -}}
{%- endif -%}
{{- '<|' ~ message.role ~ '|>' ~ message.content -}}
{%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def characters_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """358 tokens: pad, end, three roles, 97 characters, 256 bytes. Decoding an encoded text gives the same text."""
    tokens = [PAD, END, *ROLE_TOKENS.values(), *CHARACTERS, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # A BPE without merges: what is not a character falls back to its UTF-8 bytes.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(ROLE_TOKENS.values()),
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def code_tokenizer(texts: Iterable[str], size: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `size` entries learned from `texts`: pad, end, three roles, three tokens to fill in the middle
    with, 256 bytes, merges. Decoding an encoded text gives the same text."""
    special = [PAD, END, *ROLE_TOKENS.values(), *FILL_IN_THE_MIDDLE]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(CODE_PIECES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def new_model(shape: NewModel, seed: int, texts: Iterable[str] = ()) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """An fp32 model with weights drawn from `seed`, and its tokenizer. texts: what a code tokenizer is learned from.

    Raises:
        ModelError: the shape does not divide into heads.
    """
    chosen = shape.tokenizer
    if chosen == "characters":
        tokenizer = characters_tokenizer(shape.context)
    else:
        tokenizer = code_tokenizer(texts, chosen.size, shape.context)
    return model_from_config(model_config(shape, len(tokenizer)), tokenizer, seed), tokenizer


def model_config(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    """The transformers config of `shape`. Raises ModelError where its width does not divide into its heads."""
    if shape.hidden_size % (4 * shape.heads):
        # Rotary embeddings pair channels, and DeepSeek V4 rotates half of each head.
        raise ModelError(
            f"student.model: hidden_size {shape.hidden_size} does not split into {shape.heads} heads of a multiple "
            f"of 4 channels; use hidden_size {4 * shape.heads * max(1, round(shape.hidden_size / (4 * shape.heads)))}"
        )
    return _CONFIGS[shape.architecture](shape, vocab_size)


def model_from_config(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """An fp32 model in eval mode whose weights depend on the config and the seed alone."""
    config.bos_token_id = None
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with _seeded(seed):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _fill_hash_routers(model)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model.eval()


def create_model(shape: NewModel, seed: int, folder: Path, texts: Iterable[str] = ()) -> None:
    """Writes the model and its tokenizer to `folder`, as `from_pretrained` reads them; whole or not at all."""
    model, tokenizer = new_model(shape, seed, texts)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed` inside; outside nothing has changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _fill_hash_routers(model: PreTrainedModel) -> None:
    """DeepSeek V4's first layers look experts up by token. A fresh table is all zeros: every token to one expert."""
    for module in model.modules():
        table = getattr(module, "tid2eid", None)
        if isinstance(table, torch.Tensor):
            scores = torch.rand(table.shape[0], module.num_experts)
            table.copy_(scores.topk(table.shape[1], dim=-1).indices)


def _common(shape: NewModel, vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        # 0.02 is made for widths of a thousand and more. At width 96 this scaled one left 6 to 43% less loss than
        # 0.02 after 150 steps, and 0.1 was worse than it in qwen3, llama and gemma2 alike.
        "initializer_range": 0.02 * (1024 / shape.hidden_size) ** 0.5,
    }


def _dense(shape: NewModel, vocab_size: int) -> dict[str, Any]:
    return {
        **_common(shape, vocab_size),
        "intermediate_size": 3 * shape.hidden_size,
        "num_key_value_heads": shape.heads // 2 if shape.heads % 2 == 0 else shape.heads,
        "head_dim": shape.hidden_size // shape.heads,
    }


def _qwen3(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    return Qwen3Config(**_dense(shape, vocab_size), tie_word_embeddings=True)


def _llama(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    return LlamaConfig(**_dense(shape, vocab_size), tie_word_embeddings=False)


def _mistral(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    """As its releases since 0.2: no window."""
    return MistralConfig(**_dense(shape, vocab_size), sliding_window=None, tie_word_embeddings=False)


def _qwen3_moe(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    return Qwen3MoeConfig(
        **_dense(shape, vocab_size),
        moe_intermediate_size=shape.hidden_size,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )


def _gpt_oss(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    """Attention sinks, windows in every other layer, experts in all."""
    return GptOssConfig(
        **(_dense(shape, vocab_size) | {"intermediate_size": shape.hidden_size}),
        sliding_window=max(4, shape.context // 4),
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 150_000.0},
        tie_word_embeddings=False,
    )


def _gemma2(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    return Gemma2Config(
        **_dense(shape, vocab_size),
        query_pre_attn_scalar=shape.hidden_size // shape.heads,
        sliding_window=max(4, shape.context // 4),
        tie_word_embeddings=True,
    )


def _gemma3(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    """Its text model: every other layer has a window, with angles of its own."""
    return Gemma3TextConfig(
        **_dense(shape, vocab_size),
        query_pre_attn_scalar=shape.hidden_size // shape.heads,
        sliding_window=max(4, shape.context // 4),
        layer_types=[("sliding_attention", "full_attention")[layer % 2] for layer in range(shape.layers)],
        tie_word_embeddings=True,
    )


def _deepseek_v4(shape: NewModel, vocab_size: int) -> PretrainedConfig:
    """All three kinds of attention and both kinds of routing, at the smallest sizes that still use each."""
    head_dim = shape.hidden_size // shape.heads
    kinds = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")
    return DeepseekV4Config(
        **_common(shape, vocab_size),
        head_dim=head_dim,
        moe_intermediate_size=shape.hidden_size,
        q_lora_rank=max(8, shape.hidden_size // 2),
        o_groups=2 if shape.heads % 2 == 0 else 1,
        o_lora_rank=max(8, shape.hidden_size // 2),
        partial_rotary_factor=0.5,
        layer_types=[kinds[layer % 3] for layer in range(shape.layers)],
        mlp_layer_types=["hash_moe" if layer == 0 else "moe" for layer in range(shape.layers)],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
        sliding_window=max(4, shape.context // 8),
        index_n_heads=2,
        index_head_dim=head_dim,
        index_topk=max(2, shape.context // 16),
        n_routed_experts=4,
        num_experts_per_tok=2,
        hc_mult=2,
        hc_sinkhorn_iters=5,
        tie_word_embeddings=False,
    )


_CONFIGS = {
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "llama": _llama,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt_oss": _gpt_oss,
    "deepseek_v4": _deepseek_v4,
}
