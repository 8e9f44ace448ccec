"""The student: what the recipe says about it, loaded; and `forward`, which is body, head and losses in one module.

Nobody else touches its weights: under DDP or FSDP a product outside the wrapped module would leave gradients behind.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline import recipe
from pipeline.activations import checkpoint_layers, moved_to_memory, split_mlps
from pipeline.errors import ModelError
from pipeline.fused import fused_loss
from pipeline.quantize.rounded import Rounded, round_weights
from pipeline.stretches import stretch_hidden, stretch_of
from pipeline.types import StepOutput, Stretch, TrainingBatch
from teachers.causal_lm import CausalLM, ModelKey, decoder, load_causal_lm, model_key, padded_width
from teachers.errors import TeacherError
from teachers.heads import find_head
from teachers.switching import is_adapted
from teachers.types import Head

if TYPE_CHECKING:  # peft takes a second to import, and full tuning does without
    from peft import PeftModel

ADAPTER = "student"


class Student(nn.Module):
    """A causal LM that is trained.

    lm: the model with its tokenizer, for whoever generates or decodes. trained: names of the parameters that learn,
    fixed at load: teachers' adapters over the same base come and go without changing it. key: what it was loaded from.
    quantized: whether the recipe asks for weights of 4 bits. rounded: those of them that learn, with their masters.
    in_shards: whether its weights are going to be, or are, spread over several processes (`sharding.py`). products: the
    dtype of matrix products where its forward sees to that itself; None: the weights' own, or what is around it.

    It is in eval mode except between `train()` and `eval()` around an update: checkpointed layers decode wrongly in
    training mode.
    """

    def __init__(
        self,
        lm: CausalLM,
        head: Head,
        key: ModelKey,
        chunk_bytes: int,
        *,
        offloads: bool = False,
        quantized: bool = False,
        rounded: tuple[Rounded, ...] = (),
        in_shards: bool = False,
        products: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model = lm.model
        self.lm = lm
        self.head = head
        self.key = key
        self.chunk_bytes = chunk_bytes
        self.offloads = offloads
        self.quantized = quantized
        self.rounded = rounded
        self.in_shards = in_shards
        self.cut_by: str | None = None  # once it is in shards: by whom
        self.products = products
        self.packs = packs(lm)
        self.trained = tuple(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """By name; tied ones once."""
        named = dict(self.named_parameters())
        return {name: named[name] for name in self.trained}

    def shared_bases(self) -> dict[ModelKey, CausalLM]:
        """Frozen models that adapter teachers may stand on instead of loading them again: a LoRA student's base, where
        each process has all of it, but not a quantized one, which is not the model that they were trained on."""
        own = self.quantized or self.in_shards
        return {self.key: self.lm} if is_adapted(self.lm.model) and not own else {}

    def forward(self, batch: TrainingBatch) -> StepOutput:
        """The batch's loss and measurements. Every trained parameter is in the graph, for an empty batch too."""
        with self._products(), moved_to_memory(self.lm.model) if self.offloads else nullcontext():
            hidden = self._hidden(batch)
        with self._products():
            output = fused_loss(hidden, self.head, self.head.load(), batch, chunk_bytes=self.chunk_bytes)
        if self.in_shards:
            return output  # FSDP2 waits for no parameter, and by now holds most of them in shards
        return replace(output, loss=attached(output.loss, list(self.trained_parameters().values())))

    def part_of(self, batch: TrainingBatch, stretch: Stretch | None) -> TrainingBatch:
        """The batch as this process trains on it, which may share its rows with others."""
        return batch if stretch is None else stretch_of(self.lm, batch, stretch)

    def _hidden(self, batch: TrainingBatch) -> Tensor:
        if batch.stretch is not None:
            return stretch_hidden(self.lm, batch)
        return packed_hidden(self.lm, batch) if self.packs else padded_hidden(self.lm, batch)

    def _products(self) -> AbstractContextManager[Any]:
        """What is around this forward stays as it is where it sees to nothing itself."""
        return nullcontext() if self.products is None else torch.autocast(self.device.type, self.products)


def attached(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same loss, with every parameter in its graph."""
    result: Tensor = _Edges.apply(loss, *parameters)  # type: ignore[no-untyped-call]
    return result


class _Edges(torch.autograd.Function):
    """The loss, with an edge to every parameter, which carries no gradient.

    DDP waits for all parameters; those that this batch did not reach (an expert without tokens, the head of an empty
    batch) become ready through this edge, at no cost in memory.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*gradients, *(None for _ in range(ctx.count)))


# ---- from a flat batch to hidden states ----


def packs(lm: CausalLM) -> bool:
    """Whether the rows of a batch are laid end to end.

    Packing pays only where attention knows the rows' boundaries (flash attention): anywhere else S tokens laid end to
    end cost S² of attention and a mask of that size, while right padding needs no mask at all in a causal model.
    """
    attention = str(getattr(lm.model.config, "_attn_implementation", ""))
    return attention.startswith("flash_attention") and lm.tolerance.packing


def padded_hidden(lm: CausalLM, batch: TrainingBatch) -> Tensor:
    """(N, D) last hidden states at `batch.predictors`. Each row is padded on its right to the longest, without a mask:
    no token sees a later one."""
    lengths = batch.cu_seqlens.diff()
    if not len(lengths):
        return _run(lm, batch.input_ids.new_zeros(1, 1), None)[0][batch.predictors]
    width = padded_width(int(lengths.max()), lm)
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    place = rows * width + batch.positions
    ids = batch.input_ids.new_zeros(len(lengths) * width).index_copy(0, place, batch.input_ids)
    hidden = _run(lm, ids.view(len(lengths), width), None)
    return hidden.flatten(0, 1)[place[batch.predictors]]


def packed_hidden(lm: CausalLM, batch: TrainingBatch) -> Tensor:
    """All rows in one, told apart by their positions; right only where `lm.tolerance.packing` holds."""
    if not len(batch.input_ids):
        return padded_hidden(lm, batch)
    return _run(lm, batch.input_ids[None], batch.positions[None])[0][batch.predictors]


def _run(lm: CausalLM, ids: Tensor, positions: Tensor | None) -> Tensor:
    output = decoder(lm.model)(input_ids=ids, position_ids=positions, use_cache=False, return_dict=True)
    hidden: Tensor = output.last_hidden_state
    return hidden


# ---- loading ----


def load_student(
    config: recipe.Student,
    *,
    model_path: str,
    seed: int,
    chunk_bytes: int,
    device: torch.device,
    in_shards: bool = False,
    products: torch.dtype | None = None,
) -> Student:
    """Loads the model in `model_path` (a hub name or a folder, already resolved) as the recipe's student.

    `config.dtype` is the dtype of the weights, so what generates is what is exported. Full tuning in bfloat16 keeps
    fp32 copies in the optimizer (`optim.Masters`); a LoRA adapter is fp32 over a base of `config.dtype`, and its
    first weights are a function of `seed`. in_shards, products: see `Student`; here it is whole still.

    Raises:
        ModelError: what cannot be loaded or cannot be trained as the recipe asks.
    """
    _refuse_together(config, device, in_shards)
    lm = _load_plain(config, model_path, device)
    _silence_dropout(lm.model)
    rounded = () if config.quantize is None else round_weights(lm.model, config.quantize)
    if isinstance(config.tune, recipe.LoraTuning):
        lm = replace(lm, model=_with_lora(lm.model, config.tune, seed))
        rounded = ()  # the base is rounded once, and nobody needs what it was
    else:
        lm.model.requires_grad_(True)
    _freeze_indexers(lm.model)
    if config.mlp_tokens is not None:
        split_mlps(lm.model, config.mlp_tokens)
    if config.gradient_checkpointing:
        checkpoint_layers(lm.model)
    try:
        head = find_head(lm.model, lm.vocab_size, key="student")
    except TeacherError as error:
        raise ModelError(str(error)) from error
    key = model_key(model_path, config.revision, config.dtype)
    return Student(
        lm,
        head,
        key,
        chunk_bytes,
        offloads=config.offload_activations,
        quantized=config.quantize is not None,
        rounded=rounded,
        in_shards=in_shards,
        products=products,
    )


def _refuse_together(config: recipe.Student, device: torch.device, in_shards: bool) -> None:
    """Before anything is loaded: what cannot be had on this device, or in shards."""
    if in_shards and config.quantize is not None:
        raise ModelError("student.quantize: weights of 4 bits are whole in a process; set sharding.student: false")
    if config.offload_activations and device.type == "cpu":
        raise ModelError(
            "student.offload_activations: the student is on the CPU, whose memory they would be moved to; leave it out"
        )


def _load_plain(config: recipe.Student, model_path: str, device: torch.device) -> CausalLM:
    template = None if config.chat_template is None else _read_template(config.chat_template)
    try:
        return load_causal_lm(
            model_path,
            name="student",
            dtype=config.dtype,
            revision=config.revision,
            device=device,
            chat_template=template,
        )
    except TeacherError as error:
        raise ModelError(str(error)) from error


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"student.chat_template: {path} cannot be read ({error.strerror}); name a Jinja file"
        ) from error


def _silence_dropout(model: nn.Module) -> None:
    """The distribution that is trained is the one that samples: no dropout but the recipe's own on LoRA."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "jitter_noise"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _freeze_indexers(model: nn.Module) -> None:
    """An indexer (DeepSeek's sparse attention) picks by top-k: no gradient reaches it, and DDP would wait for one."""
    for name, parameter in model.named_parameters():
        if ".indexer." in name:
            parameter.requires_grad_(False)


def _with_lora(model: nn.Module, tune: recipe.LoraTuning, seed: int) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    targets = tune.targets if isinstance(tune.targets, str) else list(tune.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tune.rank,
        lora_alpha=tune.alpha,
        lora_dropout=tune.dropout,
        target_modules=targets,
        exclude_modules=_not_plain(model) if targets == "all-linear" else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers renames
                wrapped = get_peft_model(model, config, adapter_name=ADAPTER)
        except ValueError as error:
            raise ModelError(f"student.tune.targets: {targets!r} does not fit this model: {_line(error)}") from error
    _refuse_targets(wrapped)
    return wrapped


def _not_plain(model: nn.Module) -> list[str] | None:
    """Linear layers that LoRA cannot stand beside (they reshape their input), or that no gradient reaches."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (not _is_plain(module) or ".indexer." in name)
    ]
    return names or None


def _is_plain(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward


def _refuse_targets(model: PeftModel) -> None:
    from peft.tuners.lora import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    ends = {id(base.get_input_embeddings()), id(base.get_output_embeddings())}
    for name, module in base.named_modules():
        # One around a parameter (experts, routers) adds to the weights themselves, whatever is computed with them.
        if not isinstance(module, BaseTunerLayer) or isinstance(module, ParamWrapper):
            continue
        if id(module) in ends:
            raise ModelError(
                f"student.tune.targets: {name} is an embedding or the head, which teachers and losses share with the "
                "base; leave it out, or use tune: full"
            )
        if not _is_plain(module.get_base_layer()):
            raise ModelError(
                f"student.tune.targets: {name} is a {type(module.get_base_layer()).__name__}, not a plain linear "
                "layer; leave it out, or use all-linear"
            )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
