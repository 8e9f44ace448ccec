"""What is exported is the student: plain transformers and plain peft answer as it does; and what cannot be is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from pipeline.afterwards import export
from pipeline.cli import app
from pipeline.display import Display
from pipeline.errors import RunError
from pipeline.privacy import is_marked
from tests.exported import NEW, QUESTIONS, Answered, answered, save_base, taught
from tests.runs import environment
from tests.servers.hub import metadata_errors

Runs = Mapping[str, Path]
MODELS = {"tied": ("qwen3", "bfloat16"), "untied": ("llama", "float32")}  # tied embeddings in bf16, others in fp32


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Full and LoRA; a LoRA student's base is the full one's result, which answers otherwise."""
    root = tmp_path_factory.mktemp("runs")
    made: dict[str, Path] = {}
    for name, (architecture, dtype) in MODELS.items():
        base = save_base(root / name / "base", architecture)
        made[f"{name}-full"] = taught(root / name / "full", base, {"student.dtype": dtype})
        lora = {"student.dtype": dtype, "student.tune": "lora"}
        made[f"{name}-lora"] = taught(root / name / "lora", str(made[f"{name}-full"] / "model"), lora, shift=1)
    return made


def exported(run: Path, **wanted: Any) -> Path:
    export(run, lambda threads: None, Display(Console(quiet=True)), **wanted)
    return Path(wanted.get("to") or run / "export" / wanted.get("kind", "model"))


def student(runs: Runs, name: str) -> list[Answered]:
    return answered(runs[name], shift=int("lora" in name))


def answer(model: Any, asked: Answered, folder: Path) -> tuple[int, ...]:
    """As a stranger would have it: from the folder alone, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": asked.question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert tuple(inputs["input_ids"][0].tolist()) == asked.prompt_ids
    config = GenerationConfig.from_pretrained(folder, max_new_tokens=NEW, do_sample=False)
    ids = model.generate(**inputs, generation_config=config)[0].tolist()
    return tuple(ids[len(asked.prompt_ids) :])


# ---- it is the student ----


@pytest.mark.parametrize("name", [f"{model}-{tune}" for model in MODELS for tune in ("full", "lora")])
def test_plain_transformers_answers_as_the_student(name: str, runs: Runs, tmp_path: Path) -> None:
    folder = exported(runs[name], to=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert str(model.dtype).removeprefix("torch.") == MODELS[name.partition("-")[0]][1]
    assert model.config.tie_word_embeddings == name.startswith("tied")
    for asked in student(runs, name):
        assert answer(model, asked, folder) == asked.answer_ids


@pytest.mark.parametrize("name", [f"{model}-lora" for model in MODELS])
def test_plain_peft_answers_as_the_student(name: str, runs: Runs) -> None:
    folder = exported(runs[name], kind="adapter")
    base = AutoModelForCausalLM.from_pretrained(runs[name.replace("lora", "full")] / "model", dtype="auto")
    before = [answer(base, asked, folder) for asked in student(runs, name)]
    for model in (
        AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto"),
        PeftModel.from_pretrained(base, folder),
    ):
        found = [answer(model.eval(), asked, folder) for asked in student(runs, name)]
        assert found == [asked.answer_ids for asked in student(runs, name)]
        assert found != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["tied-full", "untied-lora"])
def test_another_dtype_in_shards(name: str, dtype: str, runs: Runs, tmp_path: Path) -> None:
    folder = exported(runs[name], to=tmp_path / "out", dtype=dtype, shard="100KB")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert ("lm_head.weight" in index["weight_map"]) == name.startswith("untied"), "tied weights are written once"
    with safe_open(files[0], "pt") as weights:
        assert all(weights.get_tensor(key).dtype == getattr(torch, dtype) for key in weights.keys())  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    for asked in student(runs, name):
        assert answer(model, asked, folder) == asked.answer_ids


def test_a_run_ends_with_the_same(runs: Runs, tmp_path: Path) -> None:
    """Its own model is what the command writes, and its card is beside it."""
    folder = exported(runs["untied-lora"], to=tmp_path / "out")
    own = runs["untied-lora"] / "model"
    assert {path.name for path in own.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        assert path.read_bytes() == (own / path.name).read_bytes(), path.name
    assert (runs["untied-lora"] / "adapter" / "README.md").exists()


def test_a_step_that_is_kept_and_one_that_is_not(runs: Runs, tmp_path: Path) -> None:
    earlier = taught(
        tmp_path / "again",
        str(runs["untied-full"] / "model"),
        {"training.steps": 4, "training.checkpoint_every": 2, "training.learning_rate": 1e-2},
        shift=1,
    )
    first, last = exported(earlier, step=2, to=tmp_path / "two"), exported(earlier, to=tmp_path / "four")
    assert (first / "model.safetensors").read_bytes() != (last / "model.safetensors").read_bytes()
    assert (earlier / "model/model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    card = (first / "README.md").read_text()
    assert "step 2 of 4" in card
    assert "not evaluated at step 2" in card
    assert ModelCard(card).data.eval_results is None
    with pytest.raises(RunError, match=r"step 3 is not kept; kept: 2, 4"):
        exported(earlier, step=3, to=tmp_path / "three")
    assert not (tmp_path / "three").exists()
    for path in (earlier / "checkpoints").iterdir():
        (path / "weights.safetensors").unlink()
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    again = exported(earlier, to=tmp_path / "five")  # from the run's own result
    assert (again / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()


# ---- the card ----


@pytest.mark.parametrize(("name", "kind"), [("tied-full", "model"), ("untied-lora", "adapter")])
def test_the_cards_own_code_runs(name: str, kind: str, runs: Runs) -> None:
    folder = exported(runs[name], kind=kind)
    card = (folder / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert ("peft" in code) == (kind == "adapter")


def test_the_metadata_are_the_hubs(runs: Runs) -> None:
    for kind in ("model", "adapter"):
        text = (exported(runs["untied-lora"], kind=kind) / "README.md").read_text()
        assert metadata_errors(text) == []
        data = ModelCard(text).data
        assert (data.library_name, data.pipeline_tag) == (
            "peft" if kind == "adapter" else "transformers",
            "text-generation",
        )
        (result,) = data.eval_results
        assert result.dataset_config == "by_heart"
        assert 0 <= result.metric_value <= 1
        assert data.base_model is None, "a folder's path is nobody's model"


def test_nothing_tells_of_this_machine(runs: Runs, tmp_path: Path) -> None:
    folder = exported(runs["untied-lora"], to=tmp_path / "out")
    root = str(runs["untied-lora"].parents[1]).encode()
    assert [path.name for path in folder.rglob("*") if path.is_file() and root in path.read_bytes()] == []


def test_a_private_run_tells_nothing_of_its_data(runs: Runs, tmp_path: Path) -> None:
    private = {"data.sources.by_heart.private": True, "training.steps": 2, "training.checkpoint_every": 2}
    run = taught(tmp_path / "secret", str(runs["untied-full"] / "model"), private)
    folder = exported(run, to=tmp_path / "out")
    assert is_marked(folder)
    assert folder.stat().st_mode & 0o077 == 0
    card = (folder / "README.md").read_text()
    assert "private data" in card
    for text in (*QUESTIONS, *QUESTIONS.values(), "questions.jsonl", str(tmp_path)):
        assert text not in card
    assert ModelCard(card).data.datasets is None


# ---- what a user can get wrong ----


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]  # bars of loading may stand before it


def test_mistakes_are_one_line(runs: Runs, tmp_path: Path) -> None:
    run = str(runs["tied-full"])
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert "no such folder" in refused(str(tmp_path / "nothing"))
    assert "is a file" in refused(str(tmp_path / "file"))
    assert f"did you mean {run}" in refused(str(runs["tied-full"].parent))
    assert "it has no adapter; export it with --kind model" in refused(run, "--kind", "adapter")
    assert "a part of the run itself" in refused(run, "--to", f"{run}/model")
    assert "not an export" in refused(run, "--to", str(tmp_path / "full"))
    assert (tmp_path / "full/notes.txt").read_text() == "mine"
    assert "something else than a folder" in refused(run, "--to", str(tmp_path / "file"))
    assert "cannot be made" in refused(run, "--to", str(tmp_path / "file/x/y"))
    for size in ("5", "0GB", "500GB", "many"):
        assert "write a size" in refused(run, "--shard", size)


def test_a_run_without_a_checkpoint_and_one_with_a_damaged_one(runs: Runs, tmp_path: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    for name in ("recipe.yaml", "tutelage.json"):
        (young / name).write_bytes((runs["tied-full"] / name).read_bytes())
    (young / "run.json").write_text('{"status": "running"}')
    assert "no checkpoint yet, the first comes after step 60" in refused(str(young))
    place = young / "checkpoints/step-000060"
    place.mkdir(parents=True)
    (place / "weights.safetensors").write_bytes(b"not weights")
    assert "cannot be read" in refused(str(young))
    (young / "recipe.yaml").write_text("method: distil\n")
    assert "recipe.yaml" in refused(str(young))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("left", [100_000, 470_000])  # too little for the weights; enough for them, and no more
def test_a_full_disk_leaves_nothing_half_written(runs: Runs, small_disk: Path, left: int) -> None:
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - left))
    line = refused(str(runs["untied-full"]), "--to", str(small_disk / "out"))
    assert "the disk is full" in line
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
