"""Rollouts on a server that breaks off, forgets, lies: what was written stays, and nothing is sampled anew."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import recipe
from pipeline.errors import RunError
from pipeline.metrics import Sums, collect_mismatch, describe_mismatch, merge
from pipeline.ranks import World
from pipeline.recipe_rollouts import ServerAt, VllmRollouts
from pipeline.rollout.drafts import Draft, DraftLog
from pipeline.rollout.protocol import SamplingSettings
from pipeline.rollout.vllm import VllmGenerator
from pipeline.rollout.vllm_http import Access
from pipeline.rollout.vllm_open import open_vllm
from pipeline.rollout.vllm_wire import BadStreamError, Piece, piece_of, seed_of
from pipeline.student import Student, load_student
from pipeline.types import Prompt, Rollout
from teachers.guard import Guard
from teachers.types import RawText
from tests.models import save_tiny
from tests.servers.engine import EngineServer, Fault

SETTINGS = SamplingSettings(max_new_tokens=24, samples_per_prompt=2, rows=3)
TUNES = ("lora", "full")


def student_of(folder: Path, tune: str = "lora") -> Student:
    path = save_tiny(folder / "student")
    student = load_student(
        recipe.Student.model_validate({"model": path, "tune": tune}),
        model_path=path,
        seed=0,
        chunk_bytes=10**6,
        device=torch.device("cpu"),
    )
    learn(student, 0)
    return student


def learn(student: Student, seed: int) -> None:
    """An update that changes every log-probability."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.trained_parameters().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws)


@pytest.fixture(params=TUNES)
def student(request: pytest.FixtureRequest, tmp_path: Path) -> Student:
    return student_of(tmp_path, request.param)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EngineServer]:
    save_tiny(tmp_path / "student")
    with EngineServer(str(tmp_path / "student")) as found:
        yield found


def generator_of(student: Student, server: EngineServer, folder: Path, **more: Any) -> VllmGenerator:
    rollouts = VllmRollouts.model_validate(
        {"kind": "vllm", "server": {"kind": "at", "url": server.url, "silence": 20.0, "patience": 20.0, **more}}
    )
    assert isinstance(rollouts.server, ServerAt)
    return open_vllm(
        rollouts, student, tokens=100, folder=folder, access=Access(Guard()), world=World(0, 1), say=lambda text: None
    )


def asked(student: Student, count: int = 3) -> list[tuple[Prompt, tuple[int, ...]]]:
    prompts = [Prompt(f"p{n}", "s", "d", RawText(f"What is {n}? ")) for n in range(count)]
    return [(prompt, tuple(student.lm.tokenizer.encode(prompt.conversation.text))) for prompt in prompts]  # type: ignore[union-attr]


def scored(student: Student, rollout: Rollout, temperature: float = 1.0) -> list[float]:
    """log p of its tokens by the student as it is."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    with torch.no_grad():
        logits = student.lm.model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].double()
    found = (logits / temperature).log_softmax(-1)
    return [float(row[token]) for row, token in zip(found, rollout.completion_ids, strict=True)]


def generate(generator: VllmGenerator, settings: SamplingSettings = SETTINGS, **more: Any) -> list[Rollout]:
    given: dict[str, Any] = {"seed": 3, "step": 5, "policy_version": 4} | more
    return generator.generate(asked(generator.student), settings, **given)


def of_rows(server: EngineServer, rollouts: Sequence[Rollout]) -> Iterator[tuple[Rollout, dict[str, Any]]]:
    """Each request that went on from tokens, with the rollout that came of it."""
    for body in server.asked:
        for rollout in rollouts:
            given = tuple(body["prompt"][: len(rollout.prompt_ids)])
            rest = tuple(body["prompt"][len(rollout.prompt_ids) :])
            if given == rollout.prompt_ids and rest and rollout.completion_ids[: len(rest)] == rest:
                yield rollout, body


# ---- a good server ----


def test_tokens_and_their_probabilities(student: Student, server: EngineServer, tmp_path: Path) -> None:
    generator = generator_of(student, server, tmp_path / "run")
    seen: list[str] = []
    rollouts = generate(generator, on_finished=lambda found: seen.extend(each.rollout_id for each in found))
    assert [rollout.rollout_id for rollout in rollouts] == [f"p{n}/{sample}" for n in range(3) for sample in range(2)]
    assert sorted(seen) == [rollout.rollout_id for rollout in rollouts]
    for rollout in rollouts:
        assert rollout.policy_versions == (4,) * len(rollout.completion_ids)
        assert rollout.model_logprobs == rollout.sampling_logprobs
        assert rollout.sampling_logprobs == pytest.approx(scored(student, rollout), abs=1e-4)
        assert (rollout.finish_reason == "length") == (len(rollout.completion_ids) == SETTINGS.max_new_tokens)
    assert len({rollout.completion_ids for rollout in rollouts}) == len(rollouts)


def test_each_version_is_followed_and_the_one_before_let_go(
    student: Student, server: EngineServer, tmp_path: Path
) -> None:
    generator = generator_of(student, server, tmp_path / "run")
    before = generate(generator, policy_version=0)
    learn(student, 1)
    after = generate(generator, step=6, policy_version=1)
    for rollout in after:
        assert rollout.sampling_logprobs == pytest.approx(scored(student, rollout), abs=1e-4)
    old = before[0]
    assert max(abs(a - b) for a, b in zip(old.sampling_logprobs, scored(student, old), strict=True)) > 0.05
    assert len(list((tmp_path / "run" / "engine").iterdir())) == 1
    assert len(server.adapters) <= 1
    generator.close()
    assert not list((tmp_path / "run" / "engine").iterdir())


def test_the_same_weights_are_told_once(student: Student, server: EngineServer, tmp_path: Path) -> None:
    generator = generator_of(student, server, tmp_path / "run")
    generate(generator, policy_version=0)
    told = len(server.told)
    generate(generator, step=6, policy_version=0)
    assert len(server.told) == told
    generate(generator, seed=4, policy_version=0)  # after a roll-back
    assert len(server.told) > told


def test_what_is_cut_away_leaves_the_sampling_alone(student: Student, server: EngineServer, tmp_path: Path) -> None:
    settings = SamplingSettings(max_new_tokens=4, top_p=0.5)
    for rollout in generate(generator_of(student, server, tmp_path / "run"), settings):
        assert rollout.model_logprobs == ()
        assert len(rollout.sampling_logprobs) == len(rollout.completion_ids)


# ---- one that goes wrong ----


@pytest.mark.parametrize("fault", ["cut", "told", "early", "forget"])
@pytest.mark.parametrize("tune", TUNES)
def test_a_completion_goes_on_from_its_tokens(fault: Fault, tune: str, tmp_path: Path) -> None:
    student = student_of(tmp_path, tune)
    probes = 1  # requests that compare the server with the student

    def goes_wrong(request: int, written: int) -> Fault | None:
        return fault if probes <= request < 9 and written == 1 + request % 4 else None

    with EngineServer(str(tmp_path / "student"), fault=goes_wrong) as server:
        generator = generator_of(student, server, tmp_path / "run")
        rollouts = generate(generator)
        again = list(of_rows(server, rollouts))
        assert len(again) >= 6
        assert generator.continued > 0
        for rollout, body in again:
            written = len(body["prompt"]) - len(rollout.prompt_ids)
            assert body["max_tokens"] == SETTINGS.max_new_tokens - written
        # No request began anew once a token was there: as many began as there are completions.
        begun = [body for body in server.asked[probes:] if len(body["prompt"]) == len(rollouts[0].prompt_ids)]
        assert len(begun) == len(rollouts)
        assert len({body["seed"] for body in server.asked}) == len(server.asked)
        for rollout in rollouts:
            assert rollout.sampling_logprobs == pytest.approx(scored(student, rollout), abs=1e-4)


def test_a_server_that_is_away_is_waited_for_no_longer_than_it_may_be(tmp_path: Path) -> None:
    student = student_of(tmp_path)
    with EngineServer(str(tmp_path / "student")) as server:
        generator = generator_of(student, server, tmp_path / "run", patience=0.6)
    with pytest.raises(RunError, match=r"does not answer .*; start it, then go on with --resume"):
        generate(generator)


def test_one_that_never_writes_ends_the_run(tmp_path: Path) -> None:
    student = student_of(tmp_path)
    with EngineServer(str(tmp_path / "student"), fault=lambda request, _: "told" if request else None) as server:
        generator = generator_of(student, server, tmp_path / "run", patience=0.6)
        with pytest.raises(RunError, match=r"no token from http.* for 0.6 s \(EngineCore encountered an issue\)"):
            generate(generator)


@pytest.mark.parametrize(
    ("given", "temperature", "said"),
    [
        ({"wrong": 2.0}, 1.0, "computes something else than the student"),
        ({"raw": True}, 2.0, "start it with --logprobs-mode processed_logprobs"),
    ],
)
def test_another_distribution_is_refused(given: dict[str, Any], temperature: float, said: str, tmp_path: Path) -> None:
    student = student_of(tmp_path)
    with EngineServer(str(tmp_path / "student"), **given) as server:
        generator = generator_of(student, server, tmp_path / "run")
        with pytest.raises(RunError, match=said) as found:
            generate(generator, SamplingSettings(max_new_tokens=4, temperature=temperature))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("tune", TUNES)
def test_one_that_cannot_follow_is_told_how_it_could(
    tune: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = student_of(tmp_path, tune)
    monkeypatch.setattr(EngineServer, "command", lambda *_: (404, {"detail": "Not Found"}))
    needed = {"lora": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "full": "VLLM_SERVER_DEV_MODE=1"}[tune]
    with EngineServer(str(tmp_path / "student")) as server:
        generator = generator_of(student, server, tmp_path / "run")
        with pytest.raises(RunError, match=f"cannot follow the student .*{needed}"):
            generate(generator)


# ---- a run that was stopped ----


def test_drafts_are_gone_on_with(student: Student, server: EngineServer, tmp_path: Path) -> None:
    generator = generator_of(student, server, tmp_path / "run")
    whole = {rollout.rollout_id: rollout for rollout in generate(generator)}
    kept: Callable[[Rollout], tuple[int, ...]] = lambda rollout: rollout.completion_ids[:7]  # noqa: E731
    again = generator_of(student, server, tmp_path / "again")
    with DraftLog(again.drafts, 5, 3, rank=1) as log:  # another process's
        for name in ("p0/0", "p2/1"):
            log.add(name, Draft(), kept(whole[name]), whole[name].sampling_logprobs[:7], 4)
    with DraftLog(again.drafts, 4, 3) as log:
        log.add("p0/1", Draft(), [1, 2], [-1.0, -1.0], 3)  # of another step: long recorded
    before = len(server.asked)
    found = {rollout.rollout_id: rollout for rollout in generate(again)}
    for name in ("p0/0", "p2/1"):
        assert kept(found[name]) == kept(whole[name])
        assert found[name].sampling_logprobs == pytest.approx(scored(student, found[name]), abs=1e-4)
    prompts = {tuple(body["prompt"]) for body in server.asked[before:]}
    assert {(*whole[n].prompt_ids, *kept(whole[n])) for n in ("p0/0", "p2/1")} <= prompts
    assert len(list(again.drafts.iterdir())) == 2  # the two processes' of this step


def test_a_draft_that_a_kill_cut_short(tmp_path: Path) -> None:
    with DraftLog(tmp_path, 1, 0) as log:
        draft = Draft()
        log.add("a/0", draft, [5, 6], [-1.0, -2.0], 0)
        log.add("a/0", draft, [7], [-3.0], 1)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"id": "a/0", "at": 3, "i')
    with DraftLog(tmp_path, 1, 0) as log:
        left = log.left()["a/0"]
        assert left == Draft([5, 6, 7], [-1.0, -2.0, -3.0], [0, 0, 1])
        log.add("a/0", left, [8], [-4.0], 1)
    with DraftLog(tmp_path, 1, 0) as log:
        assert log.left()["a/0"].token_ids == [5, 6, 7, 8]


# ---- what the two differ by ----


def test_mismatch_is_measured_over_what_was_drawn() -> None:
    nan = float("nan")
    differences = [[0.1, -0.3, nan], [], [0.02]]
    parts = []
    for values in differences:
        sums = Sums()
        collect_mismatch(sums, torch.tensor(values, dtype=torch.float64))
        parts.append(sums)
    drawn = [0.1, -0.3, 0.02]
    found = describe_mismatch(merge(parts))["mismatch"]
    assert found["mean"] == pytest.approx(sum(map(abs, drawn)) / 3)
    assert found["largest"] == pytest.approx(0.3)
    assert found["kl"] == pytest.approx(sum(math.exp(d) - 1 - d for d in drawn) / 3)
    assert describe_mismatch(Sums()) == {}


def test_the_estimate_is_the_divergence() -> None:
    """Of tokens that μ drew, mean(exp(d) − 1 − d) comes to KL(μ ‖ π)."""
    draws = torch.Generator().manual_seed(0)
    mu = torch.randn(6, generator=draws).log_softmax(-1).double()
    pi = (mu + 0.3 * torch.randn(6, generator=draws)).log_softmax(-1)
    tokens = torch.multinomial(mu.exp(), 200_000, replacement=True, generator=draws)
    sums = Sums()
    collect_mismatch(sums, (pi - mu)[tokens])
    exact = float((mu.exp() * (mu - pi)).sum())
    assert describe_mismatch(sums)["mismatch"]["kl"] == pytest.approx(exact, rel=0.03)


# ---- the wire ----


def line(**choice: Any) -> str:
    return "data: " + json.dumps({"choices": [choice]})


def test_pieces() -> None:
    said = line(token_ids=[3, 4], logprobs={"token_logprobs": [-1.5, 1e-7]}, finish_reason="length")
    assert piece_of(said, 10) == Piece((3, 4), (-1.5, 0.0), "length")
    assert piece_of("data: [DONE]", 10) is None
    assert piece_of("", 10) is None
    assert piece_of('data: {"choices": [], "usage": {}}', 10) is None


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ('data: {"error": {"message": "gone"}}', True),
        ("data: <html>", True),
        (line(token_ids=[3], logprobs=None), False),
        (line(token_ids=[10], logprobs={"token_logprobs": [-1.0]}), False),
        (line(token_ids=[3], logprobs={"token_logprobs": [float("nan")]}), False),
        (line(token_ids=[3], logprobs={"token_logprobs": [0.5]}), False),
    ],
)
def test_what_is_no_piece(said: str, passes: bool) -> None:
    with pytest.raises(BadStreamError) as found:
        piece_of(said, 10)
    assert found.value.passes == passes


def test_seeds_are_of_their_own() -> None:
    """A continuation that drew with the numbers of the beginning would tend to repeat it."""
    names = [(seed, step, prompt, sample, written) for seed in (0, 1) for step in (0, 1) for prompt in ("a", "b")
             for sample in (0, 1) for written in (0, 1, 2)]  # fmt: skip
    seeds = {seed_of(*name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, 1, "a", 0, 0) == seed_of(0, 1, "a", 0, 0)
