"""Completions while they are written, on disk token by token: who is stopped goes on from there, and samples nothing
anew, for what is sampled anew is more likely to be short.

One file of JSON lines per step and process, `step-000012-SEED-RANK.jsonl`. It reaches the operating system with every
piece, so a killed run loses none; the finished rollouts' own record (`manifest.py`) is made before it is removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline.files import cut_end, read_lines


@dataclass
class Draft:
    """A completion so far. logprobs: what its tokens were drawn with. versions: of the weights that wrote each."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.versions += [version] * len(token_ids)


class DraftLog:
    """The drafts of one step that this process writes, with those that any process left behind. A context manager."""

    def __init__(self, folder: Path, step: int, seed: int, rank: int = 0) -> None:
        self._folder, self._name = folder, f"step-{step:06d}-{seed}"
        self._path = folder / f"{self._name}-{rank}.jsonl"
        self._file: IO[str] | None = None

    def __enter__(self) -> DraftLog:
        self._folder.mkdir(parents=True, exist_ok=True)
        cut_end(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def left(self) -> dict[str, Draft]:
        """By rollout id, what was written before a stop. A piece that does not join what is there is left out."""
        drafts: dict[str, Draft] = {}
        for path in sorted(self._folder.glob(f"{self._name}-*.jsonl")):
            for line in read_lines(path):
                draft = drafts.setdefault(line["id"], Draft())
                if line["at"] == len(draft.token_ids):
                    draft.add(line["ids"], line["logprobs"], line["version"])
        return drafts

    def add(
        self, rollout_id: str, draft: Draft, token_ids: Sequence[int], logprobs: Sequence[float], version: int
    ) -> None:
        """Adds to the draft and to the file."""
        assert self._file is not None
        line: dict[str, Any] = {"id": rollout_id, "at": len(draft.token_ids), "ids": list(token_ids)}
        self._file.write(json.dumps({**line, "logprobs": list(logprobs), "version": version}) + "\n")
        self._file.flush()
        draft.add(token_ids, logprobs, version)

    def forget_others(self) -> None:
        """Removes the drafts of other steps: their rollouts are recorded whole."""
        for path in self._folder.glob("step-*.jsonl"):
            if not path.name.startswith(f"{self._name}-"):
                path.unlink(missing_ok=True)
