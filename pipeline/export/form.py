"""In which form a student is written. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import RunError

Kind = Literal["adapter", "model", "quantized"]
Dtype = Literal["float32", "bfloat16", "float16"]

SHARD = "5GB"  # the hub's own default: a file that a dropped connection costs little
LARGEST_SHARD = 50.0  # GB, of a file that the hub takes
_SIZE = re.compile(r"(?i)(\d+(?:\.\d+)?)\s*(KB|MB|GB)")
_GIGABYTES = {"KB": 1e-6, "MB": 1e-3, "GB": 1.0}


@dataclass(frozen=True)
class Form:
    """What is written. dtype: None for the student's own; of an adapter, float32. shard: of a model's files."""

    kind: Kind
    dtype: Dtype | None = None
    shard: str = SHARD


def shard_size(text: str) -> str:
    """As transformers reads it. Raises RunError for what is no size, or larger than the hub's largest file."""
    match = _SIZE.fullmatch(text.strip())
    gigabytes = float(match[1]) * _GIGABYTES[match[2].upper()] if match else 0.0
    if match is None or not 0 < gigabytes <= LARGEST_SHARD:
        raise RunError(f"--shard {text}: write a size such as 5GB or 500MB, of at most {LARGEST_SHARD:.0f}GB")
    return f"{match[1]}{match[2].upper()}"


def missing_kind(kind: Kind) -> str:
    """What is said where a student is not of that kind."""
    if kind == "adapter":
        return "a student that was trained with tune: full has no adapter; export it with --kind model"
    return (
        "only a student that was trained with tune: full and student.quantize is quantized; export it with --kind model"
    )
