"""`tutelage check` against live servers: what it prints, and what it refuses in one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from pipeline.cli import app
from tests.models import save_tiny
from tests.runs import DOMAINS, Settings, changed, distill_settings, write_recipe
from tests.servers import closed_port
from tests.servers.chat_server import ChatServer
from tests.servers.scoring_server import MODEL, Json, ScoringServer

PRICE = {"input": 1.0, "output": 2.0}


def scoring(folder: str, **fields: Any) -> ScoringServer:
    return ScoringServer(
        "vllm", AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), **fields
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return changed(distill_settings(tmp_path), {"routing": "all", "rollout.samples_per_prompt": 2})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ScoringServer]:
    with scoring(save_tiny(tmp_path / "served", seed=21)) as server:
        yield server


@pytest.fixture
def critic() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


def teacher(url: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "served", "url": url, "model": MODEL, "top_k": 5, "price": PRICE, **fields}


def check(folder: Path, settings: Settings, teachers: dict[str, Any], *options: str) -> Result:
    local = settings["teachers"][DOMAINS[0]]
    path = write_recipe(folder / "recipe.yaml", changed(settings, {"teachers": {"local": local, **teachers}}))
    return CliRunner().invoke(app, ["check", str(path), *options])


def rows(output: str, title: str) -> list[list[str]]:
    """The lines of a table that was printed, without its columns' names."""
    found = []
    for line in output.partition(f"\n{title}\n")[2].splitlines()[1:]:
        if not line.startswith("  "):
            break
        found.append(re.split(r" {2,}", line.strip()))
    return found


# ---- what is found ----


def test_a_table_of_what_teachers_can_do_and_what_the_run_may_take(
    tmp_path: Path, settings: Settings, served: ScoringServer, critic: ChatServer
) -> None:
    chat = {"kind": "chat", "url": critic.url, "model": "grader", "price": PRICE, "max_tokens": 100}
    result = check(tmp_path, settings, {"served": teacher(served.url), "critic": chat})
    assert result.exit_code == 0, result.output
    found = {(row[0], row[1]): row[2:] for row in rows(result.output, "teachers")}
    for what in ("reachable", "model", "context", "tokenizer", "logprobs", "repeat", "temperature"):
        assert found["served", what][0] == "good", what
    assert {"reachable", "model", "format", "judgment", "latency", "price"} <= {b for a, b in found if a == "critic"}
    nats = {name: float(found[name, "likeness"][0].split()[0]) for name in ("local", "served")}
    assert all(value > 1e-3 for value in nats.values())
    estimated = {row[0]: row[1:] for row in rows(result.output, "the whole run, at most")}
    assert estimated.keys() == {"served", "critic"}
    assert estimated["served"][0] == estimated["critic"][0] == "24"  # 3 steps, 4 prompts, 2 samples
    assert re.search(r"^\$0\.\d+ at most", result.output, re.MULTILINE)
    assert "no problem found" in result.output


def test_a_teacher_that_is_the_student_is_seen_local_or_served(tmp_path: Path, settings: Settings) -> None:
    student = settings["student"]["model"]
    with scoring(student) as served:
        twin = {"kind": "transformers", "model": student, "dtype": "float32"}
        result = check(tmp_path, settings, {"twin": twin, "served": teacher(served.url)})
    assert result.exit_code == 0, result.output
    found = {row[0]: " ".join(row[2:]) for row in rows(result.output, "teachers") if row[1] == "likeness"}
    for name in ("twin", "served"):
        assert found[name].startswith("it answers as the student does"), name
    assert "nats per token from the student" in found["local"]


def test_local_teachers_alone_are_compared_too(tmp_path: Path, settings: Settings) -> None:
    result = check(tmp_path, settings, {})
    found = {row[1]: row[2:] for row in rows(result.output, "teachers")}
    assert list(found) == ["tokenizer", "context", "likeness", "repeat", "latency"]
    assert found["tokenizer"][0] == found["context"][0] == found["repeat"][0] == "good"
    assert "128 tokens" in found["context"][1]
    assert "the whole run, at most" not in result.output


def test_what_a_run_may_take_of_time_and_memory(tmp_path: Path, settings: Settings, critic: ChatServer) -> None:
    chat = {"kind": "chat", "url": critic.url, "model": "grader", "limits": {"concurrency": 1}}
    checker = {"kind": "program", "check": {"kind": "pattern", "regex": "7"}}
    result = check(tmp_path, settings, {"critic": chat, "checker": checker})
    number = r"(\d+\.\d+)"
    parts = rf"writing {number}, teachers here {number}, waiting for others {number}, update {number}"
    found = re.search(rf"^about {number} s a step \({parts}\)", result.output, re.MULTILINE)
    assert found is not None, result.output
    total, *each = map(float, found.groups())
    assert total == pytest.approx(sum(each), abs=0.03)  # each is rounded
    assert all(seconds > 0 for seconds in each)
    assert re.search(rf"^about {number} GB: {number} with everything loaded, ", result.output, re.MULTILINE)
    estimated = {row[0]: row[1:] for row in rows(result.output, "the whole run, at most")}
    assert estimated["checker"][2] == "$0.00"  # nobody charges for a program


UNSTEADY = """
import torch

from teachers.types import Answer, SignalKind, TopK


class Unsteady:
    signals = frozenset({SignalKind.TOP_K})

    def __init__(self, name, options, tools):
        self.asked = 0

    def score(self, requests):
        self.asked += 1
        for request in requests:
            n = len(request.token_ids)
            said = torch.full((n,), -float(self.asked))
            nothing = torch.zeros(n, 0)
            tail = torch.zeros(n)
            yield request.request_id, Answer(TopK(said, nothing.long(), nothing, tail, torch.ones(n, dtype=torch.bool)))
"""


def test_a_teacher_in_this_process_that_changes_its_mind(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "unsteady.py").write_text(UNSTEADY)
    said = complaint(check(tmp_path, settings, {"moody": {"kind": "plugin", "use": "./unsteady.py:Unsteady"}}))
    assert said.startswith("teachers.moody: repeat: the same questions twice differ by 1 nats")


def test_offline_asks_nobody(tmp_path: Path, settings: Settings, served: ScoringServer, critic: ChatServer) -> None:
    chat = {"kind": "chat", "url": critic.url, "model": "grader"}
    result = check(tmp_path, settings, {"served": teacher(served.url), "critic": chat}, "--offline")
    assert result.exit_code == 0, result.output
    assert not served.asked
    assert not critic.requests


# ---- what is refused ----


def complaints(result: Result) -> list[str]:
    """The lines on stderr of a check that failed; without the bars of libraries that were imported before it began."""
    assert result.exit_code == 1, result.output
    return [line for line in result.stderr.splitlines() if line.strip() and "it/s]" not in line]


def complaint(result: Result) -> str:
    (line,) = complaints(result)
    return line


@pytest.mark.parametrize("kind", ["served", "chat"])
def test_a_server_that_is_down(tmp_path: Path, settings: Settings, kind: str) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}/v1"
        said = complaint(check(tmp_path, settings, {"far": {"kind": kind, "url": url, "model": MODEL}}))
    assert re.match(r"teachers\.far: reachable: unavailable: ", said)


def test_a_model_that_is_not_there(tmp_path: Path, settings: Settings, served: ScoringServer) -> None:
    said = complaint(check(tmp_path, settings, {"far": teacher(served.url, model="huge")}))
    assert said.startswith("teachers.far: model: ")
    assert "huge" in said
    assert MODEL in said


def test_a_chat_model_that_is_not_there(tmp_path: Path, settings: Settings, critic: ChatServer) -> None:
    said = complaint(check(tmp_path, settings, {"far": {"kind": "chat", "url": critic.url, "model": "huge"}}))
    assert said.startswith("teachers.far: model: ")
    assert "the server has grader" in said


def test_more_entries_than_the_server_gives(tmp_path: Path, settings: Settings, served: ScoringServer) -> None:
    said = complaint(check(tmp_path, settings, {"far": teacher(served.url, top_k=40)}))
    assert said.startswith("teachers.far: top_k: 40 is more than the server allows")
    assert "--max-logprobs 40" in said
    assert "set top_k to 20" in said


def uniform(path: str, answer: Json) -> Json:
    """A server that woke from sleep: every token is as probable as any other."""
    for choice in answer.get("choices", ()):
        for row in choice.get("prompt_logprobs") or ():
            for entry in (row or {}).values():
                entry["logprob"] = -5.88
    return answer


def test_a_server_whose_answers_say_nothing(tmp_path: Path, settings: Settings) -> None:
    with scoring(save_tiny(tmp_path / "asleep"), twist=uniform) as served:
        said = complaint(check(tmp_path, settings, {"far": teacher(served.url)}))
    assert said.startswith("teachers.far: uniform: http")


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, settings: Settings, served: ScoringServer) -> None:
    with closed_port() as port:
        gone = {"kind": "chat", "url": f"http://127.0.0.1:{port}/v1", "model": "m"}
        result = check(tmp_path, settings, {"far": teacher(served.url, top_k=40), "gone": gone})
    assert [line.split(": ")[0] for line in complaints(result)] == ["teachers.far", "teachers.gone"]
