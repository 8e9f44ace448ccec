"""The kind `adapter`: many LoRA adapters over one base that is loaded once, perhaps the student's own."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from teachers.causal_lm import CausalLM
from teachers.errors import TeacherError
from teachers.heads import find_head
from teachers.models import base_key, where
from teachers.switching import active_adapter, is_adapted, left_as_it_was

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from teachers.config import AdapterTeacher
    from teachers.models import Models
    from teachers.scoring import HiddenStateTeacher

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")


def tokenizer_of(name: str, config: AdapterTeacher, models: Models) -> PreTrainedTokenizerBase:
    """The adapter's own, where one was saved with it (its chat template may differ), else the base's."""
    folder = models.resolve(config.adapter, "adapter")
    if any((Path(folder) / file).is_file() for file in _TOKENIZER):
        return models.tokenizer(folder, name)
    return models.tokenizer(models.resolve(config.base, "model"), name, config.revision)


def build(name: str, config: AdapterTeacher, models: Models) -> HiddenStateTeacher:
    """Puts the adapter beside the others on its base.

    Raises:
        TeacherError: base or adapter cannot be loaded, or do not fit each other or the student.
    """
    key = base_key(config, models.resolve)
    base = models.get(key, name)
    model, adapter = add_adapter(base.model, models.resolve(config.adapter, "adapter"), name=name)
    models.put(key, replace(base, model=model))
    tokenizer = tokenizer_of(name, config, models)
    lm = replace(base, model=model, tokenizer=tokenizer, end_ids=_end_ids(base, tokenizer))
    running = partial(active_adapter, model, adapter)
    with running():
        # One key for all adapters that leave the head alone: their positions are then one group.
        own = adapter if _has_own_head(model, adapter) else None
        head = find_head(model, models.student.vocab_size, key=" ".join(filter(None, (*key, own))), called=where(name))
    return models.teacher(config, lm, head, running)


def add_adapter(model: nn.Module, folder: str, *, name: str) -> tuple[PeftModel, str]:
    """Loads the LoRA adapter in `folder` (or of the hub) into `model`, frozen; returns the peft model and peft's name.

    It gets the base's dtype: in fp32, as peft would have it, ten of them take twice the memory and longer to multiply.
    A model that has adapters already keeps its active one, its modes and what it trains. A plain one is changed in
    place and wrapped. peft's name is free of the teacher's: peft finds an adapter's tensors by a part of their names.

    Raises:
        TeacherError: the adapter is missing, truncated, not LoRA, or made for another base.
    """
    from peft import get_peft_model

    config = _read_config(folder, name)
    wrapped: Any = model
    taken = wrapped.peft_config if is_adapted(model) else {}
    adapter = next(free for number in range(len(taken) + 1) if (free := f"teacher_{number:02d}") not in taken)
    device = str(next(model.parameters()).device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers renames in version 6
            if not is_adapted(model):
                wrapped = get_peft_model(model, config, adapter_name=adapter, autocast_adapter_dtype=False)
                wrapped.requires_grad_(False).eval()
            with left_as_it_was(wrapped):
                result = wrapped.load_adapter(
                    folder, adapter_name=adapter, torch_device=device, autocast_adapter_dtype=False
                )
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise TeacherError(_cannot_load(name, folder, error)) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise  # out of memory, and what only a programmer can cause
        raise TeacherError(f"{_other_base(name, folder)}: its matrices have other sizes") from error
    if odd := sorted({*result.missing_keys, *result.unexpected_keys}):
        raise TeacherError(f"{_other_base(name, folder)}: {odd[0]} is only in one of them ({len(odd)} such weights)")
    return wrapped, adapter


def _read_config(folder: str, name: str) -> Any:
    from peft import PeftConfig

    local = Path(folder)
    if local.is_dir():
        # peft would go on to look for a missing file on the hub.
        for files in ((_CONFIG,), _WEIGHTS):
            if not any((local / file).is_file() for file in files):
                raise TeacherError(
                    f"{where(name)}.adapter: {folder} has no {files[0]}; name a folder that a PeftModel was saved to"
                )
    try:
        config = PeftConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TeacherError(_cannot_load(name, folder, error)) from error
    if config.peft_type != "LORA":
        raise TeacherError(
            f"{where(name)}.adapter: {folder} is a {config.peft_type} adapter and only LoRA can share a base; "
            "merge it into its base and use kind: transformers"
        )
    if config.bias != "none":
        raise TeacherError(
            f"{where(name)}.adapter: {folder} was trained with bias: {config.bias}, which changes the base that others "
            "share; merge it into its base and use kind: transformers"
        )
    config.inference_mode = True
    return config


def _cannot_load(name: str, folder: str, error: Exception) -> str:
    why = " ".join(str(error).split()).split(". ")[0][:200]
    if isinstance(error, SafetensorError):
        why = f"{_WEIGHTS[0]} is truncated or damaged ({why})"
    if not Path(folder).is_dir() and (Path(folder).is_absolute() or folder.startswith((".", "~"))):
        return f"{where(name)}.adapter: there is no folder {folder}; name one that a PeftModel was saved to"
    return f"{where(name)}.adapter: cannot load {folder}: {why}; fetch or train it again"


def _other_base(name: str, folder: str) -> str:
    return f"{where(name)}: the adapter {folder} was made for another base; set base to its own"


def _has_own_head(model: Any, adapter: str) -> bool:
    """modules_to_save may hold a whole lm_head of this adapter's."""
    return adapter in getattr(model.get_output_embeddings(), "modules_to_save", ())


def _end_ids(base: CausalLM, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """An adapter may have taught the base to end with another token, which its tokenizer names."""
    own = tokenizer.eos_token_id
    return base.end_ids | {own} if own is not None and own < base.vocab_size else base.end_ids
