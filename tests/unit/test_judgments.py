"""Grades to advantages and rewrites to rows: baselines, processes, and rewrites that give their text back exactly."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import fsum
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from pipeline.judgments import (
    MEMORY,
    Baselines,
    Judged,
    JudgedSettings,
    Judgments,
    judge,
)
from pipeline.metrics import describe_judged
from pipeline.recipe_losses import Grades, Rewrites
from pipeline.rewrites import Room, marks_of, rewrite_rollout, shared_tokens
from pipeline.rollout.segments import segment, think_tags
from pipeline.targets import Row, build_batch, normaliser
from pipeline.types import Advantage, Prompt, Rollout
from teachers.causal_lm import CausalLM
from teachers.probe import Tolerance
from teachers.types import FinishReason, Judgment, RawText, Segment
from tests.models import tiny_tokenizer

TEXT = "The answer is 42, naïve café: 10 € déjà vu; 日本語 日本 🙂👩‍💻\n\n    return x + 1\n" * 20
CONTEXT = 400


def byte_level() -> PreTrainedTokenizerFast:
    """Merges cut through characters, and reach over white space."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return with_tags(backend)


def with_spaces() -> PreTrainedTokenizerFast:
    """Like Llama 2's: a space is put before every text, and taken away again."""
    learned = Tokenizer(BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learned.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    tokens = ["<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], byte_fallback=True))
    backend.pre_tokenizer = learned.pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_tags(backend)


def with_tags(backend: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "characters": tiny_tokenizer,
    "byte_level": byte_level,
    "with_spaces": with_spaces,
}


def lm_of(name: str) -> CausalLM:
    tokenizer = TOKENIZERS[name]()
    ends = frozenset([tokenizer.eos_token_id])
    return CausalLM(
        name, torch.nn.Identity(), tokenizer, len(tokenizer), ends, CONTEXT, lambda: Tolerance(True, True, True)
    )


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def lm(request: pytest.FixtureRequest) -> CausalLM:
    return lm_of(request.param)


@pytest.fixture(scope="module")
def byte_lm() -> CausalLM:
    return lm_of("byte_level")


def settings_of(**changes: Any) -> JudgedSettings:
    grades, rewrites = Grades(), Rewrites()
    return replace(JudgedSettings(grades, rewrites, max_new_tokens=300), **changes)


def prompt_of(name: str = "p", domain: str = "a") -> Prompt:
    return Prompt(name, "source", domain, RawText(name))


def written(
    lm: CausalLM, text: str, *, prompt: Prompt | None = None, sample: int = 0, finish: FinishReason = "end"
) -> Rollout:
    """The student wrote this."""
    ids = [*lm.tokenizer.encode(text, add_special_tokens=False), *([min(lm.end_ids)] if finish == "end" else [])]
    segments = segment(ids, finish, think_tags(lm.tokenizer), ())
    logprobs = (-1.0,) * len(ids)
    return Rollout(prompt or prompt_of(), sample, (5, 6, 7), segments, finish, logprobs, logprobs, (0,) * len(ids))


def decode(lm: CausalLM, ids: Sequence[int]) -> str:
    text: str = lm.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def answer_ids(rollout: Rollout) -> tuple[int, ...]:
    return tuple(token for s in rollout.segments if s.kind == "answer" for token in s.token_ids)


def corrected(lm: CausalLM, rollout: Rollout, text: str, **room: Any) -> Rollout | str:
    return rewrite_rollout(rollout, text, "chat", replace(Room(lm, marks_of(lm), (), 300, 0.0), **room))


# ---- rewrites ----


def edits(count: int) -> list[tuple[str, str]]:
    """Texts and their corrections: something replaced, put in or taken out, anywhere, the end and the beginning too."""
    pick = random.Random(3)
    found = []
    while len(found) < count:
        start = pick.randrange(len(TEXT) // 2)
        text = TEXT[start : start + pick.randint(1, 80)].strip()
        first = pick.randint(0, len(text))
        last = pick.choice([first, len(text), pick.randint(first, len(text))])
        put_in = pick.choice(["", "X", "日", "é", "€ 11", " not", "🙂 ok"])
        rewrite = text[:first] + put_in + text[last:]
        if rewrite.strip() and rewrite.strip() != text.strip():
            found.append((text, rewrite))
    return found


def test_a_rewrite_gives_its_text_back_and_keeps_what_it_shares(lm: CausalLM) -> None:
    for text, rewrite in edits(150):
        rollout = written(lm, text)
        row = corrected(lm, rollout, rewrite)
        assert isinstance(row, Rollout), (text, rewrite, row)
        assert decode(lm, answer_ids(row)) == rewrite
        kept = sum(not own for own in row.trainable)
        assert row.completion_ids[:kept] == rollout.completion_ids[:kept]
        assert all(row.trainable[kept:])
        assert row.segments[-1] == Segment("assistant", "end", (min(lm.end_ids),), trainable=True)
        assert (row.prompt_ids, row.rollout_id, row.writer) == (rollout.prompt_ids, rollout.rollout_id, "chat")
        assert row.sampling_logprobs == row.model_logprobs == ()
        if lm.name != "with_spaces":
            assert kept == longest_shared(lm, answer_ids(rollout), rewrite)


def longest_shared(lm: CausalLM, ids: tuple[int, ...], text: str) -> int:
    return max(n for n in range(len(ids) + 1) if text.startswith(decode(lm, ids[:n])))


def test_a_tokenizer_that_puts_a_space_before_every_text_keeps_the_students_tokens_inside_a_word() -> None:
    lm = lm_of("with_spaces")
    rollout = written(lm, "The answer is 42, naïve café: déjà vu")
    ids = answer_ids(rollout)
    inside = next(n for n, token in enumerate(lm.tokenizer.convert_ids_to_tokens(ids)) if n > 4 and token[0] != "▁")
    rewrite = decode(lm, ids[:inside]) + "X"
    row = corrected(lm, rollout, rewrite)
    assert isinstance(row, Rollout)
    assert decode(lm, answer_ids(row)) == rewrite
    assert row.segments[0] == Segment("assistant", "answer", ids[:inside], trainable=False)


def test_the_search_finds_what_trying_every_length_finds(lm: CausalLM) -> None:
    pick = random.Random(5)
    for text, rewrite in edits(60):
        ids = tuple(lm.tokenizer.encode(text, add_special_tokens=False))
        for wanted in (rewrite, text, text + "x", text[: pick.randint(0, len(text))]):
            found = shared_tokens(ids, wanted, lambda some: decode(lm, some))
            assert found == longest_shared(lm, ids, wanted), (text, wanted)


def test_a_token_that_straddles_the_correction_is_written_anew(byte_lm: CausalLM) -> None:
    rollout = written(byte_lm, "The answer is 42")
    pieces = [decode(byte_lm, [token]) for token in answer_ids(rollout)]
    straddling = next(piece for piece in pieces if len(piece) > 2)
    before = "".join(pieces[: pieces.index(straddling)])
    row = corrected(byte_lm, rollout, before + straddling[:1] + "!")
    assert isinstance(row, Rollout)
    kept = "".join(decode(byte_lm, s.token_ids) for s in row.segments if not s.trainable)
    assert kept == before
    assert decode(byte_lm, row.segments[-2].token_ids) == straddling[:1] + "!"


def test_a_correction_inside_a_character_of_several_tokens_keeps_whole_characters(lm: CausalLM) -> None:
    row = corrected(lm, written(lm, "x 🙂 y"), "x 🙃 y")  # they share their first three bytes
    assert isinstance(row, Rollout)
    assert decode(lm, answer_ids(row)) == "x 🙃 y"
    assert "\ufffd" not in decode(lm, next(s for s in row.segments if s.trainable).token_ids)


def test_an_answer_that_only_had_to_end_trains_its_end_alone(lm: CausalLM) -> None:
    rollout = written(lm, "x = 1;;;;", finish="length")
    shorter = decode(lm, answer_ids(rollout)[:-2])
    row = corrected(lm, rollout, shorter)
    assert isinstance(row, Rollout)
    assert row.trainable == (*(False,) * (len(answer_ids(rollout)) - 2), True)


def test_a_stop_string_ends_a_correction_as_it_ends_an_answer(byte_lm: CausalLM) -> None:
    for rewrite in ("The end\n", "The end###\n ", "The end"):
        row = corrected(byte_lm, written(byte_lm, "The answer\nand so on"), rewrite, stop=("###", "\n"))
        assert isinstance(row, Rollout)
        assert decode(byte_lm, row.completion_ids) == "The end<|end|>"
    assert corrected(byte_lm, written(byte_lm, "The answer\n"), "The answer\n", stop=("\n",)) == "same"


def test_thinking_stays_and_is_not_trained_on(byte_lm: CausalLM) -> None:
    rollout = written(byte_lm, "<think>1 + 1</think>The answer is 3")
    row = corrected(byte_lm, rollout, "The answer is 2")
    assert isinstance(row, Rollout)
    assert decode(byte_lm, row.completion_ids) == "<think>1 + 1</think>The answer is 2<|end|>"
    assert [s.kind for s in row.segments if not s.trainable] == ["think", "answer"]
    trained_on = [t for t, own in zip(row.completion_ids, row.trainable, strict=True) if own]
    assert decode(byte_lm, trained_on) in ("2<|end|>", " 2<|end|>", "s 2<|end|>", "is 2<|end|>")


def test_white_space_at_the_beginning_is_the_students(lm: CausalLM) -> None:
    for said, rewrite, wanted in (
        ("\n\n  x + 1", "x + 2", "\n\n  x + 2"),
        ("\n\n  x + 1", "\nx + 2", "\nx + 2"),
        ("x + 1", "\n x + 2", "\n x + 2"),
    ):
        row = corrected(lm, written(lm, said), rewrite)
        assert isinstance(row, Rollout)
        assert decode(lm, answer_ids(row)) == wanted


@pytest.mark.parametrize(
    ("said", "rewrite", "changes", "reason"),
    [
        ("The answer", "The answer", {}, "same"),
        ("The answer", " The answer\n", {}, "same"),
        ("The answer", " \n ", {}, "empty"),
        ("The answer", "", {}, "empty"),
        ("The answer", "The end\nand more", {"stop": ("\n",)}, "stopped"),
        ("<think>x", "The answer", {}, "unfinished"),
        ("x <think>y</think>", "The answer", {}, "unfinished"),
        ("The answer", "The <|end|>", {}, "control_tokens"),
        ("The answer", "<think>y</think>The", {}, "control_tokens"),
        ("The answer", "The " + "x" * 400, {}, "too_long"),
        ("The answer", "The " + "x" * 20, {"max_new_tokens": 20}, "too_long"),
        ("The answer", "Xhe answer", {"least_kept": 0.1}, "little_kept"),
        ("The answer is 42", "The answer X", {"least_kept": 0.9}, "little_kept"),
    ],
)
def test_what_is_no_use(byte_lm: CausalLM, said: str, rewrite: str, changes: Mapping[str, Any], reason: str) -> None:
    assert corrected(byte_lm, written(byte_lm, said), rewrite, **changes) == reason


def test_a_text_that_the_tokenizer_cannot_write_is_no_use(byte_lm: CausalLM) -> None:
    backend = Tokenizer(BPE(vocab={"a": 0, "b": 1, "?": 2, "<|end|>": 3}, merges=[], unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    lm = replace(byte_lm, tokenizer=tokenizer, end_ids=frozenset([3]))
    assert corrected(lm, written(lm, "ab"), "aé") == "garbled"


def test_room_in_the_context_counts_the_prompt_and_the_end(byte_lm: CausalLM) -> None:
    rollout = written(byte_lm, "ab")
    row = corrected(byte_lm, rollout, "aX")
    assert isinstance(row, Rollout)
    length = len(row.prompt_ids) + len(row.completion_ids)
    assert isinstance(corrected(replace(byte_lm, context=length), rollout, "aX"), Rollout)
    assert corrected(replace(byte_lm, context=length - 1), rollout, "aX") == "too_long"


def test_an_answer_of_noise_is_corrected_or_left(lm: CausalLM) -> None:
    """Tokens at random: broken characters, control tokens, tags."""
    pick = random.Random(1)
    corrections = 0
    for _ in range(200):
        ids = [pick.randrange(lm.vocab_size) for _ in range(pick.randint(0, 12))]
        rollout = Rollout(prompt_of(), 0, (5,), segment(ids, "length", think_tags(lm.tokenizer), ()), "length")
        shown = lm.tokenizer.decode(answer_ids(rollout), skip_special_tokens=True)
        rewrite = shown[: pick.randint(0, len(shown))] + "ok"
        row = corrected(lm, rollout, rewrite)
        if isinstance(row, Rollout):
            corrections += 1
            assert decode(lm, answer_ids(row)).lstrip() == rewrite.lstrip()
    assert corrections > 30


# ---- grades ----


def step_of(
    lm: CausalLM, scores: Mapping[str, Sequence[float | None]], teacher: str = "chat", coefficient: float = 0.5
) -> tuple[list[Rollout], dict[str, list[tuple[str, float, Judgment]]]]:
    """Samples of each prompt and their grades; prompts whose name begins with b are of the domain b."""
    rollouts, judgments = [], {}
    for name, samples in scores.items():
        for index, score in enumerate(samples):
            rollout = written(lm, f"answer {index}", prompt=prompt_of(name, name[0]), sample=index)
            rollouts.append(rollout)
            judgments[rollout.rollout_id] = [(teacher, coefficient, Judgment(score=score))]
    return rollouts, judgments


def run(
    lm: CausalLM,
    step: tuple[list[Rollout], Judgments],
    baselines: Baselines = Baselines(),  # noqa: B008
    gather: Callable[[Any], list[Any]] = lambda value: [value],
    **changes: Any,
) -> Judged:
    return judge(*step, settings_of(**changes), baselines, lm, gather)


def values(judged: Judged) -> dict[str, list[float]]:
    """By rollout id, one advantage per teacher."""
    found: dict[str, list[float]] = {}
    for rollout_id, scores in judged.scores.items():
        for score in scores:
            assert isinstance(score.signal, Advantage)
            assert len(set(score.signal.values.tolist())) == 1
            found.setdefault(rollout_id, []).append(score.signal.values[0].item())
    return found


def test_each_sample_is_compared_with_the_prompts_others(byte_lm: CausalLM) -> None:
    grades = {"a1": [0.0, 1.0, 0.5], "a2": [1.0, 0.25], "b1": [0.1, 0.2, 0.3, None]}
    judged = run(byte_lm, step_of(byte_lm, grades))
    expected = {}
    for name, scores in grades.items():
        given = [score for score in scores if score is not None]
        for index, score in enumerate(given):
            others = given[:index] + given[index + 1 :]
            expected[f"{name}/{index}"] = [pytest.approx(score - sum(others) / len(others), abs=1e-7)]
    assert values(judged) == expected
    assert judged.rows == ()
    assert judged.baselines == Baselines()
    (score,) = judged.scores["a1/0"]
    assert (score.teacher, score.coefficient, score.divergence.kind) == ("chat", 0.5, "grade")
    assert len(score.signal.valid) == len(written(byte_lm, "answer 0").completion_ids) == score.signal.valid.sum()


@pytest.mark.parametrize("score", [0.1, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("count", [2, 3, 7, 49])
def test_equal_grades_are_exactly_no_advantage(byte_lm: CausalLM, score: float, count: int) -> None:
    found = values(run(byte_lm, step_of(byte_lm, {"a1": [score] * count})))
    assert list(found.values()) == [[0.0]] * count


def test_a_sample_alone_has_no_advantage_and_is_counted(byte_lm: CausalLM) -> None:
    judged = run(byte_lm, step_of(byte_lm, {"a1": [0.7], "a2": [None, 0.5], "a3": [0.0, 1.0]}))
    assert values(judged) == {"a3/0": [-1.0], "a3/1": [1.0]}
    assert judged.counts["alone/chat"] == 2
    assert not any(Row(r, judged.scores[r.rollout_id]).taught for r in step_of(byte_lm, {"a1": [0.7]})[0])


def test_each_teacher_has_a_baseline_of_its_own(byte_lm: CausalLM) -> None:
    rollouts, one = step_of(byte_lm, {"a1": [0.0, 0.5]}, "mild")
    _, other = step_of(byte_lm, {"a1": [1.0, 0.0]}, "strict", coefficient=0.25)
    both = {name: [*one[name], *other[name]] for name in one}
    judged = run(byte_lm, (rollouts, both), grades=Grades(weight=2.0))
    assert values(judged) == {"a1/0": [-0.5, 1.0], "a1/1": [0.5, -1.0]}
    assert [score.coefficient for score in judged.scores["a1/0"]] == [1.0, 0.5]


def test_the_running_mean_is_a_function_of_the_steps_before(byte_lm: CausalLM) -> None:
    grades = Grades(baseline="running")
    first = run(byte_lm, step_of(byte_lm, {"a1": [1.0], "a2": [0.5], "b1": [0.2]}), grades=grades)
    # Nothing is known yet: the domain's other grades of this step. The one of domain b is alone.
    assert values(first) == {"a1/0": [0.5], "a2/0": [-0.5]}
    assert first.baselines == Baselines({"chat": {"a": 0.75, "b": 0.2}})
    assert first.counts["alone/chat"] == 1
    restored = Baselines.from_json(json.loads(json.dumps(first.baselines.to_json())))
    assert restored == first.baselines
    second = run(byte_lm, step_of(byte_lm, {"a3": [0.25], "b2": [0.2]}), restored, grades=grades)
    assert values(second) == {"a3/0": [-0.5], "b2/0": [0.0]}
    assert second.baselines.means["chat"]["a"] == pytest.approx(MEMORY * 0.75 + (1 - MEMORY) * 0.25)
    assert restored == first.baselines


@pytest.mark.parametrize("baseline", ["group", "running"])
def test_two_processes_find_what_one_finds(byte_lm: CausalLM, baseline: str) -> None:
    pick = random.Random(2)
    grades = {f"{domain}{n}": [pick.random() for _ in range(4)] for domain in "ab" for n in range(5)}
    rollouts, judgments = step_of(byte_lm, grades)
    known = Baselines({"chat": {"a": 0.4}})
    changes = {"grades": Grades(baseline=baseline)}  # type: ignore[arg-type]
    whole = run(byte_lm, (rollouts, judgments), known, **changes)
    halves = [rollouts[rank::2] for rank in range(2)]  # which cuts through the prompts
    shared: list[Any] = []
    for half in halves:
        run(byte_lm, (half, judgments), known, lambda value: [shared.append(value) or value], **changes)
    parts = [run(byte_lm, (half, judgments), known, lambda value: shared, **changes) for half in halves]
    assert values(parts[0]) | values(parts[1]) == values(whole)
    assert parts[0].baselines == parts[1].baselines == whole.baselines
    one, both = describe_judged([whole.counts]), describe_judged([part.counts for part in parts])
    assert both["grade"]["chat"] == pytest.approx(one["grade"]["chat"])
    assert both["advantage"]["chat"] == pytest.approx(one["advantage"]["chat"])


def test_what_is_reported(byte_lm: CausalLM) -> None:
    rollouts, judgments = step_of(byte_lm, {"a1": [0.0, 1.0], "a2": [0.8]})
    for index, rewrite in enumerate(("answer 7", "answer 1", None)):
        ((teacher, coefficient, judgment),) = judgments[rollouts[index].rollout_id]
        judgments[rollouts[index].rollout_id] = [(teacher, coefficient, replace(judgment, rewrite=rewrite))]
    judged = run(byte_lm, (rollouts, judgments))
    assert describe_judged([judged.counts, {}]) == {
        "grade": {"chat": pytest.approx(0.6)},
        "advantage": {"chat": 1.0},
        "alone": {"chat": 1},
        "rewrites": {"chat": {"used": 1, "same": 1}},
    }
    assert describe_judged([{}, {}]) == {}


def test_a_weight_of_zero_turns_a_part_off(byte_lm: CausalLM) -> None:
    rollouts, judgments = step_of(byte_lm, {"a1": [0.0, 1.0]})
    for rollout in rollouts:
        judgments[rollout.rollout_id] = [("chat", 0.5, Judgment(score=0.3 * rollout.sample_index, rewrite="no"))]
    judged = run(byte_lm, (rollouts, judgments), grades=Grades(weight=0.0))
    assert values(judged) == {}
    assert describe_judged([judged.counts])["grade"] == {"chat": pytest.approx(0.15)}
    assert [(row.supervised, row.kind, row.part) for row in judged.rows] == [(0.5, "rewrite", "rewrite/chat")] * 2
    judged = run(byte_lm, (rollouts, judgments), rewrites=Rewrites(weight=0.0))
    assert judged.rows == ()
    assert len(values(judged)) == 2
    judged = run(byte_lm, (rollouts, judgments), rewrites=Rewrites(weight=3.0))
    assert [row.supervised for row in judged.rows] == [1.5, 1.5]


def test_grades_alone_make_a_batch(byte_lm: CausalLM) -> None:
    rollouts, judgments = step_of(byte_lm, {"a1": [0.0, 1.0], "a2": [0.2, 0.4]})
    judged = run(byte_lm, (rollouts, judgments))
    rows = [Row(rollout, judged.scores[rollout.rollout_id]) for rollout in rollouts]
    batch = build_batch(rows, normaliser(rows, "trajectory"), temperature=1.0, device=torch.device("cpu"))
    (target,) = batch.targets
    assert target.teacher == "chat"
    assert len(target.positions) == len(batch.labels)
    assert fsum(target.weights.tolist()) == pytest.approx(0.5)
    # Each token's loss is coefficient / rows / tokens of its row times its row's advantage.
    pulls = fsum((target.weights * target.signal.values).tolist())
    assert pulls == pytest.approx(0.5 * fsum(v for each in values(judged).values() for v in each) / 4, abs=1e-8)
    assert batch.nll_weights.abs().max() == 0


def test_a_rewrite_trains_what_is_new_alone(byte_lm: CausalLM) -> None:
    rollouts, judgments = step_of(byte_lm, {"a1": [None]})
    judgments["a1/0"] = [("chat", 0.5, Judgment(rewrite="answer 77"))]
    judged = run(byte_lm, (rollouts, judgments))
    (row,) = judged.rows
    batch = build_batch([row], normaliser([row], "token"), temperature=1.0, device=torch.device("cpu"))
    assert decode(byte_lm, batch.labels) in ("77<|end|>", " 77<|end|>")
    assert batch.nll_weights.sum().item() == pytest.approx(0.5)
    assert batch.sampling_logprobs.isnan().all()
    assert batch.parts == ("rewrite/chat",)
    assert batch.input_ids.tolist() == [*row.rollout.prompt_ids, *row.rollout.completion_ids]
