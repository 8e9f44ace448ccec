"""A teacher with another tokenizer against float64: its distributions at the shared positions, and the loss of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.new_model import model_config, model_from_config
from pipeline.objectives import log_of_the_rest, top_k_term
from pipeline.recipe import NewModel
from pipeline.types import Divergence
from teachers.alignment import closing_token
from teachers.bridge import Crossed, build_bridge, cross, to_student
from teachers.causal_lm import CausalLM, render
from teachers.crossing import CrossingTeacher
from teachers.heads import find_head
from teachers.probe import probe
from teachers.scoring import Ends
from teachers.spans import encode
from teachers.types import Answer, Chat, Message, RawText, ScoreRequest, Segment, TopK
from tests.models import Architecture, tiny_tokenizer
from tests.vocabularies import byte_level, sentencepiece

TOKENIZERS = {
    "bytes": byte_level,
    "qwen": lambda: byte_level(1500, "<|im_end|>", splits_digits=True),
    "llama": lambda: sentencepiece(900, unigram=False),
    "unigram": sentencepiece,
    "characters": tiny_tokenizer,
}
TEXTS = (
    ("def is what I see", "def f(x):\n    return [x ** 2 for x in range(10)]"),
    ("", "import json  # 🙂 naïve\n\n\n   self.value = None"),
    ("+ 2 is 4", " the arguments of a parser"),
)


@cache
def teacher_of(student: str, teacher: str, architecture: Architecture = "qwen3", k: int = 16) -> CrossingTeacher:
    ours, theirs = TOKENIZERS[student](), TOKENIZERS[teacher]()
    ends = Ends(closing_token(ours, name="s"), closing_token(theirs, name="t"))
    lm = model_of(theirs, architecture)
    return CrossingTeacher(
        name="t",
        lm=lm,
        head=find_head(lm.model, lm.vocab_size, key="t"),
        bridge=build_bridge(ours, theirs, ends, name="t", least_coverage=0),
        top_k=k,
        spans=("think", "answer"),
        system=None,
        tokens_per_forward=10_000,
    )


def model_of(tokenizer: PreTrainedTokenizerFast, architecture: Architecture) -> CausalLM:
    """Sharper than at its start: a nearly uniform teacher would hide which entry is which."""
    shape = NewModel(architecture=architecture, hidden_size=32, layers=2, heads=2, context=512)
    model = model_from_config(model_config(shape, len(tokenizer)), tokenizer, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    ends = frozenset({int(tokenizer.eos_token_id)})
    return CausalLM("t", model, tokenizer, len(tokenizer), ends, 512, lambda: probe(model, len(tokenizer)))


def requests_of(teacher: CrossingTeacher, chat: bool) -> list[ScoreRequest]:
    """Thinking, an answer and its end, in the student's tokens."""
    found = []
    for number, (thinking, answer) in enumerate(TEXTS):
        lead = " " * (chat and teacher.bridge.student.lead)
        think, rest = encode(teacher.bridge.student.pieces, [(lead + thinking).encode(), answer.encode()])
        segments = (
            Segment("assistant", "think", tuple(think or ()), trainable=True),
            Segment("assistant", "answer", tuple(rest or ()), trainable=True),
            Segment("assistant", "end", (teacher.bridge.student.end,), trainable=True),
        )
        conversation = Chat((Message("user", "write"),)) if chat else RawText("write: ")
        found.append(ScoreRequest(str(number), "g", 0, 0, "d", conversation, segments, "end"))
    return found


def crossed_of(teacher: CrossingTeacher, request: ScoreRequest) -> Crossed:
    (found,) = cross(teacher.bridge, [request])
    assert isinstance(found, Crossed)
    return found


def answers(teacher: CrossingTeacher, requests: list[ScoreRequest]) -> dict[str, TopK]:
    found: dict[str, TopK] = {}
    for request_id, answer in teacher.score(requests):
        assert isinstance(answer, Answer), answer
        assert isinstance(answer.signal, TopK)
        found[request_id] = answer.signal
    return found


@torch.no_grad()
def float64_logprobs(teacher: CrossingTeacher, request: ScoreRequest, temperature: float = 1.0) -> tuple[Tensor, int]:
    """(prompt + M, V) log-probabilities of the model alone, and where the completion begins."""
    crossed = crossed_of(teacher, request)
    prompt = render(request.conversation, teacher.lm.tokenizer)
    model = teacher.lm.model.double()
    logits = model(torch.tensor([[*prompt, *crossed.token_ids]])).logits[0].clone()
    model.float()
    return (logits / temperature).log_softmax(-1), len(prompt)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [("bytes", "qwen"), ("qwen", "llama"), ("llama", "bytes"), ("unigram", "llama"), ("characters", "unigram")],
)
def test_what_is_said_is_the_model_s_own_distribution(student: str, teacher: str, chat: bool) -> None:
    crossing = teacher_of(student, teacher)
    bridge, requests = crossing.bridge, requests_of(crossing, chat)
    said = answers(crossing, requests)
    if chat and bridge.student.lead != bridge.teacher.lead:  # a first token with a space in front on one side
        assert any(crossed_of(crossing, request).opening for request in requests)
    for request in requests:
        crossed = crossed_of(crossing, request)
        reference, start = float64_logprobs(crossing, request)
        signal = said[request.request_id]
        assert signal.valid.nonzero().squeeze(-1).tolist() == crossed.student_at.tolist()
        for mine, their in zip(crossed.student_at.tolist(), crossed.teacher_at.tolist(), strict=True):
            row = reference[start + their - 1]
            opening = chat and mine == their == 0
            # The teacher's best entries that the student has too, by a plain sort.
            table = (bridge.opening if opening else bridge.ids).tolist()
            best = sorted((float(lp), table[index]) for index, lp in enumerate(row) if table[index] >= 0)[:-17:-1]
            entries = dict(zip(signal.ids[mine].tolist(), signal.logprobs[mine].tolist(), strict=True))
            assert len(entries) == 16
            worst = best[-1][0] if len(best) == 16 else -torch.inf
            for lp, index in best:  # the last ones of equal probability may be any
                assert entries.get(index, worst) == pytest.approx(lp, abs=2e-4)
            assert float(signal.token_logprobs[mine]) == pytest.approx(float(row[crossed.token_ids[their]]), abs=2e-4)
            mass = signal.logprobs[mine].double().exp().sum() + signal.log_tail[mine].double().exp()
            assert float(mass) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["bytes", "llama", "characters"])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_with_the_student_s_own_tokenizer_it_is_the_plain_top_k(name: str, architecture: Architecture) -> None:
    crossing = teacher_of(name, name, architecture)
    requests = requests_of(crossing, chat=True)
    for request_id, signal in answers(crossing, requests).items():
        request = requests[int(request_id)]
        reference, start = float64_logprobs(crossing, request)
        rows = reference[start - 1 : -1]
        assert bool(signal.valid.all())
        values, ids = rows.topk(16)
        torch.testing.assert_close(signal.logprobs.double(), values, atol=2e-4, rtol=0)
        apart = (values[:, :-1] - values[:, 1:]).min(-1).values > 1e-3
        assert torch.equal(signal.ids[apart], ids[apart])
        realised = rows.gather(1, torch.tensor(request.token_ids)[:, None]).squeeze(1)
        torch.testing.assert_close(signal.token_logprobs.double(), realised, atol=2e-4, rtol=0)
        torch.testing.assert_close(
            signal.log_tail.double(), rows.scatter(1, ids, -torch.inf).logsumexp(-1), atol=2e-4, rtol=0
        )


def test_the_signal_is_at_the_recipe_s_temperature() -> None:
    crossing = teacher_of("bytes", "qwen")
    warm = replace(crossing, temperature=2.0)
    (request, *_) = requests_of(crossing, chat=True)
    crossed = crossed_of(crossing, request)
    reference, start = float64_logprobs(crossing, request, temperature=2.0)
    (signal,) = answers(warm, [request]).values()
    rows = reference[start - 1 + crossed.teacher_at]
    realised = rows.gather(1, torch.tensor(crossed.token_ids)[crossed.teacher_at][:, None]).squeeze(1)
    torch.testing.assert_close(signal.token_logprobs[signal.valid].double(), realised, atol=2e-4, rtol=0)


def test_logits_in_pieces_are_the_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crossing = teacher_of("llama", "bytes")  # the first entry is looked up with a space in front
    requests = requests_of(crossing, chat=True)
    assert any(crossed_of(crossing, request).opening for request in requests)
    whole = answers(crossing, requests)
    monkeypatch.setattr("teachers.crossing._LOGITS_AT_ONCE", 3 * crossing.head.size)
    for request_id, signal in answers(crossing, requests).items():
        torch.testing.assert_close(vars(signal), vars(whole[request_id]), atol=1e-5, rtol=0)


# ---- the loss ----


def loss(signal: TopK, lp: Tensor, kind: str) -> Tensor:
    """The top-k divergence with a tail, per valid position, of a student with log-probabilities lp (N, V)."""
    rows = signal.valid
    divergence = Divergence(kind="top_k_reverse_kl" if kind == "reverse" else "top_k_forward_kl", tail=True)
    p = lp[rows].exp()
    ids = signal.ids[rows]
    tail = log_of_the_rest(p, ids)
    return top_k_term(
        divergence, lp[rows].gather(1, ids), tail, ids, signal.logprobs[rows].double(), signal.log_tail[rows].double()
    ).value


@pytest.mark.parametrize("kind", ["reverse", "forward"])
def test_a_student_that_is_the_teacher_has_no_loss(kind: str) -> None:
    crossing = teacher_of("bytes", "bytes")
    (request, *_) = requests_of(crossing, chat=True)
    (signal,) = answers(crossing, [request]).values()
    reference, start = float64_logprobs(crossing, request)
    assert float(loss(signal, reference[start - 1 : -1], kind).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["reverse", "forward"])
def test_fillers_cost_little_beside_an_entry_of_probability_0(kind: str) -> None:
    """A server's entries without a counterpart leave places. What fills them is known to be in the tail, no more: as
    entries of probability 0 they would cost 80 nats times the student's mass on them."""
    crossing = teacher_of("bytes", "qwen")
    (request, *_) = requests_of(crossing, chat=True)
    crossed = crossed_of(crossing, request)
    reference, start = float64_logprobs(crossing, request)
    rows = reference[start - 1 : -1]
    values, ids = rows.topk(16)
    rest = rows.scatter(1, ids, -torch.inf).logsumexp(-1)
    top = TopK(values[:, 0], ids, values, rest, torch.ones(len(rows), dtype=torch.bool))
    signal = to_student(crossing.bridge, crossed, top, 16)
    filled = torch.zeros_like(signal.ids, dtype=torch.bool)
    for mine, their in zip(crossed.student_at.tolist(), crossed.teacher_at.tolist(), strict=True):
        filled[mine] = ~torch.isin(signal.ids[mine], crossing.bridge.ids[ids[their]])
    assert int(filled[signal.valid].sum()) > 0
    tail = torch.logaddexp(signal.log_tail, signal.logprobs.masked_fill(~filled, -torch.inf).logsumexp(-1))
    zero = replace(signal, logprobs=signal.logprobs.masked_fill(filled, -torch.inf), log_tail=tail)
    # The student spreads its probability evenly, over the fillers too.
    lp = torch.zeros(crossed.length, len(crossing.bridge.student.pieces.entries), dtype=torch.float64).log_softmax(-1)
    # Exact: the fillers left out, so that the student's mass on them is in its tail as well.
    exact = torch.cat([loss(row_of(zero, n, ~filled[n]), lp[n : n + 1], kind) for n in crossed.student_at.tolist()])
    excess, excess_of_zero = loss(signal, lp, kind) - exact, loss(zero, lp, kind) - exact
    assert float(excess.min()) > -1e-9  # finer buckets never lower a divergence
    assert float(excess.max()) < 0.02
    if kind == "reverse":
        some = filled[crossed.student_at].any(-1)
        assert float(excess_of_zero[some].min()) > 10 * float(excess.max())


def row_of(signal: TopK, n: int, keep: Tensor) -> TopK:
    entries = (
        signal.token_logprobs[n],
        signal.ids[n][keep],
        signal.logprobs[n][keep],
        signal.log_tail[n],
        signal.valid[n],
    )
    return TopK(*(entry[None] for entry in entries))
