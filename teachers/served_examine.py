"""What can be found out about a server that scores texts, before a run depends on it, by asking about our own text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch

from teachers.alignment import PROBES
from teachers.catalog import lookup
from teachers.client import place
from teachers.guard import is_loopback
from teachers.prices import price_finding
from teachers.served_server import Asker, Server, root_of
from teachers.types import Answer, Finding, TeacherFailure, TopK

if TYPE_CHECKING:
    from teachers.config import ServedTeacher

_TOKENS = 96  # of our text: enough to see a pattern, and little enough for any context
# Nats per token. The batch that a question falls into moves the last bits of bf16 by less; other weights by more.
_AGREEMENT = 0.05


@dataclass(frozen=True)
class _Seen:
    """What one address said."""

    findings: tuple[Finding, ...]
    answer: Answer | None = None


async def examine(asker: Asker, config: ServedTeacher, deadline: float) -> tuple[Finding, ...]:
    """Asks each address for its models, context and tokenizer, and three times for scores of the same text.

    Finds: reachable, model, context, tokenizer, logprobs or top_k or uniform, repeat, temperature, latency, replicas
    where there are several addresses, and price.
    """
    findings: list[Finding] = []
    answers: dict[str, TopK] = {}
    for url in config.url:
        seen = await _examine_one(asker, url, deadline)
        findings += seen.findings
        if seen.answer is not None:
            assert isinstance(seen.answer.signal, TopK)
            answers[place(url)] = seen.answer.signal
    if len(answers) > 1:
        findings.append(_replicas(answers))
    known = config.price is not None or lookup(config.model, config.url) is not None
    here = all(is_loopback(urlsplit(url).hostname or "") for url in config.url)
    return (*findings, price_finding(asker.name, known=known, here=here))


async def _examine_one(asker: Asker, url: str, deadline: float) -> _Seen:
    server = await asker.find(url, deadline)
    if isinstance(server, TeacherFailure):
        return _Seen((_failed(asker, server),))
    version = f" {server.version}" if server.version else ""
    findings = [
        Finding("reachable", True, f"{place(url)}: {server.kind}{version}, asked by {server.format.name}"),
        _model(asker, server),
        _context(server),
        await _tokenizer(asker, server, root_of(url), deadline),
    ]
    if any(finding.what == "model" and finding.good is False for finding in findings):
        return _Seen(tuple(findings))  # every question would only be told so again
    first = await _score(asker, server, url, 1.0, deadline)
    if isinstance(first, TeacherFailure):
        return _Seen((*findings, _failed(asker, first)))
    findings.append(Finding("logprobs", True, _described(first)))
    for what, temperature in (("repeat", 1.0), ("temperature", 0.5)):
        again = await _score(asker, server, url, temperature, deadline)
        findings.append(_failed(asker, again) if isinstance(again, TeacherFailure) else _compared(what, first, again))
    said = f"{first.latency:.2f} s for {first.usage.input} tokens"
    findings.append(Finding("latency", None, said, first.latency))
    return _Seen(tuple(findings), first)


async def _score(
    asker: Asker, server: Server, url: str, temperature: float, deadline: float
) -> Answer | TeacherFailure:
    most = min(_TOKENS, (server.context or _TOKENS + 1) - 1)
    question = asker.question(" ".join(PROBES), temperature=temperature, most=most)
    wanted = torch.ones(len(question.completion_ids), dtype=torch.bool)
    return await asker.ask(root_of(url), server.format, question, wanted, private=False, deadline=deadline)


# ---- one finding each ----


_NO_ANSWER = ("unavailable", "timeout", "broken", "rate_limited", "not_json")
_NO_ENTRY = ("unauthorised", "untrusted", "redirected", "out_of_credit")
_ALLOWED = re.compile(r"(?i)(?:max(?:imum)? allowed|at most|less than or equal to|up to)\D{0,12}(\d+)")


def _failed(asker: Asker, failure: TeacherFailure) -> Finding:
    if failure.reason == "rejected" and "logprobs" in failure.detail:
        allowed = _ALLOWED.search(failure.detail)
        instead = f"set top_k to {allowed[1]}" if allowed else "set a smaller top_k"
        advice = f"start the server with --max-logprobs {asker.k} (vLLM's flag), or {instead}"
        return Finding("top_k", False, f"top_k: {asker.k} is more than the server allows: {failure.detail}; {advice}")
    if "echo" in failure.detail:
        advice = (
            "it does not score a given text (llama.cpp's own server does not; llama-cpp-python's, vLLM and SGLang do)"
        )
        return Finding("logprobs", False, f"{failure.detail}; {advice}")
    what = {"uniform": "uniform", "not_found": "model", "missing_top_k": "top_k", "too_long": "context"}
    named = "reachable" if failure.reason in _NO_ANSWER + _NO_ENTRY else what.get(failure.reason, "logprobs")
    return Finding(named, False, f"{failure.reason}: {failure.detail}")


def _model(asker: Asker, server: Server) -> Finding:
    if server.served_as is not None:
        return Finding("model", None, f"the server has one model and calls it {server.served_as}")
    if not server.models:
        return Finding("model", None, "the server does not list its models")
    if asker.model in server.models:
        return Finding("model", True, asker.model)
    return Finding("model", False, f"{asker.model} is not served; there is {', '.join(server.models[:5])}")


def _context(server: Server) -> Finding:
    if server.context is None:
        return Finding("context", None, "the server does not say how many tokens it takes")
    return Finding("context", True, f"{server.context} tokens, prompt and answer and one more")


async def _tokenizer(asker: Asker, server: Server, root: str, deadline: float) -> Finding:
    """Whether the server cuts our texts as the student does, where it cuts texts for others."""
    differ = 0
    for text in PROBES:
        # vLLM and SGLang read `prompt`; llama.cpp's server reads `content`, and answers with no tokens where it is not.
        body = {"model": asker.model, "prompt": text, "add_special_tokens": False, "content": text}
        reply = await asker.client.post(root + "/tokenize", body, private=False, deadline=deadline)
        tokens = None if isinstance(reply, TeacherFailure) else reply.body.get("tokens")
        if not isinstance(tokens, list) or not tokens:
            return Finding("tokenizer", None, "the server does not show it; its token ids are taken as the student's")
        differ += tokens != asker.cut(text)
    if differ:
        return Finding("tokenizer", False, f"it cuts {differ} of {len(PROBES)} texts otherwise than the student's")
    return Finding("tokenizer", True, f"cuts {len(PROBES)} texts as the student's does")


def _described(answer: Answer) -> str:
    signal = answer.signal
    assert isinstance(signal, TopK)
    mean = float(signal.token_logprobs[signal.valid].mean())
    if signal.ids.shape[1] == 0:
        return f"of each token; {mean:.2f} nats on average for our text"
    left = 1 - float(signal.log_tail[signal.valid].exp().mean())
    missing = int((~signal.valid).sum())
    unread = f"; {missing} of {len(signal.valid)} tokens cannot be read, their texts are not unique" if missing else ""
    return f"{signal.ids.shape[1]} entries per token, with {left:.1%} of the probability{unread}"


def _compared(what: str, first: Answer, again: Answer) -> Finding:
    assert isinstance(first.signal, TopK)
    assert isinstance(again.signal, TopK)
    apart = difference(first.signal, again.signal)
    if what == "repeat":
        return Finding("repeat", apart <= _AGREEMENT, f"the same question twice differs by {apart:.2g} nats per token")
    if apart <= _AGREEMENT:
        return Finding("temperature", True, "1, whatever temperature a question names")
    return Finding("temperature", True, "the one that a question names, and all name 1")


def _replicas(answers: dict[str, TopK]) -> Finding:
    (first, reference), *others = answers.items()
    apart = {name: difference(reference, signal) for name, signal in others}
    worst = max(apart, key=lambda name: apart[name])
    text = f"{worst} differs from {first} by {apart[worst]:.2g} nats per token"
    return Finding("replicas", apart[worst] <= _AGREEMENT, text)


def difference(one: TopK, other: TopK) -> float:
    """Mean distance of the realised tokens' log-probabilities, in nats, where both are valid; inf where nowhere."""
    both = one.valid & other.valid
    if not bool(both.any()):
        return float("inf")
    return float((one.token_logprobs[both] - other.token_logprobs[both]).abs().mean())
