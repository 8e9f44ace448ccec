"""A step between its drawing and its update: who writes it, who is asked again, what is remembered of failures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from pipeline import manifest
from pipeline.display import Display
from pipeline.errors import RunError
from pipeline.flights import Flights, launch, settle
from pipeline.job import Job, build_loop, load_parts
from pipeline.loop import Loop, State
from pipeline.mixing import MixState
from pipeline.ranks import world_of
from pipeline.recipe_file import load_recipe
from pipeline.sharding import make_accelerator
from pipeline.student_state import load_trainable_state, trainable_state
from pipeline.trainer import advance, draw_prompts
from tests.runs import Settings, changed, distill_settings, write_recipe
from tests.servers.chat_server import ChatServer, Manners, Plan
from tests.servers.faults import Fault

STEPS = 4
ONCE = {"timeout": 100, "deadline": 100, "retries": 0, "breaker": 1000}


@contextmanager
def loop_of(folder: Path, settings: Settings) -> Iterator[Loop]:
    """The loop of a recipe, as a run has it."""
    loaded = load_recipe(write_recipe(folder / "recipe.yaml", settings))
    loaded.output.mkdir(exist_ok=True)
    accelerator = make_accelerator(loaded.recipe)
    job = Job(loaded, loaded.output, {}, accelerator, world_of(accelerator), Display(Console(quiet=True)))
    parts = load_parts(job)
    try:
        yield build_loop(job, parts)
    finally:
        parts.pool.close()
        parts.desk.close()


# ---- who writes ----


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_student_writes_in_the_precision_that_it_trains_in(tmp_path: Path, precision: str) -> None:
    settings = changed(distill_settings(tmp_path), {"training.mixed_precision": precision})
    with loop_of(tmp_path, settings) as loop:
        prompts, _ = draw_prompts(loop, MixState())
        (rollout, *_) = loop.write(prompts, 1)
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        start, size = len(rollout.prompt_ids), loop.student.lm.vocab_size
        with torch.inference_mode():
            exact = loop.student.lm.model(input_ids=ids).logits[0, start - 1 : -1, :size].log_softmax(-1)
    off = (exact.gather(-1, ids[0, start:, None])[:, 0] - torch.tensor(rollout.model_logprobs)).abs().max()
    assert (off > 1e-4) == (precision == "bf16")
    assert off < 0.1


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_step_is_written_by_the_weights_that_the_rule_names(tmp_path: Path, staleness: int) -> None:
    """Step n by the weights after n - 1 - staleness updates: what they write again is what was recorded."""
    settings = changed(
        distill_settings(tmp_path), {"pool": {"staleness": staleness}, "training": {"steps": STEPS, "warmup_steps": 0}}
    )
    settings["training"] |= {"prompts_per_step": 4, "learning_rate": 1e-2}
    with loop_of(tmp_path, settings) as loop:
        state, flights, weights = State(0, MixState()), Flights(), [trainable_state(loop.student)]
        drawn: dict[int, tuple[str, ...]] = {}
        under_way = []
        for step in range(1, STEPS + 1):
            state = advance(loop, state, flights)
            weights.append(trainable_state(loop.student))
            drawn |= {step + 1 + place: ids for place, ids in enumerate(state.ahead)}
            under_way.append(sorted(flights))
        ahead = [range(step + 1, min(step + staleness, STEPS) + 1) for step in range(1, STEPS + 1)]
        assert under_way == list(map(list, ahead))
        written = 0
        for step in range(1, STEPS + 1):
            version = max(0, step - 1 - staleness)
            ids = drawn.get(step) or tuple(_prompts_of(loop, step))
            recorded = manifest.load_rollouts(loop.folder / "journal", step, [loop.prompt_of[name] for name in ids])
            assert recorded is not None
            assert {token for rollout in recorded for token in rollout.policy_versions} == {version}
            load_trainable_state(loop.student, weights[version])
            prompts = list({rollout.prompt.prompt_id: rollout.prompt for rollout in recorded}.values())
            again = loop.write(prompts, step, version=version)
            assert [r.completion_ids for r in again] == [r.completion_ids for r in recorded]
            assert [r.sampling_logprobs for r in again] == [r.sampling_logprobs for r in recorded]
            written += len(recorded)
        assert written == STEPS * 4
        first, last = weights[0], weights[-1]
        assert any(not torch.equal(first[name], last[name]) for name in first)


def _prompts_of(loop: Loop, step: int) -> list[str]:
    mix = MixState()
    for _ in range(step):
        prompts, mix = draw_prompts(loop, mix)
    return [prompt.prompt_id for prompt in prompts]


# ---- waiting ----


def test_a_long_wait_says_how_it_goes(tmp_path: Path) -> None:
    with ChatServer(Manners(slow_seconds=3000), plan=Plan(1.0, 0, (Fault.SLOW,))) as server:

        class Reader(io.StringIO):
            def write(self, text: str) -> int:
                if "with the teachers" in text and "asked 4" in text:
                    server.stopping.set()  # all answers leave now
                return super().write(text)

        settings = changed(critic_settings(tmp_path, server), {"teachers.critic.limits.timeout": 3000})
        settings["teachers"]["critic"]["limits"]["deadline"] = 3000
        said = Reader()
        with loop_of(tmp_path, settings) as quiet:
            loop = replace(quiet, display=Display(Console(file=said, width=200)))
            settled, waited = settle(loop, take_off(loop), told_every=0.01)
    assert all(found.shares for found in settled.values())
    assert waited > 0
    assert "step 1, with the teachers:  dollars 0  asked 4  queued 0  failed 0" in said.getvalue()


# ---- too few answers ----


def critic_settings(folder: Path, server: ChatServer, **pool: Any) -> Settings:
    """One chat teacher alone, four rows a step, each asked about once and without another try."""
    critic = {"kind": "chat", "model": server.manners.model, "url": server.url, "limits": ONCE}
    changes = {
        "teachers": {"critic": critic},
        "routing": "all",
        "pool": pool,
        "objective.grades.baseline": "running",
        "training.prompts_per_step": 4,
    }
    return changed(distill_settings(folder), changes)


def take_off(loop: Loop) -> Any:
    prompts, _ = draw_prompts(loop, MixState())
    return launch(loop, 1, 0, prompts)


def questions(server: ChatServer) -> int:
    return sum(request.path.endswith("completions") for request in server.requests)


def test_below_the_quorum_a_step_waits_and_asks_only_what_was_not_answered(tmp_path: Path) -> None:
    with ChatServer() as server:
        server.misbehave(Fault.ERROR_503, None, Fault.ERROR_503, None)
        settings = critic_settings(tmp_path, server, quorum=0.75, below_quorum="wait")
        with loop_of(tmp_path, settings) as loop:
            settled, _ = settle(loop, take_off(loop), rest=0.01)
            assert all(dict(found.shares) == {"critic": 1.0} for found in settled.values())
            assert manifest.load_failures(loop.folder / "journal", 1) == {}
        assert questions(server) == 4 + 2
        assert max(server.answered.values()) == 1


def test_below_the_quorum_a_run_stops_in_one_line_and_forgets_the_failures(tmp_path: Path) -> None:
    with ChatServer() as server:
        server.misbehave(Fault.ERROR_503, None, Fault.ERROR_503, None)
        with loop_of(tmp_path, critic_settings(tmp_path, server, quorum=0.75)) as loop:
            with pytest.raises(
                RunError, match=r"step 1: only 2 of 4 .*critic: unavailable \(2\).*quorum is 75%"
            ) as said:
                settle(loop, take_off(loop))
            assert "\n" not in str(said.value)
            settled, _ = settle(loop, take_off(loop))  # as a resumed run does
            assert all(found.shares for found in settled.values())
        assert questions(server) == 4 + 2


@pytest.mark.parametrize("quorum", [0.0, 0.5])
def test_a_step_that_nobody_answered_is_not_recorded_as_one_that_never_can_be(tmp_path: Path, quorum: float) -> None:
    with ChatServer() as server:
        server.misbehave(*[Fault.ERROR_503] * 4)
        with loop_of(tmp_path, critic_settings(tmp_path, server, quorum=quorum)) as loop:
            with pytest.raises(RunError, match=r"only 0 of 4 rows were answered"):
                settle(loop, take_off(loop))
            settled, _ = settle(loop, take_off(loop))
            assert all(found.shares for found in settled.values())


def test_failures_of_a_settled_step_stay_when_it_is_replayed(tmp_path: Path) -> None:
    with ChatServer() as server:
        server.misbehave(None, Fault.ERROR_503, None, None)
        with loop_of(tmp_path, critic_settings(tmp_path, server, quorum=0.5)) as loop:
            first, _ = settle(loop, take_off(loop))
            again, _ = settle(loop, take_off(loop))
        assert questions(server) == 4
    assert sum(not found.shares for found in first.values()) == 1
    for name, found in first.items():
        assert again[name].shares == found.shares
        assert type(again[name].results["critic"]) is type(found.results["critic"])


@pytest.mark.parametrize(
    ("fault", "said"), [(Fault.OTHER_MODEL, r"it answered as .*-next.*pool\.model_change=go_on and --resume")]
)
def test_what_ends_a_run_ends_it_before_it_is_recorded(tmp_path: Path, fault: Fault, said: str) -> None:
    with ChatServer() as server:
        server.misbehave(None, None, None, fault)
        with loop_of(tmp_path, critic_settings(tmp_path, server)) as loop:
            with pytest.raises(RunError, match=said):
                settle(loop, take_off(loop))
            assert manifest.load_failures(loop.folder / "journal", 1) == {}
