"""The recipes of a checkout as a list: what each is for, on what it runs and how long, from its header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CallError


@dataclass(frozen=True)
class Header:
    """What the comment at a recipe's head says; empty where it does not."""

    title: str = ""
    hardware: str = ""
    time: str = ""


def header_of(text: str) -> Header:
    """The first line, and the first sentences behind `Hardware` and `Time`."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    said = {}
    for place, line in enumerate(lines):
        if found := re.match(r"(Hardware|Time)\s\s+(.*)", line):
            more = " ".join([found[2], *(lines[place + 1 :][:1] if "." not in found[2] else [])])
            said[found[1]] = re.split(r"\.(?:\s|$)", more)[0]
    return Header(lines[0] if lines else "", said.get("Hardware", ""), said.get("Time", ""))


def recipes(folders: Sequence[Path]) -> list[tuple[Path, Header]]:
    """Of the first folder that has some. Raises CallError where none has."""
    found = next((paths for folder in folders if (paths := sorted(folder.glob("*.yaml")))), [])
    if not found:
        places = " or ".join(map(str, folders))
        raise CallError(
            f"there is no recipe in {places}; run this inside a checkout of tutelage, or write one: tutelage init"
        )
    return [(path, header_of(path.read_text(encoding="utf-8"))) for path in found]


def listed(found: Sequence[tuple[Path, Header]]) -> list[str]:
    """Each with its title and, below, what it needs and how long it takes."""
    lines = []
    for path, header in found:
        needs = "; ".join(filter(None, (header.hardware, header.time)))
        lines += [str(path), *(f"    {said}" for said in (header.title, needs) if said)]
    return lines
