"""From a recipe's `rollout.server: inside` to a generator by vLLM's engine in this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.ranks import World
from pipeline.recipe_rollouts import EngineInside
from pipeline.rollout.inside import InsideGenerator
from pipeline.rollout.inside_engine import InsideEngine
from pipeline.rollout.vllm_engine import room_of
from pipeline.rollout.vllm_following import banned_of
from pipeline.rollout.vllm_weights import UNTIED, following
from pipeline.student import ADAPTER, Student


def open_inside(
    server: EngineInside, student: Student, *, rows: int, tokens: int, folder: Path, world: World
) -> InsideGenerator:
    """Nothing of vLLM is imported yet. rows: written at once. tokens: of the longest prompt and its answer. folder: the
    run's.

    Raises RunError for an adapter too large for vLLM, a vocabulary it cannot draw from.
    """
    place = folder / "engine" / str(world.rank)
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    engine = InsideEngine(
        options=_options(server, student, rows=rows, tokens=tokens, world=world),
        following=following(student),
        sleeps=server.sleep and student.device.type != "cpu",
        alone=world.size == 1,
        place=place.resolve(),
        log=folder / ("engine.log" if world.is_main else f"engine-{world.rank}.log"),
    )
    return InsideGenerator(student, engine, folder / "journal" / "drafts", world.rank, banned_of(student))


def _options(server: EngineInside, student: Student, *, rows: int, tokens: int, world: World) -> Mapping[str, Any]:
    """EngineArgs."""
    on_cpu = student.device.type == "cpu"
    found: dict[str, Any] = {
        "model": student.key.path,
        "revision": student.key.revision,
        "dtype": student.key.dtype,
        "max_model_len": min(student.lm.context, tokens),
        "max_num_seqs": rows,
        "skip_tokenizer_init": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if on_cpu:
        found |= {
            "kv_cache_memory_bytes": int(server.memory * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        }
    else:
        found |= {"gpu_memory_utilization": server.memory, "enable_sleep_mode": server.sleep}
    if following(student) == "adapter":
        model: Any = student.lm.model
        found |= {"enable_lora": True, "max_lora_rank": room_of(model.peft_config[ADAPTER].r), "max_loras": 1}
    else:
        found |= {"load_format": "dummy", "hf_overrides": UNTIED if on_cpu else {}}
    if world.size > 1:
        found |= {"distributed_executor_backend": "external_launcher"}  # each process has an engine of its own
    return found | server.options
