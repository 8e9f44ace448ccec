"""What a slow teacher adds to a step, with and without steps of staleness, beside what `pipeline.overlap` predicts.

    python -m tests.benchmark.waiting [--quick] [--rounds 5] [--steps 4] [--threads 1] [--times 1] [--staleness 0 1]

A chat teacher on this machine, in a process of its own, answers every question at once, or as late as the rollout
phase of a step takes (`--times` as late): that is measured first. For each staleness the same run is made with both, in
turn: a round is a few steps of one and then of the other, the first step of each not counted, since its teacher had
time meanwhile. What is printed are medians over all steps that are counted; what is predicted comes from the same
teacher's run without staleness. The pieces are the program's own, as in `step.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.loop import Loop, State
    from pipeline.trainer import Flights


@dataclass(frozen=True)
class Shape:
    """(width, layers) of the student; prompts of a step, rows decoded together, new tokens of each."""

    student: tuple[int, int]
    prompts: int
    rows: int
    completion: int


FULL = Shape((256, 6), 48, 12, 48)
QUICK = Shape((32, 2), 4, 2, 8)
COLUMNS = ("staleness", "teacher", "rollout s", "waiting s", "update s", "step s", "predicted s", "against at once")


# ---- the teacher ----


def serve(seconds: float, pipe: Connection) -> None:
    """Grades until the other end is closed, every answer `seconds` late."""
    from tests.servers.chat_server import ChatServer, Manners
    from tests.servers.faults import Fault, Plan

    with ChatServer(Manners(slow_seconds=seconds), plan=Plan(float(seconds > 0), 0, (Fault.SLOW,))) as server:
        pipe.send(server.url)
        try:
            pipe.recv()
        except EOFError:
            return


@contextmanager
def teacher(seconds: float) -> Iterator[str]:
    """The address of a teacher that answers after so many seconds."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(seconds, there))
    process.start()
    there.close()
    try:
        yield here.recv()
    finally:
        here.close()
        process.join()


# ---- one run ----


@dataclass(eq=False)
class Run:
    """A run under way. seconds: of each step that was counted, by phase, the whole as `step`."""

    loop: Loop
    state: State
    flights: Flights
    seconds: list[dict[str, float]] = field(default_factory=list)

    def go_on(self, steps: int) -> None:
        """Makes one step more than these, which is not counted."""
        from pipeline.files import read_lines
        from pipeline.trainer import advance

        for place in range(1 + steps):
            start = time.perf_counter()
            self.state = advance(self.loop, self.state, self.flights)
            whole = time.perf_counter() - start
            if place:
                *_, last = read_lines(self.loop.folder / "timings.jsonl")
                self.seconds.append({**last["seconds"], "step": whole})

    def median(self, name: str) -> float:
        return statistics.median(line[name] for line in self.seconds)


@contextmanager
def run(folder: Path, shape: Shape, url: str, staleness: int, threads: int) -> Iterator[Run]:
    from rich.console import Console

    from pipeline.display import Display
    from pipeline.job import Job, build_loop, load_parts
    from pipeline.loop import State
    from pipeline.mixing import MixState
    from pipeline.ranks import world_of
    from pipeline.recipe_file import load_recipe
    from pipeline.sharding import make_accelerator

    folder.mkdir()
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe_of(shape, url, staleness, threads)))
    loaded = load_recipe(path)
    accelerator = make_accelerator(loaded.recipe)
    job = Job(loaded, folder, {}, accelerator, world_of(accelerator), Display(Console(quiet=True)))
    parts = load_parts(job)
    try:
        yield Run(build_loop(job, parts), State(0, MixState()), {})
    finally:
        parts.pool.close()
        parts.desk.close()


def recipe_of(shape: Shape, url: str, staleness: int, threads: int) -> dict[str, Any]:
    width, layers = shape.student
    model = {"hidden_size": width, "layers": layers, "heads": width // 32, "context": 256}
    limits = {"concurrency": 2 * shape.prompts, "retries": 0}
    return {
        "method": "distill",
        "threads": threads,
        "student": {"model": model},
        "teachers": {"critic": {"kind": "chat", "model": "grader", "url": url, "gives": "score", "limits": limits}},
        "routing": "all",
        "data": {"held_out": 4, "sources": {"sorting": {"kind": "tasks", "task": "sorting"}}},
        "rollout": {"max_new_tokens": shape.completion, "rows": shape.rows},
        "objective": {"grades": {"baseline": "running"}},
        "pool": {"staleness": staleness},
        # So small a rate that all four runs write answers of the same lengths.
        "training": {"steps": 10**6, "prompts_per_step": shape.prompts, "learning_rate": 1e-9},
    }


# ---- all of them ----


def compared(folder: Path, shape: Shape, urls: Sequence[str], staleness: int, given: argparse.Namespace) -> list[Run]:
    """A run with each teacher, in turn."""
    with ExitStack() as stack:
        runs = [
            stack.enter_context(run(folder / f"{staleness}-{place}", shape, url, staleness, given.threads))
            for place, url in enumerate(urls)
        ]
        for each in runs:
            each.go_on(1)
            each.seconds.clear()
        for _ in range(given.rounds):
            for each in runs:
                each.go_on(given.steps)
        return runs


def predicted(measured: Run, staleness: int) -> float:
    """Seconds of a step with so much staleness, by the phases of a run without; the teacher is late and never busy."""
    from pipeline.overlap import Layout, phases_of, seconds_per_step

    return seconds_per_step([phases_of({"seconds": each}) for each in measured.seconds], Layout(staleness, 0, None))


def row_of(staleness: int, name: str, found: Run, reference: Run, alone: Run) -> list[str]:
    """reference: with the teacher that answers at once. alone: with the same teacher, without staleness."""
    phases = [f"{found.median(phase):.2f}" for phase in ("rollout", "waiting", "update", "step")]
    phases.append(f"{predicted(alone, staleness):.2f}" if staleness else "")
    ratio = "" if found is reference else f"{found.median('step') / reference.median('step'):.2f}"
    return [str(staleness), name, *phases, ratio]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that it works")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round that are counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times", type=float, default=1.0, help="the late teacher's seconds, in rollout phases")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1], help="0 comes first")
    given = parser.parse_args()
    shape = QUICK if given.quick else FULL

    from pipeline.cli import set_environment

    set_environment(given.threads, offline=True)
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        at_once = stack.enter_context(teacher(0.0))
        with run(folder / "first", shape, at_once, 0, given.threads) as first:
            first.go_on(3)
        seconds = round(given.times * first.median("rollout"), 2)
        late = stack.enter_context(teacher(seconds))
        print(f"Medians of {given.rounds * given.steps} steps. Load before: {os.getloadavg()[0]:.1f}\n")
        print("| " + " | ".join(COLUMNS) + " |")
        print("|" + "---|" * len(COLUMNS))
        alone: list[Run] = []
        for staleness in sorted({0, *given.staleness}):
            found = compared(folder, shape, (at_once, late), staleness, given)
            alone = alone or found
            for place, name in enumerate(("at once", f"after {seconds:.2f} s")):
                print(
                    "| " + " | ".join(row_of(staleness, name, found[place], found[0], alone[place])) + " |", flush=True
                )


if __name__ == "__main__":
    main()
