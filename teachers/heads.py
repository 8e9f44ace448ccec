"""What turns hidden states into logits: found in a model, and proven on it before anything relies on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from teachers.caching import eval_mode
from teachers.causal_lm import decoder, unwrapped
from teachers.errors import TeacherError
from teachers.probe import rounding_of
from teachers.switching import is_adapted
from teachers.types import Head, HeadWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

# What configurations call the number that logits are multiplied by, divided by, or capped at with a tanh: Cohere,
# Falcon-H1, Muse; Granite (HyperCLOVA X multiplies by the same name), Inkling; Gemma, RecurrentGemma, xLSTM.
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def find_head(model: nn.Module, vocab_size: int, key: str, *, called: str | None = None) -> Head:
    """The head of a transformers causal LM, or of the peft model around one with its active adapter.

    Proven: `head.logits` of the last hidden states equals the model's own logits on a few tokens. The head refers to
    the model's parameters, so it follows what training does to them, and gradients reach those that are trained.
    key: equal ones mean equal heads. called: the model in messages, where the key does not say it.

    Raises:
        TeacherError: the logits are not head(hidden) in a way known here, or an adapter stands on the head.
    """
    matrix = _output_matrix(model)

    def load() -> HeadWeights:
        return HeadWeights(matrix.weight, getattr(matrix, "bias", None))

    states, expected = _states_and_logits(model, vocab_size)
    noise = rounding_of(matrix.weight.dtype)
    for scale, softcap in _candidates(unwrapped(model).config.get_text_config()):
        head = Head(key=key, size=vocab_size, load=load, scale=scale, softcap=softcap)
        if states.shape[-1] == matrix.weight.shape[-1] and _same(_logits(head, states), expected, noise):
            return head
    architecture = type(unwrapped(model)).__name__
    if not bool(expected.isfinite().all()):
        raise TeacherError(
            f"{called or key}: {architecture} gives logits that are not finite; its weights or its dtype are wrong"
        )
    raise TeacherError(
        f"{called or key}: the logits of {architecture} are not head(hidden), scaled or capped in a way known here; "
        "use a model of another architecture"
    )


def _output_matrix(model: nn.Module) -> Any:
    """The module that holds the head's weight, as it is under the active adapter."""
    causal_lm = unwrapped(model)
    matrix = causal_lm.get_output_embeddings()
    if matrix is None:
        raise TeacherError(f"{type(causal_lm).__name__} has no output embeddings; use a causal language model")
    if not is_adapted(model):
        return matrix
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(matrix, ModulesToSaveWrapper):
        replaced = [name for name in matrix.active_adapters if name in matrix.modules_to_save]
        return matrix.modules_to_save[replaced[0]] if replaced else matrix.original_module
    if isinstance(matrix, BaseTunerLayer):
        if set(matrix.active_adapters) & matrix._get_available_adapters():
            raise TeacherError(
                f"the adapter changes the head of {type(causal_lm).__name__}, which has to stay a plain matrix; "
                "leave lm_head out of its target_modules (modules_to_save may have it)"
            )
        return matrix.get_base_layer()
    return matrix


def _candidates(config: Any) -> Iterator[tuple[float, float | None]]:
    """(scale, softcap) as the configuration says, then other readings: some carry a name that the model ignores."""
    multiplier = _number(config, _MULTIPLIERS)
    divisor = _number(config, _DIVISORS)
    scales = [multiplier] if multiplier else []
    scales += [1.0 / divisor, divisor] if divisor else []
    softcaps = [_number(config, _SOFTCAPS), None]
    return product(dict.fromkeys([*scales, 1.0]), dict.fromkeys(softcaps))


def _number(config: Any, names: tuple[str, ...]) -> float | None:
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float) and value), None)


@torch.no_grad()
def _states_and_logits(model: nn.Module, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Last hidden states (n, D) of a few tokens and the model's own logits (n, V) for them."""
    device = next(model.parameters()).device
    ids = (torch.arange(2 * 8, device=device) * 7919 % vocab_size).view(2, 8)
    with eval_mode(model):
        states = decoder(model)(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
        logits = model(input_ids=ids, use_cache=False, return_dict=True).logits
    return states.flatten(0, 1), logits.flatten(0, 1)[:, :vocab_size].float()


@torch.no_grad()
def _logits(head: Head, states: Tensor) -> Tensor:
    return head.logits(head.load(), states)


def _same(found: Tensor, expected: Tensor, noise: float) -> bool:
    """False where either is not finite."""
    return bool((found - expected).abs().max() <= noise * expected.abs().max())


def with_ends_mapped(head: Head, student_end: int, teacher_end: int, device: torch.device) -> Head:
    """The same head with two columns swapped, so that the student's end id gets the teacher's end probability."""
    if student_end == teacher_end:
        return head
    rows = torch.arange(head.size, device=device)
    rows[student_end] = teacher_end
    if teacher_end < head.size:  # else it is a special token past the student's vocabulary
        rows[teacher_end] = student_end
    return replace(head, key=f"{head.key}, {student_end} for {teacher_end}", vocab_map=rows)
