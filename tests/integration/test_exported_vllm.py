"""A real vLLM server on the CPU answers as the student does in its run: the whole model, and the adapter on its base.

Needs the environment that `.ci/vllm` makes, named by TUTELAGE_VLLM_PYTHON. Skipped without it, but never in CI.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.afterwards import export
from pipeline.display import Display
from pipeline.export.usage import VLLM_RANKS
from tests.exported import NEW, Answered, answered, save_base, taught
from tests.servers.vllm import vllm_python, vllm_server


def exported(run: Path, **wanted: Any) -> Path:
    export(run, lambda threads: None, Display(Console(quiet=True)), **wanted)
    return run / "export" / str(wanted["kind"])


def answer(url: str, model: str, asked: Answered) -> tuple[str, str]:
    """(text, why it ended) of a question put as a client would put it: the server renders and stops by itself."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": asked.question}],
        "temperature": 0,
        "max_tokens": NEW,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        said = json.load(reply)
    (choice,) = said["choices"]
    assert tuple(said["prompt_token_ids"]) == asked.prompt_ids, "its chat template is the student's"
    return tuple(choice["token_ids"]), choice["finish_reason"]


def test_the_whole_model_of_a_full_run(tmp_path: Path) -> None:
    """Tied embeddings, bf16, in shards."""
    python = vllm_python()
    run = taught(tmp_path / "full", save_base(tmp_path / "base", "qwen3"), {"student.dtype": "bfloat16"})
    folder = exported(run, kind="model", shard="100KB")
    with vllm_server(python, str(folder), tmp_path / "log", "--dtype", "bfloat16") as url:
        for asked in answered(run):
            assert answer(url, "tiny", asked) == (asked.answer_ids, "stop")


def test_the_adapter_of_a_lora_run_on_its_base(tmp_path: Path) -> None:
    """Untied embeddings, fp32; the base beside it answers as the base."""
    python = vllm_python()
    base = taught(tmp_path / "full", save_base(tmp_path / "base", "llama"), {})
    run = taught(tmp_path / "lora", str(base / "model"), {"student.tune": "lora"}, shift=1)
    folder = exported(run, kind="adapter")
    rank = next(rank for rank in VLLM_RANKS if rank >= json.loads((folder / "adapter_config.json").read_text())["r"])
    flags = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"student={folder}"]
    assert f"--enable-lora --max-lora-rank {rank} --lora-modules student=" in (folder / "README.md").read_text()
    with vllm_server(python, str(base / "model"), tmp_path / "log", *flags) as url:
        for asked in answered(run, shift=1):
            assert answer(url, "student", asked) == (asked.answer_ids, "stop")
        for asked in answered(base):
            assert answer(url, "tiny", asked) == (asked.answer_ids, "stop")


def test_a_quantized_student_in_4_bits(tmp_path: Path) -> None:
    """Groups of 32, bf16."""
    python = vllm_python()
    settings = {"student.dtype": "bfloat16", "student.quantize": "int4"}
    run = taught(tmp_path / "full", save_base(tmp_path / "base", "qwen3"), settings)
    folder = exported(run, kind="quantized")
    with vllm_server(python, str(folder), tmp_path / "log", "--dtype", "bfloat16") as url:
        for asked in answered(run):
            assert answer(url, "tiny", asked) == (asked.answer_ids, "stop")
