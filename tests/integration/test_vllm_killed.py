"""A run that is killed while a server writes goes on with the tokens that it had, and samples none of them again."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

from pipeline.files import read_lines
from tests.killing import nursery, start_and_kill
from tests.runs import changed, distill_settings, run_here, write_recipe
from tests.servers.chat_server import Turnstile
from tests.servers.engine import EngineServer

KILLS = 3
NEW = 12
ROWS = 4


def drafts_of(run: Path) -> dict[str, list[int]]:
    """The tokens of each completion that was being written, by its id."""
    found: dict[str, list[int]] = {}
    for path in sorted((run / "journal" / "drafts").glob("*.jsonl")):
        for line in read_lines(path):
            found.setdefault(line["id"], []).extend(line["ids"])
    return found


def ends_with(prompt: list[int], tokens: list[int]) -> bool:
    return prompt[-len(tokens) :] == tokens


def test_killed_again_and_again(tmp_path: Path) -> None:
    settings = distill_settings(tmp_path)
    turnstile, over = Turnstile(), threading.Event()
    with EngineServer(settings["student"]["model"], turn=lambda: turnstile.passed(over)) as server:
        changes: dict[str, Any] = {
            "student.tune": "lora",
            "rollout": {"kind": "vllm", "server": server.url, "max_new_tokens": NEW, "rows": ROWS},
            "pool.staleness": 1,
        }
        recipe = write_recipe(tmp_path / "recipe.yaml", changed(settings, changes))
        run, words, born, draws = tmp_path / "run", tmp_path / "words", nursery(), random.Random(0)
        try:
            for _ in range(KILLS):
                # The server is tried with 16 tokens first; so each comes into the middle of a step.
                begun = 16 + draws.randint(20, 40)
                start_and_kill(born, recipe, turnstile, begun, words, ready=lambda: any(drafts_of(run).values()))
                had, asked = drafts_of(run), len(server.asked)
                assert any(had.values())
                ends = set(server.asked[-1]["stop_token_ids"])
                left = [tokens for tokens in had.values() if 0 < len(tokens) < NEW and tokens[-1] not in ends]

                def asked_again(asked: int = asked) -> list[list[int]]:
                    return [body["prompt"] for body in server.asked[asked + 1 :]]  # after what it is tried with

                def all_went_on(left: list[list[int]] = left) -> bool:
                    prompts = asked_again()
                    return len(prompts) >= ROWS or all(any(ends_with(p, tokens) for p in prompts) for tokens in left)

                start_and_kill(born, recipe, turnstile, 16 + 3, words, ready=all_went_on)
                again, now = asked_again(), drafts_of(run)
                for name, tokens in had.items():
                    assert now.get(name, tokens)[: len(tokens)] == tokens
                for tokens in left:
                    went_on = [prompt for prompt in again if ends_with(prompt, tokens)]
                    assert went_on, (tokens, again)
                    assert not any(prompt[: -len(tokens)] in again for prompt in went_on)  # none begins anew
            turnstile.let(10**6)
            run_here(recipe, resume=True)
        finally:
            over.set()
            turnstile.let(0)
    lines = list(read_lines(run / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["rows"] == 4 for line in lines)
    assert lines[0]["mismatch"]["largest"] < 1e-4  # no step has been learned between
    assert not drafts_of(run)
