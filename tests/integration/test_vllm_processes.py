"""Two training processes with one server that writes: each draws its share, of the right weights, and they learn as one
process does; so does a student in shards, whose weights reach the server whole.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import read_lines
from tests.integration.test_sharding import IN_SHARDS, torchrun
from tests.integration.test_two_processes import torchrun as tutelage_in_two
from tests.runs import changed, distill_settings, run_here, write_recipe
from tests.servers.engine import EngineServer

STEPS, ROWS = 3, 7  # an odd number: the processes have different numbers of rows
TUNES = ("lora", "full")
CHANGES = {
    "rollout": {"kind": "vllm", "max_new_tokens": 6, "rows": 4},
    "training.steps": STEPS,
    "training.prompts_per_step": ROWS,
}
NAMES = {"one": [], "two": [], "shards": IN_SHARDS}


class Runs:
    """One process, two, and two with the student in shards, by servers of their own: of LoRA and of all weights."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.salts = folder, dict[tuple[str, str], Counter[str]]()
        together: list[list[str]] = []
        with ExitStack() as stack:
            servers: dict[tuple[str, str], EngineServer] = {}
            for tune in TUNES:
                settings = distill_settings(folder / tune)
                for name, more in NAMES.items():
                    server = stack.enter_context(EngineServer(settings["student"]["model"]))
                    servers[tune, name] = server
                    told = {"student.tune": tune, "output": str(folder / tune / name), "rollout.server": server.url}
                    recipe = write_recipe(folder / f"{tune}-{name}.yaml", changed(settings, CHANGES | told))
                    if name == "one":
                        run_here(recipe)
                    else:
                        together.append([str(recipe), *more])
            torchrun(2, together, folder)
            for key, server in servers.items():
                self.salts[key] = Counter(body["cache_salt"] for body in server.asked)

    def metrics(self, tune: str, name: str) -> list[dict[str, Any]]:
        return list(read_lines(self.folder / tune / name / "metrics.jsonl"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["two", "shards"])
@pytest.mark.parametrize("tune", TUNES)
def test_they_learn_as_one_process(runs: Runs, tune: str, name: str) -> None:
    timings = list(read_lines(runs.folder / tune / name / "timings.jsonl"))
    assert {line["processes"] for line in timings} == {2}
    assert all(("shards" in line) == (name == "shards") for line in timings)
    single, double = runs.metrics(tune, "one"), runs.metrics(tune, name)
    assert len(single) == len(double) == STEPS
    for ours, theirs in zip(double, single, strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["mismatch"]["largest"] < 1e-4  # the weights of each step are those that wrote it
    assert single[0]["loss"] != pytest.approx(single[-1]["loss"], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tune", TUNES)
def test_every_version_is_asked_for_once_by_each_row(runs: Runs, tune: str, name: str) -> None:
    salts = runs.salts[tune, name]
    assert sorted(salt[-6:] for salt in salts) == [f"{step:06d}" for step in range(STEPS)]
    assert set(salts.values()) == {ROWS + 1}  # a sentence that the server is tried with
    assert len({salt[:-6] for salt in salts}) == 1  # all processes call them the same


@pytest.mark.timeout(400)
def test_the_engine_inside_is_refused_for_a_student_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before anything is loaded. There has to be something by vLLM's name to come so far."""
    (tmp_path / "vllm.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = changed(distill_settings(tmp_path), {"rollout": {"kind": "vllm", "server": "inside"}})
    with pytest.raises(AssertionError) as refused:
        tutelage_in_two(write_recipe(tmp_path / "recipe.yaml", settings), *IN_SHARDS)
    assert "rollout.server: inside has the whole model in every process, and the student is in shards" in str(
        refused.value
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
