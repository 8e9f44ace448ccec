"""Filling in the middle: the student's own tokens for it, and code that holds them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.codebase.examples import fim_text
from pipeline.codebase.fim import FAMILIES, fim_of
from pipeline.codebase.links import links_of
from pipeline.codebase.tasks import example, places
from pipeline.codebase.types import Example, FillInTheMiddle
from teachers.types import RawText
from tests.codes import FIM, code_of, room


def tokenizer_with(marks: Sequence[str], *, as_text: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A real one over bytes. as_text: entries of its vocabulary that it never reads in a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, *as_text])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def marks_of(family: FillInTheMiddle) -> list[str]:
    return [mark for mark in (family.prefix, family.suffix, family.middle) if mark]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizers_own_tokens_are_found(family: FillInTheMiddle) -> None:
    tokenizer = tokenizer_with(marks_of(family))
    assert fim_of(tokenizer) == family
    ids = tokenizer.encode(fim_text(family, "a = 1\n", "\nb = 2\n"), add_special_tokens=False)
    for mark in marks_of(family):
        assert ids.count(tokenizer.convert_tokens_to_ids(mark)) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_less_and_nothing_is_filled_in(family: FillInTheMiddle) -> None:
    for missing in marks_of(family):
        assert fim_of(tokenizer_with([mark for mark in marks_of(family) if mark != missing])) is None


def test_entries_that_it_never_reads_are_no_tokens_for_it() -> None:
    marks = marks_of(FAMILIES[0])
    tokenizer = tokenizer_with((), as_text=marks)
    assert set(marks) <= tokenizer.get_vocab().keys()
    assert fim_of(tokenizer) is None


def test_what_stands_around_the_gap_stands_in_the_familys_order() -> None:
    assert fim_text(FAMILIES[1], "one", "two") == "<fim_prefix>one<fim_suffix>two<fim_middle>"
    assert fim_text(FAMILIES[-1], "one", "two") == "[SUFFIX]two[PREFIX]one"


def filled(texts: dict[str, str]) -> list[Example]:
    code = code_of(texts)
    links = links_of(code)
    within = room(prompt=900, retrieved=300, shows_retrieved=True)
    found = [example("fim", code, links, place, within) for place in places("fim", code, {"pkg/a.py"}, 20, within)]
    return [each for each in found if each is not None]


TOTAL = """from pkg.b import weigh


def total(items):
    first = weigh(items[0]) + 17
    second = weigh(items[1]) * 3
    return first + second
"""


@pytest.mark.parametrize("mark", marks_of(FIM))
@pytest.mark.parametrize("where", ["pkg/a.py", "pkg/b.py"])
def test_code_that_holds_a_token_for_it_is_not_shown_with_it(where: str, mark: str) -> None:
    texts = {"pkg/__init__.py": "", "pkg/a.py": TOTAL, "pkg/b.py": "def weigh(x):\n    return x.weight\n"}
    plain = filled(texts)
    assert plain
    assert all(isinstance(each.conversation, RawText) and "def weigh" in each.conversation.text for each in plain)
    texts[where] = texts[where].replace("return ", f"print('{mark}')\n    return ")
    assert filled(texts) == []


def test_a_modules_documentation_is_no_gap() -> None:
    text = "\"\"\"What this module is for.\"\"\"\n\nLIMIT = compute_limit(12, 14)\n\nr'''Of the limit.'''\n"
    code = code_of({"pkg/a.py": text})
    found = places("fim", code, {"pkg/a.py"}, 20, room())
    assert [text[place.span.start : place.span.end] for place in found] == ["LIMIT = compute_limit(12, 14)"]
