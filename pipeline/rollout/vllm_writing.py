"""A step's completions on a server, each written to its end however often the server goes away meanwhile.

A request that breaks goes on from the tokens that it had, and so does one of a run that was stopped: what is sampled
anew is more likely to be short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RunError
from pipeline.rollout.drafts import Draft, DraftLog
from pipeline.rollout.protocol import OnFinished, SamplingSettings
from pipeline.rollout.rows import Endings, Row
from pipeline.rollout.vllm_engine import Engine
from pipeline.rollout.vllm_http import EngineError, Waiting, Wire, error_of
from pipeline.rollout.vllm_wire import COMPLETIONS, BadStreamError, piece_of, question, seed_of
from pipeline.types import Rollout

if TYPE_CHECKING:
    from pipeline.rollout.stopping import Finish
    from teachers.causal_lm import CausalLM

AGAIN = (0.2, 10.0)  # seconds before a request is sent again: at first, and at most


@dataclass(eq=False)
class Writing:
    """One call of a generator, on one event loop. version: updates in the weights that the engine has. banned: entries
    of the model's vocabulary that are none of the tokenizer's. drafts: the folder for what is being written.

    continued: completions that went on from tokens they had. heard: when any token came last.
    """

    engine: Engine
    waiting: Waiting
    lm: CausalLM
    banned: tuple[int, ...]
    settings: SamplingSettings
    seed: int
    step: int
    version: int
    drafts: Path
    rank: int = 0
    on_finished: OnFinished | None = None
    continued: set[str] = field(default_factory=set)
    heard: float = 0.0

    @cached_property
    def _endings(self) -> Endings:
        return Endings(self.lm, self.settings)

    async def run(self, wire: Wire, rows: Sequence[Row]) -> dict[str, Rollout]:
        """Every row's rollout, by its id, `settings.rows` of them at once; the first that cannot be had ends all."""
        with DraftLog(self.drafts, self.step, self.seed, self.rank) as log:
            return await self._run(wire, rows, log)

    async def _run(self, wire: Wire, rows: Sequence[Row], log: DraftLog) -> dict[str, Rollout]:
        self.engine.enter()
        self.heard = asyncio.get_running_loop().time()
        left = log.left()
        log.forget_others()
        turns = asyncio.Semaphore(self.settings.rows)
        written: dict[str, Rollout] = {}

        async def write(row: Row) -> None:
            draft = left.get(row.rollout_id, Draft())
            async with turns:
                finish = await self._finish(wire, row, draft, log)
            written[row.rollout_id] = rollout = self._endings.rollout(row, draft, finish)
            if self.on_finished is not None:
                self.on_finished([rollout])

        tasks = [asyncio.create_task(write(row)) for row in rows]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return written

    async def _finish(self, wire: Wire, row: Row, draft: Draft, log: DraftLog) -> Finish:
        """Asks until it ends, each time from where it is. Raises RunError where that leads nowhere."""
        engine, clock = self.engine, asyncio.get_running_loop().time
        finish = self._endings.finish(draft)
        since, pause = clock(), AGAIN[0]
        while finish is None:
            had, seen = len(draft.token_ids), engine.restarts
            if had:
                self.continued.add(row.rollout_id)
            try:
                finish = await self._ask(wire, row, draft, log)
                why = error_of("broken", "its answer ended before its time", passes=True)
            except EngineError as error:
                why = error
            if finish is not None:
                break
            if not (why.passes or why.unknown):
                raise RunError(f"rollout.server: {engine.root} does not write: {why}")
            if len(draft.token_ids) > had:
                since, pause = clock(), AGAIN[0]
            if clock() - since > self.waiting.patience:
                raise RunError(
                    f"rollout.server: no token from {engine.root} for {self.waiting.patience:g} s ({why}); see its "
                    "log, then go on with --resume"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, AGAIN[1])
            hangs = why.failure.reason == "timeout" and clock() - self.heard >= self.waiting.silence
            await engine.mend(wire, seen, str(why), hangs=hangs)
        return finish

    async def _ask(self, wire: Wire, row: Row, draft: Draft, log: DraftLog) -> Finish | None:
        """One request. None where its stream ends before the completion does. Raises EngineError."""
        await self.engine.require_weights(wire)
        assert self.engine.published is not None
        prompt, written, clock = row.prompt, len(draft.token_ids), asyncio.get_running_loop().time
        body = question(
            self.engine.asked_as,
            [*row.prompt_ids, *draft.token_ids],
            self.settings,
            left=self.settings.max_new_tokens - written,
            seed=seed_of(self.seed, self.step, prompt.prompt_id, row.sample_index, written),
            end_ids=self._endings.ids,
            salt=self.engine.published.name,
            banned=self.banned,
        )
        stream = wire.lines(COMPLETIONS, body, private=prompt.private, silence=self.waiting.silence)
        async with aclosing(stream) as lines:
            async for line in lines:
                try:
                    piece = piece_of(line, self.lm.vocab_size)
                except BadStreamError as error:
                    raise error_of("broken", str(error), passes=error.passes) from error
                if piece is None:
                    continue
                self.heard = clock()
                for token, logprob in zip(piece.token_ids, piece.logprobs, strict=True):
                    log.add(row.rollout_id, draft, [token], [logprob], self.version)
                    if (finish := self._endings.finish(draft)) is not None:
                        return finish  # what the server has written beyond a stop string is not taken
        return None
