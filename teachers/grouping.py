"""Which rows of different lengths run together, each group padded to its longest.

One forward for all pads most; a forward for every length reads all weights for few tokens. What is least is found among
all ways to cut the rows, in the order of their lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

# What one more forward costs, in tokens: reading a model's weights, on a GPU and on a CPU alike, takes about as long as
# computing a hundred tokens with them.
_FORWARD = 128
_STEP = 16  # lengths that differ by less are not told apart


def grouped(lengths: Sequence[int], tokens_per_forward: int) -> list[list[int]]:
    """Indices of rows that run together, longest first, so that the first forward is the one that may not fit.

    At most `tokens_per_forward` padded tokens in a forward; a longer row runs alone. A function of the lengths alone,
    rows of one length in the order given.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    buckets = [list(rows) for _, rows in groupby(order, key=lambda index: -(-lengths[index] // _STEP))]
    groups = []
    for rows in _least([len(rows) for rows in buckets], [lengths[rows[0]] for rows in buckets], tokens_per_forward):
        together = [index for bucket in buckets[rows] for index in bucket]
        while together:
            most = _most(lengths[together[0]], tokens_per_forward)
            groups.append(together[:most])
            together = together[most:]
    return groups


def _most(width: int, tokens_per_forward: int) -> int:
    return max(1, tokens_per_forward // max(1, width))


def _least(counts: Sequence[int], widths: Sequence[int], tokens_per_forward: int) -> list[slice]:
    """The cut of the buckets into neighbours that costs fewest tokens, padding and forwards together."""
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n buckets: the cost, and where the last group begins
    for end in range(1, len(counts) + 1):
        rows = 0
        found = []
        for start in range(end - 1, -1, -1):
            rows += counts[start]
            width = widths[start]
            forwards = -(-rows // _most(width, tokens_per_forward))
            found.append((best[start][0] + width * rows + _FORWARD * forwards, start))
        best.append(min(found))
    cuts = []
    end = len(counts)
    while end:
        start = best[end][1]
        cuts.append(slice(start, end))
        end = start
    return cuts[::-1]
