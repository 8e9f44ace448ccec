"""What the benchmarks of a step run on: made once, on disk, by the program's own means.

A Qwen3-shaped student of 256 × 4 (19 million parameters, untied) and teachers of 512 × 8 (58 million), all with random
weights; a tokenizer of 32,000 entries trained on the Python standard library's own sources; prompts of 64 of its
tokens.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch and all that imports it is imported inside: the process that starts the others stays small.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
CONTEXT = 1024
HELD_OUT = 4
TRAINED = 400  # prompts for each teacher


@dataclass(frozen=True)
class Shape:
    """(width, layers) of the student and of each teacher; tokens of a prompt and of its completion."""

    vocabulary: int
    student: tuple[int, int]
    teacher: tuple[int, int]
    prompt: int
    completion: int


FULL = Shape(32_000, (256, 4), (512, 8), 64, 64)
QUICK = Shape(1_000, (64, 2), (128, 2), 16, 8)


def prepare(shape: Shape, folder: Path, teachers: int, dtype: str = "float32") -> None:
    """A tokenizer, a student, `teachers` that differ, and prompts for each. dtype: of the teachers' files: those that
    are used in it stay mapped."""
    from pipeline.cli import set_environment

    set_environment(0, offline=True)  # quiet, too
    sources = list(library_sources(shape))
    tokenizer = trained_tokenizer(sources, shape.vocabulary)
    save_model(folder / "student", shape.student, tokenizer, seed=0)
    for number in range(teachers):
        save_model(folder / f"teacher-{number}", shape.teacher, tokenizer, seed=1 + number, dtype=dtype)
    prompts = prompts_of(sources, tokenizer, shape.prompt)
    for number in range(teachers):
        lines = [json.dumps({"text": next(prompts)}) for _ in range(HELD_OUT + TRAINED // teachers)]
        (folder / f"teacher-{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def recipe_of(
    folder: Path,
    teachers: dict[str, Any],
    *,
    prompts: int,
    completion: int,
    student: str = "student",
    tune: Any = "full",
    routing: Any = "domain",
    bf16: bool = False,
) -> dict[str, Any]:
    """A recipe over what `prepare` made, each teacher with its own prompts; for steps that are told one by one."""
    return {
        "method": "distill",
        "student": {"model": str(folder / student), "tune": tune},
        "teachers": teachers,
        "routing": routing,
        "data": {
            "held_out": HELD_OUT,
            "sources": {
                name: {
                    "kind": "dataset",
                    "path": str(folder / f"teacher-{number}.jsonl"),
                    "as_chat": False,
                    "checker": "none",
                }
                for number, name in enumerate(teachers)
            },
        },
        "rollout": {"max_new_tokens": completion, "rows": prompts},
        "training": {
            "steps": 10_000,
            "prompts_per_step": prompts,
            "learning_rate": 1e-6,
            "mixed_precision": "bf16" if bf16 else "no",
        },
    }


def library_sources(shape: Shape) -> Iterator[str]:
    """The standard library, its packages included where the vocabulary needs as much text."""
    library = Path(sysconfig.get_path("stdlib"))
    pattern = "**/*.py" if shape.vocabulary > 10_000 else "*.py"
    for path in sorted(library.glob(pattern)):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")


def trained_tokenizer(sources: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sources, trainer)
    assert tokenizer.get_vocab_size() == vocabulary, f"the sources give only {tokenizer.get_vocab_size()} entries"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )  # fmt: skip


def save_model(
    folder: Path, size: tuple[int, int], tokenizer: PreTrainedTokenizerFast, seed: int, dtype: str = "float32"
) -> None:
    import torch
    from transformers import Qwen3Config

    from pipeline.new_model import model_from_config

    width, layers = size
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    model_from_config(config, tokenizer, seed).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prompts_of(sources: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> Iterator[str]:
    """Pieces of the sources that the tokenizer cuts into exactly `length` tokens."""
    for source in sources:
        ids = tokenizer.encode(source, add_special_tokens=False)
        for start in range(0, len(ids) - length, length):
            text = tokenizer.decode(ids[start : start + length])
            if len(tokenizer.encode(text, add_special_tokens=False)) == length and text.strip():
                yield text
