"""Whole runs that go wrong: each guard's finding, and that a run which it acts upon ends better than one without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import assess, checkpoint, keeping, trainer
from pipeline.errors import RunError
from pipeline.files import read_json, read_lines
from pipeline.loop import Loop, State
from pipeline.refusals import Refusals
from tests.integration.test_resume import files_of
from tests.killing import kill_when, nursery
from tests.misbehaving import flat, longer, one_sided, repeating, too_fast
from tests.runs import DOMAINS, Settings, changed, distill_settings, run_here, write_recipe

QUIETLY = dict.fromkeys(("repetition", "kl", "gradient", "uniform"), "off")  # those that act but not_finite


def made(folder: Path, settings: Settings, name: str, guards: dict[str, Any]) -> Path:
    """A run with these guards and no other that acts."""
    wanted = changed(settings, {"output": str(folder / name), "guards": QUIETLY | guards})
    return run_here(write_recipe(folder / f"{name}.yaml", wanted))


def lines(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return list(read_lines(run / f"{name}.jsonl"))


def events(run: Path, what: str) -> list[dict[str, Any]]:
    return [line for line in lines(run, "events") if line["what"] == what]


def last(run: Path, name: str) -> float:
    """The mean over the domains at the last four steps."""
    rows = [line["kl"]["domain"] if name == "kl" else line[name] for line in lines(run)[-4:]]
    return sum(sum(row.values()) / len(row) for row in rows) / len(rows)


ROLLS_BACK: dict[str, Any] = {"repetition": "roll_back", "rate_factor": 0.3}
ALWAYS = {"threshold": 100}  # nats, of `uniform`: no teacher is so sure


def test_teachers_that_pull_to_repetition(tmp_path: Path) -> None:
    settings = repeating(tmp_path)
    without = made(tmp_path, settings, "without", {})
    guarded = made(tmp_path, settings, "guarded", ROLLS_BACK)
    assert last(without, "repetition") > 0.8
    assert last(guarded, "repetition") < 0.3
    backs = events(guarded, "rollback")
    assert [(each["name"], each["value"]) for each in backs] == [("repetition", 12.0), ("repetition", 8.0)]
    assert [line["step"] for line in lines(guarded)] == list(range(1, 17))
    assert {line.get("attempt") for line in lines(guarded)[8:]} == {2}
    lowered = ROLLS_BACK["rate_factor"] ** 2
    assert lines(guarded)[-1]["learning_rate"] == pytest.approx(lowered * settings["training"]["learning_rate"])
    assert lines(guarded)[:8] == lines(without)[:8]
    assert lines(guarded)[8]["kl"] != lines(without)[8]["kl"]  # fresh rollouts


def test_roll_backs_come_to_an_end(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^step \d+: \w+ finds all .* 2 roll-backs did not help; start") as said:
        made(tmp_path, repeating(tmp_path), "run", {"uniform": ALWAYS | {"action": "roll_back"}, "rollbacks": 2})
    assert "\n" not in str(said.value)
    backs = events(tmp_path / "run", "rollback")
    assert [each["attempt"] for each in backs] == [0, 1]


def test_a_teacher_of_uniform_logprobs_stops_the_run(tmp_path: Path) -> None:
    settings = flat(tmp_path)
    without = made(tmp_path, settings, "without", {})
    with pytest.raises(RunError, match=rf"^step 1: {DOMAINS[0]} finds all tokens equally good.*guards\.uniform=warn"):
        made(tmp_path, settings, "guarded", {"uniform": "stop"})
    (line,) = lines(tmp_path / "guarded")
    assert [(g["name"], g["subject"], g["action"]) for g in line["guards"]][:1] == [("uniform", DOMAINS[0], "stop")]
    assert line["kl"]["domain"][DOMAINS[1]] < 1e-6  # its student is what it was: at no distance from the good teacher
    assert lines(without)[-1]["kl"]["domain"][DOMAINS[1]] > 0.1
    recipe = tmp_path / "guarded.yaml"
    resumed = run_here(recipe, "guards.uniform=warn", resume=True)
    assert len(lines(resumed)) == 16


def test_a_learning_rate_that_is_much_too_high(tmp_path: Path) -> None:
    settings = too_fast(tmp_path)
    without = made(tmp_path, settings, "without", {})
    guarded = made(tmp_path, settings, "guarded", {"kl": "roll_back", "rate_factor": 0.01})
    assert any(each["name"] == "kl" for each in events(guarded, "guard"))
    assert last(guarded, "kl") < 0.7 * last(without, "kl")
    assert lines(guarded)[-1]["learning_rate"] < lines(without)[-1]["learning_rate"]


def test_a_domain_with_dominating_gradients_is_balanced(tmp_path: Path) -> None:
    settings = one_sided(tmp_path)
    without = made(tmp_path, settings, "without", {})
    guarded = made(tmp_path, settings, "guarded", {"gradient": 3})
    other = DOMAINS[1]
    assert lines(without)[-1]["gradient_share"][other] < 0.1 < lines(guarded)[-1]["gradient_share"][other]
    ends = [lines(run)[-1]["kl"]["domain"][other] for run in (guarded, without)]
    assert ends[0] < 0.6 * ends[1]
    assert lines(guarded)[-1]["balance"][other] > 1 > lines(guarded)[-1]["balance"][DOMAINS[0]]
    assert "balance" not in lines(without)[-1]


LASTING = {
    "balance": (one_sided, {"gradient": 3}),
    "lower_rate": (repeating, {"uniform": ALWAYS | {"action": "lower_rate"}}),
}


@pytest.mark.parametrize("action", LASTING)
def test_what_guards_have_changed_outlives_a_stop(tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, guards = LASTING[action]
    settings = build(tmp_path)
    whole = made(tmp_path, settings, "whole", guards)
    acted = [line["step"] for line in lines(whole) if any(g["action"] == action for g in line.get("guards", ()))]
    assert acted[0] <= 8, "it was done after the checkpoint that the stopped run goes on from"
    advance = trainer.advance

    def stopping(loop: Loop, state: State, flights: Any) -> State:
        if state.step == 10:
            raise Killed
        return advance(loop, state, flights)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "advance", stopping)
        with pytest.raises(Killed):
            made(tmp_path, settings, "stopped", guards)
    run_here(tmp_path / "stopped.yaml", resume=True)
    assert files_of(tmp_path / "stopped") == files_of(whole)


# ---- refusals ----


def test_nobody_is_asked_where_there_is_nothing_to_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([Refusals(0.0, 0.0, 20)])
    monkeypatch.setattr(assess, "count_refusals", lambda lm, rows: next(found))
    settings = distill_settings(tmp_path)
    assert "refusals" not in read_json(made(tmp_path, settings, "run", {}) / "evaluation.json")
    assert "refusals" not in read_json(made(tmp_path, settings, "off", {"refusals": "off"}) / "evaluation.json")


# ---- not finite ----


def poisoned(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A weight becomes NaN after `step`, at the first attempt."""
    advance = trainer.advance

    def poisoning(loop: Loop, state: State, flights: Any) -> State:
        reached = advance(loop, state, flights)
        if reached.step == step and reached.attempt == 0:
            with torch.no_grad():
                next(iter(loop.student.parameters()))[0, 0] = torch.nan
        return reached

    monkeypatch.setattr(trainer, "advance", poisoning)


@pytest.mark.parametrize("step", [2, 5, 8])  # before any checkpoint but the first; between two; where one is due
def test_a_weight_that_is_nan(tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = longer(tmp_path, **{"training.steps": 10})
    poisoned(monkeypatch, step)
    with pytest.raises(RunError, match="finite"):
        made(tmp_path, settings, "without", {"not_finite": "off"})
    run = made(tmp_path, settings, "guarded", {})
    assert [each["name"] for each in events(run, "rollback")] == ["not_finite"]
    assert events(run, "rollback")[0]["value"] == 4 * ((step - 1) // 4)
    assert read_json(run / "run.json")["status"] == "finished"
    assert len(lines(run)) == 10
    assert checkpoint.load(run / "checkpoints" / "step-000010").weights.keys()


# ---- killed ----


class Killed(BaseException):
    pass


def die(*_: object, **__: object) -> None:
    raise Killed


MOMENTS: dict[str, tuple[Any, str, bool]] = {
    "before it is decided where to": (keeping, "_goal", False),
    "before a newer checkpoint goes": (checkpoint, "discard", False),
    "after a newer checkpoint went": (checkpoint, "discard", True),
    "before the checkpoint tells of it": (checkpoint, "write_progress", False),
    "after the checkpoint tells of it": (checkpoint, "write_progress", True),
    "before the lines are cut back": (keeping, "cut_to", False),
    "after the lines are cut back": (keeping, "cut_to", True),
}


def test_stopped_at_any_place_of_a_roll_back_it_ends_the_same(tmp_path: Path) -> None:
    settings = repeating(tmp_path)
    expected = files_of(made(tmp_path, settings, "whole", ROLLS_BACK))
    for number, (moment, (module, name, after)) in enumerate(MOMENTS.items()):
        stopped = tmp_path / f"stopped-{number}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, _then_dying(getattr(module, name)) if after else die)
            with pytest.raises(Killed):
                made(tmp_path, settings, stopped.name, ROLLS_BACK)
        run_here(tmp_path / f"{stopped.name}.yaml", resume=True)
        assert files_of(stopped) == expected, moment
        whole = [line for line in lines(tmp_path / "whole", "events") if line["what"] == "guard"]
        assert events(stopped, "guard") == whole, moment


def _then_dying(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*given: Any, **named: Any) -> None:
        function(*given, **named)
        raise Killed

    return wrapped


def test_killed_around_a_roll_back_and_resumed(tmp_path: Path) -> None:
    settings = repeating(tmp_path)
    expected = files_of(made(tmp_path, settings, "whole", ROLLS_BACK))
    folder = tmp_path / "killed"
    recipe = write_recipe(tmp_path / "killed.yaml", changed(settings, {"guards": QUIETLY | ROLLS_BACK, "output": None}))

    def rolled_back(times: int) -> bool:
        file = folder / "events.jsonl"
        return file.exists() and file.read_text().count('"rollback"') >= times

    born = nursery()
    kill_when(born, recipe, folder, lambda: rolled_back(1))
    kill_when(born, recipe, folder, lambda: (folder / "journal" / "attempt-2").exists())
    run_here(recipe, f"output={folder}", resume=True)
    assert files_of(folder) == expected
