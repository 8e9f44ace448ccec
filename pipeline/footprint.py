"""What a run takes in one of several processes, on paper: from the models' configs and the recipe, no weights loaded.

Weights and what belongs to them are counted. What a forward leaves for its backward is measured on a copy of the model
without values: torch says of each tensor that it keeps. Times are operations over what a GPU does in practice.

Legend: N processes, numbers: entries of tensors, item: bytes of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.recipe import DistillRecipe, LoraTuning, SftRecipe
from pipeline.recipe_losses import chunk_bytes
from pipeline.recipe_rollouts import EngineInside, VllmRollouts
from pipeline.rollout.lean_weights import copies_fit
from teachers.causal_lm import decoder
from teachers.shards import layers_of

if TYPE_CHECKING:
    from pipeline.recipe import Tuning

MOMENTS = 8  # bytes of AdamW's two, fp32
BACKWARD = 2.0  # forwards that a backward pass takes
_SHORT, _LONG = 32, 64  # tokens of the rows that are measured


@dataclass(frozen=True)
class Speed:
    """Of one GPU in practice, not in its data sheet: products of bf16 matrices per second times two, bytes read per
    second. Assumed: 40% and 70% of what the sheet says."""

    operations: float
    bytes: float


SPEEDS: Mapping[str, Speed] = {
    "a100": Speed(0.4 * 312e12, 0.7 * 2.0e12),
    "h100": Speed(0.4 * 989e12, 0.7 * 3.35e12),
    "h200": Speed(0.4 * 989e12, 0.7 * 4.8e12),
}


@dataclass(frozen=True)
class Shape:
    """Of a model, what takes room and time.

    numbers: of all weights. root: of those outside of layers, which FSDP2 holds whole through a whole forward and
    backward. layer: of the largest layer. trained, trained_root, trained_layer: of those that learn. head: V · D.
    saved: bytes that a token leaves in all layers for the backward pass; saved_layer: in one. cache: bytes of its keys
    and values.
    """

    numbers: int
    root: int
    layer: int
    trained: int
    trained_root: int
    trained_layer: int
    head: int
    layers: int
    hidden: int
    item: int
    trained_item: int
    saved: float
    saved_layer: float
    cache: int

    def kept_whole(self) -> Shape:
        """The same, of a model that is never in shards."""
        return replace(self, root=self.numbers)


@dataclass(frozen=True)
class Footprint:
    """Bytes in one process. Weights, optimizer and teachers are there all the time; on top of them comes one of the
    last three, and gradients beside the update."""

    weights: float
    gradients: float
    optimizer: float
    teachers: float
    writing: float
    scoring: float
    update: float

    @property
    def rest(self) -> float:
        return self.weights + self.optimizer + self.teachers

    @property
    def peak(self) -> float:
        return self.rest + max(self.writing, self.scoring, self.gradients + self.update)


@dataclass(frozen=True)
class Seconds:
    """Of one step, at most: answers as long as they may be."""

    writing: float
    scoring: float
    update: float


# ---- shapes ----


def shape_of(config: Any, dtype: str, tune: Tuning | None) -> Shape:
    """Of the model that a transformers config describes. tune: how it is trained; None for a teacher."""
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=kind)
    return measured(model, tune)


def measured(model: nn.Module, tune: Tuning | None) -> Shape:
    """Of a model whose weights may be without values; it is left as it is."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    layers = layers_of(model)
    inside = [_numbers(layer) for layer in layers]
    numbers, item = _numbers(model), next(model.parameters()).element_size()
    root = numbers - sum(inside)
    if isinstance(tune, LoraTuning):
        adapters = [_adapter(layer, tune) for layer in layers]
        trained, trained_root, trained_layer, trained_item = sum(adapters), 0, max(adapters, default=0), 4
        numbers += trained
    elif tune is None:
        trained = trained_root = trained_layer = 0
        trained_item = item
    else:
        trained, trained_root, trained_layer, trained_item = numbers, root, max(inside, default=0), item
    saved = 0.0 if tune is None else _saved(model, config.vocab_size)
    keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        numbers, root, max(inside, default=0), trained, trained_root, trained_layer,
        config.vocab_size * config.hidden_size,
        len(layers), config.hidden_size, item, trained_item, saved, saved / max(1, len(layers)),
        2 * len(layers) * keys * channels * item,
    )  # fmt: skip


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _adapter(layer: nn.Module, tune: LoraTuning) -> int:
    """Numbers of the LoRA matrices beside a layer's linear ones."""
    names = None if isinstance(tune.targets, str) else set(tune.targets)
    return sum(
        tune.rank * (module.in_features + module.out_features)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and (names is None or name.rpartition(".")[2] in names)
    )


def _saved(model: nn.Module, vocab: int) -> float:
    """Bytes that one token more in a row leaves behind, weights not counted. What grows with a row's square (scores of
    attention, where its kernel keeps them) is left out: the kernels of GPUs keep none."""
    short, long, double = (_kept(model, vocab, tokens) for tokens in (_SHORT, _LONG, 2 * _LONG))
    # kept(T) = a + b T + c T²
    quadratic = ((double - long) / _LONG - (long - short) / _SHORT) / (2 * _LONG - _SHORT)
    return (long - short) / _SHORT - quadratic * (_LONG + _SHORT)


def _kept(model: nn.Module, vocab: int, tokens: int) -> int:
    """Bytes that torch keeps of a forward of one row."""
    weights = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, tuple[Any, int]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in weights:
            kept.setdefault(id(base), (base, base.numel() * base.element_size()))
        return tensor

    states = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(True)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            device = next(model.parameters()).device
            ids = torch.arange(tokens, device=device)[None] % vocab
            # A whole mask: transformers would look into the values of anything less, and there are none.
            mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=device)
            decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True)
    finally:
        for parameter, was in states:
            parameter.requires_grad_(was)
    return sum(size for _, size in kept.values())


# ---- a recipe's run ----


def footprint(
    recipe: SftRecipe | DistillRecipe, student: Shape, teachers: Iterable[Shape], processes: int, *, gpu: bool = False
) -> Footprint:
    """What one of `processes` holds, on a GPU or a CPU. Activations and caches are counted as full as the recipe lets
    them be."""
    teachers = list(teachers)
    cut = processes if recipe.sharding.student else 1
    half = student.trained_item < 4
    trained_bytes = student.trained * student.trained_item
    frozen = (student.numbers - student.trained) * student.item
    ahead = recipe.rollout.max_new_tokens + recipe.data.max_prompt_tokens
    tokens = max(recipe.training.tokens_per_forward, ahead)
    bf16 = recipe.training.mixed_precision == "bf16"
    saved, one = student.saved, student.saved_layer
    if recipe.student.gradient_checkpointing:
        saved = student.layers * student.hidden * student.item + one
    context = context_of(recipe, processes)
    activations = tokens * saved * (0.6 if bf16 and student.item == 4 else 1.0) / context
    if context > 1:
        activations += 2 * tokens * student.cache / max(1, student.layers)  # a layer's keys and values, and gradients
    chunk = chunk_bytes(recipe.objective if isinstance(recipe, DistillRecipe) else None, gpu=gpu)
    # Last hidden states of all answers of a step, from one teacher each, until the update is over.
    answers = (
        rows_of(recipe, processes)
        * recipe.rollout.max_new_tokens
        * max((shape.hidden * shape.item for shape in teachers), default=0)
    )
    gathered = 0.0
    if cut > 1:
        whole_layer, reduced = 2 * student.layer * student.item, student.trained_layer * (student.trained_item + 4)
        gathered = student.root * student.item + whole_layer + reduced + student.trained_root * student.trained_item
    elif processes > 1:
        gathered = trained_bytes  # DDP's buckets
    rows = min(recipe.rollout.rows, rows_of(recipe, processes))
    products = torch.bfloat16 if bf16 or student.item == 2 else torch.float32
    # The lean engine multiplies by copies: in bf16, and on a CPU in an order of its own.
    packed = not gpu and copies_fit(student.numbers, products)
    copied = student.numbers * products.itemsize if packed or products.itemsize < student.item else 0
    cache = rows * ahead * student.cache
    writing: float = (trained_bytes + frozen if cut > 1 else 0) + cache + copied
    if isinstance(recipe, DistillRecipe) and isinstance(recipe.rollout, VllmRollouts):
        inside = isinstance(recipe.rollout.server, EngineInside)  # there it is the least that `memory` has to be
        writing = student.numbers * student.item + cache if inside else 0.0
    return Footprint(
        weights=(trained_bytes + frozen) / cut,
        gradients=trained_bytes / cut,
        optimizer=student.trained * (MOMENTS + (8 if half else 0)) / cut,
        teachers=_at_rest(teachers, recipe, processes, gpu=gpu),
        writing=writing,
        scoring=answers * (2 if recipe.sharding.teachers == "groups" else 1)
        + max((_in_turn(shape, recipe, processes, tokens, gpu=gpu) for shape in teachers), default=0.0),
        update=answers + gathered + activations + chunk + (student.head * 4 if student.trained_root else 0),
    )


def _at_rest(teachers: Sequence[Shape], recipe: SftRecipe | DistillRecipe, processes: int, *, gpu: bool) -> float:
    """Of the process that holds most of them. On a CPU whole ones stay in their files between their turns."""
    if recipe.sharding.teachers == "shards" and processes > 1:
        return sum((shape.root + (shape.numbers - shape.root) / processes) * shape.item for shape in teachers)
    copies = sum(shape.numbers * shape.item for shape in teachers if _is_copy(shape))
    apart = [shape for shape in teachers if not _is_copy(shape)]
    if recipe.sharding.teachers != "groups" or processes == 1:
        return copies + (sum(shape.numbers * shape.item for shape in apart) if gpu else 0)
    groups = max(1, min(len(apart), processes))
    heads = sum(shape.head * shape.item for shape in apart)  # of those in other groups too
    own = [sum((shape.numbers if gpu else 0) - shape.head for shape in apart[n::groups]) for n in range(groups)]
    return copies + heads + max(own) * (apart[0].item if apart else 0)


def _is_copy(shape: Shape) -> bool:
    """Of the student: whole in every process, and in no file."""
    return shape.root == shape.numbers


def _in_turn(shape: Shape, recipe: SftRecipe | DistillRecipe, processes: int, tokens: int, *, gpu: bool) -> float:
    cut = recipe.sharding.teachers == "shards" and processes > 1
    gathered = (shape.numbers - shape.root) * shape.item if cut else 0
    if not gpu and not cut and not _is_copy(shape):
        gathered = shape.numbers * shape.item  # from its file
    return gathered + tokens * shape.hidden * shape.item * 8  # a layer's activations, without gradients


def rows_of(recipe: SftRecipe | DistillRecipe, processes: int) -> int:
    """The most rows of a step that a process has, or several that share them."""
    groups = max(1, processes // context_of(recipe, processes))
    return ceil(recipe.training.prompts_per_step * recipe.rollout.samples_per_prompt / groups)


def context_of(recipe: SftRecipe | DistillRecipe, processes: int) -> int:
    """How many processes share each row: of a single one there is nobody to share with."""
    return recipe.sharding.context if processes > 1 else 1


def seconds(
    recipe: SftRecipe | DistillRecipe, student: Shape, teachers: Iterable[Shape], processes: int, speed: Speed
) -> Seconds:
    """A step on GPUs of this speed. Sending weights and gradients is not counted: it mostly goes on beside the work."""
    rows = rows_of(recipe, processes)
    new = recipe.rollout.max_new_tokens
    tokens = rows * (new + recipe.data.max_prompt_tokens)
    forward = 2.0 * student.numbers * tokens / speed.operations
    again = 1.0 if recipe.student.gradient_checkpointing else 0.0
    batches = ceil(rows / recipe.rollout.rows)
    ahead = recipe.data.max_prompt_tokens + new / 2
    per_token = (student.numbers * 2 + min(rows, recipe.rollout.rows) * ahead * student.cache) / speed.bytes
    reading = 2.0 * student.numbers * rows * recipe.data.max_prompt_tokens / speed.operations
    asked = [2.0 * shape.numbers * tokens / speed.operations for shape in teachers]
    mean = sum(asked) / len(asked) if asked else 0.0  # each domain has its own: a row is scored about once
    return Seconds(
        reading + batches * new * per_token, mean, (1 + BACKWARD + again) * forward / context_of(recipe, processes)
    )


def table(found: Mapping[int, Footprint]) -> Iterator[list[str | float | None]]:
    """Rows for people: gigabytes by number of processes."""
    for processes, each in found.items():
        values = (each.weights, each.optimizer, each.teachers)
        on_top = (each.writing, each.scoring, each.gradients + each.update, each.peak)
        yield [str(processes), *(value / 1e9 for value in (*values, *on_top))]


COLUMNS = ("processes", "weights", "optimizer", "teachers", "+ writing", "+ scoring", "+ update", "peak")
