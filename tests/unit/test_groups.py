"""Teachers in groups: who holds which, and that questions reach them and answers come back, over real processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor

from teachers.groups import Introduction, answers, introduced, placed
from teachers.types import (
    Answer,
    FullVocab,
    Head,
    HeadWeights,
    RawText,
    ScoreRequest,
    SignalKind,
    TeacherFailure,
    TopK,
    Usage,
)


@pytest.mark.parametrize(
    ("bases", "processes", "expected"),
    [
        ({"a": 1, "b": 2}, 2, {"a": (0,), "b": (1,)}),
        ({"a": 1, "b": 2}, 5, {"a": (0, 2, 4), "b": (1, 3)}),
        ({"a": 1, "b": 2, "c": 1}, 2, {"a": (0,), "b": (1,), "c": (0,)}),
        ({"a": 1, "b": 2, "c": 3}, 2, {"a": (0,), "b": (1,), "c": (0,)}),
        ({"a": 1}, 3, {"a": (0, 1, 2)}),
        ({}, 2, {}),
    ],
)
def test_bases_are_dealt_to_groups_in_turn(
    bases: dict[str, int], processes: int, expected: dict[str, tuple[int, ...]]
) -> None:
    assert placed(bases, processes) == expected


class Thread:
    """One of several processes, played by a thread; mail is copied, as if it were sent."""

    def __init__(self, rank: int, mail: list[list[SimpleQueue[Any]]]) -> None:
        self.rank, self.size, self.mail = rank, len(mail), mail

    def gather(self, value: Any) -> list[Any]:
        for each in range(self.size):
            self.mail[each][self.rank].put(value)
        return [found for n in range(self.size) if (found := self.mail[self.rank][n].get(timeout=30)) is not None]

    def swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        for each, part in enumerate(parts):
            self.mail[each][self.rank].put(part.clone())
        return [self.mail[self.rank][n].get(timeout=30) for n in range(self.size)]

    def spread(self, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        found: Tensor = self.gather(tensor if self.rank == source else torch.empty(0))[source].clone()
        assert (tuple(found.shape), found.dtype) == (tuple(shape), dtype)
        return found


def together(processes: int, run: Any) -> list[Any]:
    mail = [[SimpleQueue[Any]() for _ in range(processes)] for _ in range(processes)]
    found: list[Any] = [None] * processes

    def one(rank: int) -> None:
        found[rank] = run(Thread(rank, mail))

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(each is not None for each in found)
    return found


def request(name: str) -> ScoreRequest:
    return ScoreRequest(name, name, 0, 1, "d", RawText(name), (), "end")


def matrix(seed: int) -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)).bfloat16()


def signal(teacher: str, request_id: str) -> FullVocab | TopK:
    """Something that only this teacher says of this request; of odd sizes, so that bytes have to be padded."""
    seed = torch.Generator().manual_seed(len(teacher) * 1000 + int(request_id[1:]))
    count = 1 + int(request_id[1:]) % 3
    valid = torch.arange(count) % 2 == 0
    if teacher == "top":
        logprobs = torch.randn(count, 3, generator=seed)
        return TopK(logprobs[:, 0], torch.arange(3).repeat(count, 1), logprobs, logprobs[:, 1], valid)
    hidden = torch.randn(count, 5, generator=seed).bfloat16()
    return FullVocab(hidden, Head(teacher, 7, lambda: HeadWeights(matrix(1))), valid)


PLACES = {"one": (0, 2), "top": (1,), "three": (0, 2)}


def test_answers_come_back_to_who_asked() -> None:
    """Three processes and teachers, some of which a process holds; one question fails, one process asks nothing."""
    asked: list[list[str]] = [[], [], []]

    def run(peers: Thread) -> Any:
        def score(name: str, wanted: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]:
            assert peers.rank in PLACES[name]
            asked[peers.rank] += [f"{name} {each.request_id}" for each in wanted]
            for each in reversed(wanted):  # in any order
                failed = each.request_id == "q5"
                failure = TeacherFailure(name, "too_long", retryable=False, detail="why")
                answer = Answer(signal(name, each.request_id), Usage(input=3), name)
                yield each.request_id, failure if failed else answer

        own = Head("own", 7, lambda: HeadWeights(matrix(1)))
        questions = [] if peers.rank == 1 else [
            (name, request(f"q{number}")) for name in PLACES for number in range(peers.rank, 9, 3)
        ]  # fmt: skip
        return answers(questions, PLACES, score, lambda _: own, peers)

    for rank, said in enumerate(together(3, run)):
        names = sorted((name, request_id) for name, request_id, _ in said)
        wanted = [] if rank == 1 else [(name, f"q{n}") for name in PLACES for n in range(rank, 9, 3)]
        assert names == sorted(wanted)
        for name, request_id, result in said:
            if isinstance(result, TeacherFailure):
                assert (request_id, result.detail) == ("q5", "why")
                continue
            assert (result.usage, result.model_returned) == (Usage(input=3), name)
            expected = signal(name, request_id)
            assert type(result.signal) is type(expected)
            for field, value in vars(expected).items():
                found = getattr(result.signal, field)
                assert found.key == "own" if isinstance(value, Head) else torch.equal(found, value)
    assert abs(len(asked[0]) - len(asked[2])) <= len(PLACES)  # equal parts
    assert all(each.startswith("top") for each in asked[1])


def test_heads_are_everywhere_and_equal_ones_once() -> None:
    shared = matrix(2)
    rows = torch.arange(7).flip(0)

    def run(peers: Thread) -> Any:
        kinds = {"one": SignalKind.FULL_VOCAB, "top": SignalKind.TOP_K, "three": SignalKind.FULL_VOCAB}
        here = [name for name, members in PLACES.items() if peers.rank in members]
        own = {name: Introduction(frozenset({kinds[name]}), (), (f"note of {name}",)) for name in here}
        heads = {
            "one": Head("h1", 6, lambda: HeadWeights(shared, torch.ones(7)), scale=2.0),
            "three": Head("h3", 7, lambda: HeadWeights(shared), softcap=30.0, vocab_map=rows),
        }
        mine = {name: head for name, head in heads.items() if name in here}
        return introduced(PLACES, own, mine, peers, torch.device("cpu"))

    found = together(3, run)
    assert [sorted(each) for each in found] == [["top"], ["one", "three"], ["top"]]
    one, three = found[1]["one"], found[1]["three"]
    assert (one.notes, one.signals) == (("note of one",), frozenset({SignalKind.FULL_VOCAB}))
    assert found[0]["top"].head is None
    weights = one.head.load()
    assert torch.equal(weights.weight, shared)
    assert torch.equal(weights.bias, torch.ones(7))
    assert weights.weight is three.head.load().weight
    assert (one.head.key, one.head.size, one.head.scale) == ("h1", 6, 2.0)
    assert (three.head.softcap, three.head.vocab_map.tolist()) == (30.0, rows.tolist())
