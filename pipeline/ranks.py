"""The processes of a run, and what they tell each other. One process is a world of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from pipeline.errors import RunError
from pipeline.types import Stretch

LONGEST_WAIT = timedelta(hours=6)  # of the others, while the main process evaluates or exports

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """rank of size; the main one, of rank 0, alone writes files and talks to people. device: where this process's
    tensors are when they are sent.

    stretch: where several processes share each row. They then count as one here: they have one rank, do the same
    things, and follow the first of them wherever a value is gathered.
    """

    rank: int
    size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    stretch: Stretch | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0 and (self.stretch is None or self.stretch.rank == 0)

    @property
    def processes(self) -> int:
        """All of them."""
        return self.size * (1 if self.stretch is None else self.stretch.size)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in their order, on every process."""
        return self.gather_all(value, self.processes // self.size)

    def gather_all(self, value: T, every: int = 1) -> list[T]:
        """Of all processes, those that share rows too; or of every so many-th."""
        if self.processes == 1:
            return [value]
        values: list[T | None] = [None] * self.processes
        dist.all_gather_object(values, value)
        return [entry for entry in values[::every] if entry is not None]

    def swap(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of each process the bytes (n,) that it has for this one. parts: what this one has, by who gets it."""
        if self.size == 1:
            return list(parts)
        sizes = [of_one[self.rank] for of_one in self.gather([len(part) for part in parts])]
        sent = torch.cat([part.to(self.device) for part in parts])
        received = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        dist.all_to_all_single(received, sent, sizes, [len(part) for part in parts])
        return list(torch.split(received, sizes))

    def spread(
        self, tensor: torch.Tensor | None, shape: Sequence[int], dtype: torch.dtype, source: int
    ) -> torch.Tensor:
        """The tensor that the process `source` has; for it, its own."""
        found = torch.empty(tuple(shape), dtype=dtype, device=self.device) if tensor is None else tensor.contiguous()
        if self.size > 1:
            dist.broadcast(found, source)
        return found

    def wait(self) -> None:
        if self.processes > 1:
            dist.barrier()


def world_of(accelerator: Accelerator, context: int = 1) -> World:
    """context: how many processes share each row. Raises RunError where they do not come out even."""
    rank, size = accelerator.process_index, accelerator.num_processes
    if size == 1 or context == 1:
        return World(rank, size, accelerator.device)
    if size % context:
        raise RunError(
            f"sharding.context: {size} processes cannot share rows {context} at a time; start a multiple of it"
        )
    stretch = Stretch(rank % context, context, _groups(size, context)[rank // context])
    return World(rank // context, size // context, accelerator.device, stretch)


@cache
def _groups(size: int, context: int) -> list[Any]:
    """Made once: a process makes several runs one after another, and every group is made by all."""
    return [dist.new_group(range(first, first + context), timeout=LONGEST_WAIT) for first in range(0, size, context)]


def leave() -> None:
    """At the end of a process that was one of several: gloo's threads would end it with an error otherwise."""
    if dist.is_initialized():
        dist.destroy_process_group()
