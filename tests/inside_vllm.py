"""vLLM inside the process, for real: `integration/test_vllm_inside.py` has pytest run this file where vLLM is."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import manifest, recipe
from pipeline.errors import RunError
from pipeline.files import read_lines
from pipeline.ranks import World
from pipeline.recipe_rollouts import EngineInside
from pipeline.rollout.inside import InsideGenerator
from pipeline.rollout.inside_open import open_inside
from pipeline.rollout.protocol import SamplingSettings
from pipeline.student import Student, load_student
from pipeline.types import Prompt, Rollout
from teachers.types import RawText
from tests.exported import save_base
from tests.following import SAME, agrees, checked, lines_of, scored, settings_of
from tests.integration.test_two_processes import torchrun
from tests.runs import Settings, changed, command, environment, run_here, write_recipe

INSIDE = {"kind": "inside", "memory": 0.005, "options": {"enforce_eager": True}}
BY_VLLM = {"rollout.kind": "vllm", "rollout.server": INSIDE}
WRITTEN = 150  # tokens of each completion that is cut off
KILLED_AFTER = 60  # of all of them together
DRAFTS = "journal/drafts/step-000001-0-0.jsonl"
TRIES = 5  # on a busy machine all may be written before the kill


# ---- a generator ----


def student_of(folder: Path, tune: str) -> Student:
    path = save_base(folder / "student")
    config = recipe.Student.model_validate({"model": path, "tune": tune})
    student = load_student(config, model_path=path, seed=0, chunk_bytes=10**6, device=torch.device("cpu"))
    learn(student, 0)
    return student


def learn(student: Student, seed: int) -> None:
    """An update that changes every log-probability."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.trained_parameters().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws)


def asked(student: Student, count: int = 3) -> list[tuple[Prompt, tuple[int, ...]]]:
    texts = [f"What is {n}? " for n in range(count)]
    return [
        (Prompt(f"p{n}", "s", "d", RawText(text)), tuple(student.lm.tokenizer.encode(text)))
        for n, text in enumerate(texts)
    ]


def state_of_process() -> tuple[Any, ...]:
    """What belongs to the whole process and is the run's."""
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.set_num_threads,
        torch.get_default_dtype(),
        {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
    )


@pytest.fixture(params=["lora", "full"])
def generator(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InsideGenerator]:
    student = student_of(tmp_path, request.param)
    server = EngineInside.model_validate(INSIDE)
    found = open_inside(server, student, rows=4, tokens=256, folder=tmp_path / "run", world=World(0, 1))
    yield found
    found.close()


def generate(generator: InsideGenerator, settings: SamplingSettings, **more: Any) -> list[Rollout]:
    """Anew: what was written before in this step is forgotten."""
    shutil.rmtree(generator.drafts, ignore_errors=True)
    given: dict[str, Any] = {"seed": 3, "step": 5, "policy_version": 4} | more
    return generator.generate(asked(generator.student), settings, **given)


def test_tokens_and_their_probabilities(generator: InsideGenerator, tmp_path: Path) -> None:
    """Those of the student as it is, of each version, at any temperature; ends, stops, and what belongs to the run."""
    student, before, seen = generator.student, state_of_process(), list[str]()
    settings = SamplingSettings(max_new_tokens=24, samples_per_prompt=2, rows=4)
    rollouts = generate(generator, settings, on_finished=lambda found: seen.extend(each.rollout_id for each in found))
    assert [rollout.rollout_id for rollout in rollouts] == [f"p{n}/{sample}" for n in range(3) for sample in range(2)]
    assert sorted(seen) == [rollout.rollout_id for rollout in rollouts]
    assert state_of_process() == before
    assert generator.apart < SAME
    for rollout in rollouts:
        assert rollout.policy_versions == (4,) * len(rollout.completion_ids)
        assert rollout.model_logprobs == rollout.sampling_logprobs == pytest.approx(scored(student, rollout), abs=SAME)
        assert len(rollout.completion_ids) == 24 or rollout.finish_reason == "end"
    ids = [rollout.completion_ids for rollout in rollouts]
    assert ids[0] != ids[1]  # a prompt's samples differ
    assert [rollout.completion_ids for rollout in generate(generator, settings)] == ids
    assert [rollout.completion_ids for rollout in generate(generator, settings, step=6)] != ids

    # The next version, also where the head shares the embedding's weights, and nothing of the old one's cache.
    learn(student, 1)
    later = generate(generator, settings, policy_version=5)
    for rollout in later:
        assert rollout.sampling_logprobs == pytest.approx(scored(student, rollout), abs=SAME)
        assert rollout.policy_versions == (5,) * len(rollout.completion_ids)

    cool = SamplingSettings(max_new_tokens=8, temperature=0.7, top_k=5, rows=4)
    for rollout in generate(generator, cool, step=7, policy_version=5):
        assert rollout.model_logprobs == ()
        assert sum(rollout.sampling_logprobs) > sum(scored(student, rollout))  # of five entries, and cooler

    # Between rollouts it sleeps, and wakes with the weights. On a CPU that gives nothing back, in the same order.
    generator.engine.sleeps = True
    for version in (5, 5, 6):
        again = generate(generator, settings, policy_version=version)
        assert [rollout.completion_ids for rollout in again] == [rollout.completion_ids for rollout in later]
        assert generator.engine.has is None or generator.engine.following == "adapter"

    texts = [student.lm.tokenizer.decode([token]) for token in later[0].completion_ids[2:20]]
    word = next(text for text in texts if text.strip().isalnum())
    stopped = SamplingSettings(max_new_tokens=24, samples_per_prompt=2, rows=4, stop=(word,))
    (cut,) = [rollout for rollout in generate(generator, stopped, policy_version=5) if rollout.rollout_id == "p0/0"]
    assert cut.finish_reason == "stop"
    assert cut.completion_ids == later[0].completion_ids[: len(cut.completion_ids)]
    assert word in student.lm.tokenizer.decode(cut.completion_ids)
    assert not list((tmp_path / "run" / "engine").rglob("*.safetensors"))


def test_what_vllm_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    student = student_of(tmp_path, "full")
    server = EngineInside.model_validate({**INSIDE, "options": {"no_such_option": 1}})
    generator = open_inside(server, student, rows=4, tokens=256, folder=tmp_path / "run", world=World(0, 1))
    with pytest.raises(RunError, match=r"rollout.server: vLLM does not start in this process: .*no_such_option.*; see"):
        generate(generator, SamplingSettings(max_new_tokens=4))
    assert not torch.distributed.is_initialized()


# ---- runs ----


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_learns_as_in_process(tmp_path: Path, tune: str) -> None:
    settings = settings_of(tmp_path, tune)
    local = run_here(write_recipe(tmp_path / "local.yaml", {**settings, "output": str(tmp_path / "local")}))
    path = write_recipe(tmp_path / "inside.yaml", changed(settings, BY_VLLM))
    if tune == "lora":
        assert "vLLM in this process follows the student; its log-probabilities are" in checked(path)
    run = run_here(path)
    agrees(run, local)
    assert not torch.distributed.is_initialized()


def cut_off(folder: Path, settings: Settings) -> Path:
    """The recipe of a run that was killed while vLLM wrote."""
    for attempt in range(TRIES):
        run = folder / f"run-{attempt}"
        path = write_recipe(folder / f"{attempt}.yaml", changed(settings, {"output": str(run)}))
        with (folder / "words").open("w") as words:
            process = subprocess.Popen(command("run", str(path)), env=environment(), stdout=words, stderr=words)
        drafts = run / DRAFTS
        while process.poll() is None and (not drafts.exists() or drafts.read_bytes().count(b"\n") < KILLED_AFTER):
            time.sleep(0.002)  # between two looks
        process.kill()
        process.wait()
        assert drafts.exists(), (folder / "words").read_text()[-2000:]
        if not (run / "journal" / "step-000001.jsonl").exists():
            return path
    pytest.fail(f"it was killed too late {TRIES} times: all was written")


def test_killed_it_goes_on_from_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that nobody drew is put at the end of each draft: who writes it anew does not come by it."""
    changes = {**BY_VLLM, "rollout.max_new_tokens": WRITTEN, "rollout.rows": 4, "training.steps": 1}
    changes |= {"training.prompts_per_step": 4, "training.tokens_per_forward": 3000, "data.max_prompt_tokens": 100}
    path = cut_off(tmp_path, changed(settings_of(tmp_path, "full"), changes))
    drafts = path.with_name(f"run-{path.stem}") / DRAFTS
    lines = list(read_lines(drafts))
    had: dict[str, list[int]] = {}
    for line in lines:
        had.setdefault(line["id"], []).extend(line["ids"])
    last = {line["id"]: line for line in lines}
    for name, line in last.items():
        if len(had[name]) < WRITTEN:
            line["ids"] = had[name][-1:] = [10 + (line["ids"][0] + 1) % 50]
    drafts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept: list[Rollout] = []
    save = manifest.save_rollouts

    def saved(folder: Path, step: int, rollouts: list[Rollout]) -> None:
        kept.extend(rollouts)
        save(folder, step, rollouts)

    monkeypatch.setattr(manifest, "save_rollouts", saved)
    run = run_here(path, resume=True)
    assert sum(map(len, had.values())) >= KILLED_AFTER
    assert any(len(tokens) < WRITTEN for tokens in had.values())
    assert len(kept) == 4
    for rollout in kept:
        tokens = tuple(had.get(rollout.rollout_id, ()))
        assert rollout.completion_ids[: len(tokens)] == tokens
        assert rollout.policy_versions == (0,) * len(rollout.completion_ids)
    assert [line["step"] for line in lines_of(run)] == [1]


@pytest.mark.timeout(600)
def test_two_processes_each_with_its_own(tmp_path: Path) -> None:
    """What is drawn hangs on the seed and the prompt, so two processes learn as one; an engine that ends leaves the
    run's process group alone."""
    changes = {**BY_VLLM, "training.steps": 3, "training.prompts_per_step": 7, "training.tokens_per_forward": 200}
    settings = changed(settings_of(tmp_path, "lora"), changes)
    one = run_here(write_recipe(tmp_path / "one.yaml", {**settings, "output": str(tmp_path / "one")}))
    torchrun(write_recipe(tmp_path / "two.yaml", {**settings, "output": str(tmp_path / "two")}))
    assert {line["processes"] for line in read_lines(tmp_path / "two" / "timings.jsonl")} == {2}
    for single, double in zip(lines_of(one), lines_of(tmp_path / "two"), strict=True):
        assert double["tokens"] == single["tokens"]
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-4)
        assert double["mismatch"]["largest"] < SAME
    assert (tmp_path / "two" / "engine-1.log").exists()
