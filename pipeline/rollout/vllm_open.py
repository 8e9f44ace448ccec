"""From a recipe's `rollout` to a generator on a server: one that is there, or one that is started when it is needed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.ranks import World
from pipeline.recipe_rollouts import EngineInside, ServerAt, ServerStarted, VllmRollouts
from pipeline.rollout.vllm import VllmGenerator
from pipeline.rollout.vllm_engine import Engine, flags_of
from pipeline.rollout.vllm_http import Access, Waiting, read_key
from pipeline.rollout.vllm_process import ServerProcess
from pipeline.rollout.vllm_weights import following
from pipeline.student import ADAPTER, Student

NAME = "student"  # what a started server calls it


def open_vllm(
    rollouts: VllmRollouts,
    student: Student,
    *,
    tokens: int,
    folder: Path,
    access: Access,
    world: World,
    say: Callable[[str], None],
    twin: Callable[[], Student] | None = None,
) -> VllmGenerator:
    """Nothing is started or asked yet. tokens: of the longest prompt and its answer. folder: the run's. twin: of a
    student in shards, loads one that is whole.

    Raises RunError for a key that is not set, an adapter too large for vLLM, a vocabulary it cannot draw from.
    """
    server = rollouts.server
    assert not isinstance(server, EngineInside), "inside_open.py opens that"
    place = folder / "engine"
    if isinstance(server, ServerAt):
        access = replace(access, key=read_key(server.key))
        place = Path(server.weights) if server.weights else place
        engine = _found(server, student, say)
    else:
        engine = _started(server, rollouts, student, tokens=tokens, log=folder / "engine.log", say=say)
    if world.is_main and place == folder / "engine":
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    return VllmGenerator(
        student=student,
        engine=engine,
        access=access,
        waiting=Waiting(server.silence, server.patience),
        place=place.resolve(),  # a server has a working directory of its own
        drafts=folder / "journal" / "drafts",
        world=world,
        twin=twin,
    )


def _found(server: ServerAt, student: Student, say: Callable[[str], None]) -> Engine:
    root = server.url.rstrip("/").removesuffix("/v1")
    return Engine(root, following(student), server.model, server.patience, say)


def _started(
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
