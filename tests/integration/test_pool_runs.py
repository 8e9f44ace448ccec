"""The pool in whole runs: a step ahead, killed, in two processes; cascades, fallbacks, quorums, budgets, names."""

from __future__ import annotations

import io
import json
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.checkpoint import newest_step
from pipeline.display import Display
from pipeline.errors import RunError
from pipeline.files import read_json, read_lines
from pipeline.recipe_file import load_recipe
from pipeline.run import run
from teachers.config import Price
from teachers.journal import FILE
from teachers.prices import tariff_of
from teachers.types import Usage
from tests.integration.test_two_processes import torchrun
from tests.killing import nursery, start_and_kill
from tests.mixed import mixed_settings, scored_model
from tests.runs import DOMAINS, Settings, changed, command, distill_settings, environment, run_here, write_recipe
from tests.servers import closed_port
from tests.servers.chat_server import ChatServer, Manners, Plan, Request, Turnstile
from tests.servers.faults import Fault
from tests.servers.scorer import scorer_of

PATIENT = {"timeout": 100, "deadline": 200, "retries": 0, "breaker": 1000, "concurrency": 16}
MANY = 1_000_000
PRICE = {"input": 1.0, "output": 2.0}
SAME = ("metrics.jsonl", "samples.jsonl", "provenance.jsonl", "model/model.safetensors")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as opened:
        yield opened


def chat(server: ChatServer, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "chat", "url": server.url, "model": server.manners.model, "limits": PATIENT, "price": PRICE, **fields,
    }  # fmt: skip


def graded(folder: Path, teachers: dict[str, Any], **changes: Any) -> Settings:
    """A local teacher beside these, everybody asked about everything; eight rows a step."""
    settings = distill_settings(folder)
    return changed(
        settings,
        {
            "teachers": {"local": settings["teachers"][DOMAINS[0]], **teachers},
            "routing": "all",
            "rollout.samples_per_prompt": 2,
            **changes,
        },
    )


def start(folder: Path, settings: Settings, name: str = "run", *, resume: bool = False, **changes: Any) -> Path:
    wanted = changed(settings, {"output": str(folder / name), **changes})
    return run_here(write_recipe(folder / f"{name}.yaml", wanted), resume=resume)


def assert_same(run: Path, other: Path) -> None:
    for name in SAME:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def questions(*servers: ChatServer) -> int:
    return sum(request.path.endswith("completions") for server in servers for request in server.requests)


def charged(folder: Path) -> Decimal:
    """By the journal's own lines, what is in doubt included."""
    with sqlite3.connect(folder / FILE) as connection:
        return sum((Decimal(row[0]) for row in connection.execute("SELECT dollars FROM attempts")), Decimal(0))


# ---- a step ahead ----


@pytest.mark.parametrize("staleness", [1, 3])
def test_kills_in_a_run_that_is_steps_ahead_change_no_bit(tmp_path: Path, staleness: int) -> None:
    generator, turnstile = random.Random(5), Turnstile()
    turnstile.let(MANY)
    scorer = scorer_of(scored_model(tmp_path))
    with ChatServer(turnstile=turnstile) as critic, ChatServer(scorer=scorer, turnstile=turnstile) as served:
        settings = changed(
            mixed_settings(tmp_path, critic.url, served.url, served.manners.model),
            {"pool.staleness": staleness, "training.steps": 6 + staleness, "training.checkpoint_every": 2},
        )
        for name in ("critic", "served"):  # nobody is given up only because the machine is busy
            settings["teachers"][name]["limits"] = PATIENT
        whole = start(tmp_path, settings, "whole")
        asked = questions(critic, served)
        path = write_recipe(tmp_path / "killed.yaml", changed(settings, {"output": str(tmp_path / "killed")}))
        born = nursery()
        while newest_step(tmp_path / "killed" / "checkpoints") < 4:  # later ones go on from a checkpoint
            start_and_kill(born, path, turnstile, generator.randint(5, 14), tmp_path / "words.txt")
        turnstile.let(MANY)
        killed = run_here(path, resume=True)
        with sqlite3.connect(killed / FILE) as connection:
            (doubtful,) = connection.execute("SELECT COUNT(*) FROM attempts WHERE state = 'doubtful'").fetchone()
        assert questions(critic, served) <= 2 * asked + doubtful  # one run's questions, and those in doubt again
    assert_same(killed, whole)
    assert len(read_json(killed / "ledger.json")["in_doubt"]) == doubtful


def test_a_step_ahead_other_rows_are_trained_on(tmp_path: Path, server: ChatServer) -> None:
    """The first two steps come from the initial student, and grades are weighted by how far it has moved since."""
    settings = graded(tmp_path, {"critic": chat(server)}, **{"training.learning_rate": 1e-2})
    on_policy = list(read_lines(start(tmp_path, settings, "0") / "metrics.jsonl"))
    ahead = list(read_lines(start(tmp_path, settings, "1", **{"pool.staleness": 1}) / "metrics.jsonl"))
    assert ahead[0] == on_policy[0]
    assert all(line["ratio"]["critic"] == pytest.approx(1.0, abs=1e-4) for line in (*on_policy, ahead[0]))
    assert abs(ahead[1]["ratio"]["critic"] - 1.0) > 1e-2
    assert all(line["unanswered"] == 0 for line in ahead)


def test_two_processes_get_the_rows_that_one_gets(tmp_path: Path, server: ChatServer) -> None:
    """The first process asks for both; each answer comes to the process that has its row."""
    with ChatServer(scorer=scorer_of(scored_model(tmp_path))) as served:
        teachers = {
            "critic": chat(server, fallback="checker"),
            "served": {"kind": "served", "url": served.url, "model": served.manners.model, "limits": PATIENT},
            "checker": {"kind": "program", "check": "answer", "limits": PATIENT},
        }
        # A rate next to 0 keeps the weights: what is written, and so what is asked, is the same in both.
        changes = {"training.prompts_per_step": 3, "training.learning_rate": 1e-12, "pool.staleness": 1}
        settings = graded(tmp_path, teachers, **changes)
        one = start(tmp_path, settings, "one")
        alone = questions(server, served)
        two = tmp_path / "two"
        torchrun(write_recipe(tmp_path / "two.yaml", changed(settings, {"output": str(two)})))
        assert questions(server, served) == 2 * alone > 0
    assert {line["processes"] for line in read_lines(two / "timings.jsonl")} == {2}
    for single, double in zip(read_lines(one / "metrics.jsonl"), read_lines(two / "metrics.jsonl"), strict=True):
        for name in ("rows", "tokens", "failures", "unanswered", "rewrites"):
            assert double.get(name) == single.get(name), name
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-4, abs=1e-6)
        for name in ("teacher", "domain"):
            assert double["kl"][name] == pytest.approx(single["kl"][name], rel=1e-4)
        assert double["grade"] == pytest.approx(single["grade"])
    for single, double in zip(read_lines(one / "provenance.jsonl"), read_lines(two / "provenance.jsonl"), strict=True):
        rows = [sorted(line["samples"], key=lambda sample: str(sample["request_id"])) for line in (single, double)]
        assert rows[0] == rows[1]


# ---- who is asked ----


class Unsure(ChatServer):
    """A grader that cannot decide about a third of the answers."""

    def answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        status, body = super().answer(request)
        if status == 200 and self.doubts(request):
            message = body["choices"][0]["message"]
            message["content"] = json.dumps({**json.loads(message["content"]), "score": 0.5})
        return status, body

    @staticmethod
    def doubts(request: Request) -> bool:
        return sha256(request.content.encode()).digest()[0] % 3 == 0


def test_a_cascade_asks_the_dear_one_where_the_cheap_one_is_unsure_and_says_what_that_saved(tmp_path: Path) -> None:
    price = {"input": 10.0, "output": 50.0}
    with Unsure() as cheap, ChatServer() as dear:
        settings = graded(
            tmp_path,
            {"cheap": chat(cheap), "dear": chat(dear, price=price)},
            **{
                "routing": {"kind": "cascade", "order": ["cheap", "dear"], "checker": False},
                "training.prompts_per_step": 6,
                "pool.student_price": {"input": 0.1, "output": 0.2},
            },
        )
        del settings["teachers"]["local"]
        folder = start(tmp_path, settings)
        unsure = sum(Unsure.doubts(request) for request in cheap.requests)
        assert 0 < questions(dear) == unsure < questions(cheap) == 3 * 12
    samples = [sample["teachers"] for line in read_lines(folder / "provenance.jsonl") for sample in line["samples"]]
    assert len(samples) == 36
    for given in samples:
        shares = {name: entry["share"] for name, entry in given.items()}
        assert shares == ({"cheap": 0.0, "dear": 1.0} if "dear" in given else {"cheap": 1.0})
    assert sum("dear" in given for given in samples) == unsure
    ledger = read_json(folder / "ledger.json")
    spent = {name: Decimal(entry["dollars"]) for name, entry in ledger["teachers"].items()}
    for name, tariff in (("cheap", PRICE), ("dear", price)):
        found = ledger["teachers"][name]
        usage = Usage(found["input"], found["cached"], found["output"], found["reasoning"])
        assert spent[name] == tariff_of(Price.model_validate(tariff)).cost(usage) > 0
    saved = spent["dear"] / unsure * 36 - spent["dear"] - spent["cheap"]
    assert ledger["cascade"] == {"dearest": "dear", "questions": 36, "reached": unsure, "dollars": str(saved)}
    assert saved > 0
    assert Decimal(ledger["dollars"]) == charged(folder) == sum(spent.values())
    assert [line["teacher"] for line in ledger["payback"]] == ["cheap", "dear"]
    tokens = ledger["payback"][1]["tokens"]  # the dear one's output costs $49.80 a million more than the student's
    assert tokens * Decimal("49.8") / 1_000_000 >= sum(spent.values()) > (tokens - 1) * Decimal("49.8") / 1_000_000


class Rewriter(ChatServer):
    """A grader that finds all wrong and corrects every other answer, as it thinks, to a text that is no number."""

    def answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        status, body = super().answer(request)
        if status == 200:
            rewrite = "no idea" if self.corrects(request) else None
            said = json.dumps({"feedback": "no", "score": 0.0, "rewrite": rewrite})
            body["choices"][0]["message"]["content"] = said
        return status, body

    @staticmethod
    def corrects(request: Request) -> bool:
        return sha256(request.content.encode()).digest()[0] % 2 == 0


def test_a_cascade_goes_on_where_the_correction_fails_the_prompts_checker(tmp_path: Path) -> None:
    with Rewriter() as cheap:
        settings = graded(tmp_path, {"cheap": chat(cheap)}, routing={"kind": "cascade", "order": ["cheap", "local"]})
        folder = start(tmp_path, settings)
        corrected = sum(Rewriter.corrects(request) for request in cheap.requests)
    samples = [sample["teachers"] for line in read_lines(folder / "provenance.jsonl") for sample in line["samples"]]
    assert 0 < corrected < len(samples) == 24  # of a student that knows nothing, all answers are wrong
    assert sum("local" in given for given in samples) == corrected
    assert all(("local" in given) == ("rewrite" in given["cheap"]["gave"]) for given in samples)


def test_a_dead_teachers_shares_go_to_its_fallback_and_every_row_is_counted(tmp_path: Path) -> None:
    checker = {"kind": "program", "check": "answer", "limits": PATIENT}
    with closed_port() as port:
        dead = {"kind": "chat", "model": "gone", "url": f"http://127.0.0.1:{port}/v1", "limits": PATIENT}
        folder = start(tmp_path, graded(tmp_path, {"critic": {**dead, "fallback": "checker"}, "checker": checker}))
    for line, given in zip(read_lines(folder / "metrics.jsonl"), read_lines(folder / "provenance.jsonl"), strict=True):
        assert line["failures"] == {"critic": {"unavailable": 8}}
        assert line["unanswered"] == 0
        for sample in given["samples"]:
            shares = {name: entry.get("share") for name, entry in sample["teachers"].items()}
            assert shares == {"critic": None, "checker": pytest.approx(2 / 3), "local": pytest.approx(1 / 3)}


def test_a_run_without_its_quorum_stops_and_goes_on_to_the_same_bits(tmp_path: Path, server: ChatServer) -> None:
    settings = graded(tmp_path, {"critic": chat(server)}, **{"pool.quorum": 0.75})
    del settings["teachers"]["local"]
    whole = start(tmp_path, settings, "whole")
    server.misbehave(*[None] * 10, *[Fault.ERROR_503] * 3)
    with pytest.raises(RunError, match=r"^step 2: only 5 of 8 rows were answered \(critic: unavailable \(3\)\).*75%"):
        start(tmp_path, settings, "stopped")
    assert_same(start(tmp_path, settings, "stopped", resume=True), whole)


# ---- money ----


@pytest.mark.parametrize(("whose", "staleness"), [("pool.budget", 1), ("teachers.critic.budget", 0)])
def test_a_budget_that_stops_a_run_is_not_exceeded_and_a_larger_one_goes_on_to_the_same_bits(
    tmp_path: Path, server: ChatServer, whose: str, staleness: int
) -> None:
    settings = graded(tmp_path, {"critic": chat(server, max_tokens=256)}, **{"pool.staleness": staleness})
    whole = start(tmp_path, settings, "whole")
    budget = charged(whole) * 5 / 8  # a step whose questions all went at once would exceed it
    with pytest.raises(RunError, match=r"^step \d: teachers\.critic: the budget of .* is too small .*--resume") as said:
        start(tmp_path, settings, "capped", **{whose: {"dollars": float(budget)}})
    assert "\n" not in str(said.value)
    assert 0 < charged(tmp_path / "capped") <= budget
    assert Decimal(read_json(tmp_path / "capped" / "ledger.json")["dollars"]) == charged(tmp_path / "capped")
    asked = questions(server)
    capped = start(tmp_path, settings, "capped", resume=True, **{whose: {"dollars": 10.0}})
    assert_same(capped, whole)
    assert questions(server) < asked + 3 * 8  # what was paid is not asked again
    assert charged(capped) == charged(whole)


def test_a_teacher_that_is_dropped_for_its_budget_leaves_the_others_and_spends_no_more(
    tmp_path: Path, server: ChatServer
) -> None:
    whole = start(tmp_path, graded(tmp_path, {"critic": chat(server, max_tokens=256)}), "whole")
    budget = charged(whole) * 5 / 8
    server.plan = Plan(1.0, 0, (Fault.SLOW,))  # so that a step's questions are all under way together
    dropped = chat(server, max_tokens=256, budget={"dollars": float(budget), "then": "drop"})
    folder = start(tmp_path, graded(tmp_path, {"critic": dropped}), "dropped")
    lines = list(read_lines(folder / "metrics.jsonl"))
    missing = [line["failures"].get("critic", {}).get("over_budget", 0) for line in lines]
    with sqlite3.connect(folder / FILE) as connection:
        (answered,) = connection.execute("SELECT COUNT(*) FROM attempts WHERE state = 'answered'").fetchone()
    assert missing[0] < missing[2] == 8
    assert answered + sum(missing) == 3 * 8
    assert 0 < charged(folder) <= budget
    assert all(line["unanswered"] == 0 for line in lines)


# ---- names ----


def test_another_model_stops_a_run_or_goes_on_as_the_recipe_says(tmp_path: Path, server: ChatServer) -> None:
    settings = graded(tmp_path, {"critic": chat(server)}, **{"pool.quorum": 0.0})
    server.misbehave(*[None] * 11, Fault.OTHER_MODEL)
    with pytest.raises(RunError, match=r"^step 2: teachers\.critic: it answered as grader-next, and as grader before"):
        start(tmp_path, settings)
    server.plan = Plan(1.0, 0, (Fault.OTHER_MODEL,))
    folder = start(tmp_path, settings, resume=True, **{"pool.model_change": "go_on"})
    named = Counter(
        sample["teachers"]["critic"]["model"]
        for line in read_lines(folder / "provenance.jsonl")
        for sample in line["samples"]
    )
    assert named.keys() == {"grader", "grader-next"}
    assert named.total() == 3 * 8


def test_a_process_that_goes_on_knows_the_name_from_before_its_checkpoint(tmp_path: Path, server: ChatServer) -> None:
    changes = {"pool.quorum": 0.75, "training.checkpoint_every": 1}
    settings = graded(tmp_path, {"critic": chat(server)}, **changes)
    del settings["teachers"]["local"]
    server.misbehave(*[None] * 8, *[Fault.ERROR_503] * 8)
    with pytest.raises(RunError, match="step 2: only 0 of 8"):
        start(tmp_path, settings)
    server.plan = Plan(1.0, 0, (Fault.OTHER_MODEL,))
    with pytest.raises(RunError, match=r"^step 2: .*it answered as grader-next, and as grader before"):
        start(tmp_path, settings, resume=True)


# ---- what a person sees ----


def said(path: Path) -> str:
    """What a run prints where there is no terminal."""
    output = io.StringIO()
    with Display(Console(file=output, width=300)) as display:
        run(load_recipe(path), resume=False, extend=False, display=display)
    return output.getvalue()


def test_each_step_shows_how_the_asking_goes_and_the_end_what_it_came_to(tmp_path: Path, server: ChatServer) -> None:
    server.misbehave(Fault.RESET)
    settings = graded(tmp_path, {"critic": chat(server)}, **{"pool.staleness": 1, "pool.student_price": PRICE})
    text = said(write_recipe(tmp_path / "recipe.yaml", settings))
    (first,) = [line for line in text.splitlines() if line.startswith("step 1/3")]
    numbers = dict(pair.split(" ", 1) for pair in first.partition("  ")[2].split("  "))
    assert numbers["failed"] == "1"
    assert {"dollars", "asked", "queued", "waited", "loss"} <= numbers.keys()
    assert 0 < float(numbers["dollars"]) <= float(charged(tmp_path / "run"))
    assert "warning: step 1: teachers failed: {'critic': {'broken': 1}}" in text
    assert "in doubt: 1 of the questions to critic (broken); perhaps charged" in text
    assert "served instead of critic, the student saves nothing" in text
    assert text.index("what the teachers took") > text.index("step 3/3")


def test_a_run_without_remote_teachers_shows_nothing_of_them(tmp_path: Path) -> None:
    text = said(write_recipe(tmp_path / "recipe.yaml", distill_settings(tmp_path)))
    assert "dollars" not in text
    assert not (tmp_path / "run" / "ledger.json").exists()


def test_ctrl_c_while_a_teacher_hangs_ends_in_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    patient = {**PATIENT, "timeout": 3000, "deadline": 3000}
    with ChatServer(Manners(), plan=Plan(1.0, 0, (Fault.HANG,))) as server:
        settings = graded(tmp_path, {"critic": chat(server, limits=patient)}, **{"pool.staleness": 1})
        path = write_recipe(tmp_path / "recipe.yaml", settings)
        process = subprocess.Popen(
            command("run", str(path)), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and questions(server) < 2 * 8:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        printed, complaint = process.communicate(timeout=60)  # the teacher would have had most of an hour
        assert process.returncode == 130, printed + complaint
        assert complaint == f"interrupted; go on with: tutelage run {path} --resume\n"
        assert "in doubt: 16 of the questions to critic" in printed
        server.plan = Plan()
        resumed = run_here(path, resume=True)
        assert_same(resumed, start(tmp_path, settings, "whole"))
