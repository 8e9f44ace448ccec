"""Against a real vLLM server that answers by its leaner endpoint, with its second model runner.

That runner's kernels are Triton's, and no compiler for a CPU comes with it: Triton's own interpreter runs them here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scored import Served, ask, compare, examined, request, served_by_vllm, teacher


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_by_vllm(tmp_path_factory.mktemp("vllm"), interpreted=True) as server:
        yield server


def test_the_leaner_endpoint_is_found_and_says_what_the_model_says(served: Served) -> None:
    found = {finding.what: finding for finding in examined(teacher(served, top_k=0))}
    assert "asked by /inference/v1/generate" in found["reachable"].text
    assert [what for what, finding in found.items() if finding.good is False] == [], found
    requests = [request(served, "It is 5, ünless 六 is … more: " + "so " * n, n) for n in (0, 3, 3)]
    for asked, result in zip(requests, ask(teacher(served, top_k=0), *requests), strict=True):
        compare(served, asked, result, 0)


def test_entries_are_asked_for_as_ever(served: Served) -> None:
    """The leaner endpoint takes ids that one names, and nobody knows the most probable ones before."""
    asked = request(served, "It is 5, ünless 六.")
    (result,) = ask(teacher(served, top_k=5), asked)
    compare(served, asked, result, 5)
