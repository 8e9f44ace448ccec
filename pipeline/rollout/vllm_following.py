"""A server kept at the student's weights, and compared with the student after each change."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.ranks import World
from pipeline.rollout.protocol import SamplingSettings
from pipeline.rollout.vllm_engine import Engine
from pipeline.rollout.vllm_http import Access, Waiting, Wire
from pipeline.rollout.vllm_probe import require_same
from pipeline.rollout.vllm_weights import Published, publish, withdraw
from pipeline.student import Student
from pipeline.student_state import load_trainable_state, trainable_state

MOST_BANNED = 1024  # padded rows of a vocabulary that are kept from being drawn, one by one


@dataclass(eq=False)
class Follower:
    """place: for the weights. twin: loads one more student, which is whole where this one is in shards; called once, in
    the main process.

    apart: nats per token between the server's log-probabilities and the student's, as found last. banned: entries of
    the model's vocabulary that are none of the tokenizer's.
    """

    student: Student
    engine: Engine
    access: Access
    waiting: Waiting
    place: Path
    world: World
    twin: Callable[[], Student] | None = None
    apart: float = 0.0
    banned: tuple[int, ...] = field(default=(), repr=False)
    _tag: str = ""
    _followed: tuple[int, int] | None = None
    _twin: Student | None = None

    def __post_init__(self) -> None:
        # No name was ever used before: an adapter, or a cache, that a server still has from another run is not ours.
        self._tag = self.world.gather(secrets.token_hex(4))[0]
        self.banned = banned_of(self.student)

    def close(self) -> None:
        """Ends a server that the run has started, and removes the weights: a resumed run publishes its own."""
        self.engine.close()
        if self.world.is_main and self.engine.published is not None:
            withdraw(self.engine.published)

    def follow(self, settings: SamplingSettings, seed: int, version: int) -> None:
        """Gives the server the weights as they are now, unless it has them: the main process does, for all.

        seed: that of this attempt; after a roll-back the same version has other weights. A student in shards has to be
        `whole` meanwhile, as it is for all that writes.
        """
        if self._followed == (seed, version):
            return
        name = f"student-{self._tag}-{seed}-{version:06d}"
        if self.world.is_main:
            old = asyncio.run(self._told(publish(self._whole(), self.place, name, version), settings))
            if old is not None:
                withdraw(old)
        self.engine.root = self.world.gather(self.engine.root)[0]
        if not self.world.is_main:
            asyncio.run(self._joined(Published(name, self.place / name, version)))
        self._followed = (seed, version)

    def _whole(self) -> Student:
        """What can be written as files: out of a module in shards nothing comes whole, though its weights are now."""
        if self.twin is None:
            return self.student
        self._twin = self._twin or self.twin()
        load_trainable_state(self._twin, trainable_state(self.student))
        return self._twin

    async def _told(self, published: Published, settings: SamplingSettings) -> Published | None:
        async with Wire(self.engine.root, self.access) as wire:
            old = await self.engine.follow(wire, published)
            lm = self.student.lm
            self.apart = await require_same(self.engine, wire, lm, self.banned, settings, self.waiting)
            return old

    async def _joined(self, published: Published) -> None:
        async with Wire(self.engine.root, self.access) as wire:
            await self.engine.join(wire, published)


def banned_of(student: Student) -> tuple[int, ...]:
    """Entries of the model's vocabulary that its tokenizer does not know.

    Raises RunError where they are too many to be named to a server.
    """
    size = student.lm.vocab_size
    model: Any = student.lm.model
    rows = model.get_output_embeddings().weight.shape[0]
    if rows - size > MOST_BANNED:
        raise RunError(
            f"student.model: its vocabulary has {rows - size} entries that its tokenizer does not know, which a server "
            "would draw; use rollout.kind=local"
        )
    return tuple(range(size, rows))
