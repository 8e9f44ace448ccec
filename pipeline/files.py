"""Small files that are whole or not there, and line files that are cut back to a step. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replaces `path` in one rename, after the text has reached the disk."""
    write_whole(path, (text,))


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """The same, part by part: no more than one of them has to be there at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Adds one JSON line. Floats are written so that reading gives the same bits back."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def cut_end(path: Path) -> None:
    """Removes a last line that a kill cut short, so that the next one begins a line."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n") and content:
        write_text(path, content[: content.rfind(b"\n") + 1].decode("utf-8"))


def cut_back(path: Path, step: int) -> None:
    """Keeps the lines of steps up to `step`, so that a resumed run writes the rest again."""
    if path.exists():
        kept = [line for line in read_lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
