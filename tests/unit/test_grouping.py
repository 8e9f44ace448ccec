"""Which rows run together: every row once, within the limit, and no cheaper way to cut them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from teachers.grouping import grouped

FORWARD = 128  # tokens that another forward may cost


def cost(groups: Sequence[Sequence[int]]) -> int:
    return sum(FORWARD + group[0] * len(group) for group in groups)


def cuts(lengths: Sequence[int]) -> Iterator[list[list[int]]]:
    """Every way to cut a list into neighbours."""
    if not lengths:
        yield []
    for first in range(1, len(lengths) + 1):
        for rest in cuts(lengths[first:]):
            yield [list(lengths[:first]), *rest]


@pytest.mark.parametrize("seed", range(12))
def test_no_cut_is_cheaper(seed: int) -> None:
    """Lengths a multiple of 16 apart, which are told apart."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (16 * torch.randint(1, 40, (8,), generator=generator)).tolist()
    found = [[lengths[index] for index in group] for group in grouped(lengths, 100_000)]
    assert cost(found) == min(map(cost, cuts(sorted(lengths, reverse=True))))


@pytest.mark.parametrize("limit", [1, 100, 1_000, 16_384])
def test_every_row_once_the_longest_first_and_within_the_limit(limit: int) -> None:
    generator = torch.Generator().manual_seed(limit)
    lengths = torch.randint(1, 900, (57,), generator=generator).tolist()
    groups = grouped(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(57))
    ordered = [lengths[index] for group in groups for index in group]
    assert ordered == sorted(lengths, reverse=True)
    assert all(len(group) == 1 or len(group) * lengths[group[0]] <= limit for group in groups)


def test_one_short_row_joins_and_many_do_not() -> None:
    assert grouped([300, 200, 300], 16_384) == [[0, 2, 1]]
    assert grouped([300, 30, 300, 30], 16_384) == [[0, 2], [1, 3]]


def test_nothing_to_group() -> None:
    assert grouped([], 100) == []
