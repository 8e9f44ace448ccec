"""Seconds and peak memory of reading, linking and splitting a repository of a million lines, first and with a cache.

    python -m tests.benchmark.reading [--lines 1000000] [--change 20]

The repository is made from the standard library's sources, its tests included, networkx's and sympy's, and committed
with git. Each reading runs in a process of its own. Memory is that process's peak plus, for every core, the largest
peak of the processes that it started: more than was ever used at once. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.codebase.links import links_of
from pipeline.codebase.outline import outline_of
from pipeline.codebase.reading import read_code
from pipeline.codebase.split import split
from pipeline.recipe import Codebase

STAGES = ("reading", "links", "split")


def sources() -> Iterator[tuple[str, Path]]:
    """(where it goes, where it is)."""
    roots = {"stdlib": Path(sysconfig.get_paths()["stdlib"])}
    for name in ("networkx", "sympy"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            roots[name] = Path(spec.submodule_search_locations[0])
    for name, root in roots.items():
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if not {"site-packages", "dist-packages"} & set(relative.parts):
                yield f"{name}/{relative}", path


def make(folder: Path, lines: int) -> int:
    """A repository of at least so many lines, as far as there are sources; how many it has."""
    written = 0
    for name, path in sources():
        data = path.read_bytes()
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        written += data.count(b"\n")
        if written >= lines:
            break
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A", "-f"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return written


def no_history(*_: Any) -> Any:
    raise AssertionError("no history is asked for")


def measure(folder: Path, cache: Path) -> None:
    """Goes through it once, and prints what it took as JSON."""
    steps = 0

    def advance(done: int, total: int) -> None:
        nonlocal steps
        steps += 1

    config = Codebase(path=str(folder))
    times = [time.monotonic()]
    code = read_code(config, folder=folder, outline=outline_of, changes=no_history, advance=advance, cache=cache)
    times.append(time.monotonic())
    links = links_of(code)
    times.append(time.monotonic())
    sides = split(code, config)
    times.append(time.monotonic())
    stages = [end - begin for begin, end in itertools.pairwise(times)]
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, others = (each.ru_maxrss / 1024 for each in usage)
    busy = sum(each.ru_utime + each.ru_stime for each in usage)
    lines = sum(file.text.count("\n") for file in code.files)
    cores = len(os.sched_getaffinity(0))
    said = {
        "stages": stages,
        "busy": busy,
        "peak": own + cores * others,
        "files": len(code.files),
        "lines": lines,
        "steps": steps,
        "linked": len(links.callers),
        "held out": len(sides.held_out),
    }
    print(json.dumps(said | {"left out": len(code.left_out), "secrets": sum(code.secrets.values())}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--change", type=int, default=20, help="files that change before the last reading")
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("REPOSITORY", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(*options.measure)
    with tempfile.TemporaryDirectory() as place:
        repository, cache = Path(place, "repository"), Path(place, "cache", "readings.sqlite")
        repository.mkdir()
        print(f"{make(repository, options.lines):,} lines on {len(os.sched_getaffinity(0))} cores")
        for name in ("first time", "second time", f"{options.change} files changed"):
            if name.endswith("changed"):
                for path in sorted(repository.rglob("*.py"))[: options.change]:
                    path.write_bytes(path.read_bytes() + b"\n")
            command = [sys.executable, "-m", "tests.benchmark.reading", "--measure", str(repository), str(cache)]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{name:>20}: {sum(said['stages']):6.1f} s ({said['busy']:.1f} s of all cores): "
                + ", ".join(f"{stage} {s:.1f}" for stage, s in zip(STAGES, said["stages"], strict=True))
                + f"; peak {said['peak']:6,.0f} MB, {said['files']:,} files, {said['lines']:,} lines, "
                f"{said['left out']} left out, {said['secrets']} secrets, {said['linked']:,} symbols with callers, "
                f"{said['held out']} files held out"
            )
        print(f"{'cache':>20}: {cache.stat().st_size / 1e6:,.1f} MB")
    return None


if __name__ == "__main__":
    main()
