"""Against a real vLLM server on the CPU: its scores are those of a local forward of the same model.

Needs the environment that `.ci/vllm` makes, named by TUTELAGE_VLLM_PYTHON. Skipped without it, but never in CI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pipeline.new_model import new_model
from pipeline.recipe import NewModel
from teachers.causal_lm import render
from teachers.config import ServedTeacher
from teachers.guard import Guard
from teachers.served import ScoringServer, build
from teachers.tools import Tools
from teachers.types import Answer, Chat, Conversation, Finding, Message, ScoreRequest, Segment, TeacherFailure, TopK
from tests.servers.vllm import vllm_python, vllm_server

CONTEXT = 256
SECONDS = 120.0


@dataclass(frozen=True)
class Served:
    url: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    python = vllm_python()
    folder = tmp_path_factory.mktemp("vllm")
    # Heads of 32 channels: vLLM's attention on the CPU knows no smaller ones.
    shape = NewModel(architecture="qwen3", hidden_size=64, layers=2, heads=2, context=CONTEXT)
    model, tokenizer = new_model(shape, seed=1)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    # With the leaner endpoint switched on, though this build of vLLM has not what it needs: it has to be probed for.
    with vllm_server(python, str(folder / "model"), folder / "log", "--enable-scale-out") as url:
        yield Served(url, model, tokenizer)


def teacher(served: Served, **settings: Any) -> ScoringServer:
    config = {"kind": "served", "url": served.url, "model": "tiny"} | settings

    def student_render(conversation: Conversation, system: str | None) -> tuple[int, ...]:
        return render(conversation, served.tokenizer, system)

    tools = Tools(served.tokenizer, student_render, Guard(), Path(), check=lambda *_: None)
    return build("ada", ServedTeacher.model_validate(config), tools)


def request(served: Served, text: str, n: int = 0) -> ScoreRequest:
    ids = tuple(served.tokenizer.encode(text, add_special_tokens=False))
    segments = (
        Segment("assistant", "think", ids[:5], trainable=True),
        Segment("assistant", "answer", ids[5:], trainable=True),
        Segment("assistant", "end", (served.tokenizer.eos_token_id,), trainable=True),
    )
    chat = Chat((Message("system", "Add."), Message("user", f"What is {n} + 3? Grüße, 你好.")))
    return ScoreRequest(f"p/{n}", "p", n, 1, "sums", chat, segments, "end", private=True)


def ask(teacher: ScoringServer, *requests: ScoreRequest) -> list[Answer | TeacherFailure]:
    async def run() -> list[Answer | TeacherFailure]:
        deadline = asyncio.get_running_loop().time() + SECONDS
        try:
            return list(await asyncio.gather(*(teacher.score(each, deadline) for each in requests)))
        finally:
            await teacher.aclose()

    return asyncio.run(run())


def examined(teacher: ScoringServer) -> tuple[Finding, ...]:
    async def run() -> tuple[Finding, ...]:
        try:
            return await teacher.examine(asyncio.get_running_loop().time() + SECONDS)
        finally:
            await teacher.aclose()

    return asyncio.run(run())


def compare(served: Served, asked: ScoreRequest, result: Answer | TeacherFailure, k: int) -> None:
    """The answer against a local forward: logprobs within rounding, entries equal where they are far enough apart."""
    assert isinstance(result, Answer), result
    signal = result.signal
    assert isinstance(signal, TopK)
    prompt = render(asked.conversation, served.tokenizer)
    with torch.inference_mode():
        logits = served.model(torch.tensor([[*prompt, *asked.token_ids]])).logits[0, len(prompt) - 1 : -1]
    table = logits.double().log_softmax(-1)
    realised = table.gather(1, torch.tensor(asked.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(signal.token_logprobs.double(), realised, atol=1e-4, rtol=0)
    best = table.sort(dim=1, descending=True)
    torch.testing.assert_close(signal.logprobs.double(), best.values[:, :k], atol=1e-4, rtol=0)
    left = best.values[:, k:].logsumexp(dim=1)
    torch.testing.assert_close(signal.log_tail.double(), left, atol=1e-3, rtol=0)
    if k:
        clear = (best.values[:, :k] - best.values[:, 1 : k + 1]).amin(dim=1) > 1e-3
        assert bool(clear.any())
        assert torch.equal(signal.ids[clear], best.indices[clear, :k])
    assert bool(signal.valid.all())
    assert result.usage.input == len(prompt) + len(asked.token_ids)
    assert result.model_returned == "tiny"


@pytest.mark.parametrize("k", [0, 5, 20])
def test_scores_are_the_models(served: Served, k: int) -> None:
    requests = [request(served, "It is 5, ünless 六 is … more: " + "so " * n, n) for n in range(12)]
    for asked, result in zip(requests, ask(teacher(served, top_k=k), *requests), strict=True):
        compare(served, asked, result, k)


@pytest.mark.parametrize("k", [0, 5])
def test_as_any_completions_server_it_says_the_same(served: Served, k: int) -> None:
    asked = request(served, "It is 5, ünless 六.")
    (result,) = ask(teacher(served, top_k=k, server="completions"), asked)
    compare(served, asked, result, k)


def test_context(served: Served) -> None:
    prompt = len(render(request(served, "").conversation, served.tokenizer))
    fits = request(served, "x" * (CONTEXT - prompt - 2))  # the end token, and one that vLLM has to write
    one_more = request(served, "x" * (CONTEXT - prompt - 1))
    good, long = ask(teacher(served), fits, one_more)
    compare(served, fits, good, 20)
    assert isinstance(long, TeacherFailure)
    assert (long.reason, long.retryable) == ("too_long", False)


def test_the_server_says_too_long_where_nobody_looks_before(served: Served) -> None:
    """What vLLM answers is understood, if a server does not tell its context."""
    asking = teacher(served)

    async def run() -> Answer | TeacherFailure:
        deadline = asyncio.get_running_loop().time() + SECONDS
        await asking.score(request(served, "short"), deadline)
        asking._servers = {url: replace(server, context=None) for url, server in asking._servers.items()}
        result = await asking.score(request(served, "x" * 2 * CONTEXT), deadline)
        await asking.aclose()
        return result

    failure = asyncio.run(run())
    assert isinstance(failure, TeacherFailure)
    assert (failure.reason, failure.retryable) == ("too_long", False)


def test_a_good_server_has_no_bad_findings(served: Served) -> None:
    found = {finding.what: finding for finding in examined(teacher(served))}
    assert [what for what, finding in found.items() if finding.good is False] == [], found
    assert found["tokenizer"].good
    assert found["temperature"].good
    assert f"{CONTEXT} tokens" in found["context"].text


def test_what_is_wrong_is_found(served: Served) -> None:
    (top_k,) = [finding for finding in examined(teacher(served, top_k=25)) if finding.good is False]
    assert top_k.what == "top_k"
    assert "--max-logprobs 25 (vLLM's flag), or set top_k to 20" in top_k.text
    (model, *_) = [finding for finding in examined(teacher(served, model="huge")) if finding.good is False]
    assert model.what == "model"
    assert "there is tiny" in model.text
