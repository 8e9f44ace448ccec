"""Recorded rollouts: the same bits come back, and a long one is never in memory twice."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.rollout_file import STRETCH, read_heads, read_rollouts, write_lines
from pipeline.types import Prompt, Rollout
from teachers.types import RawText, Segment

PROMPT = Prompt("p0", "s", "d", RawText("x"))
MILLION = 1_000_000


def rollout(tokens: int, generator: random.Random) -> Rollout:
    """Three segments, versions that change on the way, and log-probabilities of every size."""
    ids = tuple(generator.randrange(200_000) for _ in range(tokens))
    first, second = tokens // 3, 2 * tokens // 3
    segments = (
        Segment("assistant", "think", ids[:first], True),
        Segment("tool", "tool_result", ids[first:second], False),
        Segment("assistant", "answer", ids[second:], True),
    )
    logprobs = tuple(-(10 ** generator.uniform(-30, 2)) for _ in range(tokens))
    return Rollout(
        PROMPT, 3, ids[: tokens // 2], segments, "length", logprobs, logprobs, (4,) * first + (5,) * (tokens - first)
    )


def through_a_file(written: list[Rollout]) -> list[Rollout]:
    return read_rollouts(iter(list(write_lines(7, written))), {PROMPT.prompt_id: PROMPT})


@pytest.mark.parametrize("tokens", [0, 1, STRETCH - 1, STRETCH, STRETCH + 1, 3 * STRETCH + 5])
def test_every_bit_comes_back_at_every_length(tokens: int) -> None:
    generator = random.Random(tokens)
    sampled = rollout(tokens, generator)
    cut = replace(sampled, sampling_logprobs=tuple(value / 2 for value in sampled.model_logprobs), sample_index=4)
    reference = replace(sampled, model_logprobs=(), sampling_logprobs=(), policy_versions=(), writer="reference")
    assert through_a_file([sampled, cut, reference]) == [sampled, cut, reference]


def test_signs_of_zero_and_what_is_no_number_stay() -> None:
    """Equal values may be other bits: these are not taken for the same."""
    base = rollout(3, random.Random(0))
    odd = replace(base, model_logprobs=(0.0, -1.0, math.nan), sampling_logprobs=(-0.0, -1.0, math.nan))
    (found,) = through_a_file([odd])
    assert [str(value) for value in found.sampling_logprobs] == ["-0.0", "-1.0", "nan"]
    assert [str(value) for value in found.model_logprobs] == ["0.0", "-1.0", "nan"]


def test_no_line_is_long_and_each_is_made_when_it_is_asked_for() -> None:
    lines: Iterator[str] = write_lines(1, [rollout(10 * STRETCH, random.Random(1))])
    assert max(len(line) for line in lines) < 32 * STRETCH
    assert list(read_heads(write_lines(1, [rollout(5, random.Random(2))] * 2))) == ["p0", "p0"]


# Whoever runs it says by how many bytes the most memory ever held grew while it wrote, or read, a record.
CHILD = """
import gc, random, sys
from pathlib import Path
from pipeline import manifest
from tests.unit.test_rollout_file import PROMPT, rollout

def most():  # since this program began: getrusage counts what its parent held, if that was more
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

what, folder, tokens = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
made = [rollout(tokens, random.Random(0))] if what == "write" else None
manifest.save_rollouts(folder / "small", 1, [rollout(10, random.Random(0))])
manifest.load_rollouts(folder / "small", 1, [PROMPT])
gc.collect()
before = most()
if made:
    manifest.save_rollouts(folder, 1, made)
else:
    (read,) = manifest.load_rollouts(folder, 1, [PROMPT])
    assert len(read.completion_ids) == tokens
print(most() - before)
"""


def grown(what: str, folder: Path, tokens: int) -> int:
    command = [sys.executable, "-c", CHILD, what, str(folder), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_million_tokens_are_streamed(tmp_path: Path) -> None:
    """Written: next to nothing beside the rollout. Read: the rollout itself, 8 bytes for a token's id in its segment
    and half of that for the prompt here, 32 for a log-probability, 8 for a version, and one stretch of numbers."""
    assert grown("write", tmp_path, MILLION) < 8 * 2**20
    file = tmp_path / "step-000001.jsonl"
    assert file.stat().st_size > 30 * MILLION
    per_token = 1.5 * 8 + 32 + 8
    vocabulary = 200_000 * 150  # each id once, and the table that finds it
    assert grown("read", tmp_path, MILLION) < per_token * MILLION + vocabulary + 24 * 2**20
