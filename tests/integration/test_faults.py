"""Servers that fail in every way, and processes that are killed: nothing is lost, and nothing is paid for twice."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import newest_step
from teachers.journal import FILE
from tests.killing import nursery, start_and_kill
from tests.mixed import mixed_settings, scored_model
from tests.models import save_tiny
from tests.runs import changed, run_here, write_recipe
from tests.servers.chat_server import ChatServer, Plan, Turnstile
from tests.servers.faults import Fault
from tests.servers.scorer import scorer_of

QUICK = {"timeout": 1, "deadline": 20, "retries": 8, "rest": 0.05}
PATIENT = {"timeout": 120, "deadline": 600, "rest": 0.05}
KILLS = 50


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_ten_teachers_of_which_three_calls_in_ten_go_wrong(tmp_path: Path) -> None:
    plan = Plan(rate=0.3, seed=5, faults=tuple(Fault))
    scorer = scorer_of(scored_model(tmp_path))
    with ChatServer(plan=plan) as chat, ChatServer(plan=plan, scorer=scorer) as served:
        settings = mixed_settings(tmp_path, chat.url, served.url, served.manners.model)
        pool = settings["teachers"]
        for name in ("served", "critic", "checker"):
            pool[name]["limits"] = QUICK
        pool |= {
            "second": {"kind": "transformers", "model": save_tiny(tmp_path / "second", seed=5), "dtype": "float32"},
            "sampled": {**pool["served"], "top_k": 0},
            "grader": {**pool["critic"], "gives": "score", "rubric": "math"},
            "writer": {**pool["critic"], "gives": ["rewrite"]},
        }
        assert len(pool) == 10
        path = write_recipe(
            tmp_path / "recipe.yaml", changed(settings, {"training.prompts_per_step": 6, "pool.model_change": "go_on"})
        )
        folder = run_here(path)
        assert sum(server.faults.total() for server in (chat, served)) > 0.2 * len(chat.requests + served.requests)
    metrics, provenance = lines(folder, "metrics.jsonl"), lines(folder, "provenance.jsonl")
    assert [line["step"] for line in metrics] == [line["step"] for line in provenance] == [1, 2, 3]
    for line, given in zip(metrics, provenance, strict=True):
        rows = given["samples"]
        assert len(rows) == line["rows"] == 12
        failed = Counter(
            (name, entry["failed"]) for row in rows for name, entry in row["teachers"].items() if "failed" in entry
        )
        assert failed == Counter({(name, why): n for name, whys in line["failures"].items() for why, n in whys.items()})
        for row in rows:
            assert set(pool) <= set(row["teachers"])  # everybody was asked, and said something or is counted
            assert sum(entry.get("share", 0.0) for entry in row["teachers"].values()) == pytest.approx(1.0)


def questions(*servers: ChatServer) -> int:
    return sum(request.path.endswith("completions") for server in servers for request in server.requests)


def attempts(folder: Path) -> Counter[str]:
    with sqlite3.connect(folder / FILE) as connection:
        return Counter(dict(connection.execute("SELECT state, COUNT(*) FROM attempts GROUP BY state").fetchall()))


def asked_again(folder: Path) -> int:
    """Attempts at a question that was answered before."""
    with sqlite3.connect(folder / FILE) as connection:
        (count,) = connection.execute(
            "SELECT COUNT(*) FROM attempts later JOIN attempts earlier USING (key)"
            " WHERE earlier.id < later.id AND earlier.state = 'answered'"
        ).fetchone()
        return int(count)


@pytest.mark.timeout(1200)
def test_fifty_kills_ask_nothing_twice_and_change_no_bit(tmp_path: Path) -> None:
    """Whatever the machine's speed: a process comes no further than its last question, and no teacher is given up."""
    turnstile, born = Turnstile(), nursery()
    with (
        ChatServer(turnstile=turnstile) as chat,
        ChatServer(scorer=scorer_of(scored_model(tmp_path)), turnstile=turnstile) as served,
    ):
        settings = changed(
            mixed_settings(tmp_path, chat.url, served.url, served.manners.model),
            {"training.steps": 18, "training.checkpoint_every": 3}  # more questions than fifty processes may ask
            | {f"teachers.{name}.limits": PATIENT for name in ("served", "critic", "checker")},
        )
        path = write_recipe(tmp_path / "recipe.yaml", changed(settings, {"output": str(tmp_path / "killed")}))
        generator, words = random.Random(11), tmp_path / "words.txt"
        for _ in range(KILLS):
            start_and_kill(born, path, turnstile, generator.randint(1, 9), words)
        assert newest_step(tmp_path / "killed" / "checkpoints") > 3  # the last ones went on from a checkpoint
        turnstile.let(1_000_000)
        folder = run_here(path, resume=True)
        made = attempts(folder)
        twice = sum(times - 1 for server in (chat, served) for times in server.answered.values())
        asked = questions(chat, served)
        assert asked <= made.total()  # each was written down before it was sent
        assert asked_again(folder) == 0
        assert made["failed"] == 0
        assert twice <= made["doubtful"]  # only what nobody knows the fate of was asked again, and it stays charged
        whole = write_recipe(
            tmp_path / "whole.yaml",
            changed(settings, {"output": str(tmp_path / "whole"), "pool.journal": str(folder / FILE)}),
        )
        replayed = run_here(whole)
        assert questions(chat, served) == asked  # a run that replays them asks nobody
    for name in ("metrics.jsonl", "samples.jsonl", "provenance.jsonl", "model/model.safetensors"):
        assert (replayed / name).read_bytes() == (folder / name).read_bytes(), name
