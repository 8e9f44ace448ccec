"""A step's completions by vLLM in this process, on disk token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING

from pipeline.errors import RunError
from pipeline.rollout.drafts import Draft, DraftLog
from pipeline.rollout.inside_engine import WHO, InsideEngine, Said
from pipeline.rollout.protocol import OnFinished, SamplingSettings
from pipeline.rollout.rows import Endings, Row
from pipeline.rollout.vllm_wire import drawn, seed_of
from pipeline.types import Rollout

if TYPE_CHECKING:
    from pipeline.rollout.stopping import Finish
    from teachers.causal_lm import CausalLM


@dataclass(eq=False)
class Writing:
    """One call of a generator. version: updates in the weights that the engine has. banned: entries of the model's
    vocabulary that are none of the tokenizer's. continued: how many completions went on from tokens they had."""

    engine: InsideEngine
    lm: CausalLM
    banned: tuple[int, ...]
    settings: SamplingSettings
    seed: int
    step: int
    version: int
    log: DraftLog
    on_finished: OnFinished | None
    continued: int = 0
    _open: dict[str, tuple[Row, Draft]] = field(default_factory=dict)
    _written: dict[str, Rollout] = field(default_factory=dict)

    @cached_property
    def _endings(self) -> Endings:
        return Endings(self.lm, self.settings)

    def run(self, rows: Sequence[Row]) -> dict[str, Rollout]:
        """Every row's rollout, by its id."""
        left = self.log.left()
        self.log.forget_others()
        ended: list[Rollout] = []
        for row in rows:
            draft = left.get(row.rollout_id, Draft())
            finish = self._endings.finish(draft)
            if finish is None:
                self._ask(row, draft)
            else:
                ended.append(self._end(row, draft, finish))
        try:
            self._tell(ended)
            while self._open:
                self._tell([rollout for said in self.engine.step() if (rollout := self._take(said)) is not None])
        finally:
            self.engine.forget(list(self._open))
        return self._written

    def _ask(self, row: Row, draft: Draft) -> None:
        written = len(draft.token_ids)
        self.continued += written > 0
        self._open[row.rollout_id] = (row, draft)
        params = drawn(
            self.settings,
            left=self.settings.max_new_tokens - written,
            seed=seed_of(self.seed, self.step, row.prompt.prompt_id, row.sample_index, written),
            end_ids=self._endings.ids,
            banned=self.banned,
        )
        self.engine.ask(row.rollout_id, [*row.prompt_ids, *draft.token_ids], params)

    def _take(self, said: Said) -> Rollout | None:
        """The rollout, where these tokens end it. Raises RunError for what is no log-probability."""
        if said.name not in self._open:  # it had one more token under way when it was ended
            return None
        row, draft = self._open[said.name]
        if not all(isfinite(value) for value in said.logprobs):
            raise RunError(f"rollout.server: {WHO} gave log-probabilities that are none: {said.logprobs[:5]}")
        for token, logprob in zip(said.token_ids, said.logprobs, strict=True):
            self.log.add(row.rollout_id, draft, [token], [min(0.0, logprob)], self.version)
            if (finish := self._endings.finish(draft)) is not None:
                if said.finish is None:
                    self.engine.forget([said.name])
                del self._open[said.name]
                return self._end(row, draft, finish)
        if said.finish is not None:
            raise RunError(f"rollout.server: {WHO} ended an answer before its time ({said.finish}); see its log")
        return None

    def _end(self, row: Row, draft: Draft, finish: Finish) -> Rollout:
        rollout = self._endings.rollout(row, draft, finish)
        self._written[row.rollout_id] = rollout
        return rollout

    def _tell(self, ended: Sequence[Rollout]) -> None:
        if ended and self.on_finished is not None:
            self.on_finished(ended)
