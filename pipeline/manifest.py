"""A step's rollouts on disk before the update that they cause, so that a resumed run replays them bit by bit.

One file per step, `journal/step-000012.jsonl` (`rollout_file.py`), complete or absent, and one for the remote teachers
that failed in it. What they answered is in `journal.sqlite` (`teachers/journal.py`). Once a checkpoint holds the
update, it is removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import RunError
from pipeline.files import write_text, write_whole
from pipeline.rollout_file import read_heads, read_rollouts, write_lines
from pipeline.types import Prompt, Rollout
from teachers.types import TeacherFailure, Usage

DRAFTS = "drafts"  # the folder of what is still being written (`rollout/drafts.py`)


def save_rollouts(folder: Path, step: int, rollouts: Sequence[Rollout]) -> None:
    """Records what was written for `step`, durably."""
    write_whole(_path(folder, step), write_lines(step, rollouts))


def load_rollouts(folder: Path, step: int, prompts: Sequence[Prompt]) -> list[Rollout] | None:
    """What was recorded for `step`, or None. Raises RunError if it was recorded for other prompts than these."""
    path = _path(folder, step)
    if not path.exists():
        return None
    by_id: Mapping[str, Prompt] = {prompt.prompt_id: prompt for prompt in prompts}
    with path.open(encoding="utf-8") as lines:
        if set(read_heads(lines)) != set(by_id):
            raise RunError(
                f"{path}: recorded for other prompts than this step draws: the data changed; start a new run"
            )
        lines.seek(0)
        return read_rollouts(lines, by_id)


def save_failures(folder: Path, step: int, failures: Mapping[tuple[str, str], TeacherFailure]) -> None:
    """Records which remote teacher failed on which request of `step`, durably; nothing where none did."""
    if failures:
        entries = [[teacher, request_id, asdict(failure)] for (teacher, request_id), failure in failures.items()]
        write_text(_path(folder, step, "failures"), json.dumps({"step": step, "failures": entries}) + "\n")


def load_failures(folder: Path, step: int) -> dict[tuple[str, str], TeacherFailure]:
    """What was recorded for `step`: these fail again when it is replayed, so that it teaches the same."""
    path = _path(folder, step, "failures")
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["failures"]
    return {
        (teacher, request_id): TeacherFailure(**{**value, "usage": value["usage"] and Usage(**value["usage"])})
        for teacher, request_id, value in entries
    }


def prune(folder: Path, step: int) -> None:
    """Removes the records of steps up to `step`, whose updates a checkpoint holds."""
    for path in folder.glob("*-*.json*"):
        if int(path.stem.rpartition("-")[2]) <= step:
            path.unlink()
    for path in (folder / DRAFTS).glob("step-*.jsonl"):
        if int(path.name.split("-")[1]) <= step:
            path.unlink()


def _path(folder: Path, step: int, what: str = "step") -> Path:
    ending = "jsonl" if what == "step" else "json"
    return folder / f"{what}-{step:06d}.{ending}"
