"""Rollouts by vLLM's engine inside this process. Ids go in and ids come out, token by token.

The random numbers are the engine's, seeded with (seed, step, prompt, sample, tokens written), as with a server.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.rollout.drafts import DraftLog
from pipeline.rollout.inside_engine import WHO, InsideEngine, process_kept
from pipeline.rollout.inside_writing import Writing
from pipeline.rollout.protocol import OnFinished, SamplingSettings
from pipeline.rollout.rows import rows_of
from pipeline.rollout.vllm_probe import TOKENS, require_near, sentence
from pipeline.rollout.vllm_wire import drawn
from pipeline.student import Student
from pipeline.types import Prompt, Rollout


@dataclass(eq=False)
class InsideGenerator:
    """A `Generator` (see `protocol.py`). drafts: for what is being written. rank: of this process.

    apart: nats per token between the engine's log-probabilities and the student's, as found last. continued: how many
    completions went on from tokens they had.
    """

    student: Student
    engine: InsideEngine
    drafts: Path
    rank: int
    banned: tuple[int, ...] = field(default=(), repr=False)
    apart: float = 0.0
    continued: int = 0
    _tag: str = field(default_factory=lambda: secrets.token_hex(4))
    _compared: str = ""

    @property
    def where(self) -> str:
        """What people call it."""
        return WHO

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
            RunError: vLLM cannot be had, cannot follow the student, or fails.
        """
        rows = rows_of(prompts, settings, self.student.lm.context)
        with process_kept(), DraftLog(self.drafts, step, seed, self.rank) as log:
            self._follow(settings, seed, policy_version)
            writing = Writing(
                engine=self.engine,
                lm=self.student.lm,
                banned=self.banned,
                settings=settings,
                seed=seed,
                step=step,
                version=policy_version,
                log=log,
                on_finished=on_finished,
            )
            written = writing.run(rows)
            self.engine.rest()
        self.continued += writing.continued
        return [written[row.rollout_id] for row in rows]

    def follow(self, settings: SamplingSettings, seed: int, version: int) -> None:
        """Wakes the engine, with the weights as they are now.

        seed: that of this attempt; after a roll-back the same version has other weights. Raises RunError where it
        computes something else than the student.
        """
        with process_kept():
            self._follow(settings, seed, version)

    def _follow(self, settings: SamplingSettings, seed: int, version: int) -> None:
        name = f"student-{self._tag}-{seed}-{version:06d}"
        self.engine.follow(self.student, name, version)
        if self._compared != name:
            self.apart = self._compare(settings)
            self._compared = name

    def close(self) -> None:
        self.engine.close()

    def _compare(self, settings: SamplingSettings) -> float:
        lm = self.student.lm
        prompt, ids, logprobs = sentence(lm), list[int](), list[float]()
        ends = sorted(lm.end_ids)
        params = drawn(replace(settings, top_p=1.0, top_k=0), left=TOKENS, seed=0, end_ids=ends, banned=self.banned)
        self.engine.ask("compared", prompt, params)
        finish = None
        while finish is None:
            for said in self.engine.step():
                ids += said.token_ids
                logprobs += said.logprobs
                finish = said.finish
        return require_near(lm, prompt, ids, logprobs, settings.temperature, WHO)
