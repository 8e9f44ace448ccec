"""Tiny random models with one tokenizer, for tests. Same arguments, same weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch.nn import Linear

from pipeline.new_model import characters_tokenizer, model_config, model_from_config
from pipeline.recipe import NewModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Architecture = Literal["qwen3", "qwen3_moe", "llama", "mistral", "gemma2", "gemma3", "gpt_oss", "deepseek_v4"]
# One of each way to be different: every suite runs over these. `test_architectures.py` runs whole runs over all.
ARCHITECTURES: tuple[Architecture, ...] = ("qwen3", "llama", "gemma2", "deepseek_v4")
ALL_ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
CONTEXT = 128


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The characters tokenizer: V = 358, end token `<|end|>`, chat template with system, user, assistant."""
    return characters_tokenizer(CONTEXT)


def tiny_model(architecture: Architecture = "qwen3", seed: int = 0, padded_rows: int = 0) -> PreTrainedModel:
    """A model of width 32 in fp32 and eval mode: qwen3 and gemma2 have tied embeddings, llama and deepseek_v4 have not.

    Two layers, three for deepseek_v4, so that each of its kinds of attention is there. `padded_rows`: rows of the
    embedding past the tokenizer's entries.
    """
    layers = 3 if architecture == "deepseek_v4" else 2
    shape = NewModel(architecture=architecture, hidden_size=32, layers=layers, heads=2, context=CONTEXT)
    tokenizer = tiny_tokenizer()
    return model_from_config(model_config(shape, len(tokenizer) + padded_rows), tokenizer, seed)


def save_tiny(folder: Path, architecture: Architecture = "qwen3", seed: int = 0, padded_rows: int = 0) -> str:
    """Saves model and tokenizer so that `from_pretrained` loads them. Returns the folder as a string."""
    tiny_model(architecture, seed, padded_rows).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def save_adapter(folder: Path, base: str, seed: int = 0, rank: int = 4, scale: float = 0.1) -> str:
    """Saves a LoRA adapter over the model in `base` whose A and B are both random, so that it changes the answers.

    Returns the folder as a string. `PeftModel.from_pretrained(model, folder)` loads it.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    # Some are called linear and reshape their input: LoRA cannot stand beside them.
    odd = [name for name, module in plain.named_modules() if isinstance(module, Linear) and not _is_plain(module)]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=odd or None
    )
    model = get_peft_model(plain, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.save_pretrained(str(folder))
    return str(folder)


def _is_plain(module: Linear) -> bool:
    return type(module).forward is Linear.forward
