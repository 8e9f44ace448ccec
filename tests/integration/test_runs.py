"""Whole runs of every method, objective and mode at a tiny size: they end, and what they leave is right."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline import assess
from pipeline.errors import DataError, ModelError, RunError
from pipeline.files import read_lines
from pipeline.new_model import model_config, model_from_config
from pipeline.prompts import Rows
from pipeline.recipe import NewModel
from pipeline.run_directory import write_status
from teachers.errors import TeacherError
from tests.models import ARCHITECTURES, CONTEXT, Architecture, save_adapter, save_tiny
from tests.runs import DOMAINS, changed, distill_settings, run_here, sft_settings, write_recipe
from tests.vocabularies import byte_level

OBJECTIVES: dict[str, Any] = {
    "reverse_kl": "reverse_kl",
    "forward_kl": "forward_kl",
    "jsd": {"kind": "jsd", "beta": 0.3},
    "skew_kl": {"kind": "skew_kl", "alpha": 0.2},
    "skew_reverse_kl": "skew_reverse_kl",
    "top_k_reverse_kl": {"kind": "top_k_reverse_kl", "k": 8, "mass_penalty": 0.1},
    "top_k_forward_kl": {"kind": "top_k_forward_kl", "k": 8, "tail": True},
    "policy_gradient": "policy_gradient",
}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return list(read_lines(folder / "metrics.jsonl"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains(tmp_path: Path, objective: str) -> None:
    settings = changed(distill_settings(tmp_path), {"objective.divergence": OBJECTIVES[objective]})
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings))
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    assert set(lines[0]["kl"]["teacher"]) == set(lines[0]["kl"]["domain"]) == set(DOMAINS)
    before, after = weights(tmp_path / "student"), weights(folder / "model")
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_every_architecture_trains(tmp_path: Path, architecture: Architecture, tune: str) -> None:
    settings = changed(distill_settings(tmp_path, architecture), {"student.tune": tune, "training.steps": 2})
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings))
    assert len(metrics(folder)) == 2
    assert (folder / "adapter").exists() == (tune == "lora")
    before, after = weights(tmp_path / "student"), weights(folder / "model")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_student_comes_nearer_to_its_teachers(tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), {"training.steps": 20, "training.learning_rate": 1e-2})
    lines = metrics(run_here(write_recipe(tmp_path / "recipe.yaml", settings)))
    assert lines[-1]["kl"]["teacher"]["sorting"] < 0.5 * lines[0]["kl"]["teacher"]["sorting"]


def test_a_teacher_like_the_student_teaches_nothing(tmp_path: Path) -> None:
    settings = distill_settings(tmp_path)
    same = {name: {**teacher, "model": settings["student"]["model"]} for name, teacher in settings["teachers"].items()}
    lines = metrics(run_here(write_recipe(tmp_path / "recipe.yaml", {**settings, "teachers": same})))
    assert lines[0]["loss"] == pytest.approx(0.0, abs=1e-6)
    assert lines[0]["overlap"] == 1.0


@pytest.mark.parametrize("routing", ["all", {"kind": "mixture", "shares": {"sorting": 3, "addition": 1}}])
def test_several_teachers_on_one_prompt(tmp_path: Path, routing: Any) -> None:
    settings = changed(distill_settings(tmp_path), {"routing": routing, "teachers.sorting.weight": 0.5})
    line = metrics(run_here(write_recipe(tmp_path / "recipe.yaml", settings)))[0]
    shares = (0.5, 0.5) if routing == "all" else (0.75, 0.25)
    kl = line["kl"]["teacher"]
    assert line["failures"] == {}
    # The loss is a mean over trajectories and the metric one over tokens: equal lengths make them the same.
    if line["length"]["mean"] == line["length"]["max"]:
        assert line["loss"] == pytest.approx(0.5 * shares[0] * kl["sorting"] + shares[1] * kl["addition"], rel=1e-4)


def test_adapters_over_one_base_teach_a_lora_student_on_it(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    settings = distill_settings(tmp_path)
    teachers = {
        domain: {
            "kind": "adapter",
            "base": base,
            "adapter": save_adapter(tmp_path / f"adapter-{domain}", base, seed=n),
            "dtype": "float32",
        }
        for n, domain in enumerate(DOMAINS)
    }
    changes = {"student.model": base, "student.tune": "lora", "teachers": None, "training.steps": 12}
    settings = {**changed(settings, changes), "teachers": teachers}
    lines = metrics(run_here(write_recipe(tmp_path / "recipe.yaml", settings)))
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_anchor_and_reference_pull_beside_the_teachers(tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), {"objective": {"anchor": 0.5, "reference": 0.2}})
    lines = metrics(run_here(write_recipe(tmp_path / "recipe.yaml", settings)))
    assert lines[0]["kl"]["teacher"]["initial-student"] == pytest.approx(0.0, abs=1e-6)
    assert lines[-1]["kl"]["teacher"]["initial-student"] > 0
    assert lines[0]["nll"] > 0


def test_the_anchor_is_not_a_domains_kl(tmp_path: Path) -> None:
    """At the first step the student is its own anchor, whose KL of zero must not halve what the teachers measure."""
    path = write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))
    plain = metrics(run_here(path))[0]
    anchored = metrics(run_here(path, "objective.anchor=0.5", f"output={tmp_path / 'anchored'}"))[0]
    assert anchored["kl"]["domain"] == plain["kl"]["domain"]
    assert anchored.get("overlap") == plain.get("overlap")


def test_supervised_runs_learn_the_references(tmp_path: Path) -> None:
    settings = changed(sft_settings(tmp_path), {"training.steps": 20, "training.prompts_per_step": 8})
    lines = metrics(run_here(write_recipe(tmp_path / "recipe.yaml", settings)))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5


def test_teachers_can_write_the_answers(tmp_path: Path) -> None:
    settings = distill_settings(tmp_path)
    path = write_recipe(tmp_path / "recipe.yaml", {**settings, "method": "sft", "answers": "teachers"})
    folder = run_here(path)
    assert {line["writer"] for line in read_lines(folder / "samples.jsonl")} == set(DOMAINS)


def test_prepared_recipes_run_once(tmp_path: Path) -> None:
    settings = distill_settings(tmp_path)
    write_recipe(tmp_path / "first.yaml", changed(sft_settings(tmp_path), {"output": None}))
    prepared = {**settings, "prepare": {"first": {"recipe": "first.yaml", "set": {"training.steps": 2}}}}
    prepared["student"] = {"model": "prepared:first"}
    path = write_recipe(tmp_path / "recipe.yaml", prepared)
    folder = run_here(path)
    inner = folder / "prepared" / "first"
    assert len(metrics(inner)) == 2
    made = (inner / "run.json").stat().st_mtime_ns
    run_here(path, "training.steps=4", extend=True)
    assert len(metrics(folder)) == 4
    assert (inner / "run.json").stat().st_mtime_ns == made


def test_an_extension_prepares_more_and_leaves_what_was_prepared(tmp_path: Path) -> None:
    """Another teacher may be made for it; the recipe of one that is made may not change, here or in its own file."""
    first = changed(sft_settings(tmp_path), {"output": None, "training.steps": 1})
    write_recipe(tmp_path / "first.yaml", first)
    settings = {**distill_settings(tmp_path), "prepare": {"first": {"recipe": "first.yaml", "set": {"seed": 1}}}}
    settings["student"] = {"model": "prepared:first"}
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    folder = run_here(path)
    with pytest.raises(RunError, match=r"changed since this run started: prepare\.first\.set\.seed;"):
        run_here(path, "prepare.first.set.seed=2", "training.steps=4", extend=True)
    write_recipe(tmp_path / "first.yaml", changed(first, {"training.learning_rate": 0.5}))
    with pytest.raises(RunError, match=r"first: .*changed since this run started: training\.learning_rate;"):
        run_here(path, "training.steps=4", extend=True)
    write_recipe(tmp_path / "first.yaml", first)
    more = changed(
        settings,
        {
            "prepare.second": {"recipe": "first.yaml", "set": {"student.model": "prepared:first"}},
            "teachers.sorting.model": "prepared:second",
            "training.steps": 4,
        },
    )
    run_here(write_recipe(path, more), extend=True)
    assert len(metrics(folder)) == 4
    assert (folder / "prepared" / "second" / "model").is_dir()


def test_the_baselines_stand_beside_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[str] = []
    evaluate = assess._evaluate

    def watched(job: Any, parts: Any, lm: Any, domains: Any, name: str) -> Any:
        evaluated.append(name)
        return evaluate(job, parts, lm, domains, name)

    monkeypatch.setattr(assess, "_evaluate", watched)
    settings = {**distill_settings(tmp_path), "compare": ["parameter_average", "sft_on_teacher_samples"]}
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings))
    result = json.loads((folder / "evaluation.json").read_text())
    models = {"base", "specialist", "parameter_average", "sft_on_teacher_samples", "student"}
    assert {domain: set(scores) for domain, scores in result["domains"].items()} == dict.fromkeys(DOMAINS, models)
    assert set(result["kl"]) == set(DOMAINS)
    assert sorted(evaluated) == [
        "average of the teachers",
        "base",
        "student",
        "student",
        *(f"teacher {name}" for name in sorted(DOMAINS)),
    ]
    for name in ("base.json", "base.samples.jsonl"):  # the base is evaluated once, and what is known is handed on
        known, copy = (run / "evaluations" / name for run in (folder, folder / "compare" / "sft_on_teacher_samples"))
        assert copy.read_bytes() == known.read_bytes()
    run_here(tmp_path / "recipe.yaml", "training.steps=9", extend=True)
    baseline = folder / "compare" / "sft_on_teacher_samples"
    assert len(metrics(baseline)) > 3  # as many tokens as the longer run, not as many as before


def test_only_a_run_that_is_there_is_extended_and_only_to_more_steps(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))
    with pytest.raises(RunError, match="no run here to extend"):
        run_here(path, extend=True)
    folder = run_here(path)
    with pytest.raises(RunError, match=r"training\.steps is 2 and this run has done 3"):
        run_here(path, "training.steps=2", extend=True)
    assert len(json.loads((folder / "evaluation.json").read_text())["domains"]) == len(DOMAINS)
    (folder / "recipe.yaml").unlink()
    with pytest.raises(RunError, match=r"recipe\.yaml is missing"):
        run_here(path, resume=True)


def test_a_run_is_not_started_over(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))
    run_here(path)
    with pytest.raises(RunError, match="--resume"):
        run_here(path)
    with pytest.raises(RunError, match=r"training\.learning_rate"):
        run_here(path, "training.learning_rate=1e-4", resume=True)
    with pytest.raises(RunError, match=r"training\.learning_rate"):
        run_here(path, "training.learning_rate=1e-4", extend=True)


def test_a_run_that_ran_out_of_memory_goes_on_in_smaller_pieces(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))
    folder = run_here(path)
    expected = metrics(folder)[-1]["loss"]
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    write_status(folder, "running")
    run_here(path, "training.tokens_per_forward=50", "rollout.rows=2", "objective.chunk_megabytes=1", resume=True)
    assert metrics(folder)[-1]["loss"] == pytest.approx(expected, rel=1e-4)
    assert "tokens_per_forward: 50" in (folder / "recipe.yaml").read_text()


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        run_here(path)


def test_a_domain_with_its_teacher_is_added_to_a_finished_run(tmp_path: Path) -> None:
    settings = distill_settings(tmp_path)
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    folder = run_here(path)
    settings["teachers"]["boolean"] = {**settings["teachers"]["sorting"]}
    settings["data"]["sources"]["boolean"] = {"kind": "tasks", "task": "boolean", "count": 30}
    write_recipe(path, changed(settings, {"training.steps": 6}))
    run_here(path, extend=True)
    assert set(json.loads((folder / "evaluation.json").read_text())["domains"]) == {*DOMAINS, "boolean"}
    assert "boolean" in metrics(folder)[-1]["kl"]["domain"]


def test_a_mistake_in_an_extension_can_be_corrected(tmp_path: Path) -> None:
    settings = distill_settings(tmp_path)
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    folder = run_here(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    settings["teachers"]["more"] = {**settings["teachers"]["sorting"], "model": str(empty)}
    write_recipe(path, changed(settings, {"training.steps": 4}))
    with pytest.raises(TeacherError, match=r"teachers\.more"):
        run_here(path, extend=True)
    with pytest.raises(RunError, match=r"training\.learning_rate"):
        run_here(path, "training.learning_rate=1e-4", extend=True)
    settings["teachers"]["more"] = settings["teachers"]["sorting"]
    write_recipe(path, changed(settings, {"training.steps": 4}))
    run_here(path, extend=True)
    assert len(metrics(folder)) == 4


def test_too_few_prompts_for_a_step_are_said_before_training(tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), {"training.prompts_per_step": 600})
    with pytest.raises(DataError, match="prompts_per_step"):
        run_here(write_recipe(tmp_path / "recipe.yaml", settings))


def test_a_prompt_longer_than_the_context_is_said(tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), {"rollout.max_new_tokens": 200})
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    with pytest.raises(DataError, match="max_new_tokens") as caught:
        run_here(path)
    assert "\n" not in str(caught.value)
    assert len(metrics(run_here(path, "rollout.max_new_tokens=6", resume=True))) == 3  # nothing was done: correct it


@pytest.mark.parametrize(("answer", "said"), [("x" * CONTEXT, "a prompt and its answer have"), (None, "no reference")])
@pytest.mark.parametrize("method", ["sft", "distill"])
def test_references_that_cannot_be_learned_are_said_before_training(
    tmp_path: Path, method: str, answer: str | None, said: str
) -> None:
    rows: list[dict[str, str | None]] = [{"question": f"{n} + {n}", "answer": str(2 * n)} for n in range(30)]
    for row in rows[:20]:
        row["answer"] = answer
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = distill_settings(tmp_path) if method == "distill" else sft_settings(tmp_path)
    settings["data"]["sources"] = {"sorting": {"kind": "dataset", "path": str(tmp_path / "sums.jsonl")}}
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    if method == "distill":
        assert len(metrics(run_here(path, f"output={tmp_path / 'without'}"))) == 3  # nothing is learned from them
        path = write_recipe(path, changed(settings, {"objective.reference": 0.1}))
    with pytest.raises(DataError, match=said) as caught:
        run_here(path)
    assert str(caught.value).startswith("data.sources.sorting: ")
    assert not metrics(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    settings = changed(distill_settings(tmp_path), {"training.learning_rate": 1e30, "training.clip_norm": 1e30})
    with pytest.raises((RunError, ModelError), match="finite"):
        run_here(write_recipe(tmp_path / "recipe.yaml", settings))


MODES: dict[str, dict[str, Any]] = {
    "bfloat16 weights": {"student.dtype": "bfloat16"},
    "mixed precision": {"training.mixed_precision": "bf16"},
    "gradient checkpointing": {"student.gradient_checkpointing": True},
    "two samples a prompt": {"rollout.samples_per_prompt": 2},
    "token average": {"objective.average": "token"},
    "temperature": {"rollout.temperature": 0.7},
    "truncated sampling": {"rollout.top_p": 0.9, "rollout.top_k": 20},
    "stop strings": {"rollout.stop": ["a", "12"]},
    "linear schedule": {"training.schedule": "linear", "training.warmup_steps": 2},
    "lora in bfloat16": {
        "student.dtype": "bfloat16",
        "student.tune": {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_and_resumes_exactly(tmp_path: Path, mode: str) -> None:
    """Three steps with a checkpoint after the second: once whole, once cut back to that checkpoint and resumed."""
    path = write_recipe(tmp_path / "recipe.yaml", changed(distill_settings(tmp_path), MODES[mode]))
    folder = run_here(path)
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3]
    expected = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "model/model.safetensors")}
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    write_status(folder, "running")
    run_here(path, resume=True)
    assert {name: (folder / name).read_bytes() for name in expected} == expected


def test_a_step_is_tried_before_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.display import Display
    from pipeline.recipe_file import load_recipe
    from pipeline.run import check

    loaded = load_recipe(write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path, "deepseek_v4")))
    check(loaded, offline=False, step=True, display=Display())
    printed = capsys.readouterr().out
    assert "GB at most" in printed
    assert "no left padding" in printed
    assert not (tmp_path / "run").exists()


def test_what_builds_on_models_that_are_not_made_is_named_and_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prepared recipe may build on another one, as every specialist does on the base of the quickstart."""
    from pipeline.display import Display
    from pipeline.recipe_file import load_recipe
    from pipeline.run import check

    write_recipe(tmp_path / "first.yaml", changed(sft_settings(tmp_path), {"output": None, "training.steps": 1}))
    second = {"recipe": "first.yaml", "set": {"student.model": "prepared:first"}}
    settings = changed(
        distill_settings(tmp_path),
        {"prepare": {"first": {"recipe": "first.yaml"}, "second": second}, "teachers.sorting.model": "prepared:second"},
    )
    loaded = load_recipe(write_recipe(tmp_path / "recipe.yaml", settings))
    check(loaded, offline=False, step=False, display=Display())
    lines = capsys.readouterr().out.splitlines()
    assert "first: source sorting: 30 prompts, 0 dropped" in lines
    assert any(line.startswith("second: not made yet: first;") for line in lines)
    assert any(line.startswith("not made yet: second;") for line in lines)
    assert f"second:   output            {tmp_path / 'run' / 'prepared' / 'second'}" in lines
    with pytest.raises(RunError, match=r"not made yet: second; start `tutelage run"):
        check(loaded, offline=False, step=True, display=Display())
    assert not (tmp_path / "run").exists()


def test_prompts_from_a_file_of_conversations(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"sort: {n:04d}"}, {"role": "assistant", "content": "x"}]}
        for n in range(20)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = distill_settings(tmp_path)
    settings["data"]["sources"] = {"sorting": {"kind": "dataset", "path": str(tmp_path / "chats.jsonl")}}
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings))
    assert {line["domain"] for line in read_lines(folder / "samples.jsonl")} == {"sorting"}


def test_only_prompts_that_are_drawn_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of a million rows must not stand in memory, nor be decoded before the first step."""
    read: list[int] = []
    at = Rows.__getitem__

    def counted(rows: Any, index: Any) -> Any:
        read.append(index)
        return at(rows, index)

    monkeypatch.setattr(Rows, "__getitem__", counted)
    data = {"data.sources.sorting.count": 400, "data.sources.addition.count": 400, "training.steps": 2}
    run_here(write_recipe(tmp_path / "recipe.yaml", changed(distill_settings(tmp_path), data)))
    assert 8 <= len(read) < 40


def test_a_domain_that_has_no_held_out_prompt_trains_all_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n}", "answer": "x", "domain": "rare" if n == 0 else "sorting"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = distill_settings(tmp_path)
    columns = {"prompt": "prompt", "answer": "answer", "domain": "domain"}
    source = {"kind": "dataset", "path": str(tmp_path / "rows.jsonl"), "columns": columns}
    settings["data"] = {"held_out": 1, "sources": {"sorting": source}}
    settings = changed(settings, {"routing": {"default": "sorting"}, "training.prompts_per_step": 11})
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings))
    assert "rare" in metrics(folder)[0]["kl"]["domain"]


def test_a_step_that_nobody_taught_stops_the_run(tmp_path: Path) -> None:
    settings = distill_settings(tmp_path)
    for teacher in settings["teachers"].values():
        teacher["system"] = "x" * CONTEXT  # only what it scores grows past its context, not what it writes
    with pytest.raises(RunError, match=r"only 0 of 4 rows were answered.*too_long"):
        run_here(write_recipe(tmp_path / "recipe.yaml", settings))


def test_data_that_changed_are_not_trained_on_silently(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + {n}", "answer": str(2 * n)} for n in range(30)]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = distill_settings(tmp_path)
    settings["data"]["sources"] = {"sorting": {"kind": "dataset", "path": str(file), "checker": "numeric"}}
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    folder = run_here(path)
    write_status(folder, "running")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(RunError, match="data changed"):
        run_here(path, resume=True)


def test_a_teacher_with_another_tokenizer_teaches_where_both_cut_alike(tmp_path: Path) -> None:
    settings = distill_settings(tmp_path)
    other = byte_level(300)
    shape = NewModel(hidden_size=32, layers=2, heads=2, context=512)
    model = model_from_config(model_config(shape, len(other)), other, seed=4)
    model.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    settings["teachers"]["sorting"] = {
        "kind": "transformers",
        "model": str(tmp_path / "other"),
        "dtype": "float32",
        "align": {"top_k": 8, "least_coverage": 0.01},
    }
    folder = run_here(write_recipe(tmp_path / "recipe.yaml", settings))
    for line in metrics(folder):
        assert line["failures"] == {}
        assert 0 < line["coverage"]["sorting"] < 1
        assert line["kl"]["teacher"]["sorting"] > 0
    without = changed(settings, {"teachers.sorting.align": None, "output": str(tmp_path / "without")})
    with pytest.raises(TeacherError, match="vocabulary has"):
        run_here(write_recipe(tmp_path / "without.yaml", without))
