"""The student in shards: which way it is cut, and what a run says about it.

On GPUs accelerate does it, with its FSDP2 plugin. accelerate shards nothing without an accelerator (it falls back to
data parallelism without a word), so on CPUs it is torch's own `fully_shard` over gloo: the same hooks, the same
arithmetic. One unit per layer; embeddings, the last norm and the head are the root's, and are read in its forward.

Products keep the recipe's meaning, as in one process: with `mixed_precision: bf16` they run in bf16 over fp32 weights
(autocast in the student's forward), and gradients are summed in fp32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from pipeline.errors import RunError
from pipeline.ranks import LONGEST_WAIT
from teachers.shards import held, layers_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.recipe import RecipeBase
    from pipeline.student import Student


@dataclass(frozen=True)
class Cut:
    """How a student is held. by: who cut it, and over what. held: numbers of it in this process; of: in all of it."""

    by: str
    held: int
    of: int

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def make_accelerator(recipe: RecipeBase) -> Accelerator:
    """One per run; accelerate keeps the settings of the first one in the process, which the next may not share.

    Raises RunError for accelerate's context parallelism, which it would take from the environment: every process would
    lay out whole rows, and what a row's tokens are weighted by would be counted wrong.
    """
    if os.environ.get("PARALLELISM_CONFIG_CP_SIZE", "1") != "1":
        raise RunError(
            "accelerate's context parallelism (PARALLELISM_CONFIG_CP_SIZE) is not supported; leave it out, and set "
            "sharding.context in the recipe"
        )
    AcceleratorState._reset_state()
    cuda = torch.cuda.is_available()
    sharded = is_cut(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # the recipe says it, and accelerate leaves it there
    # In shards the student's own forward does the autocast: accelerate's plugin would cast weights and sums as well.
    precision = "no" if sharded else recipe.training.mixed_precision
    return Accelerator(
        cpu=not cuda,
        mixed_precision=precision,
        fsdp_plugin=plugin() if sharded and cuda else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )


def plugin() -> Any:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32),
        cpu_ram_efficient_loading=False,  # every process has loaded the student already
    )


def is_cut(recipe: RecipeBase, processes: int) -> bool:
    """Whether the student is in shards: of one process it is whole, whatever the recipe says."""
    return recipe.sharding.student and processes > 1


def cut(accelerator: Accelerator, student: Student) -> nn.Module:
    """Spreads the student's weights over all processes, in place. An optimizer is made after it.

    Every process calls it, with the same student.
    """
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise RunError(
            f"sharding.student: torch {torch.__version__} cannot gather a student between updates; install 2.13"
        )
    layers = layers_of(student.lm.model)
    student.cut_by = "accelerate FSDP2" if accelerator.is_fsdp2 else "torch fully_shard"
    if accelerator.is_fsdp2:
        _cut_by_accelerate(accelerator, student, layers)
    else:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for layer in layers:
            fully_shard(layer, reshard_after_forward=True, mp_policy=policy)
        fully_shard(student, mp_policy=policy)
    model: Any = student
    if hasattr(model, "set_reduce_scatter_unused_params"):
        # An expert that no token of this process went to has no gradient here, but perhaps in another.
        model.set_reduce_scatter_unused_params(True)
    return student


def _cut_by_accelerate(accelerator: Accelerator, student: Student, layers: list[nn.Module]) -> None:
    """accelerate wants an optimizer with the model, to give it the new parameters; ours has copies of them in fp32, so
    it gets one that is thrown away."""
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    accelerator.prepare(student, torch.optim.SGD(trained, lr=0.0))


def described(student: Student) -> Cut:
    parameters: list[Tensor] = list(student.parameters())
    backend = torch.distributed.get_backend()
    return Cut(f"{student.cut_by} over {backend}", sum(map(held, parameters)), sum(p.numel() for p in parameters))
