"""Bytes a token of one training step, from a thousand tokens to as many as fit: `python -m tests.benchmark.context`.

One row of T tokens, half of them answered, one teacher over the whole vocabulary: laid out, forward, backward, and what
becomes metrics. Each length in a process of its own; what counts is by how much the most memory that the process ever
held grew over a step of 256 tokens. A column's number is the growth between two lengths divided by their difference.
`--shared N`: N processes share the row, and the one of them counts that grew most.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WAYS: Mapping[str, Mapping[str, Any]] = {
    "all kept": {},
    "layers again": {"gradient_checkpointing": True},
    "and MLPs in parts": {"gradient_checkpointing": True, "mlp_tokens": 512},
}
LAYERS, WIDTH, HEADS, VOCABULARY = 4, 128, 2, 8192
SHORT = 256
# Tensors go back to the system when they are let go: else the peak would be of holes between them as well.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measured(folder: Path, way: str, tokens: int) -> dict[str, float]:
    """In this process: bytes that its most memory grew by, and seconds."""
    import torch

    from pipeline import recipe
    from pipeline.student import load_student

    torch.set_num_threads(1)
    config = recipe.Student(model=str(folder), **WAYS[way])
    student = load_student(config, model_path=str(folder), seed=0, chunk_bytes=16 << 20, device=torch.device("cpu"))
    stretch = shared(student)
    student.train()
    _step(student, SHORT, stretch)
    before = _most()
    start = time.perf_counter()
    _step(student, tokens, stretch)
    seconds, grown = time.perf_counter() - start, torch.tensor(_most() - before)
    if stretch is not None:
        torch.distributed.all_reduce(grown, torch.distributed.ReduceOp.MAX)
        torch.distributed.destroy_process_group()
    return {"bytes": int(grown), "seconds": seconds}


def shared(student: Any) -> Any:
    """The stretch of every row that this process has, where torchrun has started several."""
    import torch

    if "RANK" not in os.environ:
        return None
    from pipeline.stretches import share_rows
    from pipeline.types import Stretch

    torch.distributed.init_process_group("gloo")
    stretch = Stretch(torch.distributed.get_rank(), torch.distributed.get_world_size(), None)
    share_rows(student.lm, stretch)
    return stretch


def _step(student: Any, tokens: int, stretch: Any) -> None:
    import torch

    from pipeline.metrics import Sums, collect
    from pipeline.targets import Row, Score, build_batch, normaliser
    from pipeline.types import Divergence, Prompt, Rollout
    from teachers.types import FullVocab, RawText, Segment

    generator = random.Random(0)
    ids = [generator.randrange(VOCABULARY) for _ in range(tokens)]
    answered = tokens // 2
    logprobs = tuple(-generator.random() for _ in range(answered))
    rollout = Rollout(
        Prompt("p", "s", "d", RawText("")),
        0,
        tuple(ids[: tokens - answered]),
        (Segment("assistant", "answer", tuple(ids[tokens - answered :]), True),),
        "length",
        logprobs,
        logprobs,
        (0,) * answered,
    )
    hidden = torch.randn(answered, WIDTH, generator=torch.Generator().manual_seed(0))
    signal = FullVocab(hidden, student.head, torch.ones(answered, dtype=torch.bool))
    rows = [Row(rollout, (Score("t", 1.0, Divergence(), signal),))]
    batch = build_batch(rows, normaliser(rows, "trajectory"), temperature=1.0, device=student.device)
    batch = student.part_of(batch, stretch)
    output = student(batch)
    output.loss.backward()
    collect(Sums(), batch, output)
    student.zero_grad(set_to_none=True)


def _most() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def save_model(folder: Path, context: int) -> None:
    from pipeline.new_model import characters_tokenizer, model_config, model_from_config
    from pipeline.recipe import NewModel

    shape = NewModel(architecture="qwen3", hidden_size=WIDTH, layers=LAYERS, heads=HEADS, context=context)
    tokenizer = characters_tokenizer(context)
    tokenizer.add_tokens([f"<{n}>" for n in range(VOCABULARY - len(tokenizer))])
    model_from_config(model_config(shape, VOCABULARY), tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 32768, 65536])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--shared", type=int, default=1)
    parser.add_argument("--child", nargs=3)
    arguments = parser.parse_args()
    if arguments.child:
        folder, way, tokens = arguments.child
        found = measured(Path(folder), way, int(tokens))
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(found))
        return
    with TemporaryDirectory() as name:
        save_model(Path(name), max(arguments.lengths))
        table(Path(name), arguments.lengths, arguments.ways, arguments.shared)


def table(folder: Path, lengths: list[int], ways: list[str], shared: int) -> None:
    found: dict[str, dict[str, float]] = {way: {"bytes": 0.0, "seconds": 0.0} for way in ways}
    print(f"| tokens | {' | '.join(f'{way}, bytes a token' for way in ways)} | seconds |")
    print(f"|---:|{'---:|' * (len(ways) + 1)}")
    shorter = SHORT
    for tokens in lengths:
        cells = []
        for way in ways:
            torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(shared))
            command = [
                *(sys.executable, *(torchrun if shared > 1 else ()), "-m", "tests.benchmark.context"),
                *("--child", str(folder), way, str(tokens)),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | MALLOC)
            now = json.loads(done.stdout.splitlines()[-1])
            cells.append(f"{(now['bytes'] - found[way]['bytes']) / (tokens - shorter):,.0f}")
            found[way] = now
        seconds = ", ".join(f"{found[way]['seconds']:.1f}" for way in ways)
        print(f"| {tokens:,} | {' | '.join(cells)} | {seconds} |", flush=True)
        shorter = tokens


if __name__ == "__main__":
    main()
