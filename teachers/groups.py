"""Teachers in groups of processes: each is whole in some of them, which answer for all.

Groups are as many as there are models, or as there are processes where those are fewer. Questions travel to a process
that holds their teacher, last hidden states or top-k come back. What a loss needs of a teacher besides, its head, is in
every process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from teachers.types import (
    Answer,
    Finding,
    FullVocab,
    Head,
    HeadWeights,
    ScoreRequest,
    SignalKind,
    TeacherFailure,
    TopK,
)

if TYPE_CHECKING:
    from torch import Tensor

Question = tuple[str, ScoreRequest]  # whom, what
Said = tuple[str, str, Answer | TeacherFailure]  # who, about which request, what
_ALIGNED = 8  # bytes, of the largest numbers that are sent


class Peers(Protocol):
    """The processes that share the work; every method is called by all of them, at the same place of the program."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in rank order; those that are None are left out."""
        ...

    def swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Of each process the bytes (n,) that it has for this one. parts: what this one has, by who gets it."""
        ...

    def spread(self, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        """The tensor that the process `source` has; for it, its own."""
        ...


def placed(bases: Mapping[str, Hashable], processes: int) -> dict[str, tuple[int, ...]]:
    """Teacher -> the processes that hold it. bases: what it stands on; teachers on one base stay together.

    The n-th base belongs to group n modulo the number of groups, and so does the n-th process.
    """
    order = list(dict.fromkeys(bases.values()))
    groups = min(len(order), processes)
    return {name: tuple(range(order.index(base) % groups, processes, groups)) for name, base in bases.items()}


# ---- what is known of a teacher in other processes ----


class _Matrix(NamedTuple):
    """A tensor of a head, which is sent apart. source, number: whose, and which of its."""

    source: int
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Shell(NamedTuple):
    """A head without its tensors: what another process makes it of."""

    key: str
    size: int
    scale: float
    softcap: float | None
    vocab_map: Tensor | None
    weight: _Matrix
    bias: _Matrix | None


class Introduction(NamedTuple):
    signals: frozenset[SignalKind]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    shell: Shell | None = None


@dataclass(eq=False)
class Elsewhere:
    """A LocalTeacher that other processes hold; it is asked through them, with `answers`.

    head: of one that gives hidden states. findings, notes: what those know of it.
    """

    name: str
    signals: frozenset[SignalKind]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    head: Head | None = None

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]:
        raise AssertionError(f"{self.name} is in other processes")

    def close(self) -> None:
        """Nothing is held here but a head."""


def introduced(
    placement: Mapping[str, Sequence[int]],
    own: Mapping[str, Introduction],
    heads: Mapping[str, Head],
    peers: Peers,
    device: torch.device,
) -> dict[str, Elsewhere]:
    """The placed teachers that are not in this process. own: of those that are. heads: theirs, where they give hidden
    states; equal matrices are sent and kept once."""
    tensors: list[Tensor] = []
    mine: dict[str, Introduction] = {}
    for name, each in own.items():
        if placement[name][0] == peers.rank:
            shell = _shell_of(heads[name], tensors, peers.rank) if name in heads else None
            mine[name] = each._replace(shell=shell)
    known: dict[str, Introduction] = {name: each for part in peers.gather(mine) for name, each in part.items()}
    # Each matrix once, in one order, kept where a teacher is not.
    wanted: dict[_Matrix, bool] = {}
    for name in placement:
        shell = known[name].shell
        for matrix in (shell.weight, shell.bias) if shell is not None else ():
            if matrix is not None:
                wanted[matrix] = wanted.get(matrix, False) or name not in own
    kept: dict[_Matrix, Tensor] = {}
    for matrix, keep in wanted.items():
        sent = tensors[matrix.number] if matrix.source == peers.rank else None
        tensor = peers.spread(sent, matrix.shape, matrix.dtype, matrix.source)
        if keep:
            kept[matrix] = tensor.to(device)
        del tensor
    found: dict[str, Elsewhere] = {}
    for name in placement:
        if name not in own:
            each = known[name]
            head = None if each.shell is None else _head_of(each.shell, kept, device)
            found[name] = Elsewhere(name, each.signals, each.findings, each.notes, head)
    return found


def _shell_of(head: Head, tensors: list[Tensor], rank: int) -> Shell:
    weights = head.load()

    def matrix(tensor: Tensor | None) -> _Matrix | None:
        if tensor is None:
            return None
        places = [number for number, each in enumerate(tensors) if _same(each, tensor)]
        if not places:
            tensors.append(tensor.detach())
        number = places[0] if places else len(tensors) - 1
        return _Matrix(rank, number, tuple(tensor.shape), tensor.dtype)

    weight = matrix(weights.weight)
    assert weight is not None
    rows = None if head.vocab_map is None else head.vocab_map.cpu()
    return Shell(head.key, head.size, head.scale, head.softcap, rows, weight, matrix(weights.bias))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _head_of(shell: Shell, kept: Mapping[_Matrix, Tensor], device: torch.device) -> Head:
    weights = HeadWeights(kept[shell.weight], None if shell.bias is None else kept[shell.bias])
    return Head(
        shell.key,
        shell.size,
        lambda: weights,
        scale=shell.scale,
        softcap=shell.softcap,
        vocab_map=None if shell.vocab_map is None else shell.vocab_map.to(device),
    )


# ---- questions and answers on their way ----


Score = Callable[[str, Sequence[ScoreRequest]], Iterable[tuple[str, Answer | TeacherFailure]]]


def answers(
    questions: Sequence[Question],
    placement: Mapping[str, Sequence[int]],
    score: Score,
    head: Callable[[str], Head | None],
    peers: Peers,
) -> list[Said]:
    """What placed teachers say to this process's questions. Every process calls it, perhaps without any.

    Of all processes' questions to a teacher each that holds it takes an equal part. score: asks one that is here. head:
    of a teacher that gives hidden states.
    """
    asked: list[list[Question]] = peers.gather(list(questions))
    mine: dict[str, list[tuple[int, ScoreRequest]]] = {}
    for name, members in placement.items():
        of_all = [(rank, each) for rank, part in enumerate(asked) for whom, each in part if whom == name]
        of_all.sort(key=lambda each: each[1].request_id)  # a batch's composition must not hang on who asked
        mine[name] = [each for n, each in enumerate(of_all) if members[n % len(members)] == peers.rank]
    written: list[list[_Line]] = [[] for _ in range(peers.size)]
    bytes_: list[list[Tensor]] = [[] for _ in range(peers.size)]
    for name, wanted in mine.items():
        owner = {request.request_id: rank for rank, request in wanted}
        for request_id, result in score(name, [request for _, request in wanted]) if wanted else ():
            line, tensors = _packed(name, request_id, result)
            written[owner[request_id]].append(line)
            bytes_[owner[request_id]] += tensors
    lines: list[list[list[_Line]]] = peers.gather(written)
    received = peers.swap([_joined(parts) for parts in bytes_])
    said: list[Said] = []
    for part, data in zip((of[peers.rank] for of in lines), received, strict=True):
        place = 0
        for line in part:
            result, place = _unpacked(line, data, place, head)
            said.append((line.teacher, line.request_id, result))
    return said


class _Line(NamedTuple):
    """An answer without its tensors, whose dtypes and shapes are in `layout`; or a failure."""

    teacher: str
    request_id: str
    failure: TeacherFailure | None
    answer: Answer | None = None  # without a signal that can be used
    kind: type[FullVocab] | type[TopK] | None = None
    layout: tuple[tuple[torch.dtype, tuple[int, ...]], ...] = ()


def _packed(name: str, request_id: str, result: Answer | TeacherFailure) -> tuple[_Line, list[Tensor]]:
    if isinstance(result, TeacherFailure):
        return _Line(name, request_id, result), []
    signal = result.signal
    if isinstance(signal, FullVocab):
        tensors = [signal.hidden, signal.valid]
    else:
        assert isinstance(signal, TopK), "a teacher that is a model says distributions"
        tensors = [signal.token_logprobs, signal.ids, signal.logprobs, signal.log_tail, signal.valid]
    layout = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
    bare = replace(result, signal=None)  # type: ignore[arg-type]
    return _Line(name, request_id, None, bare, type(signal), layout), [_bytes_of(tensor) for tensor in tensors]


def _bytes_of(tensor: Tensor) -> Tensor:
    sent = torch.zeros(tensor.nbytes + -tensor.nbytes % _ALIGNED, dtype=torch.uint8, device=tensor.device)
    sent[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return sent


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if not parts:
        return torch.empty(0, dtype=torch.uint8)
    device = Counter(part.device for part in parts).most_common(1)[0][0]
    return torch.cat([part.to(device) for part in parts])


def _unpacked(
    line: _Line, data: Tensor, place: int, head: Callable[[str], Head | None]
) -> tuple[Answer | TeacherFailure, int]:
    """The result whose bytes begin at `place`, and where the next one's do."""
    if line.failure is not None:
        return line.failure, place
    tensors = []
    for dtype, shape in line.layout:
        size = prod(shape) * dtype.itemsize
        tensors.append(data[place : place + size].view(dtype).view(shape))
        place += size + -size % _ALIGNED
    assert line.answer is not None
    if line.kind is FullVocab:
        own = head(line.teacher)
        assert own is not None, f"{line.teacher} gives hidden states and has no head here"
        return replace(line.answer, signal=FullVocab(tensors[0], own, tensors[1])), place
    return replace(line.answer, signal=TopK(*(tensor.cpu() for tensor in tensors))), place
