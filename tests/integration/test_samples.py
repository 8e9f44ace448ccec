"""samples.jsonl of whole runs against the models themselves: token by token, and what others said of the answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline import manifest, samples
from pipeline.files import read_lines
from pipeline.new_model import model_config, model_from_config
from pipeline.recipe import NewModel
from pipeline.rollout_file import read_heads, read_rollouts
from pipeline.token_texts import entry_text
from pipeline.types import Prompt, Rollout
from teachers.types import RawText
from tests.integration.test_two_processes import torchrun
from tests.mixed import mixed_settings, scored_model
from tests.models import tiny_tokenizer
from tests.runs import DOMAINS, Settings, changed, distill_settings, run_here, sft_settings, write_recipe
from tests.servers.chat_server import ChatServer
from tests.servers.scorer import scorer_of
from tests.vocabularies import byte_level

PATIENT = {"timeout": 60, "deadline": 120, "retries": 0, "breaker": 1000, "concurrency": 16}
WRITTEN = ("step", "domain", "prompt", "completion", "reference", "finish_reason", "writer", "sampling_logprobs")
SEEN = ("rollout_id", "prompt_id", "score", "tokens", "segments", "logprobs", "top", "teachers", "judgments")
TEMPERATURE = 0.8


@pytest.fixture
def critic() -> Iterator[ChatServer]:
    with ChatServer() as opened:
        yield opened


def graded(folder: Path, critic: ChatServer, **changes: Any) -> Settings:
    """A model in this process, a chat model that corrects, and a program, all asked about everything."""
    settings = distill_settings(folder)
    teachers = {
        "local": settings["teachers"][DOMAINS[0]],
        "critic": {"kind": "chat", "url": critic.url, "model": critic.manners.model, "limits": PATIENT},
        "checker": {"kind": "program", "check": "answer", "limits": PATIENT},
    }
    return changed(
        settings,
        {
            "teachers": teachers,
            "routing": "all",
            "rollout.samples_per_prompt": 2,
            "rollout.max_new_tokens": 32,  # there is room for the rewrites
            "objective": {"rewrites": {"least_kept": 0.0}},
            **changes,
        },
    )


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_lines(folder / "samples.jsonl"))


def start(folder: Path, settings: Settings, name: str = "run", **changes: Any) -> Path:
    return run_here(write_recipe(folder / f"{name}.yaml", changed(settings, {"output": str(folder / name), **changes})))


def assert_whole(line: dict[str, Any]) -> None:
    """What holds for every viewed line, whoever taught it."""
    assert tuple(line) == (*WRITTEN, *SEEN)
    tokens, teachers = line["tokens"], line["teachers"].values()
    assert "".join(tokens) == line["completion"]
    assert [segment[1] for segment in line["segments"]] == [0, *(segment[2] for segment in line["segments"][:-1])]
    assert line["segments"][-1][2] == len(tokens)
    columns = [line["logprobs"], line["top"], *(teacher[name] for teacher in teachers for name in teacher)]
    assert all(len(column) == len(tokens) for column in columns)
    for top in (choices for column in (line["top"], *(teacher["top"] for teacher in teachers)) for choices in column):
        if top is not None:
            chances = [chance for _, chance in top]
            assert 1 <= len(top) <= 5
            assert chances == sorted(chances, reverse=True)
            assert all(isinstance(text, str) and 0 <= chance <= 1 for text, chance in top)
            assert sum(chances) <= 1 + 1e-4


# ---- against the models ----


def naive_logprobs(model: str, prompt: list[int], completion: list[int]) -> Tensor:
    """(T, V) in float64, at the run's temperature."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    with torch.inference_mode():
        logits = loaded(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    table: Tensor = (logits[len(prompt) - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return table


def assert_expected(said: dict[str, Any], table: Tensor, ids: list[int]) -> None:
    """logprobs and top of a line, or of a teacher in it, are the table's."""
    decode = partial(tiny_tokenizer().decode, clean_up_tokenization_spaces=False)
    own = table.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert said["logprobs"] == pytest.approx(own.tolist(), rel=1e-4)
    best = table.topk(5)
    for top, chances, entries in zip(said["top"], best.values.exp().tolist(), best.indices.tolist(), strict=True):
        assert [chance for _, chance in top] == pytest.approx(chances, rel=1e-3)
        assert [text for text, _ in top] == [entry_text(entry, decode) for entry in entries]


def test_a_line_is_what_the_models_say_and_what_was_said_of_the_answer(
    tmp_path: Path, critic: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "prune", lambda *_: None)  # keep every step's rollouts
    settings = graded(tmp_path, critic, **{"rollout.temperature": TEMPERATURE})
    folder = start(tmp_path, settings)
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert_whole(line)
    assert all(line["seconds"]["early"] > 0 for line in read_lines(folder / "timings.jsonl"))
    (line, *_) = lines
    rollout = _recorded(folder / "journal" / "step-000001.jsonl", line["rollout_id"])
    ids = list(rollout.completion_ids)
    assert line["prompt_id"] == rollout.prompt.prompt_id
    assert line["segments"] == [[s.kind, *ends] for s, ends in zip(rollout.segments, _ends(rollout), strict=True)]
    # The first step's student is the one that it began with.
    lp = naive_logprobs(settings["student"]["model"], rollout.prompt_ids, ids)
    lq = naive_logprobs(settings["teachers"]["local"]["model"], rollout.prompt_ids, ids)
    assert_expected(line, lp, ids)
    assert list(line["teachers"]) == ["local"]
    assert_expected(line["teachers"]["local"], lq, ids)
    kl = (lp.exp() * (lp - lq)).sum(-1)
    assert line["teachers"]["local"]["divergence"] == pytest.approx(kl.tolist(), rel=1e-3)
    judged = line["judgments"]
    assert list(judged) == ["checker", "critic"]
    assert judged["checker"]["score"] == line["score"] == 0.0
    assert judged["checker"]["rewrite"] is None
    assert judged["critic"]["feedback"]
    rewrites = [line["judgments"]["critic"] for line in lines]
    assert any(said["rewrite_text"] is not None for said in rewrites)
    for said, reference in zip(rewrites, (line["reference"] for line in lines), strict=True):
        assert reference in said["rewrite"]
        assert said["rewrite_text"] in (None, said["rewrite"])


def _recorded(path: Path, rollout_id: str) -> Rollout:
    with path.open() as lines:
        prompts = {name: Prompt(name, "", "", RawText("")) for name in read_heads(lines)}
        lines.seek(0)
        (found,) = [rollout for rollout in read_rollouts(lines, prompts) if rollout.rollout_id == rollout_id]
    return found


def _ends(rollout: Rollout) -> list[tuple[int, int]]:
    lengths = [len(segment.token_ids) for segment in rollout.segments]
    return [(sum(lengths[:n]), sum(lengths[: n + 1])) for n in range(len(lengths))]


def test_every_kind_of_teacher_is_in_the_line(tmp_path: Path, critic: ChatServer) -> None:
    with ChatServer(scorer=scorer_of(scored_model(tmp_path))) as served:
        settings = mixed_settings(tmp_path, critic.url, served.url, served.manners.model)
        settings["teachers"]["sampled"] = {**settings["teachers"]["served"], "top_k": 0}
        lines = lines_of(start(tmp_path, settings))
    for line in lines:
        assert_whole(line)
        teachers = line["teachers"]
        assert list(teachers) == ["adapter", "local", "own", "sampled", "served"]
        assert list(line["judgments"]) == ["checker", "critic"]
        assert all(value is not None for said in teachers.values() for value in said["divergence"] + said["logprobs"])
        assert teachers["sampled"]["top"] == [None] * len(line["tokens"])
        # The same server: the token's probability there is among those of its top-k, where it is one of them.
        assert teachers["sampled"]["logprobs"] == pytest.approx(teachers["served"]["logprobs"], rel=1e-3)
        difference = [mine - its for mine, its in zip(line["logprobs"], teachers["sampled"]["logprobs"], strict=True)]
        assert teachers["sampled"]["divergence"] == pytest.approx(difference, abs=1e-3)


def test_a_teacher_with_another_tokenizer_says_something_where_both_cut_alike(tmp_path: Path) -> None:
    other = byte_level(300)
    shape = NewModel(hidden_size=32, layers=2, heads=2, context=512)
    model_from_config(model_config(shape, len(other)), other, seed=4).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    align = {"top_k": 8, "least_coverage": 0.01}
    near = {"kind": "transformers", "model": str(tmp_path / "other"), "dtype": "float32", "align": align}
    settings = changed(distill_settings(tmp_path), {"teachers": {"near": near}, "routing": "all"})
    silent = 0
    for line in lines_of(start(tmp_path, settings, **{"rollout.max_new_tokens": 12})):
        assert_whole(line)
        said = line["teachers"]["near"]
        columns = zip(said["divergence"], said["logprobs"], said["top"], line["logprobs"], strict=True)
        for divergence, logprob, top, own in columns:
            assert (divergence is None) == (top is None)
            assert logprob is None or top is not None
            assert own is not None
            silent += divergence is None
    assert silent > 0


def test_supervised_training_has_no_teachers_and_keeps_what_surprised(tmp_path: Path) -> None:
    for line in lines_of(start(tmp_path, sft_settings(tmp_path))):
        assert_whole(line)
        assert line["writer"] == "reference"
        assert (line["score"], line["teachers"], line["judgments"]) == (None, {}, {})
        assert all(value < 0 for value in line["logprobs"])
        assert all(top is not None for top in line["top"])


def test_references_beside_rollouts_are_not_mistaken_for_them(tmp_path: Path) -> None:
    """They have the ids of first samples."""
    settings = changed(distill_settings(tmp_path), {"objective": {"reference": 0.3}})
    for line in lines_of(start(tmp_path, settings)):
        assert_whole(line)
        assert line["writer"] == "student"
        assert line["logprobs"] == pytest.approx(line["sampling_logprobs"], rel=1e-3)


def test_steps_that_are_not_viewed_say_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = distill_settings(tmp_path)
    whole = start(tmp_path, settings, "whole")
    monkeypatch.setattr(samples, "MOST_VIEWED", 2)
    few = start(tmp_path, settings, "few")
    first, second, third = lines_of(few)
    assert tuple(second) == WRITTEN
    for line in (first, third):
        assert_whole(line)
    assert {line["domain"] for line in (first, third)} == set(DOMAINS)
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (few / name).read_bytes() == (whole / name).read_bytes()


# ---- several processes ----


def test_the_process_that_has_the_rollout_tells_the_one_that_writes(tmp_path: Path, critic: ChatServer) -> None:
    """A rate next to 0 keeps the weights: what is written, and so what is said of it, is the same in both."""
    changes = {"training.prompts_per_step": 3, "training.learning_rate": 1e-12, "training.steps": 5}
    settings = graded(tmp_path, critic, **changes)
    one, two = start(tmp_path, settings, "one"), tmp_path / "two"
    torchrun(write_recipe(tmp_path / "two.yaml", changed(settings, {"output": str(two)})))
    assert {line["processes"] for line in read_lines(two / "timings.jsonl")} == {2}
    owners = set()
    given = read_lines(one / "provenance.jsonl")
    for single, double, asked in zip(lines_of(one), lines_of(two), given, strict=True):
        assert_whole(double)
        owners.add([sample["request_id"] for sample in asked["samples"]].index(single["rollout_id"]) % 2)
        for name in ("rollout_id", "completion", "score", "tokens", "segments", "judgments"):
            assert double[name] == single[name], name
        assert double["logprobs"] == pytest.approx(single["logprobs"], rel=1e-3)
        (mine,), (its,) = single["teachers"].values(), double["teachers"].values()
        for name in ("divergence", "logprobs"):
            assert its[name] == pytest.approx(mine[name], rel=1e-3), name
    assert owners == {0, 1}
