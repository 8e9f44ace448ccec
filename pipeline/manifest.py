"""A step's rollouts on disk before the update that they cause, so that a resumed run replays them bit by bit.

One file per step, `journal/step-000012.json`, complete or absent, and one for the remote teachers that failed in it.
What they answered is in `journal.sqlite` (`teachers/journal.py`). Once a checkpoint holds the update, it is removed.
Floats are written with as many digits as give the same fp32 value back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.files import write_text
from pipeline.types import Prompt, Rollout
from teachers.types import Segment, TeacherFailure, Usage

DRAFTS = "drafts"  # the folder of what is still being written (`rollout/drafts.py`)


def save_rollouts(folder: Path, step: int, rollouts: Sequence[Rollout]) -> None:
    """Records what was written for `step`, durably."""
    value = {"step": step, "rollouts": [_to_json(rollout) for rollout in rollouts]}
    write_text(_path(folder, step), json.dumps(value, ensure_ascii=False) + "\n")


def load_rollouts(folder: Path, step: int, prompts: Sequence[Prompt]) -> list[Rollout] | None:
    """What was recorded for `step`, or None. Raises RunError if it was recorded for other prompts than these."""
    path = _path(folder, step)
    if not path.exists():
        return None
    by_id: Mapping[str, Prompt] = {prompt.prompt_id: prompt for prompt in prompts}
    recorded = json.loads(path.read_text(encoding="utf-8"))["rollouts"]
    if {rollout["prompt_id"] for rollout in recorded} != set(by_id):
        raise RunError(f"{path}: recorded for other prompts than this step draws: the data changed; start a new run")
    return [_from_json(rollout, by_id[rollout["prompt_id"]]) for rollout in recorded]


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
    for path in folder.glob("*-*.json"):
        if int(path.stem.rpartition("-")[2]) <= step:
            path.unlink()
    for path in (folder / DRAFTS).glob("step-*.jsonl"):
        if int(path.name.split("-")[1]) <= step:
            path.unlink()


def _path(folder: Path, step: int, what: str = "step") -> Path:
    return folder / f"{what}-{step:06d}.json"


def _to_json(rollout: Rollout) -> dict[str, Any]:
    return {
        "prompt_id": rollout.prompt.prompt_id,
        "sample_index": rollout.sample_index,
        "prompt_ids": rollout.prompt_ids,
        "segments": [[s.role, s.kind, s.token_ids, s.trainable] for s in rollout.segments],
        "finish_reason": rollout.finish_reason,
        "model_logprobs": rollout.model_logprobs,
        "sampling_logprobs": rollout.sampling_logprobs,
        "policy_versions": rollout.policy_versions,
        "writer": rollout.writer,
    }


def _from_json(value: Mapping[str, Any], prompt: Prompt) -> Rollout:
    return Rollout(
        prompt=prompt,
        sample_index=value["sample_index"],
        prompt_ids=tuple(value["prompt_ids"]),
        segments=tuple(Segment(role, kind, tuple(ids), trainable) for role, kind, ids, trainable in value["segments"]),
        finish_reason=value["finish_reason"],
        model_logprobs=tuple(value["model_logprobs"]),
        sampling_logprobs=tuple(value["sampling_logprobs"]),
        policy_versions=tuple(value["policy_versions"]),
        writer=value["writer"],
    )
