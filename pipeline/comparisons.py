"""The baselines that a sceptic asks for: the teachers' parameters averaged, and imitation of the teachers' samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from math import ceil

import torch
from peft import PeftModel
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.recipe import DistillRecipe, SftRecipe
from pipeline.student import merged
from teachers.causal_lm import CausalLM
from teachers.pool import Pool
from teachers.switching import current_adapter

SHARED = ("seed", "threads", "prepare", "student", "rollout", "teachers", "routing", "evaluation")


def sft_recipe(recipe: DistillRecipe, tokens: int, drawn: Mapping[str, int]) -> SftRecipe:
    """The same student, prompts and optimizer, trained on as many tokens of answers that the teachers write.

    tokens: completion tokens the student was trained on; the baseline ends with the step that reaches them.
    drawn: prompts that the student had of each source, which become the baseline's shares.
    """
    per_step = recipe.training.prompts_per_step * recipe.rollout.samples_per_prompt
    # Each answer has a token at least, so the limit in tokens comes first.
    training = recipe.training.model_copy(update={"steps": ceil(tokens / per_step)})
    sources = {
        name: source.model_copy(update={"weight": float(drawn[name])})
        for name, source in recipe.data.sources.items()
        if drawn.get(name)
    }
    data = recipe.data.model_copy(update={"sources": sources, "mixing": "fixed"})
    shared = {name: getattr(recipe, name) for name in SHARED}
    return SftRecipe(
        method="sft",
        answers="teachers",
        average=recipe.objective.average,
        tokens=tokens,
        data=data,
        training=training,
        **shared,
    )


@torch.no_grad()
def average(pool: Pool) -> CausalLM:
    """A model whose every weight is the mean of the teachers' (adapters merged into their base first).

    Raises ModelError where the teachers have different shapes.
    """
    total: dict[str, Tensor] = {}
    for name in pool.names:
        with pool.writing(name) as lm:
            model = merged(lm.model, current_adapter(lm.model)) if isinstance(lm.model, PeftModel) else lm.model
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
