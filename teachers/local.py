"""The kind `transformers`: a causal LM in this process with the student's vocabulary."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from teachers.heads import find_head
from teachers.models import base_key, where
from teachers.switching import adapters_disabled, is_adapted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.config import TransformersTeacher
    from teachers.models import Models
    from teachers.scoring import HiddenStateTeacher, Running


def tokenizer_of(name: str, config: TransformersTeacher, models: Models) -> PreTrainedTokenizerBase:
    return models.tokenizer(models.resolve(config.model, "model"), name, config.revision)


def build(name: str, config: TransformersTeacher, models: Models) -> HiddenStateTeacher:
    """Loads the model, or uses it where adapters stand on it already, with all of them off.

    Raises:
        TeacherError: it cannot be loaded, or does not fit the student.
    """
    key = base_key(config, models.resolve)
    lm = models.get(key, name)
    running: Running = partial(adapters_disabled, lm.model) if is_adapted(lm.model) else nullcontext
    with running():
        head = find_head(lm.model, models.student.vocab_size, key=" ".join(filter(None, key)), called=where(name))
    return models.teacher(config, lm, head, running)
