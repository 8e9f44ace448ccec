"""Which answer of a step people are shown, and what its line says."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from math import ceil, exp, inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import samples
from pipeline.samples import MOST_CHOICES, MOST_VIEWED, keep, line_of, view_of
from pipeline.types import Expected, Prompt, Rollout, Shown
from teachers.types import Answer, FullVocab, Judgment, RawText, Segment, TeacherFailure
from tests.models import tiny_tokenizer

DECODE = partial(tiny_tokenizer().decode, clean_up_tokenization_spaces=False)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(tiny_tokenizer().encode(text, add_special_tokens=False))


def rollout(domain: str = "a", sample: int = 0, *, text: str = "2+2=4", thought: str = "") -> Rollout:
    """thought: what stands in front and is not trained on."""
    segments = [Segment("assistant", "think", ids_of(thought), trainable=False)] if thought else []
    segments.append(Segment("assistant", "answer", ids_of(text), trainable=True))
    segments.append(Segment("assistant", "end", ids_of("<|end|>"), trainable=True))
    length = sum(len(segment.token_ids) for segment in segments)
    return Rollout(
        Prompt(f"id-{domain}", "source", domain, RawText("x"), reference="4"),
        sample,
        ids_of("<|user|>2+2<|assistant|>"),
        tuple(segments),
        "end",
        sampling_logprobs=(-0.5,) * length,
    )


# ---- which one ----


def test_the_domains_take_turns_and_so_do_each_domains_rollouts() -> None:
    rollouts = [rollout(domain, sample) for domain in ("b", "a") for sample in range(3)]
    kept = [keep(rollouts, step, 400) for step in range(1, 13)]
    assert [one.rollout.prompt.domain for one in kept] == ["b", "a"] * 6
    assert Counter(one.rollout.rollout_id for one in kept) == {one.rollout_id: 2 for one in rollouts}
    assert all(rollouts[one.place] is one.rollout is one.shown for one in kept)


def test_a_long_answer_is_a_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    long, short = rollout(text="2+2=4"), rollout(text="4")
    monkeypatch.setattr(samples, "LONGEST_VIEWED", len(short.completion_ids))
    assert (keep([long], 1, 1).viewed, keep([short], 1, 1).viewed) == (False, True)
    assert line_of(long, DECODE)["completion"] == "2+2=4<|end|>"
    assert [len(line_of(one, DECODE)["sampling_logprobs"]) for one in (long, short)] == [0, len(short.completion_ids)]


@pytest.mark.parametrize("steps", [1, 400, 500, 501, 5_000, 9_999])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 20])
def test_token_views_are_few_evenly_spread_and_of_every_domain_and_rollout(steps: int, count: int) -> None:
    rollouts = [rollout(f"domain {n:02}", sample) for n in range(count) for sample in range(2)]
    kept = {step: keep(rollouts, step, steps) for step in range(1, steps + 1)}
    viewed = [step for step, one in kept.items() if one.viewed]
    assert viewed == list(range(1, steps + 1, ceil(steps / MOST_VIEWED)))
    assert len(viewed) <= MOST_VIEWED
    assert all(kept[step].shown is None for step in kept.keys() - set(viewed))
    if steps > 1:
        shown = Counter(kept[step].rollout.prompt.domain for step in viewed)
        assert len(shown) == count
        assert max(shown.values()) - min(shown.values()) <= 1
        assert len({kept[step].rollout.rollout_id for step in viewed}) == 2 * count
        everyone = Counter(one.rollout.prompt.domain for one in kept.values())
        assert len(everyone) == count


def test_domains_that_a_step_does_not_have_are_passed_over() -> None:
    for step in range(1, 20):
        assert keep([rollout("only", 0)], step, 20).rollout.prompt.domain == "only"


# ---- its line ----


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def expected(length: int, k: int = 5, *, first: int = 0) -> Expected:
    """At token n the entries first, first + 1, … with falling probabilities; the token itself has log p = -n."""
    ids = torch.arange(first, first + k).expand(length, k)
    return Expected(-torch.arange(length).float(), ids, -torch.arange(1, k + 1).float().expand(length, k))


def view(of: Rollout, seen: Shown | None, **changes: Any) -> dict[str, Any]:
    found = view_of(of, seen, DECODE, **({"score": None, "said": {}, "rewritten": {}} | changes))
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def test_every_line_says_what_was_written() -> None:
    found = line_of(rollout(thought="hm "), DECODE)
    assert found == {
        "domain": "a",
        "prompt": "<|user|>2+2<|assistant|>",
        "completion": "hm 2+2=4<|end|>",
        "reference": "4",
        "finish_reason": "end",
        "writer": "student",
        "sampling_logprobs": (-0.5,) * 9,
    }


def test_numbers_stand_at_the_tokens_that_were_trained() -> None:
    seen = Shown(expected(6), {"t": expected(6, first=10)}, {"t": values(0.0, 1.0, 2.0, 3.0, 4.0, 5.123456)})
    found = view(rollout(thought="hm "), seen)
    assert found["tokens"] == ["h", "m", " ", "2", "+", "2", "=", "4", "<|end|>"]
    assert found["segments"] == [["think", 0, 3], ["answer", 3, 8], ["end", 8, 9]]
    assert found["logprobs"] == [None] * 3 + [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]
    teacher = found["teachers"]["t"]
    assert teacher["divergence"] == [None] * 3 + [0.0, 1.0, 2.0, 3.0, 4.0, 5.1235]
    for top, start in ((found["top"], 0), (teacher["top"], 10)):
        assert top[:3] == [None] * 3
        assert all(len(choices) == 5 for choices in top[3:])
        assert top[3][0] == [DECODE([start]), pytest.approx(exp(-1), rel=1e-4)]
        assert [choice[1] for choice in top[3]] == sorted((choice[1] for choice in top[3]), reverse=True)


def test_choices_are_kept_where_a_teacher_disagrees_most() -> None:
    long = rollout(text="7" * 150)
    length = len(long.completion_ids)
    mild, wild = torch.linspace(0, 1, length), torch.zeros(length)
    wild[5], wild[6], mild[7] = 3.0, inf, nan
    seen = Shown(expected(length), {"m": expected(length), "w": expected(length)}, {"m": mild, "w": wild})
    found = view(long, seen)
    there = [n for n, choices in enumerate(found["top"]) if choices is not None]
    assert len(there) == MOST_CHOICES
    assert there == [5, *range(length - MOST_CHOICES + 1, length)]
    for name in ("m", "w"):
        assert [n for n, choices in enumerate(found["teachers"][name]["top"]) if choices is not None] == there
    assert found["teachers"]["w"]["divergence"][6] is None


def test_without_teachers_choices_are_kept_where_the_student_was_surprised() -> None:
    long = rollout(text="7" * 150)
    length = len(long.completion_ids)
    found = view(long, Shown(expected(length), {}, {}))
    assert found["teachers"] == {}
    there = [n for n, choices in enumerate(found["top"]) if choices is not None]
    assert there == list(range(length - MOST_CHOICES, length))


def test_what_a_teacher_does_not_say_is_null() -> None:
    """The sampled token alone; nothing at some tokens; entries that cannot be."""
    alone = Expected(values(-1.0, nan, -inf, -1.0, -1.0, -1.0), torch.zeros(6, 0).long(), torch.zeros(6, 0))
    partly = expected(6, k=2)
    partly.logprobs[1], partly.logprobs[2, 1], partly.label_logprobs[1] = nan, -inf, nan
    divergence = values(1, nan, 1, 1, 1, 1)
    found = view(rollout(), Shown(expected(6), {"s": alone, "p": partly}, {"s": divergence, "p": divergence}))
    assert found["teachers"]["s"]["top"] == [None] * 6
    assert found["teachers"]["s"]["logprobs"] == [-1.0, None, None, -1.0, -1.0, -1.0]
    assert found["teachers"]["p"]["divergence"] == [1.0, None, 1.0, 1.0, 1.0, 1.0]
    assert [None if top is None else len(top) for top in found["teachers"]["p"]["top"]] == [2, None, 1, 2, 2, 2]


def test_a_rollout_that_nobody_taught_has_its_texts() -> None:
    found = view(rollout(), None, score=0.5)
    assert "".join(found["tokens"]) == "2+2=4<|end|>"
    assert found["logprobs"] == found["top"] == [None] * 6
    assert found["teachers"] == found["judgments"] == {}
    assert (found["score"], found["rollout_id"], found["prompt_id"]) == (0.5, "id-a/0", "id-a")


def test_who_read_it_as_a_text_is_quoted() -> None:
    nothing = torch.zeros(6, 3), torch.ones(6, dtype=torch.bool)
    said = {
        "z": Answer(Judgment(0.25, "Wrong.", "2+2=5")),
        "y": Answer(Judgment(feedback="Fine.")),
        "silent": TeacherFailure("silent", "timeout", retryable=True),
        "full": Answer(FullVocab(nothing[0], None, nothing[1])),  # type: ignore[arg-type]
    }
    found = view(rollout(), None, said=said, rewritten={"z": "2+2=5"})["judgments"]
    assert list(found) == ["y", "z"]
    assert found["z"] == {"score": 0.25, "feedback": "Wrong.", "rewrite": "2+2=5", "rewrite_text": "2+2=5"}
    assert found["y"] == {"score": None, "feedback": "Fine.", "rewrite": None, "rewrite_text": None}
