"""How sure a real model is and how surprised, against a float64 version; where a cascade of such models goes on."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from teachers.causal_lm import load_causal_lm, render
from teachers.config import TransformersTeacher
from teachers.doubt import Doubt, doubt_of
from teachers.exchange import Exchange, Settled
from teachers.plan import Cascade, Plan
from teachers.pool import Pool, build_pool
from teachers.types import Answer, FullVocab, RawText, ScoreRequest, Segment, TopK
from tests.models import save_tiny

END = 1
PROMPT = RawText("Sort: b a")
MODELS = {"cheap": ("llama", 1), "dear": ("qwen3", 0)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(root / name, architecture, seed) for name, (architecture, seed) in MODELS.items()}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pool(folders: dict[str, str]) -> Pool:
    student = load_causal_lm(folders["dear"], name="student", dtype="float32")
    configs = {
        name: TransformersTeacher(kind="transformers", model=path, dtype="float32") for name, path in folders.items()
    }
    return build_pool(configs, student, shared={}, device=torch.device("cpu"), resolve=lambda path, _: path)


def request(name: str, *ids: int, thinking: tuple[int, ...] = ()) -> ScoreRequest:
    segments = (
        *((Segment("assistant", "tool_result", thinking, trainable=False),) if thinking else ()),
        Segment("assistant", "answer", ids, trainable=True),
        Segment("assistant", "end", (END,), trainable=True),
    )
    return ScoreRequest(name, name, 0, 1, "d", PROMPT, segments, "end")


def naive(pool: Pool, folder: str, asked: ScoreRequest, temperature: float) -> tuple[Doubt, Tensor]:
    """By the model's own logits of the whole text, in float64; and its (N, V) log-probabilities."""
    lm = pool.teachers["dear"].lm  # type: ignore[union-attr]
    prompt = list(render(asked.conversation, lm.tokenizer))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *asked.token_ids]])).logits[0, len(prompt) - 1 : -1].double()
    logprobs = (logits / temperature).log_softmax(-1)
    keep = [place for place, token in enumerate(s.trainable for s in asked.segments for _ in s.token_ids) if token]
    surprise = -torch.stack([logprobs[n, asked.token_ids[n]] for n in keep]).mean()
    entropy = -(logprobs[keep].exp() * logprobs[keep]).sum(-1).mean()
    return Doubt(float(surprise), float(entropy)), logprobs


def signal(pool: Pool, name: str, asked: ScoreRequest) -> FullVocab:
    ((_, answer),) = pool.score(name, [asked])
    assert isinstance(answer, Answer)
    assert isinstance(answer.signal, FullVocab)
    return answer.signal


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_whole_distribution(pool: Pool, folders: dict[str, str], temperature: float) -> None:
    asked = request("r", 40, 41, 42, thinking=(50, 51))
    found = doubt_of(signal(pool, "cheap", asked), asked.token_ids, temperature)
    expected, _ = naive(pool, folders["cheap"], asked, temperature)
    assert found == pytest.approx(expected, rel=1e-5)


def test_pieces_of_a_large_vocabulary_are_the_whole(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request("r", 40, 41, 42, 43, 44)
    whole = doubt_of(signal(pool, "cheap", asked), asked.token_ids)
    monkeypatch.setattr("teachers.doubt._LOGITS_AT_ONCE", 2 * 358)
    assert doubt_of(signal(pool, "cheap", asked), asked.token_ids) == pytest.approx(whole, rel=1e-6)


def test_nothing_is_known_where_nothing_was_scored(pool: Pool) -> None:
    asked = ScoreRequest("r", "r", 0, 1, "d", PROMPT, (Segment("assistant", "answer", (40,), trainable=False),), "end")
    assert doubt_of(signal(pool, "cheap", asked), asked.token_ids) is None


@pytest.mark.parametrize("k", [0, 3, 358])
def test_entries_of_it(pool: Pool, folders: dict[str, str], k: int) -> None:
    """With all of the vocabulary as the whole distribution; else what is not named counts as one token."""
    asked = request("r", 40, 41, 42)
    expected, logprobs = naive(pool, folders["cheap"], asked, 1.0)
    token = logprobs.gather(1, torch.tensor(asked.token_ids)[:, None]).squeeze(1)
    best = logprobs.topk(k)
    rest = (1 - best.values.exp().sum(-1)).clamp(min=0)
    top = TopK(token, best.indices, best.values, rest.log(), torch.ones(len(token), dtype=torch.bool))
    found = doubt_of(top, asked.token_ids)
    assert found is not None
    assert found.surprise == pytest.approx(expected.surprise)
    parts = torch.cat([best.values.exp(), rest[:, None]], -1) if k else torch.stack([token.exp(), 1 - token.exp()], -1)
    assert found.entropy == pytest.approx(float(-torch.xlogy(parts, parts).sum(-1).mean()))
    assert found.entropy <= expected.entropy * (1 + 1e-6)
    if k == 358:
        assert found.entropy == pytest.approx(expected.entropy)


# ---- cascades of models in this process ----


def settled(pool: Pool, cascade: Cascade, asked: list[ScoreRequest]) -> Mapping[str, Settled]:
    exchange = Exchange(pool, Plan(cascade), {})
    for one in asked:
        exchange.submit(one)
    return exchange.settle()


@pytest.mark.parametrize("measure", ["disagreement", "entropy"])
def test_a_cascade_of_local_teachers_goes_on_above_the_threshold(
    pool: Pool, folders: dict[str, str], measure: str
) -> None:
    asked = [request(f"r{n}", 30 + n, 60 - n, 45) for n in range(8)]
    which = Doubt._fields.index({"disagreement": "surprise", "entropy": "entropy"}[measure])
    values = {one.request_id: naive(pool, folders["cheap"], one, 1.0)[0][which] for one in asked}
    low, high = sorted(values.values())[3:5]
    cascade = Cascade(("cheap", "dear"), **{measure: (low + high) / 2})  # type: ignore[arg-type]
    for name, found in settled(pool, cascade, asked).items():
        goes_on = values[name] > (low + high) / 2
        assert list(found.results) == (["cheap", "dear"] if goes_on else ["cheap"])
        assert found.shares == ({"dear": 1.0} if goes_on else {"cheap": 1.0})


def test_without_a_threshold_a_distribution_is_believed(pool: Pool) -> None:
    found = settled(pool, Cascade(("cheap", "dear")), [request("r", 40, 41)])
    assert found["r"].shares == {"cheap": 1.0}


def test_the_same_answer_is_looked_into_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr("teachers.doubt.doubt_of", lambda signal, ids, _: looked.append(ids) or Doubt(9.0, 9.0))
    settled(pool, Cascade(("cheap", "dear"), disagreement=1.0), [request("r", 40, 41)])
    assert looked == [(40, 41, END)]
