"""Our step beside TRL's `DistillationTrainer`, on the same work, in turn: ratios of time and of memory.

    pip install -e ".[bench]"
    python -m tests.benchmark.peer [--quick] [--steps 5] [--completion 64 256] [--tuning full lora] [--varied]

The work: a student of 256 × 4 (19 million parameters, untied) and a teacher of 512 × 8 (58 million), Qwen3-shaped, with
random weights; a tokenizer of 32,000 entries trained on the standard library; prompts of 64 tokens, 8 a step as 4 × 2;
reverse KL over the whole vocabulary; AdamW; no network. TRL runs twice: `defaults` (bf16, gradient checkpointing) and
`best` (fp32, none, its token chunk at 256), and we beside each in the same precision. `--varied`: the end token occurs,
so that the lengths of answers differ by ten and more.

Each side is a process that makes one step when it is told to; so the two take turns, and neither computes while the
other is measured. What is printed are medians over the steps after the first two. Linux only: it reads
/proc/self/status.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import IO, Any

from tests.benchmark.step import END, FULL, QUICK, Shape, memory

WARM_UP = 2
PER_FORWARD, FORWARDS = 4, 2  # 8 prompts a step
LORA = {"rank": 32, "alpha": 64}
MEAN_SHARE = 4  # of the most tokens, an answer of a model whose end token occurs has one in so many
HELD_OUT = 4


@dataclass(frozen=True)
class Work:
    """completion: new tokens at most. bf16: products in bf16, and for TRL its other defaults. varied: see above."""

    completion: int
    tuning: str
    bf16: bool
    varied: bool

    @property
    def name(self) -> str:
        lengths = "lengths that vary, at most " if self.varied else ""
        return f"{lengths}{self.completion} new tokens, {self.tuning}"


# ---- the models ----


def prepare(shape: Shape, folder: Path) -> None:
    """What `tests.benchmark.step` makes, and a second student whose answers end."""
    from tests.benchmark import step

    step.prepare(replace(shape, teachers=(1,), prompts_per_step=(200,)), folder)
    for most in shape_lengths(shape):
        save_ending_student(folder, folder / f"student-ends-{most}", most)


def shape_lengths(shape: Shape) -> tuple[int, ...]:
    return (8, 16) if shape.vocabulary < 10_000 else (64, 256)


def save_ending_student(source: Path, folder: Path, most: int) -> None:
    """The student of `source`, its head changed so that the end token has about MEAN_SHARE / `most` everywhere.

    The token's row becomes the mean of the hidden states, made as long as that takes: lengths are then nearly
    geometric.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source / "student")
    model = AutoModelForCausalLM.from_pretrained(source / "student")
    end = tokenizer.convert_tokens_to_ids(END)
    ids = torch.randint(0, len(tokenizer), (16, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state.flatten(0, 1)
        others = (hidden @ model.lm_head.weight.T).logsumexp(-1)
        direction = hidden.mean(0) / hidden.mean(0).norm()
        low, high = 0.0, 1_000.0
        for _ in range(60):
            middle = (low + high) / 2
            share = (middle * (hidden @ direction) - others).sigmoid().mean()
            low, high = (middle, high) if share < MEAN_SHARE / most else (low, middle)
        model.lm_head.weight[end] = low * direction
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def student_of(work: Work, folder: Path) -> Path:
    return folder / (f"student-ends-{work.completion}" if work.varied else "student")


# ---- one side, told when to step ----


def told() -> bool:
    """Waits for the next word on standard input; False at its end."""
    return bool(sys.stdin.readline())


def say(**value: Any) -> None:
    print(json.dumps(value), flush=True)


def ours(work: Work, folder: Path) -> None:
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
        path.write_text(json.dumps(recipe_of(work, folder)))
        loaded = load_recipe(path)
        accelerator = make_accelerator(loaded.recipe)
        job = Job(loaded, Path(place), {}, accelerator, world_of(accelerator), Display(Console(quiet=True)))
        loop = build_loop(job, load_parts(job))
        say(before=memory("VmRSS"))
        state, flights = State(0, MixState()), {}
        while told():
            start = time.perf_counter()
            state = advance(loop, state, flights)
            seconds = time.perf_counter() - start
            tokens = list(read_lines(Path(place) / "metrics.jsonl"))[-1]["tokens"]
            say(seconds=seconds, tokens=tokens, peak=memory("VmHWM"))


def recipe_of(work: Work, folder: Path) -> dict[str, Any]:
    dtype = "bfloat16" if work.bf16 else "float32"
    tune: Any = {"kind": "lora", **LORA} if work.tuning == "lora" else "full"
    prompts = str(folder / "teacher-0.jsonl")
    return {
        "method": "distill",
        "student": {"model": str(student_of(work, folder)), "tune": tune},
        "teachers": {"teacher": {"kind": "transformers", "model": str(folder / "teacher-0"), "dtype": dtype}},
        "data": {
            "held_out": HELD_OUT,
            "sources": {"teacher": {"kind": "dataset", "path": prompts, "as_chat": False, "checker": "none"}},
        },
        "rollout": {"max_new_tokens": work.completion},
        "training": {
            "steps": 10_000,
            "prompts_per_step": PER_FORWARD * FORWARDS,
            "learning_rate": 1e-6,
            "mixed_precision": "bf16" if work.bf16 else "no",
        },
    }


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
        say(before=memory("VmRSS"))
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


# ---- the two in turn ----


@dataclass(frozen=True)
class Found:
    """Medians. extra: bytes above what stood before training."""

    seconds: float
    tokens: float
    extra: int


def compare(work: Work, folder: Path, steps: int) -> dict[str, Found]:
    workers = {side: started(side, work, folder) for side in SIDES}
    try:
        before = {side: heard(worker)["before"] for side, worker in workers.items()}
        lines: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(WARM_UP + steps):
            for side, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write("step\n")
                worker.stdin.flush()
                lines[side].append(heard(worker))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return {
        side: Found(
            statistics.median(line["seconds"] for line in found[WARM_UP:]),
            statistics.median(line["tokens"] for line in found[WARM_UP:]),
            found[-1]["peak"] - before[side],
        )
        for side, found in lines.items()
    }


def started(side: str, work: Work, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.benchmark.peer", "--side", side, str(folder), json.dumps(asdict(work))]
    quiet = os.environ | {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)


def heard(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """The next thing that a side says of itself; a library may print other lines."""
    output: IO[str] | None = worker.stdout
    assert output is not None
    for line in output:
        if line.startswith("{"):
            try:
                value: dict[str, Any] = json.loads(line)
            except json.JSONDecodeError:
                continue
            return value
    raise SystemExit(f"a side ended: {worker.args!r}")


COLUMNS = ("work", "precision", "TRL s", "ours s", "faster", "TRL MB more", "ours MB more", "of its memory")


def rows(shape: Shape, folder: Path, given: argparse.Namespace) -> Iterator[list[str]]:
    for completion, tuning, bf16 in product(given.completion or shape_lengths(shape), given.tuning, (True, False)):
        work = Work(completion, tuning, bf16, given.varied)
        found = compare(work, folder, given.steps)
        peer, own = found["trl"], found["ours"]
        # Where lengths vary the two write different numbers of tokens, so it is seconds per token that compare.
        ratio = (peer.seconds / peer.tokens) / (own.seconds / own.tokens)
        yield [
            work.name,
            "bf16, TRL's defaults" if bf16 else "fp32, TRL's best",
            f"{peer.seconds:.2f}",
            f"{own.seconds:.2f}",
            f"{ratio:.2f}×",
            f"{peer.extra / 1e6:,.0f}",
            f"{own.extra / 1e6:,.0f}",
            f"{own.extra / max(peer.extra, 1):.2f}×",
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
    print(f"Medians of {given.steps} steps, in turn. Load of the machine before: {os.getloadavg()[0]:.1f}\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---|---|" + "---:|" * (len(COLUMNS) - 2), flush=True)
    with tempfile.TemporaryDirectory() as made:
        subprocess.run(
            [sys.executable, "-m", "tests.benchmark.peer", "--prepare", made, *sys.argv[1:]],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for row in rows(shape, Path(made), given):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
