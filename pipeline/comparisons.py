"""The baselines that a sceptic asks for: the teachers' parameters averaged, imitation of the teachers' samples, plain
fine-tuning on the code itself, and the untrained base with the code of other files in front of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.export.weights import merged
from pipeline.recipe import CodebaseSource, Comparison, DistillRecipe, SftRecipe
from pipeline.types import Prompt
from teachers.causal_lm import CausalLM
from teachers.pool import Pool
from teachers.switching import current_adapter, is_adapted
from teachers.types import RawText

SHARED = ("seed", "threads", "prepare", "student", "source", "rollout", "evaluation", "sharding")
ASKED = ("teachers", "routing")


def sft_recipes(recipe: DistillRecipe, tokens: int, drawn: Mapping[str, int]) -> dict[str, SftRecipe]:
    """The supervised baselines that the recipe asks for, by name.

    tokens: completion tokens the student was trained on; a baseline ends with the step that reaches them.
    drawn: prompts that the student had of each source.
    """
    made: Mapping[Comparison, Callable[[], SftRecipe]] = {
        "sft_on_teacher_samples": lambda: _on_samples(recipe, tokens, drawn),
        "sft_on_code": lambda: _on_code(recipe, tokens),
    }
    return {name: made[name]() for name in recipe.compare if name in made}


def _on_samples(recipe: DistillRecipe, tokens: int, drawn: Mapping[str, int]) -> SftRecipe:
    """The same student, prompts and optimizer, on answers that the teachers write to prompts in the same shares."""
    shares = {name: float(drawn[name]) for name in recipe.data.sources if drawn.get(name)}
    return _supervised(recipe, tokens, shares, "teachers", (*SHARED, *ASKED))


def _on_code(recipe: DistillRecipe, tokens: int) -> SftRecipe:
    """The same student and optimizer, on what the recipe's codebase itself has where the student would write."""
    shares = {
        name: source.weight
        for name, source in recipe.data.sources.items()
        if isinstance(source, CodebaseSource) and source.of is None
    }
    return _supervised(recipe, tokens, shares, "reference", SHARED)


def _supervised(
    recipe: DistillRecipe,
    tokens: int,
    shares: Mapping[str, float],
    answers: Literal["teachers", "reference"],
    shared: Sequence[str],
) -> SftRecipe:
    """All sources stay, so that all domains are measured; those without a share give no prompts to train on."""
    per_step = recipe.training.prompts_per_step * recipe.rollout.samples_per_prompt
    # Each answer has a token at least, so the limit in tokens comes first.
    training = recipe.training.model_copy(update={"steps": ceil(tokens / per_step)})
    sources = {
        name: source.model_copy(update={"weight": shares.get(name, 0.0)})
        for name, source in recipe.data.sources.items()
    }
    data = recipe.data.model_copy(update={"sources": sources, "mixing": "fixed"})
    return SftRecipe(
        method="sft",
        answers=answers,
        average=recipe.objective.average,
        tokens=tokens,
        data=data,
        training=training,
        **{name: getattr(recipe, name) for name in shared},
    )


def with_context(prompt: Prompt) -> Prompt | None:
    """The prompt with the code of other files that belongs to it in front; None where there is none."""
    if not prompt.privileged:
        return None
    asked = prompt.conversation
    if isinstance(asked, RawText):
        return replace(prompt, conversation=RawText(prompt.privileged + asked.text))
    *before, last = asked.messages
    shown = replace(last, content=f"{prompt.privileged}\n{last.content}")
    return replace(prompt, conversation=replace(asked, messages=(*before, shown)))


@torch.no_grad()
def average(pool: Pool) -> CausalLM:
    """A model whose every weight is the mean of the teachers' (adapters merged into their base first).

    Raises ModelError where the teachers have different shapes.
    """
    total: dict[str, Tensor] = {}
    for name in pool.names:
        with pool.writing(name) as lm:
            model = merged(lm.model, current_adapter(lm.model)) if is_adapted(lm.model) else lm.model
            state = model.state_dict()
            if total and {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in total.items()}:
                raise ModelError(
                    f"compare: parameter_average needs teachers of one shape, and {name} differs; leave it out"
                )
            for key, value in state.items():
                total[key] = total[key] + value.double() if key in total else value.double()
            mean_of = lm
            config = type(model), model.config, model.generation_config
    kind, settings, generation = config
    averaged = kind(copy.deepcopy(settings))  # really made: buffers that are not saved must have their values
    dtypes = {key: value.dtype for key, value in state.items()}
    averaged.load_state_dict({k: (v / len(pool.names)).to(dtypes[k]) for k, v in total.items()}, assign=True)
    averaged.generation_config = generation
    return replace(mean_of, name="average of the teachers", model=averaged.eval())
