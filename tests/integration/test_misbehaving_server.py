"""The misbehaving server itself: as a process, by plan, in its other role, and behind a courier that loses nothing."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from teachers import served
from teachers.chat import ChatGrader, build
from teachers.config import ServedTeacher
from teachers.courier import Courier
from teachers.journal import FILE, Journal
from teachers.ledger import Ledger
from teachers.types import Answer, Judgment, ScoreRequest, Segment, TeacherFailure, TopK
from tests.chats import a_config, a_request, ask, run, some_tools
from tests.models import save_tiny
from tests.servers.chat_server import ChatServer
from tests.servers.faults import CHAT, SCORES, Fault, Plan
from tests.servers.scorer import Scorer, scorer_of

ROOT = Path(__file__).parents[2]
Result = Answer | TeacherFailure


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return scorer_of(save_tiny(tmp_path_factory.mktemp("model")))


# ---- behind the courier ----


def answers_of(server: ChatServer, folder: Path, requests: list[ScoreRequest]) -> dict[str, Result]:
    """All answers, asked as a run asks: with a journal, retries, and many at once."""
    limits = {"timeout": 30, "deadline": 60, "retries": 12, "rest": 0.01}
    config = a_config(model=server.manners.model, url=server.url, limits=limits)
    journal = Journal(folder / FILE)
    teacher = build("judge", config, some_tools(folder))
    courier = Courier({"judge": teacher}, {"judge": config.limits}, journal, Ledger(journal, {}, {}))
    arrived: queue.SimpleQueue[tuple[str, Result]] = queue.SimpleQueue()

    def arrive(name: str, result: Result) -> None:
        arrived.put((name, result))

    for request in requests:
        courier.ask("judge", request, partial(arrive, request.request_id))
    answers = dict(arrived.get(timeout=60) for _ in requests)
    courier.check()
    courier.close()
    journal.close()
    return answers


def test_three_calls_in_ten_go_wrong_and_every_question_is_answered_once(tmp_path: Path) -> None:
    """Faults that leave no answer cost no answer; the journal gives the same answers to whoever asks again."""
    requests = [a_request(str(n), sample=n, request_id=f"p/{n}") for n in range(40)]
    faults = tuple(fault for fault in Plan().faults if fault not in (*CHAT, Fault.HANG))
    with ChatServer(plan=Plan(0.3, seed=3, faults=faults)) as server:
        answers = answers_of(server, tmp_path, requests)
        assert all(isinstance(answer, Answer) for answer in answers.values())
        assert len(server.faults) > 5
        lost = sum(request.fault == Fault.TRUNCATED_JSON for request in server.requests)
        assert sum(server.answered.values()) == len(requests) + lost
        before = len(server.requests)
        again = answers_of(server, tmp_path, requests)
        assert len(server.requests) == before
    signals = {name: answer.signal for name, answer in answers.items() if isinstance(answer, Answer)}
    assert signals == {name: answer.signal for name, answer in again.items() if isinstance(answer, Answer)}
    scores = {name: signal.score for name, signal in signals.items() if isinstance(signal, Judgment)}
    assert scores == {f"p/{n}": float(n == 4) for n in range(40)}


# ---- a seeded plan ----


def test_a_seeded_plan_is_about_content_and_not_about_time() -> None:
    """The same questions fail in the same way in whatever order they are asked; asked again, all are answered once."""

    async def use(teacher: ChatGrader, order: list[int]) -> dict[int, str]:
        async def until_answered(n: int) -> tuple[int, str]:
            story = ""
            while True:
                result = await ask(teacher, a_request(str(n), sample=n))
                if isinstance(result, Answer):
                    return n, story
                assert result.retryable, result
                story += f"{result.reason} "

        return dict(await asyncio.gather(*(until_answered(n) for n in order)))

    stories = []
    for order in (list(range(60)), list(range(60))[::-1]):
        faults = tuple(fault for fault in Plan().faults if fault not in (Fault.HANG, Fault.SLOW))
        with ChatServer(plan=Plan(0.3, seed=5, faults=faults)) as server:
            stories.append(run(server, partial(use, order=order), limits={"breaker": 1000}))
            assert len(server.asked) == 60
            failed = sum(server.faults.values())
            assert 0.15 < failed / sum(server.asked.values()) < 0.45
    assert stories[0] == stories[1]
    assert len({reason for story in stories[0].values() for reason in story.split()}) > 4


def test_the_server_as_a_process() -> None:
    command = [sys.executable, "-m", "tests.servers.chat_server", "--port", "0", "--faults", "1", "--only", "error_503"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        body = json.dumps({"model": "grader", "messages": [{"role": "user", "content": "hello"}]}).encode()
        post = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(post)
        script = urllib.request.Request(f"{url.removesuffix('/v1')}/script", b"[null]")
        urllib.request.urlopen(script).close()
        with urllib.request.urlopen(post) as response:
            said = json.load(response)
        assert said["choices"][0]["message"]["content"].find("You said: hello") >= 0
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/log") as response:
            log = json.load(response)
        assert (list(log["asked"].values()), list(log["answered"].values())) == ([2], [1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close() if process.stdout else None


def test_a_request_that_is_cut_off_in_its_middle_is_no_question(capsys: pytest.CaptureFixture[str]) -> None:
    """As those of a process that is killed while it asks."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 500\r\n\r\n"
    with ChatServer() as server:
        address = ("127.0.0.1", int(server.root.rpartition(":")[2]))
        for sent in (b"", head, head + b'{"model": "gra'):
            with socket.create_connection(address) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""  # closed, and nothing said
        assert post(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
        assert len(server.requests) == 1
    assert capsys.readouterr().err == ""


# ---- the other role ----


def post(server: ChatServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps({"model": server.manners.model, **body}).encode()
    request = urllib.request.Request(f"{server.root}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        said: dict[str, Any] = json.load(response)
    return said


def test_it_scores_a_text_as_the_model_does_and_misbehaves(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / "model")
    ids = [5, 80, 33, 12, 80, 7]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([ids])).logits[0]
    wanted = logits.double().log_softmax(-1)
    ask: dict[str, Any] = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 4}
    with ChatServer(scorer=scorer_of(folder)) as server:
        rows = post(server, "/v1/completions", ask)["choices"][0]["prompt_logprobs"]
        assert rows[0] is None
        assert len(rows) == len(ids)
        for place, row in enumerate(rows[1:]):
            top = wanted[place].topk(4).indices.tolist()
            assert set(map(int, row)) == {*top, ids[place + 1]}
            for token, entry in row.items():
                assert entry["logprob"] == pytest.approx(wanted[place, int(token)].item(), abs=1e-4)
        assert all(set(map(int, row)) == {token} for row, token in zip(
            post(server, "/v1/completions", {**ask, "prompt_logprobs": 0})["choices"][0]["prompt_logprobs"][1:],
            ids[1:], strict=True))  # fmt: skip
        wrong: tuple[dict[str, Any], ...] = ({"prompt_logprobs": 21}, {"prompt": ids * 50}, {"prompt": []})
        for broken in wrong:
            with pytest.raises(urllib.error.HTTPError, match="400"):
                post(server, "/v1/completions", {**ask, **broken})
        server.misbehave(*SCORES)
        nan, high, bare, short, blind = (
            post(server, "/v1/completions", ask)["choices"][0]["prompt_logprobs"] for _ in SCORES
        )
        assert all(entry["logprob"] != entry["logprob"] for entry in nan[-1].values())
        assert all(entry["logprob"] > 0 for entry in high[-1].values())
        assert set(bare[-1]) == {str(ids[-1])}
        assert len(short) == len(ids) - 1
        assert str(ids[-1]) not in blind[-1]
        assert nan[:-1] == rows[:-1]
        chat = {"messages": [{"role": "user", "content": "hello"}]}
        assert "You said" in post(server, "/v1/chat/completions", chat)["choices"][0]["message"]["content"]
        with urllib.request.urlopen(f"{server.url}/models") as response:
            assert json.load(response)["data"][0]["id"] == "grader"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.NAN_LOGPROB, "not_finite"),
        (Fault.POSITIVE_LOGPROB, "not_finite"),
        (Fault.MISSING_TOP_K, "missing_top_k"),
        (Fault.MISSING_ROW, "misaligned"),
        (Fault.MISSING_TOKEN, "misaligned"),
        (Fault.RESET, "broken"),
        (Fault.HTML_200, "not_json"),
        (Fault.RATE_LIMITED, "rate_limited"),
    ],
)
def test_a_served_teacher_takes_its_scores_and_sees_its_faults(fault: Fault, reason: str, scorer: Scorer) -> None:
    ids = (80, 33, 12, 80)
    request = a_request(segments=(Segment("assistant", "answer", ids, True),))
    prompt = (5, 6, 7)
    tools = replace(some_tools(Path()), student_render=lambda conversation, system: prompt)

    async def use(url: str) -> tuple[Answer | TeacherFailure, Answer | TeacherFailure]:
        settings = {"kind": "served", "url": url, "model": "grader", "top_k": 3, "server": "vllm"}
        teacher = served.build("scores", ServedTeacher.model_validate(settings), tools)
        try:
            deadline = asyncio.get_running_loop().time() + 20
            return await teacher.score(request, deadline), await teacher.score(request, deadline)
        finally:
            await teacher.aclose()

    with ChatServer(scorer=scorer) as server:
        server.misbehave(fault)
        failure, answer = asyncio.run(use(server.url))
    assert isinstance(failure, TeacherFailure)
    assert failure.reason == reason
    assert isinstance(answer, Answer)
    assert isinstance(answer.signal, TopK)
    table = scorer.log_table([*prompt, *ids])[len(prompt) - 1 : -1]
    assert torch.equal(answer.signal.ids, table.topk(3).indices)
    torch.testing.assert_close(answer.signal.token_logprobs, table[range(4), list(ids)])
