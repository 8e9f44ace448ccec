"""The student's answers by a real vLLM server on the CPU: it follows LoRA and full training, and dies in between.

Needs the environment that `.ci/vllm` makes, named by TUTELAGE_VLLM_PYTHON. Skipped without it, but never in CI.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import recipe
from pipeline.files import read_lines
from pipeline.ranks import World
from pipeline.recipe_rollouts import VllmRollouts
from pipeline.rollout.protocol import SamplingSettings
from pipeline.rollout.vllm import VllmGenerator
from pipeline.rollout.vllm_http import Access
from pipeline.rollout.vllm_open import open_vllm
from pipeline.student import Student, load_student
from pipeline.types import Prompt
from teachers.guard import Guard
from teachers.types import RawText
from tests.exported import save_base
from tests.following import SAME, agrees, checked, scored, settings_of
from tests.runs import changed, run_here, write_recipe
from tests.servers.vllm import vllm_python, vllm_server

CONTEXT = 256
WRITTEN = 220  # tokens of each completion
KILLED_AFTER = 60  # of all of them together
TRIES = 10  # on a busy machine all may be written before the kill


def started() -> dict[str, Any]:
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {"kind": "start", "python": vllm_python(), "flags": ["--enforce-eager"], "environment": environment}


# ---- LoRA, on a server that is there ----


def test_lora_learns_as_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path, "lora")
    local = run_here(write_recipe(tmp_path / "local.yaml", {**settings, "output": str(tmp_path / "local")}))
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    flags = ("--enable-lora", "--max-lora-rank", "32")
    with vllm_server(vllm_python(), settings["student"]["model"], tmp_path / "log", *flags) as url:
        served = changed(settings, {"rollout.kind": "vllm", "rollout.server": url})
        path = write_recipe(tmp_path / "served.yaml", served)
        assert f"{url.removesuffix('/v1')} follows the student; its log-probabilities are" in checked(path)
        run = run_here(path)
    agrees(run, local)
    assert not list((run / "engine").iterdir())


# ---- all weights, on a server that the run starts ----


def test_full_tuning_learns_as_in_process(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "full")
    local = run_here(write_recipe(tmp_path / "local.yaml", {**settings, "output": str(tmp_path / "local")}))
    served = changed(settings, {"rollout.kind": "vllm", "rollout.server": started()})
    run = run_here(write_recipe(tmp_path / "served.yaml", served))
    agrees(run, local)


# ---- and dies ----


@pytest.fixture
def student(tmp_path: Path) -> Student:
    path = save_base(tmp_path / "student")
    config = recipe.Student.model_validate({"model": path})
    return load_student(config, model_path=path, seed=0, chunk_bytes=10**6, device=torch.device("cpu"))


@pytest.fixture
def generator(student: Student, tmp_path: Path) -> Iterator[VllmGenerator]:
    rollouts = VllmRollouts.model_validate({"kind": "vllm", "server": started()})
    found = open_vllm(
        rollouts, student, tokens=CONTEXT, folder=tmp_path / "run", access=Access(Guard()), world=World(0, 1), say=print
    )
    yield found
    found.close()


class Killer(threading.Thread):
    """Kills the server once so many tokens are on disk; `left`: what was there when it was dead."""

    def __init__(self, generator: VllmGenerator, log: Path) -> None:
        super().__init__(daemon=True)
        self.generator, self.log, self.left = generator, log, dict[str, list[int]]()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.001):
            written = list(read_lines(self.log))
            process = self.generator.engine.process
            if len(written) < KILLED_AFTER or process is None or process._process is None:
                continue
            os.killpg(process._process.pid, signal.SIGKILL)
            for line in written:
                self.left.setdefault(line["id"], []).extend(line["ids"])
            return


def test_killed_in_the_middle_it_goes_on_from_its_tokens(
    student: Student, generator: VllmGenerator, tmp_path: Path
) -> None:
    prompts = [Prompt(f"p{n}", "s", "d", RawText(f"What is {n}? ")) for n in range(4)]
    asked = [(prompt, tuple(student.lm.tokenizer.encode(prompt.conversation.text))) for prompt in prompts]  # type: ignore[union-attr]
    settings = SamplingSettings(max_new_tokens=WRITTEN, rows=4)
    with torch.no_grad():
        student.lm.model.get_input_embeddings().weight[: student.lm.vocab_size] *= 1.5  # not what it was loaded from
    for step in range(7, 7 + TRIES):  # where the server was done before it could be killed, the next step is
        killer = Killer(generator, generator.drafts / f"step-{step:06d}-3-0.jsonl")
        killer.start()
        try:
            rollouts = generator.generate(asked, settings, seed=3, step=step, policy_version=6)
        finally:
            killer.over.set()
            killer.join()
        if generator.continued:
            break
    else:
        pytest.fail(f"it was killed too late {TRIES} times: nothing was left to write")
    assert generator.engine.process is not None
    times = generator.engine.process.started
    assert times > 1
    assert sum(map(len, killer.left.values())) >= KILLED_AFTER
    for rollout in rollouts:
        before = tuple(killer.left.get(rollout.rollout_id, ()))
        assert rollout.completion_ids[: len(before)] == before
        assert rollout.policy_versions == (6,) * len(rollout.completion_ids)
        # Its weights are the student's again, not those that it was first started with.
        assert rollout.sampling_logprobs == pytest.approx(scored(student, rollout), abs=SAME)
    assert any(0 < len(tokens) < WRITTEN for tokens in killer.left.values())

    # The next version reaches the same server, its head too, which a tied model shares with the embedding.
    with torch.no_grad():
        student.lm.model.get_input_embeddings().weight[: student.lm.vocab_size] *= 0.5
    short = SamplingSettings(max_new_tokens=10, rows=4)
    for rollout in generator.generate(asked, short, seed=3, step=step + 1, policy_version=7):
        assert rollout.sampling_logprobs == pytest.approx(scored(student, rollout), abs=SAME)
    assert generator.engine.process.started == times
