"""The baselines of a codebase: what they train on and what they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.comparisons import sft_recipes, with_context
from pipeline.recipe import DistillRecipe
from pipeline.recipe_file import load_recipe
from pipeline.types import Prompt
from teachers.types import Chat, Message, RawText

ROOT = Path(__file__).parents[2]


def codebase_recipe(*overrides: str) -> DistillRecipe:
    recipe = load_recipe(ROOT / "recipes/codebase.yaml", overrides).recipe
    assert isinstance(recipe, DistillRecipe)
    return recipe


def test_plain_fine_tuning_is_on_the_codebases_own_references_at_equal_tokens() -> None:
    recipe = codebase_recipe("training.prompts_per_step=10")
    made = sft_recipes(recipe, 12_345, {"line": 3, "body": 2, "general_line": 5, "general_body": 4})
    assert set(made) == {"sft_on_code"}
    sft = made["sft_on_code"]
    assert (sft.answers, sft.tokens) == ("reference", 12_345)
    assert sft.training.steps * 10 >= 12_345
    assert {name: source.weight for name, source in sft.data.sources.items()} == {
        "line": 2,
        "body": 1,
        "general_line": 0,
        "general_body": 0,
    }
    assert (sft.source, sft.student, sft.evaluation) == (recipe.source, recipe.student, recipe.evaluation)
    assert not sft.teachers


def prompt(conversation: RawText | Chat, privileged: str | None) -> Prompt:
    return Prompt("id", "line", "line", conversation, reference="x", privileged=privileged)


def test_context_comes_before_the_prompt_and_changes_nothing_else() -> None:
    raw = prompt(RawText("def f("), "# a.py: g\ndef g():\n\n\n")
    shown = with_context(raw)
    assert shown is not None
    assert shown.conversation == RawText("# a.py: g\ndef g():\n\n\ndef f(")
    assert (shown.prompt_id, shown.reference) == ("id", "x")
    chat = with_context(prompt(Chat((Message("system", "S"), Message("user", "U"))), "C"))
    assert chat is not None
    assert isinstance(chat.conversation, Chat)
    assert [message.content for message in chat.conversation.messages] == ["S", "C\nU"]


@pytest.mark.parametrize("privileged", [None, ""])
def test_without_context_there_is_nothing_to_show(privileged: str | None) -> None:
    assert with_context(prompt(RawText("def f("), privileged)) is None
