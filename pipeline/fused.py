"""The student's head and the divergence in one chunked pass: N × V never exists, forward or backward.

Gradients with respect to the hidden states and the head are computed chunk by chunk together with the loss; backward
only scales them. Per chunk there is one matrix of raw logits for the student, which becomes its gradient, and one for
each teacher, in the dtype of their products; all else happens on a few rows at a time, in float32, inside the cache.

Legend: N scored tokens of the batch, C rows of a chunk, B rows of a block of it, V vocabulary, R rows of a head's
matrix, D hidden size, n a target's positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.expectations import View, expected
from pipeline.head_groups import Group, groups_of, heads_of, loaded_heads
from pipeline.logit_block import (
    Gradient,
    Measured,
    Space,
    StudentBlock,
    buffers_at_once,
    dense_target,
    finish_logits,
    graded_target,
    sparse_target,
    student_block,
    weighted,
)
from pipeline.objectives import is_dense, nll_term
from pipeline.types import Advantage, StepOutput, Target, TargetOutput, TrainingBatch
from teachers.types import FullVocab, Head, HeadWeights, TopK

OVERLAP_STRIDE = 16  # overlap is measured at every 16th scored token of a batch: top-k over a vocabulary is slow
# A block's buffers, 2 MiB each, stay in the cache. Smaller ones gain little, and where other processes compete
# for the cores every operation on them waits for the slowest thread.
_BLOCK_ENTRIES = 2**19
_BLOCK_ROWS = 128  # elsewhere: so many that a kernel's launch is no longer what an operation on them costs
_STEADY = 64  # rows
_ENOUGH = 128  # rows with which a CPU's products are as quick as with more
_HEAD_ROWS = 2**12  # of the head's gradient, added at once


def fused_loss(
    hidden: Tensor, head: Head, weights: HeadWeights, batch: TrainingBatch, *, chunk_bytes: int
) -> StepOutput:
    """Σ_targets Σ weights · divergence + Σ nll_weights · -log p(label), with measurements.

    hidden (N, D): the student's last hidden states at the scored tokens; its device is where all is computed.
    head, weights: the student's; the matrix may be the tied embedding. Whichever of hidden, weight and bias requires
        a gradient gets one; for a frozen head none is computed, and without grad mode none at all.
    chunk_bytes: memory for logits held at once, at least one row.

    Student's and teachers' logits are divided by batch.temperature; a TopK signal is taken as already at it. Products
    run in the weights' dtype, or in autocast's; the rest in float32 (float64 for a float64 head).
    A position whose weight is 0 adds exactly 0, even if the teacher's row there is not finite; elsewhere a row that
    is not finite makes the loss NaN. Differentiable once; backward may run once.
    Reported with each target: its divergence before weights (policy_gradient: log p_student - log p_teacher of the
    label, an estimate of the reverse KL; grade: the importance ratio), the overlap of the most probable entries at
    every 16th position, and the mass on the teacher's kept entries. At batch.shown also what each expected there, by
    its distribution or as its TopK signal says; that changes nothing else by a bit.
    """
    assert head.vocab_map is None, "the student's logits are its own vocabulary: its head has no vocab_map"
    assert hidden.shape[0] == batch.labels.shape[0], "one hidden state per scored token"
    for target in batch.targets:
        _check(target)
    inputs = (hidden, weights.weight, weights.bias)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    dtype = _product_dtype(hidden, weights)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        student = _Student.of(hidden, head, weights, dtype, batch.temperature, wanted)
        record = _Record.of(hidden, batch, student.accurate)
        view = View.of(batch, head.size, student.accurate)
        run = _Pass(student, record, view, batch, Space(hidden.device), chunk_bytes)
        with loaded_heads(hidden.device) as load:
            for group in groups_of(batch, hidden.device):
                _run_group(run, group, load(heads_of(batch, group)))
        nll = record.nll.sum()
        total = record.loss.sum() + nll
        pull = student.pull()
    if wanted:
        total = _Attached.apply(total, student.gradients(weights), *inputs)  # type: ignore[no-untyped-call]
    outputs = record.outputs(batch)
    return StepOutput(total, nll, record.entropy, record.label_logprobs, outputs, pull, view.result(outputs))


def _check(target: Target) -> None:
    kind, signal = target.divergence.kind, target.signal
    assert (kind == "grade") == isinstance(signal, Advantage), f"{target.teacher}: {kind} of {type(signal).__name__}"
    if isinstance(signal, TopK):
        assert not is_dense(target.divergence), (
            f"{target.teacher}: {kind} needs the whole vocabulary and this teacher gives its top-k; "
            "use a top_k_* divergence or policy_gradient"
        )
        assert kind == "policy_gradient" or signal.ids.shape[-1] > 0, (
            f"{target.teacher}: {kind} needs K > 0 and this teacher gives the sampled token alone; use policy_gradient"
        )


def _product_dtype(hidden: Tensor, weights: HeadWeights) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights.weight.dtype


class _Attached(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        gradients: tuple[Tensor | None, ...],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the fused loss keeps its gradients for one backward only"
        # In place: the head's gradient is as large as the head.
        return (None, None, *(g if g is None else g.mul_(grad_output) for g in gradients))


# ---- what a pass works on ----


@dataclass(frozen=True, eq=False)
class _Student:
    """The student's side of the pass. `rows` (V, D) in the products' dtype; gradients accumulate in `accurate`."""

    hidden: Tensor
    head: Head
    rows: Tensor
    bias: Tensor | None
    temperature: float
    accurate: torch.dtype
    hidden_grad: Tensor | None
    weight_grad: Tensor | None
    bias_grad: Tensor | None

    @staticmethod
    def of(
        hidden: Tensor, head: Head, weights: HeadWeights, dtype: torch.dtype, temperature: float, wanted: bool
    ) -> _Student:
        accurate = torch.promote_types(dtype, torch.float32)

        def zeros(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            needed = wanted and tensor is not None and tensor.requires_grad
            return torch.zeros_like(tensor, dtype=dtype) if needed and tensor is not None else None

        return _Student(
            hidden.detach(),
            head,
            weights.weight.detach()[: head.size].to(dtype),
            None if weights.bias is None else weights.bias.detach()[: head.size].to(accurate),
            temperature,
            accurate,
            zeros(hidden, hidden.dtype),
            zeros(weights.weight, accurate),
            zeros(weights.bias, accurate),
        )

    @property
    def differentiated(self) -> bool:
        return not (self.hidden_grad is None and self.weight_grad is None and self.bias_grad is None)

    @property
    def factor(self) -> float:
        """d (the logits that are compared) / d (the product and the bias), but for the cap."""
        return self.head.scale / self.temperature

    def accumulate(self, gradient: Tensor, hidden: Tensor, positions: Tensor) -> None:
        """Adds a chunk's part. gradient (C, V): what `_run_block` leaves; zeros in rows that have no position."""
        if self.hidden_grad is not None:
            part = torch.mm(gradient, self.rows)[: len(positions)].mul_(self.factor)
            self.hidden_grad.index_copy_(0, positions, part.to(self.hidden_grad.dtype))
        if self.weight_grad is not None:
            scaled = hidden * self.factor
            real = self.weight_grad[: self.head.size]
            if gradient.dtype == real.dtype:
                real.addmm_(gradient.T, scaled)
            else:  # a part of the matrix at a time: the product in the other dtype is not as large as the head
                for first in range(0, len(real), _HEAD_ROWS):
                    rows = slice(first, first + _HEAD_ROWS)
                    real[rows].add_(torch.mm(gradient[:, rows].T, scaled))

    def pull(self) -> Tensor:
        """(N,) the norm of each token's gradient; before backward, which multiplies gradients in place."""
        if self.hidden_grad is None:
            return torch.full((len(self.hidden),), torch.nan, dtype=self.accurate, device=self.hidden.device)
        return self.hidden_grad.to(self.accurate).square().sum(-1).sqrt()

    def gradients(self, weights: HeadWeights) -> tuple[Tensor | None, ...]:
        """With respect to hidden, weight and bias, each in its own dtype."""
        weight = None if self.weight_grad is None else self.weight_grad.to(weights.weight.dtype)
        bias = None if self.bias_grad is None or weights.bias is None else self.bias_grad.to(weights.bias.dtype)
        return self.hidden_grad, weight, bias


@dataclass(frozen=True, eq=False)
class _Record:
    """What a pass measures; every entry is written once. loss and nll (N,) are weighted, the rest is not."""

    loss: Tensor
    nll: Tensor
    entropy: Tensor
    label_logprobs: Tensor
    divergence: tuple[Tensor, ...]
    overlap: tuple[Tensor, ...]
    mass: tuple[Tensor, ...]
    sharpness: tuple[Tensor, ...]
    best: tuple[Tensor, ...]

    @staticmethod
    def of(hidden: Tensor, batch: TrainingBatch, dtype: torch.dtype) -> _Record:
        def blank(count: int) -> Tensor:
            return torch.full((count,), torch.nan, dtype=dtype, device=hidden.device)

        n = hidden.shape[0]
        per_target = [[blank(len(t.positions)) for t in batch.targets] for _ in range(5)]
        return _Record(
            blank(n).zero_(), blank(n).zero_(), blank(n), blank(n),
            *(tuple(values) for values in per_target),
        )  # fmt: skip

    def outputs(self, batch: TrainingBatch) -> tuple[TargetOutput, ...]:
        columns = zip(batch.targets, self.divergence, self.overlap, self.mass, self.sharpness, self.best, strict=True)
        return tuple(TargetOutput(t.teacher, t.positions, d, o, m, s, b) for t, d, o, m, s, b in columns)


# ---- chunks: matrix products ----


@dataclass(frozen=True, eq=False)
class _Covering:
    """One target on a chunk. rows (C,): where its tensors have these positions. raw (C, R): the product with the
    teacher's head, None without one. finite (C,): whether the teacher's hidden state is."""

    index: int
    target: Target
    rows: Tensor
    raw: Tensor | None
    finite: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class _Pass:
    """What stays the same from chunk to chunk."""

    student: _Student
    record: _Record
    view: View
    batch: TrainingBatch
    space: Space
    chunk_bytes: int


def _run_group(run: _Pass, group: Group, heads: Mapping[str, HeadWeights]) -> None:
    student, space = run.student, run.space
    chunk, block = _rows_at_once(run, group, heads)
    for start in range(0, len(group.positions), chunk):
        part = slice(start, start + chunk)
        positions = group.positions[part]
        hidden = _steady(student.hidden[positions].to(student.rows.dtype))
        raw = space.take("student", (len(hidden), student.head.size), student.rows.dtype)
        torch.mm(hidden, student.rows.T, out=raw)
        covering = [
            _covering(run.batch.targets[index], index, rows[part], heads, space)
            for index, rows in zip(group.targets, group.rows, strict=True)
        ]
        for first in range(0, len(positions), block):
            _run_block(run, raw[: len(positions)], positions, covering, group.supervised, slice(first, first + block))
        if student.differentiated:
            student.accumulate(raw, hidden, positions)


def _steady(hidden: Tensor) -> Tensor:
    """With rows of zeros up to a multiple of _STEADY where a CPU multiplies in bf16: a product is compiled for each new
    shape there, and kept. Their logits, and so their gradients, are zero."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.bfloat16:
        return hidden
    return torch.nn.functional.pad(hidden, (0, 0, 0, -len(hidden) % _STEADY))


def _rows_at_once(run: _Pass, group: Group, heads: Mapping[str, HeadWeights]) -> tuple[int, int]:
    """(C, B): the most rows of raw logits and of a block's buffers that `chunk_bytes` hold together; at least one. On a
    CPU the second half of that memory is for a large vocabulary, whose head is read and changed by every chunk anew."""
    student, size = run.student, run.student.head.size
    signals = [run.batch.targets[index].signal for index in group.targets]
    teachers = [(s.head, heads[s.head.key].weight) for s in signals if isinstance(s, FullVocab)]
    raw = sum(len(matrix) * matrix.itemsize for matrix in (student.rows, *(matrix for _, matrix in teachers)))
    sides = [(student.head, student.rows.dtype), *((head, matrix.dtype) for head, matrix in teachers)]
    buffers = buffers_at_once(sides, student.accurate) * size * student.accurate.itemsize
    together = max(1, run.chunk_bytes // (raw + buffers))
    if student.hidden.device.type == "cpu":
        block = min(together, max(torch.get_num_threads(), _BLOCK_ENTRIES // size))
    else:
        block = min(together, _BLOCK_ROWS)
    rows = max(block, (run.chunk_bytes - block * buffers) // raw)
    if student.hidden.device.type == "cpu":
        rows = min(rows, max(_ENOUGH, (run.chunk_bytes // 2 - block * buffers) // raw))
    return rows - rows % _STEADY or rows, block  # where products come in few shapes, no row of a full chunk is padding


def _covering(target: Target, index: int, rows: Tensor, heads: Mapping[str, HeadWeights], space: Space) -> _Covering:
    signal = target.signal
    if not isinstance(signal, FullVocab):
        return _Covering(index, target, rows, None, torch.ones_like(rows, dtype=torch.bool), None)
    loaded = heads[signal.head.key]
    matrix = loaded.weight if signal.head.vocab_map is not None else loaded.weight[: signal.head.size]
    hidden = signal.hidden[rows]
    finite = hidden.isfinite().all(-1)
    ignored = ~finite & (target.weights[rows] == 0)
    hidden = _steady(hidden.masked_fill(ignored[:, None], 0.0).to(matrix.dtype))
    raw = space.take(f"teacher {index}", (len(hidden), len(matrix)), matrix.dtype)
    torch.mm(hidden, matrix.T, out=raw)
    return _Covering(index, target, rows, raw[: len(rows)], finite, loaded.bias)


# ---- blocks: everything else ----


def _run_block(
    run: _Pass, raw: Tensor, positions: Tensor, covering: Sequence[_Covering], supervised: bool, part: slice
) -> None:
    """Measures some rows of a chunk and replaces their raw logits by d loss / d raw, but for scale and temperature."""
    own, record, view, batch, space = run.student, run.record, run.view, run.batch, run.space
    raw, positions = raw[part], positions[part]
    finished = finish_logits(raw, own.head, own.bias, own.temperature, space, "lp", own.accurate)
    compared = (positions % OVERLAP_STRIDE == 0).nonzero().squeeze(-1)
    shown = view.rows(positions)
    block = student_block(finished, batch.labels[positions], batch.sampling_logprobs[positions], compared, shown, space)
    record.entropy[positions] = block.entropy
    record.label_logprobs[positions] = block.label_logprobs
    if shown is not None:
        view.write(None, expected(block.lp, block.labels, shown), positions[shown], None)
    gradient = Gradient(block, space, own.differentiated)
    for covered in covering:
        measured = _run_target(run, block, covered, gradient, part)
        rows = covered.rows[part]
        record.loss[positions] += measured.loss
        record.divergence[covered.index][rows] = measured.divergence.where(covered.finite[part], torch.nan)
        record.overlap[covered.index][rows] = measured.overlap.where(covered.finite[part], torch.nan)
        record.mass[covered.index][rows] = measured.mass
        if shown is not None:
            view.write(covered.index, measured.expected, positions[shown], covered.finite[part][shown])
        record.sharpness[covered.index][rows] = measured.sharpness.where(covered.finite[part], torch.nan)
        record.best[covered.index][rows] = measured.best.where(covered.finite[part], torch.nan)
    if supervised:
        weights = batch.nll_weights[positions]
        term = nll_term(block.label_logprobs, block.labels)
        record.nll[positions] = weighted(weights, term.value)
        gradient.add_sparse(weights, term)
    if own.differentiated:
        total = gradient.collect()
        if own.bias_grad is not None:
            own.bias_grad[: own.head.size] += total.sum(0) * own.factor
        raw.copy_(total)


def _run_target(run: _Pass, block: StudentBlock, covered: _Covering, gradient: Gradient, part: slice) -> Measured:
    target, rows = covered.target, covered.rows[part]
    signal, weights = target.signal, target.weights[rows].to(block.lp.dtype)
    if isinstance(signal, TopK):
        return sparse_target(block, target, weights, signal, rows, gradient)
    if isinstance(signal, Advantage):
        return graded_target(block, target, weights, signal, rows, gradient)
    assert covered.raw is not None
    own = run.student
    finished = finish_logits(
        covered.raw[part], signal.head, covered.bias, own.temperature, run.space, "lq", own.accurate
    )
    return dense_target(block, target, weights, finished.logits, gradient, run.space)
