"""What is written of a student besides what the whole runs show: odd bases, dtypes, sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pipeline import recipe
from pipeline.errors import ModelError, RunError
from pipeline.export.folders import require_place
from pipeline.export.form import Form, shard_size
from pipeline.export.weights import generation_config, merged, write_weights
from pipeline.student import Student, load_student
from tests.models import Architecture, save_tiny

CPU = torch.device("cpu")


def student(path: str, tune: object = "full", dtype: str = "float32") -> Student:
    config = recipe.Student(model=path, tune=tune, dtype=dtype)
    return load_student(config, model_path=path, seed=0, chunk_bytes=1 << 20, device=CPU)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return save_tiny(tmp_path / "base")


# ---- generation config ----


def test_it_stops_wherever_an_answer_ended(base: str) -> None:
    """The tokenizer's own end first, as servers that read one alone take that; then what the recipe added."""
    lm = student(base).lm
    end = lm.tokenizer.eos_token_id
    assert generation_config(lm).eos_token_id == end
    several = replace(lm, end_ids=frozenset({end, 0, 5}))
    assert generation_config(several, stop_ids=(9, 5)).eos_token_id == [end, 0, 5, 9]
    assert generation_config(lm).pad_token_id is not None
    assert lm.model.generation_config.eos_token_id == end, "the student's own stays"


@pytest.mark.parametrize(
    "odd",
    [
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},  # saved by nobody's save_pretrained
        {"do_sample": True, "temperature": 0.6, "top_k": 20},
        {"do_sample": True, "length_penalty": 0.5},  # of beams, of which there are none
    ],
)
def test_a_base_with_an_odd_config_can_be_exported(odd: dict[str, object], base: str, tmp_path: Path) -> None:
    path = Path(base) / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
    (tmp_path / "out").mkdir()
    write_weights(student(base), tmp_path / "out", Form("model"), stop_ids=(7,))
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert found.eos_token_id == [1, 7]
    assert bool(found.do_sample) == odd["do_sample"]
    if "top_k" in odd:
        assert (found.temperature, found.top_k) == (0.6, 20)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")


# ---- weights ----


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("tune", ["full", {"kind": "lora", "rank": 4, "alpha": 8}])
def test_another_dtype_is_rounded_once_and_the_student_stays(
    architecture: Architecture, tune: object, tmp_path: Path
) -> None:
    mine = student(save_tiny(tmp_path / "m", architecture), tune)
    for name, parameter in mine.trained_parameters().items():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    exact = merged(mine.lm.model).state_dict()
    for dtype in (torch.bfloat16, torch.float16):
        rounded = merged(mine.lm.model, dtype=dtype)
        assert all(torch.equal(value, exact[name].to(dtype)) for name, value in rounded.state_dict().items())
        tied = rounded.get_output_embeddings().weight is rounded.get_input_embeddings().weight
        assert tied == (architecture == "qwen3")
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())


def test_what_an_architecture_keeps_in_float32_stays(base: str) -> None:
    mine = student(base, dtype="bfloat16")
    norm = mine.lm.model.model.norm
    norm.weight.data = norm.weight.data.float()
    assert merged(mine.lm.model, dtype=torch.float16).model.norm.weight.dtype == torch.float32
    assert merged(mine.lm.model).model.norm.weight.dtype == torch.float32


def test_what_float16_cannot_hold_is_refused(base: str, tmp_path: Path) -> None:
    mine = student(base)
    mine.lm.model.model.norm.weight.data[0] = 1e6
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"norm\.weight: float16 cannot hold .* --dtype bfloat16") as caught:
        write_weights(mine, tmp_path / "out", Form("model", "float16"))
    assert "\n" not in str(caught.value)
    write_weights(mine, tmp_path / "out", Form("model", "bfloat16"))


def test_an_adapter_says_which_revision_it_stands_on(base: str, tmp_path: Path) -> None:
    mine = student(base, {"kind": "lora", "rank": 4, "alpha": 8})
    mine.key = mine.key._replace(revision="v2")
    (tmp_path / "out").mkdir()
    write_weights(mine, tmp_path / "out", Form("adapter", "bfloat16"))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["revision"], config["r"]) == ("v2", 4)
    with pytest.raises(RunError, match="--kind model"):
        write_weights(student(base), tmp_path / "out", Form("adapter"))


# ---- sizes and places ----


@pytest.mark.parametrize(
    ("text", "read"), [("5GB", "5GB"), ("500mb", "500MB"), (" 1.5 GB ", "1.5GB"), ("50GB", "50GB")]
)
def test_sizes(text: str, read: str) -> None:
    assert shard_size(text) == read


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "0MB", "51GB", "51000MB", "1TB", "1e3MB", ""])
def test_no_sizes(text: str) -> None:
    with pytest.raises(RunError, match="write a size such as 5GB"):
        shard_size(text)


def test_places(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    require_place(run / "export/model", run)
    require_place(tmp_path / "new/deep", run)
    for own in (run, run / "model", run / "export", run / "export/../model"):
        with pytest.raises(RunError, match="a part of the run"):
            require_place(own, run)
    other = tmp_path / "other"
    other.mkdir()
    require_place(other, run)  # empty
    for name in ("run.json", "tutelage.json"):
        (other / name).write_text("{}")
    with pytest.raises(RunError, match="not an export"):
        require_place(other, run)  # another run
    (other / "run.json").unlink()
    require_place(other, run)  # an earlier export
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(RunError, match="something else than a folder"):
        require_place(tmp_path / "link", run)
