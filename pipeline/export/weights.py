"""A student's weights as files that others load: the whole model, merged and in shards, or its adapter.

The live student stays as it is: merging into it and out again would not give the same bits back.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from pipeline.errors import ModelError, RunError
from pipeline.export.form import Form, Kind, missing_kind
from pipeline.export.quantized import packed_state, save_packed
from pipeline.student import ADAPTER, Student
from teachers.causal_lm import CausalLM, unwrapped
from teachers.switching import is_adapted

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def kinds_of(student: Student) -> tuple[Kind, ...]:
    """What can be written of it, what is smaller first."""
    if student.rounded:
        return ("quantized", "model")
    return ("adapter", "model") if is_adapted(student.lm.model) else ("model",)


def write_weights(student: Student, folder: Path, form: Form, stop_ids: Sequence[int] = ()) -> None:
    """Weights, tokenizer, chat template and generation config into `folder`, which is there and empty.

    A model is what plain transformers loads, an adapter what plain peft loads. stop_ids: tokens that end an answer
    beside the model's own.

    Raises:
        ModelError: weights that float16 cannot hold.
        RunError: an adapter of a student that has none; too little room on the disk, before anything is written.
    """
    if form.kind not in kinds_of(student):
        raise RunError(missing_kind(form.kind))
    if form.kind == "adapter":
        _write_adapter(student, folder, form)
    elif form.kind == "quantized":
        _write_quantized(student, folder, form)
    else:
        _write_model(student, folder, form)
    generation_config(student.lm, stop_ids).save_pretrained(folder)
    student.lm.tokenizer.save_pretrained(folder)


def _write_quantized(student: Student, folder: Path, form: Form) -> None:
    """Floats of 4 bits come out as bfloat16 wherever they are read, so that a model of them computes in that."""
    floats = student.rounded[0].grid.kind != "int4"
    dtype = form.dtype or ("bfloat16" if floats else None)
    if dtype == "float16" or (floats and dtype == "float32"):
        raise ModelError(f"--dtype {dtype}: a model in 4 bits is read as bfloat16; export it with --dtype bfloat16")
    plain = merged(student.lm.model, dtype=None if dtype is None else getattr(torch, dtype))
    state = packed_state(plain, student.rounded)
    _require_room(folder, state.values())
    save_packed(plain, state, student.rounded, folder, form.shard)


def _write_model(student: Student, folder: Path, form: Form) -> None:
    plain = merged(student.lm.model, dtype=None if form.dtype is None else getattr(torch, form.dtype))
    _require_room(folder, plain.state_dict().values())
    plain.generation_config = GenerationConfig()  # the real one is written beside it, whatever the base's was like
    plain.save_pretrained(folder, max_shard_size=form.shard)


def _write_adapter(student: Student, folder: Path, form: Form) -> None:
    model: Any = student.lm.model
    dtype = getattr(torch, form.dtype or "float32")
    state = {name: _cast(tensor, dtype, name) for name, tensor in model.state_dict().items() if ".lora_" in name}
    _require_room(folder, state.values())
    model.peft_config[ADAPTER].revision = student.key.revision  # the base's, which peft fetches it at
    model.save_pretrained(str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False, state_dict=state)
    for file in (folder / ADAPTER).iterdir():  # peft makes a subfolder for any name but "default"
        file.rename(folder / file.name)
    (folder / ADAPTER).rmdir()


def _require_room(folder: Path, tensors: Any) -> None:
    """Raises RunError where the disk has less room than the weights take: minutes before it would be full."""
    wanted = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise RunError(
            f"{folder.parent}: the disk is full: the weights take {wanted / 1e9:.2f} GB and {free / 1e9:.2f} GB are "
            "free; free some space, or name another folder"
        )


# ---- one plain model ----


@torch.no_grad()
def merged(model: nn.Module, adapter: str | None = ADAPTER, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A plain model with W + scale·B·A in place of each adapted W, added in fp32 and rounded once; what needs neither
    adding nor rounding is shared with `model`.

    adapter: by peft's name; None: the base as it is. dtype: of what has the model's own dtype; None: that one. What an
    architecture keeps in another dtype stays in it.

    For its weights alone: buffers that are not saved stay without values. Raises ModelError where float16 is too small.
    """
    base = unwrapped(model)
    own = next(base.parameters()).dtype
    wanted = dtype or own
    # peft stands around a layer, or, for experts, around one of its parameters after the other.
    adapted = {
        f"{_plain_name(name)}.{getattr(module, 'parameter_name', 'weight')}": module
        for name, module in base.named_modules()
        if adapter in getattr(module, "lora_A", ())
    }
    state: dict[str, Tensor] = {}
    seen: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay one tensor
    for long_name, tensor in base.state_dict().items():
        if ".lora_" in long_name or ".modules_to_save." in long_name:
            continue
        name = _plain_name(long_name)
        value = tensor
        if name in adapted:
            layer: Any = adapted[name]
            value = tensor.float() + layer.get_delta_weight(adapter).float()
        if name in adapted or tensor.dtype == own:
            value = seen.setdefault((tensor.data_ptr(), tensor.shape), _cast(value, wanted, name))
        state[name] = value
    with torch.device("meta"):
        plain: PreTrainedModel = type(base)(copy.deepcopy(base.config))
    plain.load_state_dict(state, strict=True, assign=True)
    plain.tie_weights()
    plain.config.dtype = wanted
    plain.generation_config = base.generation_config
    return plain


def _plain_name(name: str) -> str:
    """What a module or a weight of a peft model is called in the plain one."""
    return re.sub(r"\.(base_layer|original_module)(?=\.|$)", "", name)


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    result = tensor.to(dtype)
    if dtype == torch.float16 and not bool(result.isfinite().all()):
        raise ModelError(f"{name}: float16 cannot hold its weights; export with --dtype bfloat16 or float32")
    return result


# ---- how it is to generate ----


def generation_config(lm: CausalLM, stop_ids: Sequence[int] = ()) -> GenerationConfig:
    """The base's, made to work: it stops at every token that ended an answer in training, and can be saved.

    Some models come with a config that transformers loads and refuses to save (sampling settings beside
    do_sample: false); there these settings, which had no effect, are left out.
    """
    base: Any = unwrapped(lm.model)
    config: GenerationConfig = copy.deepcopy(base.generation_config)
    first = [lm.tokenizer.eos_token_id] if lm.tokenizer.eos_token_id in lm.end_ids else []
    ends = list(dict.fromkeys([*first, *sorted(lm.end_ids), *stop_ids]))
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    if config.pad_token_id is None:
        pad = lm.tokenizer.pad_token_id
        config.pad_token_id = ends[0] if pad is None else pad
    if not config.do_sample:
        plain = GenerationConfig()
        for name in _SAMPLING:
            setattr(config, name, getattr(plain, name))
    try:
        config.validate(strict=True)
    except ValueError:
        kept = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample")}
        config = GenerationConfig(**kept)
    return config
