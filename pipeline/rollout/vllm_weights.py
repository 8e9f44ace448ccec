"""The student's weights as a vLLM server takes them: an adapter, or the whole model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.export.form import Form
from pipeline.export.weights import merged, write_weights
from pipeline.student import Student
from teachers.switching import is_adapted

Following = Literal["adapter", "model"]


@dataclass(frozen=True)
class Published:
    """Weights on disk under a name that no others had. version: updates in them."""

    name: str
    folder: Path
    version: int


def following(student: Student) -> Following:
    return "adapter" if is_adapted(student.lm.model) else "model"


def publish(student: Student, place: Path, name: str, version: int) -> Published:
    """Writes the weights into a folder of their own in `place`. Raises RunError where the disk is too small."""
    folder = place / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if following(student) == "adapter":
        write_weights(student, folder, Form("adapter"))
    else:
        _write_model(student, folder)
    return Published(name, folder, version)


def withdraw(published: Published) -> None:
    shutil.rmtree(published.folder, ignore_errors=True)


UNTIED = {"tie_word_embeddings": False}  # of a model's config, on a CPU


@torch.no_grad()
def named_weights(student: Student) -> dict[str, Tensor]:
    """All weights by the names that they have in a checkpoint, the student's own tensors where they can be."""
    from transformers.core_model_loading import revert_weight_conversion

    plain = _plain(student)
    first: dict[tuple[int, torch.Size], str] = {}  # tied ones under the embedding's name alone
    for name, tensor in plain.state_dict().items():
        first.setdefault((tensor.data_ptr(), tensor.shape), name)
    state = plain.state_dict()
    weights: dict[str, Tensor] = revert_weight_conversion(plain, {name: state[name] for name in first.values()})
    return weights


def _plain(student: Student) -> Any:
    """One model. On a CPU a head that is tied to the embedding is apart: vLLM 0.32 packs it once and for all when it
    starts, and a reload of the embedding leaves the old head in use without a word (seen here)."""
    plain: Any = merged(student.lm.model)
    if student.device.type == "cpu" and getattr(plain.config, "tie_word_embeddings", False):
        plain.config.update(UNTIED)
        plain.get_output_embeddings().weight = nn.Parameter(plain.get_output_embeddings().weight.detach().clone())
    return plain


@torch.no_grad()
def _write_model(student: Student, folder: Path) -> None:
    _plain(student).save_pretrained(folder)
    student.lm.tokenizer.save_pretrained(folder)
