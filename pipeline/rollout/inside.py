"""Rollouts by vLLM's engine inside this process. Ids go in and ids come out, token by token.

The random numbers are the engine's, seeded with (seed, step, prompt, sample, tokens written), as with a server.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.rollout.drafts import Draft, DraftLog
from pipeline.rollout.inside_engine import InsideEngine
from pipeline.rollout.protocol import OnFinished, SamplingSettings
from pipeline.rollout.rows import Row, rollout_of, rows_of
from pipeline.rollout.segments import think_tags
from pipeline.rollout.stopping import Finish, Stopping, stopping_of
from pipeline.rollout.vllm_probe import TOKENS, require_near, sentence
from pipeline.rollout.vllm_wire import drawn, seed_of
from pipeline.student import Student
from pipeline.types import Prompt, Rollout

WHO = "vLLM in this process"


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
        self.follow(settings, seed, policy_version)
        with DraftLog(self.drafts, step, seed, self.rank) as log:
            writing = _Writing(self, settings, seed, step, policy_version, log, on_finished)
            written = writing.run(rows)
        self.engine.rest()
        return [written[row.rollout_id] for row in rows]

    def follow(self, settings: SamplingSettings, seed: int, version: int) -> None:
        """Wakes the engine, with the weights as they are now.

        seed: that of this attempt; after a roll-back the same version has other weights. Raises RunError where it
        computes something else than the student.
        """
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


@dataclass(eq=False)
class _Writing:
    """One call of a generator."""

    by: InsideGenerator
    settings: SamplingSettings
    seed: int
    step: int
    version: int
    log: DraftLog
    on_finished: OnFinished | None

    def __post_init__(self) -> None:
        lm = self.by.student.lm
        self._stopping: Stopping = stopping_of(lm, self.settings)
        self._tags = think_tags(lm.tokenizer)
        self._open: dict[str, tuple[Row, Draft]] = {}
        self._written: dict[str, Rollout] = {}

    def run(self, rows: Sequence[Row]) -> dict[str, Rollout]:
        """Every row's rollout, by its id."""
        left = self.log.left()
        self.log.forget_others()
        ended: list[Rollout] = []
        for row in rows:
            draft = left.get(row.rollout_id, Draft())
            finish = self._stopping.finish(draft.token_ids) if draft.token_ids else None
            if finish is None:
                self._ask(row, draft)
            else:
                ended.append(self._end(row, draft, finish))
        try:
            self._tell(ended)
            while self._open:
                self._tell([rollout for said in self.by.engine.step() if (rollout := self._take(said)) is not None])
        finally:
            self.by.engine.forget(list(self._open))
        return self._written

    def _ask(self, row: Row, draft: Draft) -> None:
        written = len(draft.token_ids)
        self.by.continued += written > 0
        self._open[row.rollout_id] = (row, draft)
        params = drawn(
            self.settings,
            left=self.settings.max_new_tokens - written,
            seed=seed_of(self.seed, self.step, row.prompt.prompt_id, row.sample_index, written),
            end_ids=sorted(self._stopping.end_ids | self._stopping.stop_ids),
            banned=self.by.banned,
        )
        self.by.engine.ask(row.rollout_id, [*row.prompt_ids, *draft.token_ids], params)

    def _take(self, said: Any) -> Rollout | None:
        """The rollout, where these tokens end it. Raises RunError for what is no log-probability."""
        row, draft = self._open[said.name]
        if not all(isfinite(value) for value in said.logprobs):
            raise RunError(f"rollout.server: {WHO} gave log-probabilities that are none: {said.logprobs[:5]}")
        for token, logprob in zip(said.token_ids, said.logprobs, strict=True):
            self.log.add(row.rollout_id, draft, [token], [min(0.0, logprob)], self.version)
            if (finish := self._stopping.finish(draft.token_ids)) is not None:
                if said.finish is None:
                    self.by.engine.forget([said.name])
                del self._open[said.name]
                return self._end(row, draft, finish)
        if said.finish is not None:
            raise RunError(f"rollout.server: {WHO} ended an answer before its time ({said.finish}); see its log")
        return None

    def _end(self, row: Row, draft: Draft, finish: Finish) -> Rollout:
        rollout = rollout_of(row, draft, finish, self.settings, self._tags)
        self._written[row.rollout_id] = rollout
        return rollout

    def _tell(self, ended: Sequence[Rollout]) -> None:
        if ended and self.on_finished is not None:
            self.on_finished(ended)
