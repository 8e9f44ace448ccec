"""A teacher on a real server, and its scores against a local forward of the same model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@contextmanager
def served_by_vllm(folder: Path, *, interpreted: bool = False) -> Iterator[Served]:
    """A small model on a vLLM server, the leaner endpoint switched on. interpreted: as for `vllm_server`."""
    # Heads of 32 channels: vLLM's attention on the CPU knows no smaller ones.
    shape = NewModel(architecture="qwen3", hidden_size=64, layers=2, heads=2, context=CONTEXT)
    python = vllm_python()
    model, tokenizer = new_model(shape, seed=1)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    place, log = str(folder / "model"), folder / "log"
    with vllm_server(python, place, log, "--enable-scale-out", interpreted=interpreted) as url:
        yield Served(url, model, tokenizer)


def teacher(served: Served, **settings: Any) -> ScoringServer:
    config = {"kind": "served", "url": served.url, "model": "tiny"} | settings

    def student_render(conversation: Conversation, system: str | None) -> tuple[int, ...]:
        return render(conversation, served.tokenizer, system)

    tools = Tools(served.tokenizer, student_render, Guard(), Path(), check=lambda *_: None, clear=str)
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
