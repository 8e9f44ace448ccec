"""Rows that train before the last answer is there: the same gradient, and the same bits whenever answers come."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import early, trainer
from pipeline.early import early_of, early_parts
from pipeline.errors import RunError
from pipeline.files import read_lines
from pipeline.flights import Flights
from pipeline.judgments import Baselines
from pipeline.loop import State
from pipeline.mixing import MixState
from pipeline.ranks import T, World
from pipeline.student_state import trainable_state
from pipeline.trainer import advance
from pipeline.types import Rollout
from teachers.journal import FILE
from tests.integration.test_two_processes import torchrun
from tests.mixed import scored_model
from tests.runs import Settings, changed, distill_settings, run_here, write_recipe
from tests.servers.chat_server import ChatServer, Request
from tests.servers.faults import Fault
from tests.servers.scorer import scorer_of
from tests.unit.test_flights import loop_of

PATIENT = {"timeout": 60, "deadline": 120, "retries": 0, "breaker": 100_000, "concurrency": 32}
SAME = ("metrics.jsonl", "samples.jsonl", "provenance.jsonl", "model/model.safetensors")


def digit(request: Request) -> int:
    return sha256(request.content.encode()).digest()[0]


class Moody(ChatServer):
    """Refuses to answer every third question, the same whenever it is asked, and is late by up to `latest` seconds."""

    latest = 0.0

    def answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        threading.Event().wait(self.latest * digit(request) / 255)
        return (404, {"error": {"message": "not this one"}}) if digit(request) % 3 == 0 else super().answer(request)


def settings_for(folder: Path, served: ChatServer, critic: ChatServer, **changes: Any) -> Settings:
    """One domain for a model in this process, one for a server, one for a server and a grader that rewrites."""
    settings = distill_settings(folder)
    far = {"kind": "served", "url": served.url, "model": served.manners.model, "top_k": 5, "limits": PATIENT}
    grader = {"kind": "chat", "url": critic.url, "model": critic.manners.model, "limits": PATIENT}
    table = {"addition": "near", "sorting": "far", "walking": {"far": 1, "critic": 2}}
    return changed(
        settings,
        {
            "teachers": {"near": settings["teachers"]["addition"], "far": far, "critic": grader},
            "routing": {"table": table},
            "data.sources.walking": {"kind": "tasks", "task": "walking", "count": 30},
            "rollout.samples_per_prompt": 2,
            "rollout.max_new_tokens": 24,
            "training.prompts_per_step": 9,
            "training.clip_norm": 1e9,
            "objective": {"reference": 0.3},
            "pool.quorum": 0.2,
            **changes,
        },
    )


def step_of(folder: Path, settings: Settings) -> tuple[dict[str, Any], dict[str, Tensor], float]:
    """The first step's metrics, the gradient that the optimizer was given, and the seconds of early forwards."""
    found: dict[str, Tensor] = {}
    with loop_of(folder, changed(settings, {"output": str(folder / "run")})) as loop:
        names = loop.student.trained_parameters()
        step = loop.optimizer.step

        def watched(*given: Any) -> None:
            found.update({name: p.grad.detach().clone() for name, p in names.items() if p.grad is not None})
            step(*given)

        loop.optimizer.step = watched  # type: ignore[method-assign]
        advance(loop, State(0, MixState()), Flights())
        (line,), (timing,) = (list(read_lines(loop.folder / f"{name}.jsonl")) for name in ("metrics", "timings"))
    return line, found, timing["seconds"]["early"]


@pytest.mark.parametrize(("average", "anchor"), [("trajectory", 0.0), ("token", 0.0), ("trajectory", 0.1)])
def test_the_gradient_is_that_of_a_step_that_waits_for_all(
    tmp_path: Path, average: str, anchor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some rows nobody answers about, so that the weights of the others are larger than was thought; with an anchor
    these are taught all the same."""
    with Moody(scorer=scorer_of(scored_model(tmp_path))) as served, ChatServer() as critic:
        settings = settings_for(tmp_path, served, critic, **{"objective.average": average, "objective.anchor": anchor})
        line, gradient, seconds = step_of(tmp_path / "early", settings)
        monkeypatch.setattr(early, "early_parts", lambda *_, **__: [])
        expected, plain, none = step_of(tmp_path / "plain", settings)
    assert 0 < line["unanswered"] < line["rows"]
    assert line["rewrites"]["critic"]["used"] > 0
    assert (seconds > 0, none) == (True, 0.0)
    assert gradient.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-3, atol=1e-6 * float(line["grad_norm"]))
    assert flat(line) == pytest.approx(flat(expected), rel=1e-4, abs=1e-7)


def flat(value: Any, path: str = "") -> dict[str, float]:
    """By dotted key, but for the overlap and sharpness, of which each forward measures a sample."""
    if path in (".overlap", ".sharpness"):
        return {}
    if isinstance(value, Mapping):
        return {name: number for key, entry in value.items() for name, number in flat(entry, f"{path}.{key}").items()}
    return {path: value}


def test_the_bits_do_not_hang_on_when_answers_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, late and in another order, from the journal, and in a run that was stopped before an update."""
    with Moody(scorer=scorer_of(scored_model(tmp_path))) as served, Moody() as critic:

        def start(name: str, *, resume: bool = False, **changes: Any) -> Path:
            settings = settings_for(tmp_path, served, critic, **{"output": str(tmp_path / name), **changes})
            return run_here(write_recipe(tmp_path / f"{name}.yaml", settings), resume=resume)

        at_once = start("at_once")
        asked = len(served.requests) + len(critic.requests)
        replayed = start("replayed", **{"pool.journal": str(at_once / FILE)})
        served.latest, critic.latest = 0.05, 0.02
        late = start("late")

        class Stop(BaseException):
            pass

        update = trainer.update

        def stop_in_the_third(loop: Any, rows: Any, step: int, *rest: Any) -> Any:
            if step == 3:
                raise Stop
            return update(loop, rows, step, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "update", stop_in_the_third)
            with pytest.raises(Stop):
                start("stopped")
        stopped = start("stopped", resume=True)
    assert asked > 0
    for other in (replayed, late, stopped):
        for name in SAME:
            assert (other / name).read_bytes() == (at_once / name).read_bytes(), (other.name, name)
    timings = [line["seconds"] for line in read_lines(late / "timings.jsonl")]
    assert all(seconds["early"] > 0 and seconds["waiting"] >= 0 for seconds in timings)


def test_nothing_has_changed_where_too_few_answer_and_a_second_asking_leaves_no_trace(tmp_path: Path) -> None:
    with ChatServer(scorer=scorer_of(scored_model(tmp_path))) as served, ChatServer() as critic:
        tune = {"kind": "lora", "dropout": 0.3}
        settings = settings_for(tmp_path, served, critic, **{"pool.quorum": 1.0, "student.tune": tune})
        _, expected, _ = step_of(tmp_path / "whole", settings)
        served.misbehave(*[Fault.ERROR_503] * 5)
        with loop_of(tmp_path / "stopped", changed(settings, {"output": str(tmp_path / "stopped/run")})) as loop:
            before = trainable_state(loop.student)
            with pytest.raises(RunError, match=r"pool\.quorum is 100%"):
                advance(loop, State(0, MixState()), Flights())
            after = trainable_state(loop.student)
            assert all(torch.equal(after[name], value) for name, value in before.items())
        served.misbehave(*[Fault.ERROR_503] * 5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.flights.time.sleep", lambda _: None)
            _, again, _ = step_of(tmp_path / "again", changed(settings, {"pool.below_quorum": "wait"}))
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Next to no rate keeps the weights, so that both are asked the same."""
    with Moody(scorer=scorer_of(scored_model(tmp_path))) as served, ChatServer() as critic:
        changes = {"training.learning_rate": 1e-12, "training.prompts_per_step": 7, "objective.reference": 0.0}
        settings = settings_for(tmp_path, served, critic, **changes)
        one = run_here(write_recipe(tmp_path / "one.yaml", changed(settings, {"output": str(tmp_path / "one")})))
        two = tmp_path / "two"
        torchrun(write_recipe(tmp_path / "two.yaml", changed(settings, {"output": str(two)})))
    assert {line["processes"] for line in read_lines(two / "timings.jsonl")} == {2}
    assert all(line["seconds"]["early"] > 0 for line in read_lines(two / "timings.jsonl"))
    for single, double in zip(read_lines(one / "metrics.jsonl"), read_lines(two / "metrics.jsonl"), strict=True):
        assert flat(double) == pytest.approx(flat(single), rel=1e-3, abs=1e-6)


# ---- by rule ----


def test_who_trains_early_and_in_what_order(tmp_path: Path) -> None:
    with ChatServer() as served, ChatServer() as critic:
        settings = settings_for(tmp_path, served, critic)
        with loop_of(tmp_path, settings) as loop:
            assert loop.asking is not None
            state = State(0, MixState())
            flights = Flights()
            trainer.take_off(loop, state, flights)
            rollouts = flights[1].mine
            parts = early_parts(loop.asking, rollouts, 200, graded=True)
            assert early_parts(loop.asking, rollouts[::-1], 200, graded=True) == parts
            without = early_parts(loop.asking, rollouts, 200, graded=False)
    domains = [{rollout.prompt.domain for rollout in part} for part in parts]
    assert all(len(names) == 1 for names in domains)
    names = [name for (name,) in domains]
    # Scored in this process; asked about; graded: the order of the letters, too.
    assert names == sorted(names)
    assert set(names) == {"addition", "sorting", "walking"}
    assert without == parts[: names.index("walking")]
    assert all(_padded(part) <= 200 for part in parts)
    assert any(len(part) > 2 for part in parts)
    for domain in ("sorting", "walking"):  # who was finished first is waited for first
        widths = [_width(part) for part, name in zip(parts, names, strict=True) if name == domain]
        assert widths == sorted(widths)
    assert sorted(_names(parts)) == sorted(rollout.rollout_id for rollout in rollouts)
    for part in parts[len(without) :]:
        prompts = {rollout.prompt.prompt_id for rollout in part}
        assert len(part) == 2 * len(prompts)


def test_samples_that_do_not_fit_in_a_forward_stay_together(tmp_path: Path) -> None:
    with (
        ChatServer() as served,
        ChatServer() as critic,
        loop_of(tmp_path, settings_for(tmp_path, served, critic)) as loop,
    ):
        assert loop.asking is not None
        flights = Flights()
        trainer.take_off(loop, State(0, MixState()), flights)
        parts = early_parts(loop.asking, flights[1].mine, 1, graded=True)
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes)
    assert set(sizes) == {1, 2}


class OneOfSeveral(World):
    """A process whose peers have nothing to say."""

    def gather(self, value: T) -> list[T]:
        return [value]


@pytest.mark.parametrize(
    ("baseline", "processes", "graded"), [("group", 1, True), ("running", 1, False), ("group", 2, False)]
)
def test_grades_wait_where_what_they_are_compared_with_is_not_here(
    tmp_path: Path, baseline: str, processes: int, graded: bool
) -> None:
    with ChatServer() as served, ChatServer() as critic:
        settings = settings_for(tmp_path, served, critic, **{"objective.grades": {"baseline": baseline}})
        with loop_of(tmp_path, settings) as loop:
            flights = Flights()
            trainer.take_off(loop, State(0, MixState()), flights)
            found = early_of(replace(loop, world=OneOfSeveral(0, processes)), flights[1], Baselines())
    domains = {rollout.prompt.domain for rollout in flights[1].mine if rollout.rollout_id in found.ids}
    assert domains == {"addition", "sorting", "walking"} - (set() if graded else {"walking"})


def _names(parts: Sequence[Sequence[Rollout]]) -> list[str]:
    return [rollout.rollout_id for part in parts for rollout in part]


def _padded(part: Sequence[Rollout]) -> int:
    return len(part) * _width(part)


def _width(part: Sequence[Rollout]) -> int:
    return max(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in part)
