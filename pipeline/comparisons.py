"""The baselines that a sceptic asks for: the teachers' parameters averaged, and imitation of the teachers' samples."""

from __future__ import annotations

from pipeline.recipe import DistillRecipe, SftRecipe


def sft_recipe(recipe: DistillRecipe, tokens: int, mean_length: float) -> SftRecipe:
    """The same student, data, prompts and optimizer, trained on answers that the teachers write.

    tokens: completion tokens the student was trained on. mean_length: tokens of a teacher's answer; the number of
    steps is chosen so that both see about as many tokens.
    """
    per_step = recipe.training.prompts_per_step * recipe.rollout.samples_per_prompt * mean_length
    steps = max(1, round(tokens / per_step))
    shared = {name: getattr(recipe, name) for name in ("seed", "threads", "student", "data", "rollout", "teachers", "routing")}
    return SftRecipe(
        method="sft",
        answers="teachers",
        training=recipe.training.model_copy(update={"steps": steps}),
        evaluation=recipe.evaluation,
        **shared,
    )
