"""Several runs, one after another, in each of the processes that torchrun starts: importing torch takes longer than a
tiny run.

    torchrun … -m tests.many runs.json        a list of [recipe, override, …]

Beside overrides: --resume goes on with a run; --stops: it ends with a RunError; --accelerate has accelerate's FSDP2
shard the student on a CPU, which it would not do by itself: it is told that the CPU is an accelerator.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

FLAGS = ("--resume", "--stops", "--accelerate")


def main() -> None:
    from pipeline.errors import RunError
    from pipeline.ranks import leave
    from tests.runs import run_here

    for recipe, *arguments in json.loads(Path(sys.argv[1]).read_text()):
        overrides = [each for each in arguments if each not in FLAGS]
        ends = pytest.raises(RunError) if "--stops" in arguments else nullcontext()
        with ends, told_to_shard() if "--accelerate" in arguments else nullcontext():
            run_here(Path(recipe), *overrides, resume="--resume" in arguments)
    leave()


@contextmanager
def told_to_shard() -> Iterator[None]:
    """Inside, accelerators believe that this machine has one that can do FSDP; all else is accelerate's own code."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    from pipeline import run, sharding
    from pipeline.recipe import RecipeBase

    def make(recipe: RecipeBase) -> Accelerator:
        accelerator = sharding.make_accelerator(recipe)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = sharding.plugin()
        assert accelerator.is_fsdp2
        return accelerator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_accelerator", make)
        yield


if __name__ == "__main__":
    main()
