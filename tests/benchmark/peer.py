"""Our step beside TRL's `DistillationTrainer`, on the same work, in turn: ratios of time and of memory.

    pip install -e ".[bench]"
    python -m tests.benchmark.peer [--quick] [--steps 5] [--completion 64 256] [--tuning full lora] [--varied]

The work: a student of 256 × 4 (19 million parameters, untied) and a teacher of 512 × 8 (58 million), Qwen3-shaped, with
random weights; a tokenizer of 32,000 entries trained on the standard library; prompts of 64 tokens, 8 a step as 4 × 2;
reverse KL over the whole vocabulary; AdamW; no network. TRL runs twice: with its defaults (bf16, gradient
checkpointing) and at its best (fp32, none, its token chunk at 256), and we in the precision of each. The last row of a
work is our quicker one against TRL's quicker one, and our leaner one against its leaner one. `--varied`: the end token
occurs, so that the lengths of answers differ by ten and more; then it is seconds per token that compare.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from tests.benchmark import shapes
from tests.benchmark.shapes import END, FULL, QUICK, Shape
from tests.benchmark.turns import Found, in_turn, memory, print_row, say, say_load, say_ready, step_when_told, told

PER_FORWARD, FORWARDS = 4, 2  # 8 prompts a step
LORA = {"rank": 32, "alpha": 64}
MEAN_SHARE = 4  # of the most tokens, an answer of a model whose end token occurs has one in so many


@dataclass(frozen=True)
class Work:
    """completion: new tokens at most. bf16: products in bf16, and for TRL its other defaults. varied: see above."""

    completion: int
    tuning: str
    bf16: bool
    varied: bool

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.bf16 else "float32"

    @property
    def name(self) -> str:
        lengths = "lengths that vary, at most " if self.varied else ""
        return f"{lengths}{self.completion} new tokens, {self.tuning}"


# ---- the models ----


def prepare(shape: Shape, folder: Path) -> None:
    """A student, a teacher, and a second student whose answers end."""
    shapes.prepare(shape, folder, teachers=1)
    for most in shape_lengths(shape):
        save_ending_student(folder, folder / f"student-ends-{most}", most)


def shape_lengths(shape: Shape) -> tuple[int, ...]:
    return (8, 16) if shape.vocabulary < 10_000 else (64, 256)


def save_ending_student(source: Path, folder: Path, most: int) -> None:
    """The student of `source`, its head changed so that the end token has about MEAN_SHARE / `most` everywhere.

    The token's row is fitted to that over the hidden states that follow the prompts: lengths are then geometric.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source / "student")
    model = AutoModelForCausalLM.from_pretrained(source / "student")
    texts = [json.loads(line)["text"] for line in (source / "teacher-0.jsonl").read_text("utf-8").splitlines()[:64]]
    read = torch.tensor([tokenizer.encode(text, add_special_tokens=False) for text in texts])
    # Random weights write random tokens.
    written = torch.randint(0, len(tokenizer), (len(texts), most), generator=torch.Generator().manual_seed(0))
    share = MEAN_SHARE / most
    with torch.no_grad():
        states = model.model(input_ids=torch.cat([read, written], 1)).last_hidden_state
        hidden = states[:, read.shape[1] :].flatten(0, 1)[:: most // 8]
        wanted = (hidden @ model.lm_head.weight.T).logsumexp(-1) + math.log(share / (1 - share))
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(END)] = torch.linalg.lstsq(hidden, wanted).solution
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def student_of(work: Work, folder: Path) -> Path:
    return folder / (f"student-ends-{work.completion}" if work.varied else "student")


# ---- the two, told when to step ----


def ours(work: Work, folder: Path) -> None:
    teacher = {"kind": "transformers", "model": str(folder / "teacher-0"), "dtype": work.dtype}
    recipe = shapes.recipe_of(
        folder,
        {"teacher": teacher},
        prompts=PER_FORWARD * FORWARDS,
        completion=work.completion,
        student=student_of(work, folder).name,
        tune={"kind": "lora", **LORA} if work.tuning == "lora" else "full",
        bf16=work.bf16,
    )
    step_when_told(recipe, folder)


def trl(work: Work, folder: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    from transformers import TrainerCallback

    lengths: list[int] = []

    class InTurn(TrainerCallback):  # type: ignore[misc]
        start = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if not told():
                os._exit(0)
            lengths.clear()
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            say(seconds=time.perf_counter() - self.start, tokens=sum(lengths), peak=memory("VmHWM"))

    with tempfile.TemporaryDirectory(dir=folder) as place:
        trainer = trl_trainer(work, folder, place, InTurn())
        generate: Callable[..., Any] = trainer._generate_single_turn

        def counted(*arguments: Any, **rest: Any) -> Any:
            found = generate(*arguments, **rest)
            lengths.extend(map(len, found))
            return found

        trainer._generate_single_turn = counted
        say_ready()
        trainer.train()


def trl_trainer(work: Work, folder: Path, output: str, callback: Any) -> Any:
    """TRL's `DistillationTrainer` on the work: with its defaults in bf16, at its best on this machine in fp32."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer
    from trl.kernels import chunked_divergence

    dtype = torch.bfloat16 if work.bf16 else torch.float32
    if not work.bf16:
        chunked_divergence.TOKEN_CHUNK_SIZE = 256
    source = student_of(work, folder)
    prompts = load_dataset("json", data_files=str(folder / "teacher-0.jsonl"), split="train")
    settings = DistillationConfig(
        output_dir=output,
        per_device_train_batch_size=PER_FORWARD,
        gradient_accumulation_steps=FORWARDS,
        max_completion_length=work.completion,
        max_steps=10_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=work.bf16,
        gradient_checkpointing=work.bf16,
        generation_kwargs={} if work.varied else {"min_new_tokens": work.completion},
    )
    adapter = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    return DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(folder / "teacher-0", dtype=dtype),
        args=settings,
        train_dataset=prompts.rename_column("text", "prompt"),
        processing_class=AutoTokenizer.from_pretrained(source, padding_side="left"),
        peft_config=adapter if work.tuning == "lora" else None,
        callbacks=[callback],
    )


SIDES: dict[str, Callable[[Work, Path], None]] = {"ours": ours, "trl": trl}


# ---- in turn ----

COLUMNS = ("work", "precision", "TRL s", "ours s", "faster", "TRL MB more", "ours MB more", "of its memory")
PRECISIONS = {True: "bf16, TRL's defaults", False: "fp32, TRL's best"}


def compare(work: Work, folder: Path, steps: int) -> dict[str, dict[bool, Found]]:
    """By side, then by whether it computes in bf16."""
    here = ("-m", "tests.benchmark.peer", "--side")
    sides = {
        f"{side} {bf16}": (*here, side, str(folder), json.dumps(asdict(replace(work, bf16=bf16))))
        for side, bf16 in product(SIDES, PRECISIONS)
    }
    found = in_turn(sides, steps)
    return {side: {bf16: found[f"{side} {bf16}"] for bf16 in PRECISIONS} for side in SIDES}


def rows(work: Work, found: Mapping[str, Mapping[bool, Found]]) -> Iterator[list[str]]:
    cost = (lambda each: each.seconds / each.tokens) if work.varied else (lambda each: each.seconds)
    for bf16, precision in PRECISIONS.items():
        yield row(
            work, precision, cost, (found["trl"][bf16], found["ours"][bf16]), (found["trl"][bf16], found["ours"][bf16])
        )
    quickest = tuple(min(found[side].values(), key=cost) for side in ("trl", "ours"))
    leanest = tuple(min(found[side].values(), key=lambda each: each.extra) for side in ("trl", "ours"))
    yield row(work, "**the better of each**", cost, quickest, leanest)


def row(
    work: Work, precision: str, cost: Callable[[Found], float], quick: tuple[Found, ...], lean: tuple[Found, ...]
) -> list[str]:
    peer, own = quick
    return [
        work.name,
        precision,
        f"{peer.seconds:.2f}",
        f"{own.seconds:.2f}",
        f"{cost(peer) / cost(own):.2f}×",
        *(f"{each.extra / 1e6:,.0f}" for each in lean),
        f"{lean[1].extra / max(lean[0].extra, 1):.2f}×",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that it works")
    parser.add_argument("--steps", type=int, default=5, help="steps that are counted")
    parser.add_argument("--completion", type=int, nargs="+", help="new tokens (64 256)")
    parser.add_argument("--tuning", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--varied", action="store_true", help="answers end, at very different lengths")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "FOLDER", "WORK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = QUICK if given.quick else FULL
    if given.prepare:
        prepare(shape, given.prepare)
        return
    if given.side:
        side, folder, work = given.side
        SIDES[side](Work(**json.loads(work)), Path(folder))
        return
    say_load()
    print_row(COLUMNS)
    print("|---|---|" + "---:|" * (len(COLUMNS) - 2))
    with tempfile.TemporaryDirectory() as made:
        subprocess.run(
            [sys.executable, "-m", "tests.benchmark.peer", "--prepare", made, *sys.argv[1:]],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for completion, tuning in product(given.completion or shape_lengths(shape), given.tuning):
            work = Work(completion, tuning, False, given.varied)
            for cells in rows(work, compare(work, Path(made), given.steps)):
                print_row(cells)


if __name__ == "__main__":
    main()
