"""Which prompts a step gets: how many of each source, and which.

A pure function of the state, which goes into every checkpoint, so a resumed run draws what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from math import inf, isfinite
from typing import Any, Literal

import numpy as np

from pipeline.errors import DataError
from pipeline.types import Prompt

KL_MEMORY = 0.9  # of the running mean: one step's KL is noisy
# Under remaining_kl a source keeps this much of its fair share, so that its KL stays known, and gets at most this many
# times it: one domain with a large KL that does not fall would starve the rest.
LEAST_SHARE = 0.25
MOST_SHARE = 4.0
LEAST_KL = 1e-6  # of the largest: a source without any KL left still takes what no other may have
BISECTIONS = 200


@dataclass(frozen=True)
class Place:
    """How far one source has been drawn.

    cursor: places passed in the endless row of its permutations, one per epoch. deferred: prompts passed over since
    they were in the step already; they come first in the next. credit: prompts it is owed, below zero where it had
    more than its share. kl: the running mean of its KL, None before any was seen.
    """

    cursor: int = 0
    deferred: tuple[int, ...] = ()
    credit: float = 0.0
    kl: float | None = None


@dataclass(frozen=True)
class MixState:
    """The Place of each source that has been drawn from or observed."""

    places: Mapping[str, Place] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            name: {"cursor": p.cursor, "deferred": list(p.deferred), "credit": p.credit, "kl": p.kl}
            for name, p in self.places.items()
        }

    @property
    def drawn(self) -> dict[str, int]:
        """Prompts that each source has given so far."""
        return {name: place.cursor - len(place.deferred) for name, place in self.places.items()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> MixState:
        return MixState(
            {name: Place(p["cursor"], tuple(p["deferred"]), p["credit"], p["kl"]) for name, p in value.items()}
        )


def draw(
    state: MixState,
    sources: Mapping[str, Sequence[Prompt]],
    weights: Mapping[str, float],
    *,
    mixing: Literal["fixed", "remaining_kl"],
    count: int,
    seed: int,
) -> tuple[tuple[Prompt, ...], MixState]:
    """`count` different prompts, the sources interleaved, and the state for the next step.

    Each source is read in a random order, a new one each epoch; what a step's share leaves over is carried on, so the
    shares are exact in the long run. Raises DataError where all sources together have fewer than `count` prompts.
    """
    if sum(map(len, sources.values())) < count:
        raise DataError(
            f"a step takes {count} prompts and all data.sources together have {sum(map(len, sources.values()))} to "
            f"train on: lower training.prompts_per_step or give more rows"
        )
    places = {name: state.places.get(name, Place()) for name in sources}
    fair = {name: weights[name] / sum(weights[source] for source in sources) for name in sources}
    lengths = {name: len(prompts) for name, prompts in sources.items()}
    most = {name: length / count for name, length in lengths.items()}
    kl = {name: place.kl for name, place in places.items()}
    shares = _clipped(fair, dict.fromkeys(fair, 0.0), most) if mixing == "fixed" else shares_of(fair, kl, most)
    slots, credits = _assign(
        {name: place.credit + shares[name] * count for name, place in places.items()}, lengths, count
    )
    queues = {}
    for name, place in places.items():
        picked, moved = _take(place, slots.count(name), lengths[name], seed, name)
        places[name] = replace(moved, credit=credits[name])
        queues[name] = iter(picked)
    prompts = tuple(sources[name][next(queues[name])] for name in slots)
    return prompts, MixState({**state.places, **places})


def observe(state: MixState, kl_by_source: Mapping[str, float]) -> MixState:
    """The state after a step in which the sources' mean KL to their teachers was `kl_by_source`, in nats."""
    places = dict(state.places)
    for name, kl in kl_by_source.items():
        if not isfinite(kl):
            raise ValueError(f"the KL of source {name} is {kl}")
        place = places.get(name, Place())
        mean = kl if place.kl is None else KL_MEMORY * place.kl + (1 - KL_MEMORY) * kl
        places[name] = replace(place, kl=mean)
    return MixState(places)


def shares_of(fair: Mapping[str, float], kl: Mapping[str, float | None], most: Mapping[str, float]) -> dict[str, float]:
    """Shares proportional to fair share × KL, within LEAST_SHARE and MOST_SHARE, and at most `most`; they sum to 1.

    fair: sums to 1. kl: a source whose KL is not known counts as an average one. most: sums to at least 1; where it
    leaves a share over that nobody may have, MOST_SHARE gives way.
    """
    known = [max(value, 0.0) for value in kl.values() if value is not None]
    mean = sum(known) / len(known) if known else 1.0
    left = {name: mean if (value := kl[name]) is None else max(value, 0.0) for name in fair}
    least = LEAST_KL * max(left.values()) or 1.0
    wanted = {name: share * max(left[name], least) for name, share in fair.items()}
    low = {name: min(LEAST_SHARE * share, most[name]) for name, share in fair.items()}
    high = {name: min(MOST_SHARE * share, most[name]) for name, share in fair.items()}
    return _clipped(wanted, low, high if sum(high.values()) >= 1 else most)


def _clipped(wanted: Mapping[str, float], low: Mapping[str, float], high: Mapping[str, float]) -> dict[str, float]:
    """`wanted`, all above zero, scaled by the one factor with which it sums to 1 once it is clipped into its bounds."""

    def clipped(scale: float) -> dict[str, float]:
        return {name: min(max(scale * value, low[name]), high[name]) for name, value in wanted.items()}

    below, above, scale = 0.0, inf, 1 / sum(wanted.values())
    for _ in range(BISECTIONS):
        excess = sum(clipped(scale).values()) - 1
        if abs(excess) < 1e-12:
            break
        below, above = (scale, above) if excess < 0 else (below, scale)
        scale = 2 * below if above == inf else (below + above) / 2
    return clipped(scale)


def _assign(credits: Mapping[str, float], lengths: Mapping[str, int], count: int) -> tuple[list[str], dict[str, float]]:
    """`count` times, the source that is owed most and has prompts left for this step. Returns the credit left, too."""
    left = dict(credits)
    room = dict(lengths)
    slots: list[str] = []
    for _ in range(count):
        name = max((source for source in left if room[source] > 0), key=left.__getitem__)
        slots.append(name)
        left[name] -= 1
        room[name] -= 1
    return slots, left


def _take(place: Place, count: int, length: int, seed: int, source: str) -> tuple[list[int], Place]:
    """`count` <= `length` different prompts from a source, by number, and the place after them.

    Where a step reaches over the end of an epoch, the next epoch may begin with a prompt that the step has already:
    that one is deferred to the next step, so every epoch still has every prompt once.
    """
    picked = list(place.deferred[:count])
    deferred = list(place.deferred[count:])
    taken = set(picked)
    cursor = place.cursor
    while len(picked) < count:
        number = int(_permutation(seed, source, cursor // length, length)[cursor % length])
        cursor += 1
        if number in taken:
            deferred.append(number)
        else:
            taken.add(number)
            picked.append(number)
    return picked, replace(place, cursor=cursor, deferred=tuple(deferred))


@lru_cache(maxsize=32)
def _permutation(seed: int, source: str, epoch: int, length: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    key = blake2b(f"{seed}/{epoch}/{source}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    return generator.permutation(length).astype(np.int32)
