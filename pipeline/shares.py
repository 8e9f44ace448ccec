"""Which prompts of a step this process writes answers to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.ranks import World
from pipeline.types import Prompt
from teachers.plan import Cascade, Routes
from teachers.pool import Pool

# All prompts of a step -> those that this process writes answers to.
Share = Callable[[Sequence[Prompt]], Sequence[Prompt]]


def share_of_all(world: World, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Every so many-th: for writers that every process has."""
    return prompts[world.rank :: world.size]


def share_of_teachers(
    pool: Pool, routes: Routes | Cascade, world: World, prompts: Sequence[Prompt]
) -> Sequence[Prompt]:
    """The same of each group of processes, where its teachers write."""
    written: dict[Sequence[int], list[Prompt]] = {}
    for prompt in prompts:
        members = pool.placement.get(routes.main_teacher(prompt.domain), range(world.size))
        written.setdefault(members, []).append(prompt)
    return [
        prompt
        for members, group in written.items()
        if world.rank in members
        for prompt in group[members.index(world.rank) :: len(members)]
    ]
