"""Files that are whole or not there, and the checkpoints made of them.

A checkpoint is a folder `checkpoints/step-000025` that appears by one rename, after everything in it has reached the
disk. What a kill leaves behind is a `.partial` folder, which the next start removes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import RunError
from pipeline.files import sync_folder, write_json

SMALLEST_DISK = 1 << 20  # bytes; a write that fails with less than this left has filled the disk
_STEP = re.compile(r"^step-(\d{6,})$")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What training needs to go on bit by bit: step is the number of updates made.

    weights: the trainable tensors by name. optimizer: its `state_dict`. progress: small JSON values (mixing, totals).
    averages: the student's moving averages (`averaging.py`), where a teacher needs one.
    """

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    progress: Mapping[str, Any]
    averages: Mapping[str, Tensor] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes `folder/step-NNNNNN` atomically, then removes all but the newest `keep`."""
    final = folder / f"step-{checkpoint.step:06d}"
    with whole_folder(final) as partial:
        _save_tensors(checkpoint.weights, partial / "weights.safetensors")
        if checkpoint.averages:
            _save_tensors(checkpoint.averages, partial / "averages.safetensors")
        torch.save(dict(checkpoint.optimizer), partial / "optimizer.pt")
        write_json(partial / "progress.json", {"step": checkpoint.step, **checkpoint.progress})
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def write_progress(path: Path, progress: Mapping[str, Any]) -> None:
    """Replaces a checkpoint's progress, in one rename; its step, weights and optimizer stay."""
    step = json.loads((path / "progress.json").read_text())["step"]
    write_json(path / "progress.json", {"step": step, **progress})


def discard(path: Path) -> None:
    """Removes a checkpoint; it is one no longer before its files go."""
    gone = path.with_name(path.name + ".partial")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def load(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Reads a checkpoint onto the CPU. Raises RunError where a file of it is missing or damaged.

    mapped: the optimizer's tensors stay in their file until they are touched, so that several processes of a machine
    which take their parts of them have one copy together.
    """
    with _readable(path):
        progress = json.loads((path / "progress.json").read_text())
        weights = load_file(path / "weights.safetensors")
        kept = path / "averages.safetensors"
        averages = load_file(kept) if kept.exists() else {}
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True, mmap=mapped)
    return Checkpoint(progress.pop("step"), weights, optimizer, progress, averages)


def load_weights(path: Path) -> dict[str, Tensor]:
    """A checkpoint's weights alone, without the optimizer, which takes twice their memory. Raises as `load`."""
    with _readable(path):
        return load_file(path / "weights.safetensors")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, UnpicklingError, SafetensorError) as error:
        raise RunError(
            f"{path}: this checkpoint cannot be read ({error}); remove the folder to resume from the one before it"
        ) from error


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.match(path.name))]
    return [path for _, path in sorted(found)]


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write into that becomes `final` only if nothing failed; an older `final` is replaced.

    Raises OSError where the disk is full: torch and safetensors have errors of their own for that.
    """
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException as error:
        full = shutil.disk_usage(partial).free < SMALLEST_DISK
        shutil.rmtree(partial, ignore_errors=True)
        if full and isinstance(error, RuntimeError | SafetensorError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(final)) from error
        raise
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    sync_folder(final.parent)


def newest_step(folder: Path) -> int:
    """The step of the newest complete checkpoint, 0 where there is none."""
    found = list_checkpoints(folder)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def remove(path: Path) -> None:
    """Removes a file or a folder that a killed process left half-written."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
