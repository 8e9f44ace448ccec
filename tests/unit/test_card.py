"""A model card from a run's facts, and facts from a run's directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.export.card import model_card, refusals_line
from pipeline.export.facts import Data, Domain, Facts, Measured, Teacher, facts_of
from pipeline.export.origin import Licence, Origin, hub_name, origin_of
from pipeline.recipe_file import dump_resolved, load_recipe
from pipeline.recorded import read_run
from tests.runs import write_recipe
from tests.servers.hub import metadata_errors

FACTS = Facts(
    run="math-student",
    origin=Origin("Qwen/Qwen3-1.7B"),
    licence=Licence("apache-2.0"),
    method="distill",
    objective="reverse_kl",
    adapted=32,
    dtype="bfloat16",
    step=100,
    steps=100,
    private=False,
    domains=(
        Domain(
            "math",
            Measured(0.25, 0.2, 0.3, 140),
            Measured(0.9, 0.85, 0.95, 140),
            Measured(0.75, 0.7, 0.8, 140),
            "big",
            "openai/gsm8k",
            ("accuracy", "share of answers whose number is right"),
        ),
        Domain(
            "chat", None, None, Measured(0.5, 0.4, 0.6, 40), None, None, ("score", "score of the recipe's own checker")
        ),
    ),
    teachers=(
        Teacher("big", "transformers", "Qwen/Qwen3-8B", None, None, None),
        Teacher("critic", "chat", "deepseek-v4-pro", "training on its outputs: unknown", 1200, "1.25"),
    ),
    data=(Data("math", "openai/gsm8k, main, split train", False, "openai/gsm8k"),),
    fingerprint="0c57",
    held_out=100,
    samples=1,
    share=Measured(0.83, 0.78, 0.88, 0),
    worse=(),
    refusals=None,
    tokens=265_799,
    hours=1.5,
    dollars="1.25",
    versions={"torch": "2.13.0"},
    settings={"seed": "0"},
    stop=(),
    own_template=False,
    max_new_tokens=512,
)


def card(facts: Facts, kind: Any = "model", name: str = "ada/math", chat: bool = True) -> ModelCard:
    made = model_card(facts, kind, name=name, chat=chat)
    assert metadata_errors(str(made)) == []
    return ModelCard(str(made))  # read back


def test_the_metadata() -> None:
    data = card(FACTS, "adapter").data
    assert (data.base_model, data.base_model_relation, data.license) == ("Qwen/Qwen3-1.7B", "adapter", "apache-2.0")
    assert (data.library_name, data.datasets) == ("peft", ["openai/gsm8k"])
    assert {"distillation", "multi-teacher", "lora"} <= set(data.tags)
    math, chat = data.eval_results
    assert (math.dataset_type, math.dataset_config, math.metric_type, math.metric_value) == (
        *("openai/gsm8k", "math"),
        *("accuracy", 0.75),
    )
    assert (chat.dataset_type, chat.metric_value) == ("custom", 0.5)
    assert card(FACTS).data.base_model_relation == "finetune"


def test_what_is_not_known_is_left_out() -> None:
    bare = replace(FACTS, origin=Origin(), licence=None, domains=(), data=(), teachers=(), share=None, dollars=None)
    data = card(bare).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "datasets", "model-index"} & data.keys()
    assert "The licence of its base is not known" in card(bare).text
    assert "licence" not in card(replace(bare, origin=Origin(new=True))).text


def test_the_page_says_what_it_is_and_is_not() -> None:
    text = card(FACTS).text
    assert "| math | share of answers whose number is right | 0.250 [0.20, 0.30] | 0.900 [0.85, 0.95] (big) |" in text
    assert "0.830 of its teachers' mean score" in text
    assert "$1.25, 1,200 requests" in text
    assert "terms of critic allow training on their outputs is not known" in text
    assert "worse" not in text
    assert "It is worse than its base, beyond chance, at: chat." in card(replace(FACTS, worse=("chat",))).text
    assert "after step 40 of 100" in card(replace(FACTS, step=40)).text
    private = card(replace(FACTS, private=True)).text
    assert "trained on private data" in private
    assert "can be made to repeat" in private
    assert "stop there too" in card(replace(FACTS, stop=("\n",))).text


def test_the_refusals_line_is_there_where_they_were_counted() -> None:
    assert refusals_line(FACTS) is None
    counted = replace(FACTS, refusals={"base": 0.95, "student": 0.9, "prompts": 40})
    line = "Unsafe requests that it refuses: 90%; the base: 95%."
    assert refusals_line(counted) == line
    assert line in card(counted).text


@pytest.mark.parametrize(("rank", "most"), [(4, 8), (8, 8), (33, 64), (512, 512)])
def test_vllm_takes_ranks_of_its_own(rank: int, most: int) -> None:
    text = card(replace(FACTS, adapted=rank), "adapter").text
    assert f"vllm serve Qwen/Qwen3-1.7B --enable-lora --max-lora-rank {most} --lora-modules student=ada/math" in text


def test_raw_text_has_no_chat() -> None:
    assert "apply_chat_template" in card(FACTS).text
    assert "apply_chat_template" not in card(FACTS, chat=False).text


def test_a_cell_stays_a_cell() -> None:
    odd = replace(FACTS, teachers=(Teacher("a|b", "chat", "two\nlines", None, None, None),))
    assert "| a\\|b | chat | two lines | – |" in card(odd).text


def test_a_path_is_no_name_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_name("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert hub_name("gpt2") == "gpt2"
    for path in (str(tmp_path), "/models/a", "./a/b", "~/a", "../a", "a/b/c", "data.jsonl/"):
        assert hub_name(path) is None
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_name("models") is None


# ---- from a run's directory ----


def recorded(folder: Path, **sections: Any) -> Path:
    """A run's directory, as a run leaves it, without a model."""
    (folder / "held.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    settings: dict[str, Any] = {
        "method": "distill",
        "student": {"model": "Qwen/Qwen3-1.7B", "tune": "lora", "dtype": "bfloat16"},
        "teachers": {
            "math": {"kind": "transformers", "model": "Qwen/Qwen3-8B"},
            "critic": {
                "kind": "chat",
                "model": "judge",
                "url": "http://10.1.2.3:8000/v1",
                "system": "Our secret rubric.",
                "provider": {"training": "allowed", "source": "a letter", "date": "2026-11-01"},
            },
        },
        "routing": "all",
        "rollout": {"samples_per_prompt": 4},
        "data": {
            "sources": {
                "math": {"kind": "dataset", "path": "openai/gsm8k", "config": "main", "checker": "numeric"},
                "ours": {"kind": "dataset", "path": str(folder / "held.jsonl")},
            }
        },
        **sections,
    }
    run = folder / "run"
    run.mkdir()
    loaded = load_recipe(write_recipe(folder / "recipe.yaml", settings))
    dump_resolved(loaded.recipe, run / "recipe.yaml")
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "prompts": 10}
    files = {
        "run.json": {"status": "finished", "versions": {"torch": "2.13.0"}},
        "tutelage.json": {"private": False},
        "data.json": {"fingerprint": "f00d"},
        "ledger.json": {"dollars": "0.50", "teachers": {"critic": {"requests": 7, "dollars": "0.50"}}},
        "evaluation.json": {
            "differences": {"math": {"base": {"value": -0.1, "low": -0.2, "high": -0.01}}, "ours": {}},
            "share_of_specialists": None,
            "refusals": {"base": 1.0, "student": 0.5},
        },
        "evaluations/base.json": {"math": score, "ours": {**score, "mean": None}},
        "evaluations/teacher-math.json": {"math": {**score, "mean": 0.9}},
        "evaluations/student-000100.json": {"math": {**score, "mean": 0.4}, "ours": {**score, "mean": None}},
    }
    for name, value in files.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(json.dumps(value))
    lines = [{"step": step, "tokens": 10} for step in (1, 2, 100)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    times = [{"step": step, "seconds": {"rollout": 1800.0, "waiting": 900.0}} for step in (1, 2)]
    (run / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    return run


def test_facts_are_the_runs(tmp_path: Path) -> None:
    run = read_run(recorded(tmp_path))
    facts = facts_of(run, 100, None)
    assert (facts.origin.hub, facts.adapted, facts.fingerprint, facts.tokens) == ("Qwen/Qwen3-1.7B", 32, "f00d", 30)
    assert facts.hours == 1.0, "what is waited for is a part of other phases"
    math, ours = facts.domains
    assert (math.student, math.teacher_name, math.data) == (Measured(0.4, 0.4, 0.6, 10), "math", "openai/gsm8k")
    assert math.metric[0] == "accuracy"
    assert (ours.base, ours.student, ours.data) == (None, None, None)
    assert facts.worse == ("math",)
    critic = facts.teachers[1]
    assert critic.terms == "training on its outputs: allowed (a letter, 2026-11-01)"
    assert (critic.requests, critic.dollars, facts.dollars) == (7, "0.50", "0.50")


def test_an_earlier_step_is_not_given_the_last_ones_results(tmp_path: Path) -> None:
    facts = facts_of(read_run(recorded(tmp_path)), 2, None)
    assert all(domain.student is None for domain in facts.domains)
    assert (facts.worse, facts.refusals, facts.share, facts.tokens) == ((), None, None, 20)


def test_no_address_no_path_no_prompt_of_the_recipe(tmp_path: Path) -> None:
    text = str(card(facts_of(read_run(recorded(tmp_path)), 100, None), "adapter"))
    for hidden in ("10.1.2.3", str(tmp_path), "held.jsonl", "secret rubric"):
        assert hidden not in text
    assert "deepseek" not in text
    assert "judge" in text


def test_a_run_that_does_not_say_counts_as_private(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    assert not read_run(run).private
    (run / "tutelage.json").unlink()
    assert read_run(run).private


def test_the_base_is_followed_through_what_was_prepared(tmp_path: Path) -> None:
    first = recorded(tmp_path)
    second = tmp_path / "second"
    second.mkdir()
    run = recorded(second, prepare={"first": {"recipe": str(tmp_path / "recipe.yaml"), "set": {"output": str(first)}}})
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("model: Qwen/Qwen3-1.7B", "model: prepared:first"))
    assert read_run(run).prepared == {"first": first}
    assert origin_of(read_run(run)) == Origin("Qwen/Qwen3-1.7B")
    for path in first.rglob("*.json"):
        path.unlink()
    assert origin_of(read_run(run)) == Origin()
