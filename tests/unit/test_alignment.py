"""Mismatched vocabularies are found and named before training, and what is handled is noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from teachers.alignment import Findings, answer_end, compare_models, compare_vocabularies, fingerprint
from teachers.causal_lm import CausalLM, load_causal_lm, model_key
from teachers.config import TeacherConfig, TransformersTeacher
from teachers.errors import TeacherError
from teachers.pool import Pool, build_pool
from teachers.types import Answer, Chat, FullVocab, Message, ScoreRequest, Segment
from tests.models import save_tiny, tiny_model, tiny_tokenizer


def bpe(
    *, words: tuple[str, ...] = ("th", "he", "qu", "the"), merges: tuple[tuple[str, str], ...] | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose entries and merges are told apart: both may be chosen."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, *words])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=list(merges or (("t", "h"), ("h", "e"), ("th", "e"), ("q", "u")))))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<spare>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def findings(teacher: PreTrainedTokenizerFast) -> Findings:
    return compare_vocabularies(bpe(), teacher, name="teachers.math")


def test_the_same_tokenizer_twice_is_fine() -> None:
    assert findings(bpe()) == Findings()
    assert fingerprint(bpe()) == fingerprint(bpe())


def test_another_size_is_named() -> None:
    ((problem,), notes) = (findings(tiny_tokenizer()).problems, findings(tiny_tokenizer()).notes)
    assert problem.startswith("teachers.math: its vocabulary has 358 entries and the student's 262; use a teacher with")
    assert notes == ()


def test_another_tokenizer_of_equal_size_is_named_with_tokens_that_differ() -> None:
    found = findings(bpe(words=("th", "he", "the", "qu")))
    (problem,) = found.problems
    assert "another tokenizer of the same size, 2 of 262 entries differ" in problem
    assert "258 is 'qu' for the student, 'the' here" in problem
    assert "\n" not in problem


def test_other_merges_over_the_same_entries_are_named() -> None:
    other = bpe(merges=(("h", "e"), ("t", "h"), ("th", "e"), ("q", "u")))
    assert other.get_vocab() == bpe().get_vocab()
    assert fingerprint(other) != fingerprint(bpe())
    (problem,) = findings(other).problems
    assert problem.startswith("teachers.math: its tokenizer has the student's entries and cuts 'The quick")


def test_special_tokens_of_other_names_are_only_noted(tmp_path: Path) -> None:
    bpe().save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        file.write_text(file.read_text().replace("<spare>", "<tool>"))
    found = findings(AutoTokenizer.from_pretrained(tmp_path))
    assert found.problems == ()
    (note,) = found.notes
    assert "1 special tokens have other names" in note
    assert "261 is '<spare>' for the student, '<tool>' here" in note


# ---- models ----


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return load_causal_lm(save_tiny(tmp_path_factory.mktemp("student")), name="student", dtype="float32")


def save_with(folder: Path, *, end: str = "<|end|>", template: str | None = None, rows: int = 0) -> str:
    """A llama with the tiny tokenizer, another end token or another template."""
    model, tokenizer = tiny_model("llama", seed=3, padded_rows=rows), tiny_tokenizer()
    tokenizer.eos_token = end
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if template is not None:
        tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def pool_of(student: CausalLM, *folders: str) -> Pool:
    configs: dict[str, TeacherConfig] = {
        f"t{n}": TransformersTeacher(kind="transformers", model=folder, dtype="float32")
        for n, folder in enumerate(folders)
    }
    return build_pool(configs, student, shared={}, device=torch.device("cpu"), resolve=lambda path, what: path)


def test_padded_rows_are_noted(student: CausalLM, tmp_path: Path) -> None:
    pool = pool_of(student, save_with(tmp_path, rows=10))
    assert pool.notes == ("teachers.t0: 10 of its 368 rows are padding and take no part",)


def test_a_shorter_context_and_missing_rows_are_found(student: CausalLM) -> None:
    short = replace(student, context=64, vocab_size=357)
    found = compare_models(student, short, name="teachers.t")
    assert found.problems == (
        "teachers.t: it has no row for the student's last 1 tokens; use a teacher with the student's vocabulary",
    )
    assert found.notes[-1] == "teachers.t: it takes 64 tokens and the student 128; longer ones fail"


def test_the_template_says_how_answers_end(student: CausalLM) -> None:
    assert answer_end(student) == 1
    gemma = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|user|>{% endif %}{% endfor %}"
    lm = replace(student, tokenizer=tiny_tokenizer(), end_ids=frozenset({1, 3}))
    lm.tokenizer.chat_template = gemma  # closes with another end token than the tokenizer's own
    assert answer_end(lm) == 3
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert answer_end(lm) == 1
    lm.tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert answer_end(lm) == 1


def test_end_tokens_are_mapped_by_role(student: CausalLM, tmp_path: Path) -> None:
    """The student's end id gets the probability the teacher gives to its own, and stands for it in what it reads."""
    pool = pool_of(student, save_with(tmp_path, end="<|user|>"))
    assert any("ends answers with '<|user|>' (3) and the student with '<|end|>' (1)" in note for note in pool.notes)
    segments = (
        Segment("assistant", "answer", (10, 11), trainable=True),
        Segment("assistant", "end", (1,), trainable=True),
        Segment("tool", "tool_result", (20,), trainable=False),
        Segment("assistant", "answer", (12,), trainable=True),
    )
    conversation = Chat((Message("user", "hi"),))
    request = ScoreRequest("r", "r", 0, 0, "d", conversation, segments, "length")
    ((_, answer),) = pool.teachers["t0"].score([request])
    assert isinstance(answer, Answer)
    assert isinstance(answer.signal, FullVocab)
    head = answer.signal.head
    found = head.logits(head.load(), answer.signal.hidden)
    lm = pool.teachers["t0"].lm
    prompt = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    row = [*prompt, 10, 11, 3, 20, 12]  # its own end token where the student's was
    with torch.no_grad():
        logits = lm.model(torch.tensor([row])).logits[0, len(prompt) - 1 : -1, :358]
    swapped = list(range(358))
    swapped[1], swapped[3] = 3, 1
    torch.testing.assert_close(found, logits[:, swapped], atol=1e-5, rtol=0)


def test_all_problems_come_at_once_and_before_any_weights(student: CausalLM, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        save_tiny(folder)
        bpe().save_pretrained(folder)
        (folder / "model.safetensors").unlink()  # nobody gets as far as this
    with pytest.raises(TeacherError) as caught:
        pool_of(student, str(first), str(tmp_path / "nowhere"), str(second))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["teachers.t0", "teachers.t1", "teachers.t2"]
    assert "262 entries" in lines[0]
    assert "no folder" in lines[1]


def test_broken_weights_of_several_teachers_come_at_once(student: CausalLM, tmp_path: Path) -> None:
    folders = [save_tiny(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        file = Path(folder) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TeacherError) as caught:
        pool_of(student, *folders)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    for name, folder, line in zip(("t0", "t1"), folders, lines, strict=True):
        assert line.startswith(f"teachers.{name}: cannot load the model in {folder}")


def test_weights_that_are_not_finite_are_named_as_the_recipe_names_the_teacher(
    student: CausalLM, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "a")
    file = Path(folder) / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"].fill_(float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"^teachers\.t0: .* gives logits that are not finite"):
        pool_of(student, folder)


def test_one_model_for_two_teachers_is_loaded_once(student: CausalLM, tmp_path: Path) -> None:
    folder = save_with(tmp_path)
    pool = pool_of(student, folder, f"{folder}/.")
    assert pool.teachers["t0"].lm.model is pool.teachers["t1"].lm.model
    assert model_key(folder, None, "float32") != model_key(folder, None, "bfloat16")
