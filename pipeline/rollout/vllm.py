"""Rollouts on a vLLM server that follows the student. Ids go out and ids come back, token by token.

The random numbers are the server's, seeded with (seed, step, prompt, sample, tokens written). Which tokens they draw
hangs on what else the server computes beside them, so a run is repeated from its journal and not by sampling again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.rollout.protocol import OnFinished, SamplingSettings
from pipeline.rollout.rows import Row, rows_of
from pipeline.rollout.vllm_engine import Engine
from pipeline.rollout.vllm_following import Follower
from pipeline.rollout.vllm_http import Wire
from pipeline.rollout.vllm_writing import Writing
from pipeline.student import Student
from pipeline.types import Prompt, Rollout


@dataclass(eq=False)
class VllmGenerator:
    """A `Generator` (see `protocol.py`). drafts: for what is being written. continued: how many completions went on
    from tokens they had."""

    follower: Follower
    drafts: Path
    continued: int = 0

    @property
    def student(self) -> Student:
        return self.follower.student

    @property
    def engine(self) -> Engine:
        return self.follower.engine

    @property
    def apart(self) -> float:
        """Nats per token between the server's log-probabilities and the student's, as found last."""
        return self.follower.apart

    @property
    def where(self) -> str:
        """What people call it."""
        return self.engine.root

    def generate(
        self,
        prompts: Sequence[tuple[Prompt, tuple[int, ...]]],
        settings: SamplingSettings,
        *,
        seed: int,
        step: int,
        policy_version: int,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """As in the protocol.

        Raises:
            DataError: a prompt is empty, or leaves no room for `max_new_tokens` in the model's context.
            RunError: the server is not there, does not come back, or cannot follow the student.
        """
        rows = rows_of(prompts, settings, self.student.lm.context)
        self.follow(settings, seed, policy_version)
        writing = Writing(
            engine=self.engine,
            waiting=self.follower.waiting,
            lm=self.student.lm,
            banned=self.follower.banned,
            settings=settings,
            seed=seed,
            step=step,
            version=policy_version,
            drafts=self.drafts,
            rank=self.follower.world.rank,
            on_finished=on_finished,
        )
        written = asyncio.run(self._written(writing, rows))
        self.continued += len(writing.continued)
        return [written[row.rollout_id] for row in rows]

    def follow(self, settings: SamplingSettings, seed: int, version: int) -> None:
        """Gives the server the weights as they are now, as `Follower.follow` says."""
        self.follower.follow(settings, seed, version)

    def close(self) -> None:
        self.follower.close()

    async def _written(self, writing: Writing, rows: Sequence[Row]) -> dict[str, Rollout]:
        async with Wire(self.engine.root, self.follower.access) as wire:
            return await writing.run(wire, rows)
