"""Against a real vLLM server on the CPU: its scores are those of a local forward of the same model.

Needs the environment that `.ci/vllm` makes, named by TUTELAGE_VLLM_PYTHON. Skipped without it, but never in CI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from teachers.causal_lm import render
from teachers.types import Answer, TeacherFailure
from tests.scored import CONTEXT, SECONDS, Served, ask, compare, examined, request, served_by_vllm, teacher


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # Its leaner endpoint is there, though this build of vLLM has not what it needs: it has to be probed for.
    with served_by_vllm(tmp_path_factory.mktemp("vllm")) as server:
        yield server


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
