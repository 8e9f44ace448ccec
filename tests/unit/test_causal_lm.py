"""Loading a causal LM, rendering conversations, and hidden states of rows of different lengths."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from teachers.causal_lm import CausalLM, last_hidden, load_causal_lm, render
from teachers.errors import TeacherError
from teachers.types import Chat, Message, RawText
from tests.models import ARCHITECTURES, Architecture, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny(tmp_path_factory.mktemp("model"), "llama", padded_rows=4))


def load(path: object) -> CausalLM:
    return load_causal_lm(str(path), name="teachers.math", dtype="float32")


def test_what_is_known_of_a_loaded_model(folder: Path) -> None:
    lm = load(folder)
    assert (lm.name, lm.vocab_size, lm.end_ids, lm.context) == ("teachers.math", 358, frozenset({1}), 128)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    half = load_causal_lm(str(folder), name="t", dtype="bfloat16", chat_template="{{ 'x' }}")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert render(Chat((Message("user", "hi"),)), half.tokenizer) == render(RawText("x"), half.tokenizer)


def test_all_end_tokens_count(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    GenerationConfig(eos_token_id=[3, 4, 361]).save_pretrained(tmp_path)
    assert load(tmp_path).end_ids == {1, 3, 4}  # 361 is a padded row


def edited(name: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length]) and None


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def without_end(folder: Path) -> None:
    for name, key in (("tokenizer_config.json", "eos_token"), ("generation_config.json", "eos_token_id")):
        values = json.loads((folder / name).read_text())
        values.pop(key)
        (folder / name).write_text(json.dumps(values))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, r"there is no folder {folder}; name a folder that save_pretrained wrote"),
    "no weights": (without("model.safetensors"), r"cannot load the model in {folder}: .*model\.safetensors.*; fetch"),
    "cut weights": (cut("model.safetensors", 5000), r"cannot load the model in {folder}: .*truncated or damaged.*; f"),
    "empty weights": (cut("model.safetensors", 0), r"cannot load the model in {folder}: .*truncated or damaged.*; f"),
    "cut config": (cut("config.json", 50), r"cannot load the tokenizer in {folder}: .*config\.json.*; fetch"),
    "no tokenizer": (without("tokenizer.json"), r"cannot load the tokenizer in {folder}: .*; fetch or export it again"),
    "unknown type": (edited("config.json", model_type="nobody"), r"cannot load the model in {folder}: .*`nobody`"),
    "no causal LM": (edited("config.json", model_type="vit"), r"cannot load the model in {folder}: .*ViTConfig"),
    "other shapes": (edited("config.json", hidden_size=64), r"{folder}: its weights do not have the shapes that its"),
    "missing layer": (edited("config.json", num_hidden_layers=3), r"{folder}: 9 weights are not in its files, model\."),
    "no end token": (without_end, r"{folder}: no token ends an answer; set eos_token in its tokenizer_config\.json"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_loaded_is_one_line(what: str, folder: Path, tmp_path: Path) -> None:
    damage, message = BROKEN[what]
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(TeacherError, match=r"^teachers\.math: " + message.replace("{folder}", str(copy))) as caught:
        load(copy)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        TeacherError, match=r"cannot load the tokenizer nobody/nothing: .*; check the name, or fetch it"
    ):
        load("nobody/nothing")


@pytest.mark.parametrize(("special", "message"), [(False, "its tokenizer 363 entries .*'extra0' has none"), (True, "")])
def test_entries_past_the_embedding_may_only_be_special(
    folder: Path, tmp_path: Path, special: bool, message: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = tiny_tokenizer()
    for n in range(4):
        tokenizer.add_tokens(f"filler{n}")
    tokenizer.add_tokens("extra0", special_tokens=special)
    tokenizer.save_pretrained(tmp_path)
    if special:
        assert load(tmp_path).vocab_size == 362
    else:
        with pytest.raises(TeacherError, match=message):
            load(tmp_path)


# ---- rendering ----


CHAT = Chat((Message("system", "s"), Message("user", "u")))


def decoded(conversation: Chat, **more: object) -> str:
    tokenizer = tiny_tokenizer()
    return str(tokenizer.decode(render(conversation, tokenizer, **more)))  # type: ignore[arg-type]


def test_a_chat_goes_through_the_template() -> None:
    assert decoded(CHAT) == "<|system|>s<|user|>u<|assistant|>"
    assert decoded(CHAT, open_turn=False) == "<|system|>s<|user|>u"
    assert decoded(CHAT, system="t") == "<|system|>t\n\ns<|user|>u<|assistant|>"
    assert decoded(Chat(CHAT.messages[1:]), system="t") == "<|system|>t<|user|>u<|assistant|>"


def test_tools_and_options_reach_the_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ tools[0].function.name if tools else 'none' }} {{ thinking }}"
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    with_tool = Chat(CHAT.messages, (tool,), {"thinking": "on"})
    assert tokenizer.decode(render(with_tool, tokenizer)) == "look on"
    assert tokenizer.decode(render(Chat(CHAT.messages, (), {"thinking": "off"}), tokenizer)) == "none off"


def test_a_template_that_writes_its_bos_gets_no_second_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|system|> $A", None, [("<|system|>", 2)])
    tokenizer.chat_template = "<|system|>{{ messages[-1].content }}"
    ids = render(CHAT, tokenizer)
    assert ids.count(2) == 1
    assert render(RawText("u"), tokenizer) == ids  # a raw text gets the tokenizer's own


def test_what_a_tokenizer_cannot_render_is_one_line() -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(TeacherError, match=r"has no chat template and the prompts are chats; set student\.chat_templ"):
        render(CHAT, bare)
    with pytest.raises(TeacherError, match=r"a system prompt needs a chat .* set as_chat: true"):
        render(RawText("x"), tiny_tokenizer(), "t")
    with pytest.raises(TeacherError, match=r"its chat template refuses a conversation: .*not tool; change the prompt"):
        render(Chat((Message("tool", "x"),)), tiny_tokenizer())


# ---- hidden states ----


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tokens_per_forward", [1, 60, 10_000])
def test_states_of_rows_together_are_those_alone(
    architecture: Architecture, tokens_per_forward: int, tmp_path: Path
) -> None:
    lm = load(save_tiny(tmp_path, architecture))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 358, (length,), generator=generator).tolist() for length in (3, 40, 1, 17, 17, 64, 2)]
    found = list(last_hidden(lm, rows, tokens_per_forward=tokens_per_forward))
    assert sorted(index for index, _ in found) == list(range(len(rows)))
    for index, hidden in found:
        with torch.no_grad():
            alone = lm.model.get_decoder()(torch.tensor([rows[index]]), use_cache=False).last_hidden_state[0]  # type: ignore[operator]
        assert not hidden.is_inference()  # such a tensor cannot be saved for a backward pass
        torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=1e-5)


def test_no_forward_is_larger_than_told_unless_one_row_is(folder: Path) -> None:
    lm = load(folder)
    shapes: list[tuple[int, ...]] = []
    lm.model.model.register_forward_pre_hook(  # type: ignore[operator, union-attr]
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rows = [[7] * length for length in (30, 5, 12, 11, 10, 3)]
    assert len(list(last_hidden(lm, rows, tokens_per_forward=24))) == 6
    assert shapes == [(1, 30), (2, 12), (2, 10), (1, 3)]
