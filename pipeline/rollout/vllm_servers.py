"""From a recipe's `rollout.server` to a server that follows the student: one that is there, or one to be started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.recipe_rollouts import ServerAt, ServerStarted, VllmRollouts
from pipeline.rollout.vllm_engine import Engine, flags_of
from pipeline.rollout.vllm_process import ServerProcess
from pipeline.rollout.vllm_weights import following
from pipeline.student import ADAPTER, Student

NAME = "student"  # what a started server calls it


def found(server: ServerAt, student: Student, say: Callable[[str], None]) -> Engine:
    """One that somebody else has started."""
    root = server.url.rstrip("/").removesuffix("/v1")
    return Engine(root, following(student), server.model, server.patience, say)


def started(
    server: ServerStarted,
    rollouts: VllmRollouts,
    student: Student,
    *,
    tokens: int,
    log: Path,
    say: Callable[[str], None],
) -> Engine:
    """A LoRA student's server has the base; one that follows all weights starts with those that are published first,
    and again with those that were published last."""
    adapted = following(student) == "adapter"
    model: Any = student.lm.model
    rank = model.peft_config[ADAPTER].r if adapted else None
    flags = flags_of(
        following(student),
        name=NAME,
        dtype=student.key.dtype,
        context=min(student.lm.context, tokens),
        rows=rollouts.rows,
        rank=rank,
    )
    if adapted and student.key.revision is not None:
        flags += ["--revision", student.key.revision]
    process = ServerProcess(server.python or sys.executable, [*flags, *server.flags], log, server.environment)
    base = student.key.path if adapted else None
    return Engine("", following(student), NAME, server.ready, say, process, base)
