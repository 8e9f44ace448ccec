"""The processes of a run, and what they tell each other. One process is a world of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from accelerate import Accelerator

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """rank of size; rank 0 is the main one: it alone writes files and talks to people."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, in rank order, on every process."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return [entry for entry in values if entry is not None]

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def world_of(accelerator: Accelerator) -> World:
    return World(accelerator.process_index, accelerator.num_processes)


def leave() -> None:
    """At the end of a process that was one of several: gloo's threads would end it with an error otherwise."""
    if dist.is_initialized():
        dist.destroy_process_group()
