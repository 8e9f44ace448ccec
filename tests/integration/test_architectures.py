"""Every architecture that README names, as a student and as teachers: whole runs, held against plain transformers.

A run of three steps with a local teacher and an adapter, ended as it should be and once more stopped in its last step
and resumed. What it trained on, sampled and exported is compared with models that transformers and peft load alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline import trainer
from pipeline.files import read_lines
from pipeline.opened_run import moment_of, open_student
from pipeline.recorded import read_run
from pipeline.rollout.local import LocalGenerator
from pipeline.rollout.protocol import SamplingSettings
from pipeline.targets import Row
from pipeline.types import Prompt, Rollout
from teachers.types import FullVocab, RawText
from tests.models import ALL_ARCHITECTURES, Architecture, save_adapter
from tests.runs import DOMAINS, changed, distill_settings, run_here, write_recipe

TUNED = ("full", "lora")
SAME = ("metrics.jsonl", "samples.jsonl", "evaluation.json", "model/model.safetensors")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


class Stop(BaseException):
    """What ends a run as a kill does: nothing catches it."""


@dataclass(frozen=True)
class Ran:
    """A run that ended, one of the same recipe that was stopped in step 3 and resumed, the folders of student, local
    teacher and adapter, and the rows of step 1 with what the teachers said of them."""

    whole: Path
    stopped: Path
    student: str
    teacher: str
    adapter: str
    rows: Sequence[Row]


@pytest.fixture(scope="module", params=[(name, tune) for name in ALL_ARCHITECTURES for tune in TUNED], ids="-".join)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    architecture, tune = request.param
    return run_both(tmp_path_factory.mktemp(f"{architecture}-{tune}"), architecture, tune)


def run_both(folder: Path, architecture: Architecture, tune: str) -> Ran:
    settings = distill_settings(folder, architecture)
    student, local = settings["student"]["model"], settings["teachers"][DOMAINS[0]]
    adapter = save_adapter(folder / "adapter", student, seed=3)
    teachers = {
        DOMAINS[0]: local,
        DOMAINS[1]: {"kind": "adapter", "base": student, "adapter": adapter, "dtype": "float32"},
    }
    changes = {"student.tune": tune, "student.gradient_checkpointing": tune == "lora", "teachers": teachers}
    recipe = write_recipe(folder / "recipe.yaml", changed(settings, changes))
    seen: list[Sequence[Row]] = []
    whole = _watched(recipe, folder / "whole", seen)
    with pytest.raises(Stop):
        _watched(recipe, folder / "stopped", [], stop_at=3)
    run_here(recipe, f"output={folder / 'stopped'}", resume=True)
    return Ran(whole, folder / "stopped", student, local["model"], adapter, seen[0])


def _watched(recipe: Path, output: Path, seen: list[Sequence[Row]], stop_at: int | None = None) -> Path:
    """Runs the recipe and looks at the rows of each update; or stops when a step's rollouts are on the disk."""
    real = trainer.update

    def update(loop: Any, rows: Sequence[Row], step: int, *rest: Any) -> Any:
        if step == stop_at:
            raise Stop
        seen.append(rows)
        return real(loop, rows, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "update", update)
        return run_here(recipe, f"output={output}")


def type_of(ran: Ran) -> str:
    return str(AutoConfig.from_pretrained(ran.student).model_type)


def plain(folder: str | Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logprobs_of(model: torch.nn.Module, rollout: Rollout, size: int) -> Tensor:
    """(T, V) in float64, of the row alone, without a cache."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(rollout.prompt_ids) - 1 : -1, :size]
    return logits.double().log_softmax(-1)


def chosen(logprobs: Tensor, rollout: Rollout) -> Tensor:
    return logprobs.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]


def test_what_was_sampled_and_said_is_what_plain_models_say(ran: Ran) -> None:
    """Before the first update: the student's own log-probabilities, and each teacher's whole distribution."""
    student = plain(ran.student)
    teachers = {DOMAINS[0]: plain(ran.teacher), DOMAINS[1]: PeftModel.from_pretrained(plain(ran.student), ran.adapter)}
    rows = [row for row in ran.rows if row.rollout.completion_ids]
    assert {score.teacher for row in rows for score in row.scores} == set(DOMAINS)
    for row in rows:
        (score,) = row.scores
        assert isinstance(score.signal, FullVocab)
        head = score.signal.head
        said = head.logits(head.load(), score.signal.hidden).double().log_softmax(-1)
        torch.testing.assert_close(said, logprobs_of(teachers[score.teacher].eval(), row.rollout, head.size), **CLOSE)
        expected = chosen(logprobs_of(student, row.rollout, head.size), row.rollout)
        torch.testing.assert_close(torch.tensor(row.rollout.model_logprobs).double(), expected, **CLOSE)


def test_it_learns_and_a_stop_leaves_no_trace(ran: Ran) -> None:
    lines = list(read_lines(ran.whole / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["grad_norm"] > 0 and not line["failures"] for line in lines)
    before, after = (dict(plain(folder).state_dict()) for folder in (ran.student, ran.whole / "model"))
    changed_names = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed_names
    # LoRA stands on the experts of qwen3_moe; in the others it leaves them, and full tuning trains them in all.
    experts = {name for name in before if ".experts." in name}
    reached = not (ran.whole / "adapter").exists() or type_of(ran) == "qwen3_moe"
    assert bool(experts & changed_names) == (reached and bool(experts))
    for name in SAME:
        assert (ran.stopped / name).read_bytes() == (ran.whole / name).read_bytes(), name


def test_plain_transformers_answers_as_the_student(ran: Ran) -> None:
    """The exported model samples by none of our code: its logits are those that the student samples with."""
    recorded = read_run(ran.whole)
    lm = open_student(recorded, moment_of(recorded, None), torch.device("cpu")).lm
    prompts = [(Prompt(f"p{n}", "s", "d", RawText("")), tuple(range(10, 12 + 5 * n))) for n in range(3)]
    settings = SamplingSettings(max_new_tokens=10, rows=4, samples_per_prompt=2)
    models: Mapping[str, torch.nn.Module] = {"model": plain(ran.whole / "model")}
    if (ran.whole / "adapter").exists():
        adapted = PeftModel.from_pretrained(plain(ran.student), ran.whole / "adapter").eval()
        models = {**models, "adapter": adapted}
    for rollout in LocalGenerator(lm).generate(prompts, settings, seed=5, step=0, policy_version=0):
        for name, model in models.items():
            expected = chosen(logprobs_of(model, rollout, lm.vocab_size), rollout)
            found = torch.tensor(rollout.model_logprobs).double()
            torch.testing.assert_close(found, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
