"""Time and memory of the head and the reverse KL, forward and backward, against plain whole logits.

    python -m tests.benchmark.divergence [--repeats 5] [--chunk-megabytes 64]

Sides run in turn in one process; what is printed is the median over the repeats, and each side's ratio to plain. Memory
is what the process's peak rises by, less the gradients that every side leaves (Linux only: it reads VmHWM). With
trl installed, its chunked divergence takes part.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from pipeline.fused import fused_loss
from pipeline.types import Divergence, Target, TrainingBatch
from teachers.types import FullVocab, Head, HeadWeights

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, eq=False)
class Problem:
    """hidden, teacher_hidden (N, D); weight, teacher_weight (V, D)."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor


def problem(tokens: int, size: int, width: int, dtype: torch.dtype, trained_head: bool) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, scale: float) -> Tensor:
        return (torch.randn(rows, width, generator=generator) * scale).to(dtype)

    weight, teacher_weight = draw(size, width**-0.5), draw(size, width**-0.5)
    labels = torch.randint(size, (tokens,), generator=generator)
    return Problem(
        draw(tokens, 2.0).requires_grad_(),
        weight.requires_grad_(trained_head),
        draw(tokens, 2.0),
        teacher_weight,
        labels,
    )


def plain(given: Problem, chunk_bytes: int) -> Tensor:
    lp = (given.hidden @ given.weight.T).float().log_softmax(-1)
    with torch.no_grad():
        lq = (given.teacher_hidden @ given.teacher_weight.T).float().log_softmax(-1)
    return (lp.exp() * (lp - lq)).sum(-1).mean()


def fused(given: Problem, chunk_bytes: int) -> Tensor:
    tokens, size = len(given.hidden), len(given.weight)
    everywhere, ids = torch.ones(tokens, dtype=torch.bool), torch.arange(tokens)
    teacher = Head("teacher", size, lambda: HeadWeights(given.teacher_weight))
    signal = FullVocab(given.teacher_hidden, teacher, everywhere)
    target = Target("teacher", ids, torch.full((tokens,), 1 / tokens), Divergence(), signal)
    nothing = torch.zeros(tokens)
    batch = TrainingBatch(
        ids,
        ids,
        torch.tensor([0, tokens]),
        ids,
        given.labels,
        nothing,
        nothing,
        torch.zeros_like(ids),
        ("a",),
        torch.zeros_like(ids),
        ("rollout",),
        (target,),
    )
    own = Head("student", size, lambda: HeadWeights(given.weight))
    return fused_loss(given.hidden, own, HeadWeights(given.weight), batch, chunk_bytes=chunk_bytes).loss


def trl_chunked(given: Problem, chunk_bytes: int) -> Tensor:
    divergence = import_module("trl.trainer.distillation_trainer")._chunked_divergence_loss
    mask = torch.ones(1, len(given.hidden), dtype=torch.int64)
    loss: Tensor = divergence(
        given.hidden[None], given.teacher_hidden[None], given.weight, given.teacher_weight, mask, beta=1.0
    )[0]
    return loss


def status(name: str) -> float:
    """A line of /proc/self/status in MB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def measure(side: Callable[[Problem, int], Tensor], given: Problem, chunk_bytes: int) -> tuple[float, float, float]:
    """Seconds, MB, and the loss."""
    gc.collect()
    before = 0.0
    if CLEAR.exists():
        ctypes.CDLL(None).malloc_trim(0)  # or what an earlier side has freed would count as there
        CLEAR.write_text("5")  # the peak starts again from what is resident now
        before = status("VmRSS")
    start = time.perf_counter()
    loss = side(given, chunk_bytes)
    loss.backward()
    seconds = time.perf_counter() - start
    gradients = [x.grad for x in (given.hidden, given.weight) if x.grad is not None]
    left = sum(gradient.nbytes for gradient in gradients) / 2**20
    memory = status("VmHWM") - before - left if CLEAR.exists() else float("nan")
    given.hidden.grad = given.weight.grad = None
    return seconds, memory, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Head and reverse KL, forward and backward.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk-megabytes", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    sides = {"plain": plain, "fused": fused} | ({"trl": trl_chunked} if find_spec("trl") else {})
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D = {options.width}")
    print(
        f"{'tokens × vocabulary':>20} {'dtype':>9} {'head':>8} {'side':>6} {'s':>8} {'MB':>8} {'time':>6} {'memory':>7}"
    )
    for tokens, size in ((512, 32_000), (2048, 151_936)):
        for dtype in (torch.float32, torch.bfloat16):
            for trained in (True, False):
                given = problem(tokens, size, options.width, dtype, trained)
                runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
                for repeat in range(options.repeats + 1):
                    for name, side in sides.items():
                        result = measure(side, given, options.chunk_megabytes * 2**20)
                        if repeat:  # the first one warms up
                            runs[name].append(result)
                report(f"{tokens} × {size}", str(dtype)[6:], "trained" if trained else "frozen", runs)


def report(shape: str, dtype: str, head: str, runs: dict[str, list[tuple[float, float, float]]]) -> None:
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()}
    seconds, memory, loss = medians["plain"]
    for name, (own_seconds, own_memory, own_loss) in medians.items():
        assert abs(own_loss - loss) < 0.01 * abs(loss), f"{name} finds {own_loss}, plain {loss}"
        ratios = f"{own_seconds / seconds:6.2f} {own_memory / memory:7.3f}"
        print(f"{shape:>15} {dtype:>9} {head:>8} {name:>6} {own_seconds:8.3f} {own_memory:8.0f} {ratios}", flush=True)


if __name__ == "__main__":
    main()
