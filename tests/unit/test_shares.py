"""Who writes answers to which prompts: each prompt has one writer, and one that has its teacher."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.ranks import World
from pipeline.shares import share_of_all, share_of_teachers
from pipeline.types import Prompt
from teachers.plan import Routes
from teachers.pool import Pool
from teachers.types import RawText

PROMPTS = [Prompt(f"{n}", "s", "abc"[n * n % 3], RawText("")) for n in range(11)]
ROUTES = Routes({name: {name: 1.0} for name in "abc"}, {})


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("placement", [{}, {"a": (0,), "b": (0,)}, {"a": (0, 2, 4), "b": (1, 3)}])
def test_every_prompt_is_written_once_where_its_teacher_is(
    processes: int, placement: dict[str, tuple[int, ...]]
) -> None:
    held = {name: tuple(rank for rank in ranks if rank < processes) or (0,) for name, ranks in placement.items()}
    pool = Pool({}, placement=held)
    written: Counter[str] = Counter()
    for rank in range(processes):
        for prompt in share_of_teachers(pool, ROUTES, World(rank, processes), PROMPTS):
            assert rank in held.get(prompt.domain, range(processes))
            written[prompt.prompt_id] += 1
    assert written == Counter(prompt.prompt_id for prompt in PROMPTS)


def test_without_groups_it_is_every_so_many_th() -> None:
    world = World(1, 3)
    assert share_of_teachers(Pool({}), ROUTES, world, PROMPTS) == share_of_all(world, PROMPTS) == PROMPTS[1::3]
