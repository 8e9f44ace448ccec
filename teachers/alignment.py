"""Whether two models speak of the same tokens. Found before training: a mismatch trains silently wrong.

Equal sizes prove nothing (different tokenizers may have as many entries), and equal entries do not either (the merges
may differ), so entries are compared one by one and a few texts are cut by both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from teachers.errors import TeacherError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.causal_lm import CausalLM

# Words, code, numbers, white space, scripts, symbols: where pre-tokenizers and merges differ first.
PROBES = (
    "The quick brown fox jumps over the lazy dog; it's unbelievably counterintuitive!",
    "def f(x: int) -> list[int]:\n    return [x ** 2 for _ in range(10)]  # O(n)\n\n\treturn None",
    "3.14159 + 2_000_000 = 1e-9, 12345678 / 7 ≈ 1763668.28",
    '{"key": ["válue", null], "emoji": "🙂👩‍💻"}   \n\n\n  trailing ',
    "Übergrößenträger, naïve café; 你好，世界。 Привет, мир! こんにちは 안녕 مرحبا",
)
_EXAMPLES = 3


@dataclass(frozen=True)
class Findings:
    """One line each. problems: training would be wrong. notes: what is handled, and a user may want to know."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers with the same entries that cut the probe texts alike."""
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        digest.update(f"{index}\0{token}\0".encode("utf-8", "surrogatepass"))
    for probe in PROBES:
        digest.update(repr(_cut(tokenizer, probe)).encode())
    return digest.hexdigest()


def compare_vocabularies(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *, name: str) -> Findings:
    """Compares the tokenizers of the student and of the teacher called `name`."""
    if teacher is student or fingerprint(student) == fingerprint(teacher):
        return Findings()
    remedy = "use a teacher with the student's tokenizer, or set align for one of kind transformers or served"
    ours, theirs = _entries(student), _entries(teacher)
    if len(ours) != len(theirs):
        return Findings((f"{name}: its vocabulary has {len(theirs)} entries and the student's {len(ours)}; {remedy}",))
    differ = [index for index in sorted(ours.keys() | theirs.keys()) if ours.get(index) != theirs.get(index)]
    special = _special(student) & _special(teacher)
    plain = [index for index in differ if index not in special]
    problems: list[str] = []
    notes: list[str] = []
    if plain:
        problems.append(
            f"{name}: another tokenizer of the same size, {len(plain)} of {len(ours)} entries differ "
            f"({_examples(plain, ours, theirs)}); {remedy}"
        )
    elif cut := next((probe for probe in PROBES if _cut(student, probe) != _cut(teacher, probe)), None):
        problems.append(f"{name}: its tokenizer has the student's entries and cuts {_short(cut)} otherwise; {remedy}")
    if differ and not plain:
        notes.append(
            f"{name}: {len(differ)} special tokens have other names than the student's "
            f"({_examples(differ, ours, theirs)}); they are scored by their ids"
        )
    return Findings(tuple(problems), tuple(notes))


def compare_models(student: CausalLM, teacher: CausalLM, *, name: str) -> Findings:
    """Compares what the models add to their tokenizers: rows of the embedding, end tokens, the context."""
    problems: list[str] = []
    notes: list[str] = []
    if teacher.vocab_size < student.vocab_size:
        problems.append(
            f"{name}: it has no row for the student's last {student.vocab_size - teacher.vocab_size} tokens; "
            "use a teacher with the student's vocabulary"
        )
    rows = teacher.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    if rows > student.vocab_size:
        notes.append(f"{name}: {rows - student.vocab_size} of its {rows} rows are padding and take no part")
    ours, theirs = answer_end(student), answer_end(teacher)
    if ours != theirs:
        notes.append(
            f"{name}: it ends answers with {_token(teacher, theirs)} and the student with {_token(student, ours)}; "
            "the two are mapped onto each other"
        )
    if teacher.context < student.context:
        notes.append(f"{name}: it takes {teacher.context} tokens and the student {student.context}; longer ones fail")
    return Findings(tuple(problems), tuple(notes))


def answer_end(lm: CausalLM) -> int:
    """The token that closes this model's answers: the end token that its chat template writes after one.

    Without a template, or where it writes none, the tokenizer's own, else the lowest of the model's. Gemma's tokenizer
    names <eos> and its template closes turns with <end_of_turn>: the tokenizer alone does not tell.
    """
    own = lm.tokenizer.eos_token_id
    default: int = own if own in lm.end_ids else min(lm.end_ids)
    found = _closing(lm.tokenizer, lm.end_ids)
    return default if found is None else found


def closing_token(tokenizer: PreTrainedTokenizerBase, *, name: str) -> int:
    """`answer_end` where there is no model, only its tokenizer: the special token that follows an answer.

    Raises:
        TeacherError: neither the template nor the tokenizer names one.
    """
    found = _closing(tokenizer, _special(tokenizer))
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        raise TeacherError(f"{name}: no token ends an answer; set eos_token in its tokenizer_config.json")
    return found


def _closing(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> int | None:
    """The first of `ends` that the template writes behind an answer."""
    rendered = rendered_answer(tokenizer)
    if rendered is None:
        return None
    opened, whole = rendered
    if whole[: len(opened)] == opened:  # else the template rewrites what it opened with
        return next((token for token in whole[len(opened) :] if token in ends), None)
    return next((token for token in reversed(whole) if token in ends), None)


def rendered_answer(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]] | None:
    """A question up to where the answer begins, and with the answer "b" and its end; None without a template for it."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        opened = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
    except TemplateError:
        return None
    return list(opened), list(whole)


def _entries(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def _cut(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _examples(differ: list[int], ours: dict[int, str], theirs: dict[int, str]) -> str:
    shown = [f"{index} is {ours.get(index)!r} for the student, {theirs.get(index)!r} here" for index in differ]
    return "; ".join(shown[:_EXAMPLES]) + ("; …" if len(shown) > _EXAMPLES else "")


def _token(lm: CausalLM, index: int) -> str:
    return f"{lm.tokenizer.convert_ids_to_tokens(index)!r} ({index})"


def _short(text: str) -> str:
    return repr(text[:24] + "…")
