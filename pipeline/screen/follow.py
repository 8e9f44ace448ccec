"""A run's directory read as a view, whoever writes it meanwhile, and how the run stands.

Nothing here changes the directory, takes its lock or waits for it. A line that is half written is read when it is
whole; a file that was cut back, since the run was resumed, is read again from its beginning. Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.errors import RunError
from pipeline.screen.view import Health, Moment, Part, View, after, noted
from teachers.journal import FILE
from teachers.records import records

LOCKS = Path("/proc/locks")
PATIENCE = 120.0  # seconds since the last line, after which a run whose lock cannot be seen counts as ended


@dataclass
class Tail:
    """The JSON lines that come to a file. `cut`: whether the last reading found it shorter than before."""

    path: Path
    place: int = 0
    cut: bool = False

    def new(self) -> list[dict[str, Any]]:
        """Those since the last call; all of them again after it was cut back."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            self.cut, self.place = self.place > 0, 0
            return []
        self.cut = size < self.place
        with self.path.open("rb") as file:
            file.seek(0 if self.cut else self.place)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self.place = (0 if self.cut else self.place) + len(whole)
        return [json.loads(line) for line in whole.splitlines() if line.strip()]


@dataclass
class Follower:
    """Reads a run's files piece by piece. `view` is what is known of it after the last `look`."""

    folder: Path
    view: View = field(default_factory=View)

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._tails = {
            name: Tail(self.folder / f"{name}.jsonl") for name in ("metrics", "timings", "samples", "events")
        }
        self._seconds: dict[int, Mapping[str, float]] = {}
        self.view = View(steps=_steps(self.folder))

    def look(self) -> View:
        """The view with all that was written since the last time."""
        found = {name: tail.new() for name, tail in self._tails.items()}
        if any(tail.cut for tail in self._tails.values()):
            self._begin()
            found = {name: tail.new() for name, tail in self._tails.items()}
        self._seconds |= {line["step"]: line["seconds"] for line in found["timings"]}
        view = self.view if self.view.steps else replace(self.view, steps=_steps(self.folder))
        for line in found["metrics"]:
            view = after(view, Moment(line["step"], view.steps, {}, line, self._seconds.pop(line["step"], {})))
        if found["samples"]:
            view = replace(view, sample=found["samples"][-1])
        self.view = replace(noted(view, found["events"]), teachers=teachers_of(self.folder))
        return self.view


# ---- how it stands ----


def status(folder: Path) -> str | None:
    """starting, running, finished; None where no run has begun."""
    try:
        found: str = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"]
    except FileNotFoundError:
        return None
    return found


def is_held(folder: Path) -> bool | None:
    """Whether a process of this machine holds the run's lock; None where that cannot be seen.

    The kernel's list of locks is read. To try the lock would do as well, and would make a run that starts just then
    believe that another one writes there.
    """
    try:
        found = (folder / ".lock").stat()
        locks = LOCKS.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return False if LOCKS.exists() else None
    except OSError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(place in line.split() for line in locks if "FLOCK" in line)


def standing(folder: Path, now: float) -> str:
    """One phrase: running, finished, not started, or killed. now: seconds since the epoch."""
    found, held = status(folder), is_held(folder)
    if found == "finished":
        return "finished"
    if held:
        return "running" if found else "starting"
    if found is None:
        return "not started"
    quiet = now - last_written(folder)
    if held is None and quiet < PATIENCE:
        return "running"
    return "ended before it was done: no process holds its lock; `tutelage run … --resume` goes on"


def last_written(folder: Path) -> float:
    paths = [folder / name for name in ("run.json", "metrics.jsonl", "timings.jsonl")]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def require_run(folder: Path) -> None:
    """Raises RunError for what is there and is no run."""
    if folder.is_file():
        raise RunError(f"{folder} is a file; name a run's directory, such as runs/quickstart")
    if folder.is_dir() and status(folder) is None:
        ours = {".lock", "recipe.yaml", "evaluations", "run.json.partial", "recipe.yaml.partial"}
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in ours)
        if strangers:
            raise RunError(
                f"{folder}: holds {strangers[0]} and no run; name a run's directory, such as runs/quickstart"
            )


def at_work(folder: Path) -> tuple[Path, tuple[Part, ...]]:
    """The run that is under way inside of this one, which prepares or compares it, and where that is in the whole.

    The run itself, and no part, where it is at its own work.
    """
    for place in ("prepared", "compare"):
        inner = [path for path in sorted((folder / place).glob("*")) if path.is_dir()]
        for path in inner:
            if is_held(path) and status(path) != "finished":
                names = _names(folder, place)
                number = names.index(path.name) + 1 if path.name in names else 0
                found, parts = at_work(path)
                return found, (Part(path.name, number, len(names) if number else 0), *parts)
    return folder, ()


def teachers_of(folder: Path) -> dict[str, Health]:
    """Remote teachers, from the run's journal."""
    path = folder / FILE
    if not path.is_file():
        return {}
    found: dict[str, Health] = {}
    with records(path) as journal:
        totals, outcomes = journal.totals(), journal.outcomes()
    for name, total in totals.items():
        own = [(state, why, n) for who, state, why, n in outcomes if who == name]
        found[name] = Health(
            answered=sum(n for state, _, n in own if state == "answered"),
            failed={str(why): n for state, why, n in own if state == "failed"},
            latency=total.seconds / total.requests if total.requests else None,
            under_way=sum(n for state, _, n in own if state == "intended"),
            dollars=float(total.dollars),
        )
    return found


def _recipe(folder: Path) -> Mapping[str, Any]:
    path = folder / "recipe.yaml"
    found = YAML(typ="safe").load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def _steps(folder: Path) -> int:
    return int(_recipe(folder).get("training", {}).get("steps", 0))


def _names(folder: Path, place: str) -> list[str]:
    section = _recipe(folder).get("prepare" if place == "prepared" else "compare", ())
    return [str(name) for name in section]


def lines_of(view: View) -> Iterator[str]:
    """The newest step as plain lines, for a pipe."""
    where = "".join(f"{part.name}: " for part in view.parts)
    if view.step:
        curves = {name: curve.last for name, curve in view.curves.items()}
        scores = {f"score {name}": curve.last for name, curve in view.scores.items()}
        said = "  ".join(f"{name} {value:.4g}" for name, value in (curves | scores).items())
        yield f"{where}step {view.step}/{view.steps}  {said}".rstrip()
