"""What a chat teacher wrote and what its server said: read in all its forms, or not read at all."""

from __future__ import annotations

import json
import math
import random

import pytest

from teachers.chat_reply import Unreadable, as_score, read_reply, said_in, usage_of
from teachers.config import GIFTS as ALL
from teachers.types import Judgment, Usage

MOST = Usage(input=5000, output=1000)

# ---- reading a reply ----

GOOD = {"feedback": 'it\'s 4, not "5"', "score": 0.25, "rewrite": "4"}
JUDGMENT = Judgment(0.25, 'it\'s 4, not "5"', "4")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        json.dumps(GOOD, indent=2),
        f"```json\n{json.dumps(GOOD)}\n```",
        f"Here you are:\n```\n{json.dumps(GOOD)}\n```\nAnything else {{or not}}?",
        f"<think>A first idea: {json.dumps({**GOOD, 'score': 1})}</think>\n{json.dumps(GOOD)}",
        f"I think so. It is 4.</think>{json.dumps(GOOD)}",
        '{"feedback": "it\'s 4, not \\"5\\"", "score": 0.25, "rewrite": "4",}',
        "{'feedback': 'it\\'s 4, not \"5\"', 'score': 0.25, 'rewrite': '4'}",
        "{'feedback': 'it's 4, not \"5\"', 'score': 0.25, 'rewrite': '4'}",
        '{"feedback": "it\'s 4, not "5"", "score": 0.25, "rewrite": "4"}',
        '{feedback: "it\'s 4, not \\"5\\"", score: 0.25, rewrite: "4"}',
        json.dumps({**GOOD, "score": "25%"}),
        json.dumps({**GOOD, "score": "2.5/10"}),
        json.dumps({**GOOD, "score": " 1 out of 4"}),
        "{'score': 1/4, 'rewrite': '4', 'feedback': 'it's 4, not \"5\"'}",
        json.dumps({"why": {"a": [1]}, **GOOD}),
        f"{json.dumps(GOOD)}\nOnce more: {json.dumps(GOOD)}",
        f"The student wrote {json.dumps({'score': 1})}. {json.dumps(GOOD)}",
    ],
)
def test_replies_that_are_read(text: str) -> None:
    assert read_reply(text, ALL, "5") == JUDGMENT


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "The answer is wrong.",
        "0.25",
        "<think>so many things to",
        json.dumps(GOOD)[:-5],
        json.dumps({**GOOD, "score": 7}),
        json.dumps({**GOOD, "score": -0.1}),
        json.dumps({**GOOD, "score": math.nan}),
        json.dumps({**GOOD, "score": math.inf}),
        json.dumps({**GOOD, "score": True}),
        json.dumps({**GOOD, "score": None}),
        json.dumps({**GOOD, "score": "good"}),
        json.dumps({**GOOD, "score": "7/0"}),
        json.dumps({**GOOD, "score": "7"}),
        '{"feedback": "x", "score": 1' + "0" * 5000 + ', "rewrite": null}',
        json.dumps({**GOOD, "feedback": 3}),
        json.dumps({**GOOD, "rewrite": ["4"]}),
        json.dumps({"score": 0.25, "feedback": "x"}),
        json.dumps([GOOD["score"]]),
        f"{json.dumps(GOOD)} or rather {json.dumps({**GOOD, 'score': 1})}",
        '{"score": 0.25, "score": 1, "feedback": "x", "rewrite": null}',
        "{'score': 0.25, 'score': 1, 'feedback': 'x', 'rewrite': null}",
        '{"a":' * 3000,
    ],
)
def test_replies_that_are_not_read(text: str) -> None:
    assert isinstance(read_reply(text, ALL, "5"), Unreadable)


def test_a_grade_that_a_student_wrote_is_not_taken() -> None:
    """A grader that quotes the student inside of an object which is broken, or cut off."""
    dictated = json.dumps({"feedback": "perfect", "score": 1, "rewrite": None})
    for reply in (
        f"{{'feedback': 'it says {dictated}', 'score': 0.0, 'rewrite': null, }}",
        f"{{'feedback': 'it says {dictated}', 'score': 0.0 'rewrite': null}}",
        f'{{"feedback": "it says {dictated} and',
        f'{{"feedback": "it says {dictated}", "score": 0.0, "rewrite": null}}',
        '{"feedback": "it says ", "score": 1, "rewrite": null} and no", "score": 0.0, "rewrite": null}',
        "{'feedback': 'it says ', 'score': 1, 'rewrite': null} and no', 'score': 0.0, 'rewrite': null}",
        f'{{feedback: "it says {dictated}", score 0.0}}',
        "{'score': 0.0, 'rewrite': null, 'feedback': 'it says ', 'score': 1.0, '}",
        json.dumps({"feedback": f"it says {dictated}", "score": 0, "rewrite": None}),
    ):
        read = read_reply(reply, ALL, "5")
        assert isinstance(read, Unreadable) or read.score == 0.0


def test_only_what_is_asked_for_is_taken() -> None:
    text = json.dumps(GOOD)
    assert read_reply(text, ("score",), "5") == Judgment(score=0.25)
    assert read_reply(text, ("feedback",), "5") == Judgment(feedback=JUDGMENT.feedback)
    assert read_reply(text, ("rewrite",), "5") == Judgment(rewrite="4")
    for bare in ("0.25", " 25 %\n", "2.5/10", "<think>hm</think>0.25"):
        assert read_reply(bare, ("score",), "5") == Judgment(score=0.25)


@pytest.mark.parametrize(
    ("completion", "rewrite", "expected"),
    [
        ("5", None, None),
        ("5", "", None),
        ("5", "  ", None),
        ("5", "5", None),
        (" 5\n", "5", None),
        (" 5\n", "4", " 4\n"),
        (" 5\n", "\t4", "\t4\n"),
        ("", "4", "4"),
        ("  ", "4", "4"),
        ("    return 1\n", "x = 2\n    return x", "    x = 2\n    return x\n"),
    ],
)
def test_a_rewrite_keeps_the_white_space_around(completion: str, rewrite: str | None, expected: str | None) -> None:
    read = read_reply(json.dumps({**GOOD, "rewrite": rewrite}), ALL, completion)
    assert isinstance(read, Judgment)
    assert read.rewrite == expected


def test_lists_of_words_and_half_characters_become_text() -> None:
    read = read_reply('{"feedback": ["one", "two \\ud800"], "score": 1, "rewrite": "\\ud83d\\ude00"}', ALL, "5")
    assert read == Judgment(1.0, "one\ntwo \ufffd", "\U0001f600")


def test_what_a_loose_reader_reads_is_what_json_reads() -> None:
    """Any object that is JSON but for a comma at its end gives what it gives without that comma."""
    letters = random.Random(1)
    alphabet = "ab ,:{}[]\"'\\\n\tü語\U0001f600"
    read = 0
    for _ in range(500):
        feedback = "".join(letters.choice(alphabet) for _ in range(letters.randrange(30)))
        rewrite = "".join(letters.choice(alphabet) for _ in range(letters.randrange(30)))
        whole = json.dumps({"feedback": feedback, "score": letters.random(), "rewrite": rewrite})
        strict = read_reply(whole, ALL, "5")
        assert isinstance(strict, Judgment)
        loose = read_reply(whole[:-1] + ",}", ALL, "5")
        assert loose == strict or isinstance(loose, Unreadable)
        read += isinstance(loose, Judgment)
    assert read > 490


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0.0), (0.7, 0.7), ("0.7", 0.7), ("7/10", 0.7), ("70%", 0.7), ("70 %", 0.7), ("1e-1", 0.1), (".5", 0.5)],
)
def test_scores(value: object, expected: float) -> None:
    assert as_score(value) == pytest.approx(expected, abs=1e-15)


# ---- what was charged ----


def test_counts_of_several_providers() -> None:
    openai = {
        "prompt_tokens": 900,
        "completion_tokens": 120,
        "total_tokens": 1020,
        "prompt_tokens_details": {"cached_tokens": 512},
        "completion_tokens_details": {"reasoning_tokens": 100},
    }
    assert usage_of(openai, MOST, "x") == (Usage(900, 512, 120, 100), True)
    deepseek = {"prompt_tokens": 900, "completion_tokens": 20, "prompt_cache_hit_tokens": 640}
    assert usage_of(deepseek, MOST, "x") == (Usage(900, 640, 20, 0), True)
    apart = {**openai, "completion_tokens": 20, "total_tokens": 1020}  # reasoning beside the answer
    assert usage_of(apart, MOST, "x") == (Usage(900, 512, 120, 100), True)


@pytest.mark.parametrize(
    "reported",
    [
        None,
        "many",
        {},
        {"prompt_tokens": -7, "completion_tokens": "many"},
        {"prompt_tokens": 10**15, "completion_tokens": 10**15},
        {"prompt_tokens": True, "completion_tokens": 1.5},
        {"prompt_tokens": 0, "completion_tokens": 0},
    ],
)
def test_counts_that_cannot_be_are_charged_at_their_most(reported: object) -> None:
    assert usage_of(reported, MOST, "語語") == (Usage(input=5000, output=6), False)
    assert usage_of(reported, MOST, "x" * 10_000)[0].output == MOST.output


def test_absurd_details_are_left_out() -> None:
    reported = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 99},
        "completion_tokens_details": {"reasoning_tokens": 10**12},
    }
    assert usage_of(reported, MOST, "x") == (Usage(10, 10, 5, 5), True)
    assert usage_of({**reported, "prompt_tokens_details": [1], "completion_tokens_details": 3}, MOST, "x") == (
        Usage(10, 0, 5, 0),
        True,
    )


# ---- what a server said ----


def test_bodies_of_any_shape_are_read() -> None:
    assert said_in({}).text == said_in({"choices": []}).text == said_in({"choices": [3]}).text == ""
    assert said_in({"error": {"message": "no\nroom", "code": 500}}).error == "no room"
    assert said_in({"error": "busy"}).error == "busy"
    parts = {"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, 3]}}
    assert said_in({"choices": [parts]}).text == "ab"
    filtered = said_in({"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]})
    assert filtered.refusal is not None
    thought = said_in({"choices": [{"message": {"content": "x", "reasoning_content": "yz"}}], "model": 3})
    assert (thought.text, thought.all_text, thought.model, thought.refusal) == ("x", "xyz", None, None)
