"""Served teachers against a real server on loopback that gives true scores, and against its mistakes."""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pipeline.new_model import model_config, model_from_config
from pipeline.recipe import NewModel
from teachers.causal_lm import render
from teachers.config import ServedTeacher
from teachers.errors import TeacherError
from teachers.guard import Guard
from teachers.served import ScoringServer as Teacher
from teachers.served import build
from teachers.served_rows import log_tail
from teachers.tools import Tools
from teachers.types import (
    Answer,
    Chat,
    Finding,
    Message,
    RawText,
    RemoteTeacher,
    ScoreRequest,
    Segment,
    TeacherFailure,
    TopK,
    Usage,
)
from tests.models import tiny_model, tiny_tokenizer
from tests.servers.scoring_server import KINDS, MODEL, Json, Refused, ScoringServer, ServerKind

SECONDS = 300.0
PROMPT = Chat((Message("user", "What is 2 + 3?"),))


@cache
def model() -> PreTrainedModel:
    return tiny_model(seed=3)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@cache
def letters() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model whose tokens all have a text of their own."""
    tokens = ["<|end|>", *"abcdefghijklmnopqrstuvwxyz .,?", "th", "he", "the", " a"]
    inner = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, [("t", "h"), ("h", "e"), ("th", "e"), (" ", "a")]))
    inner.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>")
    shape = NewModel(architecture="qwen3", hidden_size=32, layers=2, heads=2, context=128)
    return model_from_config(model_config(shape, len(tokens)), made, 5), made


def serving(kind: ServerKind = "vllm", **options: Any) -> ScoringServer:
    return ScoringServer(kind, model(), tokenizer(), **options)


def tools(own: PreTrainedTokenizerFast | None = None, allowed: tuple[str, ...] = ()) -> Tools:
    student = own or tokenizer()

    def student_render(conversation: Chat | RawText, system: str | None) -> tuple[int, ...]:
        return render(conversation, student, system)

    return Tools(student, student_render, Guard(allowed), Path(), check=lambda *_: None, clear=str)


def config(*urls: str, **settings: Any) -> ServedTeacher:
    return ServedTeacher.model_validate({"kind": "served", "url": list(urls), "model": MODEL, "top_k": 5} | settings)


def teacher(*urls: str, own: PreTrainedTokenizerFast | None = None, **settings: Any) -> Teacher:
    return build("ada", config(*urls, **settings), tools(own))


def request(text: str = "That is 5.", own: PreTrainedTokenizerFast | None = None, **changes: Any) -> ScoreRequest:
    ids = tuple((own or tokenizer()).encode(text, add_special_tokens=False))
    segments = (Segment("assistant", "answer", ids, trainable=True),)
    asked = ScoreRequest("p/0", "p", 0, 1, "sums", PROMPT, segments, "end")
    return replace(asked, **changes)


def ask(served: Teacher, *requests: ScoreRequest) -> list[Answer | TeacherFailure]:
    async def run() -> list[Answer | TeacherFailure]:
        deadline = asyncio.get_running_loop().time() + SECONDS
        try:
            return list(await asyncio.gather(*(served.score(each, deadline) for each in requests)))
        finally:
            await served.aclose()

    return asyncio.run(run())


def examined(served: Teacher) -> dict[str, Finding]:
    async def run() -> tuple[Finding, ...]:
        try:
            return await served.examine(asyncio.get_running_loop().time() + SECONDS)
        finally:
            await served.aclose()

    return {finding.what: finding for finding in asyncio.run(run())}


def answered(result: Answer | TeacherFailure) -> TopK:
    assert isinstance(result, Answer), result
    assert isinstance(result.signal, TopK)
    return result.signal


def failed(result: Answer | TeacherFailure) -> TeacherFailure:
    assert isinstance(result, TeacherFailure), result
    return result


def naive(
    asked: ScoreRequest, k: int, lm: PreTrainedModel | None = None, own: PreTrainedTokenizerFast | None = None
) -> TopK:
    """A forward of the model in float64, one token at a time."""
    prompt = render(asked.conversation, own or tokenizer())
    ids = [*prompt, *asked.token_ids]
    with torch.inference_mode():
        table = (lm or model())(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    count = len(asked.token_ids)
    token_logprobs, top_ids, top = torch.zeros(count), torch.zeros(count, k, dtype=torch.int64), torch.zeros(count, k)
    tail = torch.zeros(count)
    for n, token in enumerate(asked.token_ids):
        row = table[len(prompt) + n - 1]
        best = row.sort(descending=True, stable=True)
        token_logprobs[n], top_ids[n], top[n] = row[token], best.indices[:k], best.values[:k]
        left = best.values[k:].exp().sum()
        tail[n] = left.log()
    return TopK(token_logprobs, top_ids, top, tail, torch.ones(count, dtype=torch.bool))


def same(one: TopK, other: TopK) -> None:
    assert bool((one.valid == other.valid).all())
    valid = one.valid
    for a, b in ((one.token_logprobs, other.token_logprobs), (one.logprobs, other.logprobs)):
        torch.testing.assert_close(a[valid], b[valid], atol=2e-5, rtol=0)
    torch.testing.assert_close(one.log_tail[valid].exp(), other.log_tail[valid].exp(), atol=2e-5, rtol=0)
    assert torch.equal(one.ids[valid], other.ids[valid])


# ---- the scores ----


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "texts"])
def test_every_server_gives_the_models_scores(kind: ServerKind, k: int) -> None:
    asked = request()
    with serving(kind) as server:
        served = teacher(server.url, top_k=k)
        (result,) = ask(served, asked)
    signal = answered(result)
    same(signal, naive(asked, k))
    assert signal.ids.shape == (len(asked.token_ids), k)
    assert isinstance(result, Answer)
    prompt = len(render(PROMPT, tokenizer()))
    assert result.usage == Usage(input=prompt + len(asked.token_ids), output=0 if kind == "sglang" else 1)
    assert result.model_returned == ("org/tiny" if kind == "sglang" else MODEL)
    assert isinstance(served, RemoteTeacher)


@pytest.mark.parametrize("k", [0, 5])
def test_a_server_of_texts_gives_the_same(k: int) -> None:
    lm, own = letters()
    asked = request("the answer, a the.", own, conversation=RawText("what is the heat?"))
    results = []
    kinds: tuple[ServerKind, ...] = ("texts", "completions", "vllm", "sglang")
    for kind in kinds:
        with ScoringServer(kind, lm, own) as server:
            results.append(answered(ask(teacher(server.url, own=own, top_k=k), asked)[0]))
            if kind == "texts":
                sent = server.posts("/v1/completions")[-1]
                assert sent["prompt"] == "what is the heat?the answer, a the."
    for result in results:
        same(result, naive(asked, k, lm, own))


def test_k_may_be_the_whole_vocabulary() -> None:
    asked = request()
    with serving(most_logprobs=1000) as server:
        signal = answered(ask(teacher(server.url, top_k=len(tokenizer())), asked)[0])
    assert bool((signal.log_tail < -9).all())  # nothing is left but rounding
    assert bool((signal.ids.sort(dim=1).values == torch.arange(len(tokenizer()))).all())
    same(signal, replace(naive(asked, len(tokenizer())), log_tail=torch.full((len(signal.ids),), -math.inf)))


def test_the_tail_of_everything_is_nothing() -> None:
    whole = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.3, 0.1], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    assert log_tail(whole).tolist() == [-math.inf, pytest.approx(math.log(0.1)), -math.inf]
    assert log_tail(whole + 1e-4)[0] == -math.inf  # a server's rounding up
    assert log_tail(torch.zeros(2, 0)).tolist() == [0.0, 0.0]
    assert log_tail(torch.full((1, 2), -1e-9).log1p().clamp(max=-40)).item() == pytest.approx(0.0, abs=1e-15)


def test_only_the_segments_it_scores_are_valid() -> None:
    def segment(kind: Any, text: str, trainable: bool = True) -> Segment:
        ids = tuple(tokenizer().encode(text, add_special_tokens=False))
        return Segment("tool" if kind == "tool_result" else "assistant", kind, ids, trainable)

    segments = (segment("think", "hm"), segment("tool_result", "42", False), segment("answer", "5!"))
    asked = request(segments=segments)
    with serving() as server:
        signal = answered(ask(teacher(server.url, spans=["answer"]), asked)[0])
        assert signal.valid.tolist() == [False] * 4 + [True] * 2
        same(signal, replace(naive(asked, 5), valid=signal.valid))
        before = len(server.asked)
        nothing = answered(ask(teacher(server.url, spans=["think"]), request())[0])
        assert len(server.asked) == before  # nothing to score, so nobody is asked
    assert not bool(nothing.valid.any())
    assert nothing.ids.shape == (len(request().token_ids), 5)


def test_the_system_prompt_is_the_teachers_alone() -> None:
    asked = request()
    with serving() as server:
        plain = answered(ask(teacher(server.url), asked)[0])
        told = answered(ask(teacher(server.url, system="Be brief."), asked)[0])
        assert server.posts("/v1/completions")[-1]["prompt"][: -len(asked.token_ids)] == list(
            render(PROMPT, tokenizer(), "Be brief.")
        )
    assert not torch.allclose(plain.token_logprobs, told.token_logprobs, atol=1e-3)


# ---- what is asked ----


def test_many_questions_at_once_find_the_server_once() -> None:
    requests = [request(f"It is {n}.") for n in range(20)]
    with serving() as server:
        results = ask(teacher(server.url), *requests)
        assert len([path for path, body in server.asked if not body]) == 4  # three signs and the models
        assert len(server.posts("/v1/completions")) == 20
    for asked, result in zip(requests, results, strict=True):
        same(answered(result), naive(asked, 5))


def test_the_lean_way_is_taken_where_it_exists() -> None:
    with serving("vllm_lean") as server:
        ask(teacher(server.url, top_k=0), request())
        assert len(server.posts("/inference/v1/generate")) == 2  # one to find out
        assert server.posts("/v1/completions") == []
    with serving("vllm") as server:
        ask(teacher(server.url, top_k=0), request())
        assert len(server.posts("/inference/v1/generate")) == 1
        assert len(server.posts("/v1/completions")) == 2


def test_named_servers_are_not_asked_what_they_are() -> None:
    with serving("sglang") as server:
        answered(ask(teacher(server.url, server="sglang"), request())[0])
        assert [path for path, _ in server.asked] == ["/v1/models", "/generate"]


def test_the_key_of_a_question() -> None:
    served = teacher("http://127.0.0.1:1/v1")
    asked = request()
    key = served.key(asked)
    assert key == served.key(replace(asked, request_id="other", step=9)) == teacher("http://127.0.0.1:2/v1").key(asked)
    tool = (replace(asked.segments[0], trainable=False),)
    others = [request("That is 6."), replace(asked, sample_index=1), replace(asked, segments=tool)]
    others.append(replace(asked, conversation=RawText("What is 2 + 3?")))
    assert len({key, *(served.key(other) for other in others)}) == 5
    assert served.estimate(asked).input == len(render(PROMPT, tokenizer())) + len(asked.token_ids)


def test_the_identity_of_a_teacher() -> None:
    same_one = {teacher(f"http://127.0.0.1:{n}/v1").identity for n in (1, 2)}
    assert len(same_one) == 1
    changes: list[dict[str, Any]] = [{"top_k": 6}, {"model": "m"}, {"spans": ["answer"]}, {"system": "Be brief."}]
    assert len(same_one | {teacher("http://127.0.0.1:1/v1", **change).identity for change in changes}) == 5


def test_what_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeacherError, match=r"teachers\.ada\.align is for another tokenizer"):
        build("ada", config("http://127.0.0.1:1/v1", align={}), tools())
    monkeypatch.delenv("ADAS_KEY", raising=False)
    with pytest.raises(TeacherError, match="ADAS_KEY is not set"):
        build("ada", config("http://127.0.0.1:1/v1", key="ADAS_KEY"), tools())


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(key="a-good-key") as server:
        monkeypatch.setenv("ADAS_KEY", "a-good-key")
        answered(ask(teacher(server.url, key="ADAS_KEY"), request())[0])
        monkeypatch.setenv("ADAS_KEY", "a-bad-key")
        failure = failed(ask(teacher(server.url, key="ADAS_KEY"), request())[0])
    assert (failure.reason, failure.retryable) == ("unauthorised", False)
    assert "***" in failure.detail
    assert "a-bad-key" not in failure.detail


def test_a_private_request_stays_here() -> None:
    """An address that resolves to this machine, by a name that is not this machine's: nothing is even looked up."""
    private = request(private=True)

    async def attempt(allowed: tuple[str, ...]) -> Answer | TeacherFailure:
        loop = asyncio.get_running_loop()

        async def here(*_: Any, **__: Any) -> list[Any]:
            return [(2, 1, 6, "", ("127.0.0.1", int(server.root.rpartition(":")[2])))]

        loop.getaddrinfo = here  # type: ignore[assignment]
        served = build("ada", config(server.url.replace("127.0.0.1", "teacher.example")), tools(allowed=allowed))
        try:
            return await served.score(private, loop.time() + SECONDS)
        finally:
            await served.aclose()

    with serving() as server:
        failure = failed(asyncio.run(attempt(("other.example",))))
        assert (failure.reason, failure.retryable) == ("private", False)
        assert server.asked == []
        same(answered(asyncio.run(attempt(("teacher.example",)))), naive(private, 5))
        same(answered(ask(teacher(server.url), private)[0]), naive(private, 5))


# ---- what goes wrong ----


def test_a_text_that_does_not_fit_is_not_cut() -> None:
    asked = request("x" * 40)
    length = len(render(PROMPT, tokenizer())) + 40
    with serving(context=length) as server:  # no room for the token that has to be written
        failure = failed(ask(teacher(server.url), asked)[0])
        assert (failure.reason, failure.retryable) == ("too_long", False)
        assert server.posts("/v1/completions") == []
    with serving(context=length + 1) as server:
        answered(ask(teacher(server.url), asked)[0])


def test_a_server_that_says_too_long_is_believed() -> None:
    with serving(context=20) as server:
        server.get = lambda path: {"data": [{"id": MODEL}]} if path == "/v1/models" else {"version": "1"}  # type: ignore[method-assign]
        failure = failed(ask(teacher(server.url), request())[0])
    assert (failure.reason, failure.retryable) == ("too_long", False)


def test_an_empty_prompt_predicts_nothing() -> None:
    with serving() as server:
        assert failed(ask(teacher(server.url), request(conversation=RawText("")))[0]).reason == "empty_prompt"


def on_rows(change: Callable[[list[Any]], Any]) -> Callable[[str, Json], Json]:
    """Changes vLLM's rows; the last eight are the completion's."""

    def twist(path: str, answer: Json) -> Json:
        if path == "/v1/completions":
            changed = change(answer["choices"][0]["prompt_logprobs"])
            if changed is not None:
                answer["choices"][0]["prompt_logprobs"] = changed
        return answer

    return twist


def set_logprob(place: int, value: Any) -> Callable[[list[Any]], None]:
    def change(rows: list[Any]) -> None:
        next(iter(rows[place].values()))["logprob"] = value  # the realised token's is the first

    return change


def set_all(value: float) -> Callable[[list[Any]], None]:
    def change(rows: list[Any]) -> None:
        for row in rows[1:]:
            for entry in row.values():
                entry["logprob"] = value

    return change


NEVER = {"logprob": -30.0}

TWISTS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "NaN": (set_logprob(-2, math.nan), "not_finite"),
    "infinite": (set_logprob(-2, -math.inf), "not_finite"),
    "null": (set_logprob(-2, None), "not_finite"),
    "a word": (set_logprob(-2, "low"), "not_finite"),
    "positive": (set_logprob(-2, 0.5), "not_finite"),
    "above one together": (set_all(-0.7), "not_finite"),
    "entries too few": (lambda rows: [*rows[:-1], dict([*rows[-1].items()][:4])], "missing_top_k"),
    "two entries too many": (lambda rows: rows[-1].update({"7": NEVER, "8": NEVER}), "missing_top_k"),
    "no entries": (lambda rows: [*rows[:-1], None], "missing_logprobs"),
    "no rows": (lambda rows: "none", "missing_logprobs"),
    "a row too few": (lambda rows: rows[:-1], "misaligned"),
    "a row too many": (lambda rows: [*rows, rows[-1]], "misaligned"),
    "rows one off": (lambda rows: [*rows[1:], rows[1]], "misaligned"),
    "uniform": (set_all(-math.log(358)), "uniform"),
    "no number": (lambda rows: [*rows[:-1], {"a": {"logprob": -1}, **rows[-1]}], "malformed"),
    "beyond the vocabulary": (
        lambda rows: [*rows[:-1], {str(int(k) + (400 if n else 0)): v for n, (k, v) in enumerate(rows[-1].items())}],
        "misaligned",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), TWISTS.values(), ids=TWISTS)
def test_a_wrong_answer_is_a_failure(change: Callable[[list[Any]], Any], reason: str) -> None:
    # A completion of tokens outside of the model's top 5, so that each row has its five and the realised one.
    asked = request("".join(sorted("zyxwvutq")))
    with serving(twist=on_rows(change)) as server:
        failure = failed(ask(teacher(server.url), asked)[0])
    assert (failure.reason, failure.retryable) == (reason, True)
    assert failure.usage is not None  # it was charged all the same
    assert failure.usage.input > len(asked.token_ids)


def test_what_is_not_scored_may_be_anything() -> None:
    think = Segment("assistant", "think", tuple(tokenizer().encode("hm", add_special_tokens=False)), True)
    asked = request(segments=(think, *request().segments))
    place = -len(asked.token_ids)
    with serving(twist=on_rows(set_logprob(place, math.nan))) as server:
        signal = answered(ask(teacher(server.url, spans=["answer"]), asked)[0])
    same(signal, replace(naive(asked, 5), valid=signal.valid))
    assert bool(signal.token_logprobs.isfinite().all())


def test_rounding_above_zero_is_zero() -> None:
    with serving(twist=on_rows(set_logprob(-1, 1e-4))) as server:
        signal = answered(ask(teacher(server.url), request())[0])
    assert float(signal.token_logprobs.max()) == 0.0
    assert bool((signal.log_tail <= 0).all())


def test_another_text_that_comes_back_is_noticed() -> None:
    def swap(path: str, answer: Json) -> Json:
        if path == "/generate":
            tokens = answer["meta_info"]["input_token_logprobs"]
            tokens[-1][1], tokens[-2][1] = tokens[-2][1], tokens[-1][1]
        elif path == "/inference/v1/generate":
            answer["prompt_token_ids"] = answer["prompt_token_ids"][1:]
        else:
            said = answer["choices"][0]["logprobs"]
            said["tokens"] = [said["tokens"][0], *said["tokens"]]  # a server that puts a BOS before
        return answer

    kinds: tuple[ServerKind, ...] = ("sglang", "completions")
    for kind in kinds:
        with serving(kind, twist=swap) as server:
            assert failed(ask(teacher(server.url), request())[0]).reason == "misaligned"


def test_a_text_that_two_tokens_share_is_not_scored() -> None:
    """The characters' tokenizer has every letter twice, once as a byte: texts alone do not tell which."""
    with serving("texts") as server:
        failure = failed(ask(teacher(server.url), request())[0])
        assert failure.reason in ("misaligned", "missing_top_k")
        signal = answered(ask(teacher(server.url, top_k=0), request(conversation=RawText("2 + 3 is")))[0])
    same(signal, naive(request(conversation=RawText("2 + 3 is")), 0))


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths(item, (*path, key)))]


NONSENSE = [None, True, -1, 0, 1e300, math.nan, "", "x", [], {}, [None], {"a": None}, [[1]], 2**70, "\ud800"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 2])
def test_no_answer_is_an_exception(kind: ServerKind, k: int) -> None:
    """Anything anywhere in an answer: a signal of the right form or a failure, nothing else."""
    lm, own = letters()
    asked = request("the answer.", own, conversation=RawText("what?"))
    rng = random.Random(f"{kind}{k}")
    with ScoringServer(kind, lm, own) as server:
        served = teacher(server.url, own=own, top_k=k)

        async def run() -> None:
            deadline = asyncio.get_running_loop().time() + SECONDS
            assert isinstance(await served.score(asked, deadline), Answer)
            good: list[Json] = []
            server.twist = lambda path, answer: good.append(answer) or answer
            await served.score(asked, deadline)
            places = [place for place in paths(good[0]) if place]
            for _ in range(60):
                place, nonsense = rng.choice(places), rng.choice(NONSENSE)
                server.twist = lambda path, answer, p=place, n=nonsense: changed(answer, p, n)  # type: ignore[misc]
                result = await served.score(asked, deadline)
                if isinstance(result, Answer):
                    signal = answered(result)
                    assert signal.ids.shape == (len(asked.token_ids), k)
                    assert bool(signal.token_logprobs.isfinite().all())
                    assert bool((signal.log_tail <= 0).all())
                    assert min(result.usage.input, result.usage.cached, result.usage.output) >= 0
                server.twist = lambda path, answer: answer
            await served.aclose()

        asyncio.run(run())


def changed(answer: Json, place: tuple[Any, ...], value: Any) -> Json:
    copied = copy.deepcopy(answer)
    inner: Any = copied
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copied


# ---- several addresses ----


def test_replicas_share_the_load_and_cover_for_each_other() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(serving()) for _ in range(3)]
        served = teacher(*(server.url for server in servers))
        assert len([answered(result) for result in ask(served, *(request(f"It is {n}") for n in range(30)))]) == 30
        assert {len(server.posts("/v1/completions")) for server in servers} == {10}
    with serving() as alive:
        dead = alive.root.rpartition(":")[0] + ":1/v1"
        served = teacher(dead, alive.url, limits={"breaker": 1, "rest": 3600})

        async def run() -> list[Answer | TeacherFailure]:
            deadline = asyncio.get_running_loop().time() + SECONDS
            return [await served.score(request(f"It is {n}"), deadline) for n in range(6)]

        results = asyncio.run(run())
    assert [failed(result).reason for result in results[:1]] == ["unavailable"]
    assert all(isinstance(result, Answer) for result in results[1:])


# ---- before a run ----


def test_a_good_server_has_no_bad_findings() -> None:
    with serving() as server:
        found = examined(teacher(server.url))
    wanted = ["reachable", "model", "context", "tokenizer", "logprobs", "repeat", "temperature", "latency", "price"]
    assert list(found) == wanted
    assert [what for what, finding in found.items() if not finding.good] == ["latency", "price"]
    assert "vllm 0.32.0" in found["reachable"].text
    assert "128 tokens" in found["context"].text


def test_whether_its_price_is_known_is_told() -> None:
    with serving() as server:
        assert "nothing is charged" in examined(teacher(server.url))["price"].text
        assert examined(teacher(server.url, price={"input": 1, "output": 2}))["price"].good
    assert "set teachers.ada.price" in examined(teacher("http://nobody.invalid:1/v1"))["price"].text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "texts"])
def test_every_kind_can_be_examined(kind: ServerKind) -> None:
    with serving(kind) as server:
        found = examined(teacher(server.url, top_k=0))
    assert found["logprobs"].good
    assert all(finding.good is not False for finding in found.values()), found


def bad(found: Mapping[str, Finding]) -> list[str]:
    return [what for what, finding in found.items() if finding.good is False]


def test_more_entries_than_a_server_allows_are_found() -> None:
    kinds: tuple[ServerKind, ...] = ("vllm", "completions")
    for kind in kinds:
        with serving(kind) as server:
            found = examined(teacher(server.url, top_k=50))
        assert bad(found) == ["top_k"], kind
        assert "--max-logprobs 50 (vLLM's flag), or set top_k to 20" in found["top_k"].text


def test_a_model_that_is_not_there_is_found() -> None:
    with serving() as server:
        found = examined(teacher(server.url, model="huge"))
    assert "model" in bad(found)
    assert bad(examined(teacher("http://127.0.0.1:1/v1"))) == ["reachable"]


def test_replicas_that_disagree_are_found() -> None:
    with serving() as one, ScoringServer("vllm", tiny_model(seed=4), tokenizer()) as other:
        assert bad(examined(teacher(one.url, other.url))) == ["replicas"]
    with serving() as one, serving("sglang") as other:
        assert bad(examined(teacher(one.url, other.url))) == []


def test_a_server_that_wakes_without_weights_is_found() -> None:
    with serving(twist=on_rows(set_all(-math.log(358)))) as server:
        assert bad(examined(teacher(server.url))) == ["uniform"]


def test_a_server_that_changes_its_mind_is_found() -> None:
    rng = random.Random(0)

    def shake(rows: list[Any]) -> None:
        for row in rows[1:]:
            for entry in row.values():
                entry["logprob"] -= rng.random()

    with serving(twist=on_rows(shake)) as server:
        assert "repeat" in bad(examined(teacher(server.url)))


def test_another_tokenizer_is_found() -> None:
    def shift(path: str, answer: Json) -> Json:
        return {"tokens": answer["tokens"][1:]} if path == "/tokenize" else answer

    with serving(twist=shift) as server:
        assert bad(examined(teacher(server.url))) == ["tokenizer"]


def test_a_server_that_reads_texts_to_cut_under_another_name_is_understood() -> None:
    """llama.cpp's: without `content` it cuts nothing into no tokens, and says so with status 200."""
    asked: list[Json] = []

    def tokenize(path: str, body: Json) -> Json:
        if path != "/tokenize":
            return usual(path, body)
        asked.append(body)
        return {"tokens": tokenizer().encode(body.get("content", ""), add_special_tokens=False)}

    with serving("completions") as server:
        usual = server.post
        server.post = tokenize  # type: ignore[method-assign]
        assert examined(teacher(server.url, top_k=0))["tokenizer"].good
        assert asked
        server.post = lambda path, body: {"tokens": []} if path == "/tokenize" else usual(path, body)  # type: ignore[method-assign]
        assert examined(teacher(server.url, top_k=0))["tokenizer"].good is None


def test_a_server_that_writes_and_does_not_score_is_named() -> None:
    """llama.cpp's own server."""

    def refuse(path: str, body: Json) -> Json:
        raise Refused(500 if path == "/v1/completions" else 404, "Only no echo is supported")

    with serving("completions") as server:
        server.post = refuse  # type: ignore[method-assign]
        found = examined(teacher(server.url))
    assert bad(found) == ["logprobs"]
    assert "does not score a given text" in found["logprobs"].text


def test_a_server_that_follows_the_temperature_is_told_apart() -> None:
    with serving(follows_temperature=True) as server:
        followed = examined(teacher(server.url))["temperature"]
    with serving() as server:
        ignored = examined(teacher(server.url))["temperature"]
    assert (followed.good, ignored.good) == (True, True)
    assert followed.text != ignored.text


def test_logits_in_place_of_probabilities_are_found() -> None:
    """vLLM with --logprobs-mode raw_logits."""

    def raise_all(rows: list[Any]) -> None:
        for row in rows[1:]:
            for entry in row.values():
                entry["logprob"] += 12.5

    with serving(twist=on_rows(raise_all)) as server:
        found = examined(teacher(server.url))
    assert bad(found) == ["logprobs"]
    assert "above 0" in found["logprobs"].text
