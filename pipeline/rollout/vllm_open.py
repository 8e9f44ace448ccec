"""From a recipe's `rollout` to a generator on a server: one that is there, or one that is started when it is needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.ranks import World
from pipeline.recipe_rollouts import EngineInside, ServerAt, VllmRollouts
from pipeline.rollout.vllm import VllmGenerator
from pipeline.rollout.vllm_following import Follower
from pipeline.rollout.vllm_http import Access, Waiting, read_key
from pipeline.rollout.vllm_servers import found, started
from pipeline.student import Student


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
        engine = found(server, student, say)
    else:
        engine = started(server, rollouts, student, tokens=tokens, log=folder / "engine.log", say=say)
    if world.is_main and place == folder / "engine":
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    follower = Follower(
        student=student,
        engine=engine,
        access=access,
        waiting=Waiting(server.silence, server.patience),
        place=place.resolve(),  # a server has a working directory of its own
        world=world,
        twin=twin,
    )
    return VllmGenerator(follower, folder / "journal" / "drafts")
