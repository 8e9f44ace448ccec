"""Seconds per phase, tokens per second and peak memory of one step of distillation at a vocabulary of 32,000.

    python -m tests.benchmark.step [--quick] [--teachers 1 4 10] [--prompts 8 32] [--steps 5] [--routing domain]
        [--teacher-dtype bfloat16]

A Qwen3-shaped student of 256 × 4 (19 million parameters, untied) and teachers of 512 × 8 (58 million), all with random
weights, and a tokenizer trained on the Python standard library's own sources; prompts of 64 of its tokens, 64 new ones.
The pieces are the program's own: a recipe, `pipeline.job`, `pipeline.trainer.advance`. Each configuration runs in a
process of its own, so that its peak memory is its own. What is printed is the median over the steps after the first.
Linux only: it reads /proc/self/status. `--quick` shows in a minute, with a small vocabulary, that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch and all that imports it is imported inside: the process that starts the others stays small.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
CONTEXT = 512
HELD_OUT = 4


@dataclass(frozen=True)
class Shape:
    """(width, layers) of the student and of each teacher; tokens of a prompt and of its completion."""

    vocabulary: int
    student: tuple[int, int]
    teacher: tuple[int, int]
    prompt: int
    completion: int
    teachers: tuple[int, ...]
    prompts_per_step: tuple[int, ...]


FULL = Shape(32_000, (256, 4), (512, 8), 64, 64, (1, 4, 10), (8, 32))
QUICK = Shape(1_000, (64, 2), (128, 2), 16, 8, (1, 4, 10), (4,))


# ---- what is measured: made once, on disk ----


PHASES = ("rollout", "teachers", "update")  # of a step; what is waited for is a part of `teachers`


def prepare(shape: Shape, folder: Path, teacher_dtype: str = "float32") -> None:
    """A tokenizer, a student, teachers that differ, and prompts for each of them. teacher_dtype: of the files: teachers
    that are used in it stay mapped."""
    from pipeline.cli import set_environment

    set_environment(0, offline=True)  # quiet, too
    sources = list(library_sources(shape))
    tokenizer = trained_tokenizer(sources, shape.vocabulary)
    save_model(folder / "student", shape.student, tokenizer, seed=0)
    for number in range(max(shape.teachers)):
        save_model(folder / f"teacher-{number}", shape.teacher, tokenizer, seed=1 + number, dtype=teacher_dtype)
    prompts = prompts_of(sources, tokenizer, shape.prompt)
    for number in range(max(shape.teachers)):
        lines = [json.dumps({"text": next(prompts)}) for _ in range(HELD_OUT + 2 * max(shape.prompts_per_step))]
        (folder / f"teacher-{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")


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


# ---- one configuration, in its own process ----


def measure(
    shape: Shape, folder: Path, teachers: int, prompts: int, *, steps: int, routing: str, dtype: str
) -> dict[str, Any]:
    """Medians over `steps` steps, after one that is not counted."""
    from pipeline.cli import set_environment

    set_environment(0, offline=True)
    from rich.console import Console

    from pipeline.display import Display
    from pipeline.files import read_lines
    from pipeline.job import Job, build_loop, load_parts, make_accelerator
    from pipeline.loop import State
    from pipeline.mixing import MixState
    from pipeline.ranks import world_of
    from pipeline.recipe_file import load_recipe
    from pipeline.trainer import advance

    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "recipe.yaml"
        path.write_text(json.dumps(recipe_of(shape, folder, teachers, prompts, steps, routing, dtype)))
        loaded = load_recipe(path)
        accelerator = make_accelerator(loaded.recipe)
        job = Job(loaded, Path(place), {}, accelerator, world_of(accelerator), Display(Console(quiet=True)))
        loop = build_loop(job, load_parts(job))
        before = memory("VmRSS")
        state, flights = State(0, MixState()), {}
        for _ in range(1 + steps):
            state = advance(loop, state, flights)
        timings = [line["seconds"] for line in read_lines(Path(place) / "timings.jsonl")][1:]
        tokens = [line["tokens"] for line in read_lines(Path(place) / "metrics.jsonl")][1:]
    return {
        "teachers": teachers,
        "prompts": prompts,
        "seconds": {name: statistics.median(line[name] for line in timings) for name in timings[0]},
        "step": statistics.median(sum(line[name] for name in PHASES) for line in timings),
        "tokens": statistics.median(tokens),
        "before": before,
        "peak": memory("VmHWM"),
    }


def recipe_of(
    shape: Shape, folder: Path, teachers: int, prompts: int, steps: int, routing: str, dtype: str
) -> dict[str, Any]:
    names = [f"teacher-{number}" for number in range(teachers)]
    return {
        "method": "distill",
        "student": {"model": str(folder / "student")},
        "teachers": {name: {"kind": "transformers", "model": str(folder / name), "dtype": dtype} for name in names},
        "routing": routing,
        "data": {
            "held_out": HELD_OUT,
            "sources": {
                name: {"kind": "dataset", "path": str(folder / f"{name}.jsonl"), "as_chat": False, "checker": "none"}
                for name in names
            },
        },
        "rollout": {"max_new_tokens": shape.completion, "rows": max(shape.prompts_per_step)},
        "training": {"steps": 1 + steps, "prompts_per_step": prompts, "learning_rate": 1e-5},
    }


def memory(name: str) -> int:
    """Bytes of a line in /proc/self/status. VmHWM starts anew with a program, which getrusage's peak does not."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


# ---- all of them ----

COLUMNS = (
    *("teachers", "prompts", "rollout s", "teachers s", "update s", "step s"),
    *("new tokens/s, rollout", "new tokens/s, step", "GB before", "GB at most"),
)


def row_of(found: Mapping[str, Any]) -> list[str]:
    seconds = found["seconds"]
    phases = [f"{seconds[name]:.2f}" for name in PHASES]
    rates = [f"{found['tokens'] / time:,.0f}" for time in (seconds["rollout"], found["step"])]
    sizes = [f"{found[name] / 1e9:.2f}" for name in ("before", "peak")]
    return [str(found["teachers"]), str(found["prompts"]), *phases, f"{found['step']:.2f}", *rates, *sizes]


def in_its_own_process(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.benchmark.step", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that it works")
    parser.add_argument("--teachers", type=int, nargs="+", help="numbers of teachers (1 4 10)")
    parser.add_argument("--prompts", type=int, nargs="+", help="prompts of a step (8 32)")
    parser.add_argument("--steps", type=int, default=5, help="steps that are counted")
    parser.add_argument("--routing", choices=["domain", "all"], default="domain")
    parser.add_argument("--teacher-dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "TEACHERS", "PROMPTS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = QUICK if given.quick else FULL
    shape = replace(
        shape,
        teachers=tuple(given.teachers or shape.teachers),
        prompts_per_step=tuple(given.prompts or shape.prompts_per_step),
    )
    if given.prepare:
        prepare(shape, given.prepare, given.teacher_dtype)
        return
    if given.measure:
        folder, teachers, prompts = given.measure
        found = measure(
            shape,
            Path(folder),
            int(teachers),
            int(prompts),
            steps=given.steps,
            routing=given.routing,
            dtype=given.teacher_dtype,
        )
        print(json.dumps(found))
        return
    print(f"Medians of {given.steps} steps. Load of the machine before: {os.getloadavg()[0]:.1f}\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---:|" * len(COLUMNS))
    with tempfile.TemporaryDirectory() as made:
        in_its_own_process("--prepare", made, *sys.argv[1:])
        for teachers, prompts in product(shape.teachers, shape.prompts_per_step):
            said = in_its_own_process("--measure", made, str(teachers), str(prompts), *sys.argv[1:])
            print("| " + " | ".join(row_of(json.loads(said))) + " |", flush=True)


if __name__ == "__main__":
    main()
