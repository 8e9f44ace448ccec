"""A step's rollouts as lines of JSON, written and read in stretches: a million tokens never stand in memory twice.

A line that says how many there are; then each rollout: a head, its prompt's tokens, its segments, its numbers, with at
most STRETCH of them on a line. Floats are written with as many digits as give the same value back; what is the same for
every token (the version that wrote it), or the same as what stands above it, is written once.

Bytes: about 5 a token of text in the file for its id and 21 for a log-probability; in memory 8 for an id, since equal
ones are one object, and 32 for a log-probability. Imports no torch.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, TypeVar

from pipeline.types import Prompt, Rollout
from teachers.types import Segment

STRETCH = 4096  # numbers on a line

T = TypeVar("T")


def write_lines(step: int, rollouts: Sequence[Rollout]) -> Iterator[str]:
    """The file's lines, each made when it is asked for."""
    yield _line({"step": step, "rollouts": len(rollouts)})
    for rollout in rollouts:
        yield _line(
            {
                "prompt_id": rollout.prompt.prompt_id,
                "sample_index": rollout.sample_index,
                "finish_reason": rollout.finish_reason,
                "writer": rollout.writer,
            }
        )
        yield from _numbers("prompt_ids", rollout.prompt_ids)
        yield _line({"segments": len(rollout.segments)})
        for segment in rollout.segments:
            yield _line({"segment": [segment.role, segment.kind, segment.trainable]})
            yield from _numbers("token_ids", segment.token_ids)
        yield from _numbers("model_logprobs", rollout.model_logprobs)
        if _same(rollout.sampling_logprobs, rollout.model_logprobs):
            yield _line({"sampling_logprobs": "model_logprobs"})
        else:
            yield from _numbers("sampling_logprobs", rollout.sampling_logprobs)
        yield _line({"policy_versions": [[version, _count(run)] for version, run in groupby(rollout.policy_versions)]})


def read_heads(lines: Iterable[str]) -> Iterator[str]:
    """The prompt ids of a file's rollouts. Numbers are passed over unread."""
    for line in lines:
        if line.startswith('{"prompt_id":'):
            yield json.loads(line)["prompt_id"]


def read_rollouts(lines: Iterator[str], prompts: Mapping[str, Prompt]) -> list[Rollout]:
    """What `write_lines` was given, bit by bit. prompts: by id, all that the file has.

    Raises ValueError or LookupError for lines that it did not write.
    """
    known: dict[int, int] = {}
    count = json.loads(next(lines))["rollouts"]
    return [_rollout(lines, prompts, known) for _ in range(count)]


def _rollout(lines: Iterator[str], prompts: Mapping[str, Prompt], known: dict[int, int]) -> Rollout:
    head = json.loads(next(lines))
    prompt_ids = _ids(lines, "prompt_ids", known)
    segments = []
    for _ in range(json.loads(next(lines))["segments"]):
        role, kind, trainable = json.loads(next(lines))["segment"]
        segments.append(Segment(role, kind, _ids(lines, "token_ids", known), trainable))
    model = _floats(lines, "model_logprobs", ())
    sampling = _floats(lines, "sampling_logprobs", model)
    runs = json.loads(next(lines))["policy_versions"]
    return Rollout(
        prompt=prompts[head["prompt_id"]],
        sample_index=head["sample_index"],
        prompt_ids=prompt_ids,
        segments=tuple(segments),
        finish_reason=head["finish_reason"],
        model_logprobs=model,
        sampling_logprobs=sampling,
        policy_versions=_repeated(runs),
        writer=head["writer"],
    )


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    """To the bit: 0.0 equals -0.0 and is another value. NaN equals nothing, and is then written twice."""
    return one is other or (
        len(one) == len(other)
        and all(x == y and (x != 0.0 or str(x) == str(y)) for x, y in zip(one, other, strict=True))
    )


def _numbers(name: str, values: Sequence[Any]) -> Iterator[str]:
    """How many, then the values in stretches."""
    yield _line({name: len(values)})
    rest = iter(values)
    while stretch := tuple(islice(rest, STRETCH)):
        yield json.dumps(stretch) + "\n"


def _read(lines: Iterator[str], found: Any, take: Callable[[list[Any]], None]) -> None:
    """Gives the next `found` numbers away, a stretch at a time."""
    left = int(found)
    while left > 0:
        stretch = json.loads(next(lines))
        take(stretch)
        left -= len(stretch)


def _ids(lines: Iterator[str], name: str, known: dict[int, int]) -> tuple[int, ...]:
    """Equal ids are one object: a vocabulary has far fewer of them than a long answer has tokens."""
    found = array("q")
    _read(lines, json.loads(next(lines))[name], found.extend)
    return tuple(known.setdefault(token, token) for token in found)


def _floats(lines: Iterator[str], name: str, above: tuple[float, ...]) -> tuple[float, ...]:
    said = json.loads(next(lines))[name]
    if isinstance(said, str):
        return above
    found = array("d")
    _read(lines, said, found.extend)
    return tuple(found)


def _repeated(runs: Sequence[tuple[T, int]]) -> tuple[T, ...]:
    return sum(((value,) * count for value, count in runs), ())


def _count(run: Iterable[Any]) -> int:
    return sum(1 for _ in run)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
