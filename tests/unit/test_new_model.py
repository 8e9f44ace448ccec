"""Models and the tokenizer that a recipe makes on the spot."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.codebase.fim import fim_of
from pipeline.codebase.types import FillInTheMiddle
from pipeline.errors import ModelError
from pipeline.new_model import code_tokenizer, create_model, new_model
from pipeline.recipe import NewModel
from tests.models import ARCHITECTURES, save_adapter, save_tiny, tiny_tokenizer


def random_text(generator: random.Random) -> str:
    """Any code points but surrogates, with many ASCII ones and controls among them."""
    ranges = [(0x20, 0x7E), (0x00, 0x1F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return "".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(generator.randint(0, 60)))


def test_every_text_comes_back_exactly() -> None:
    tokenizer = tiny_tokenizer()
    generator = random.Random(0)
    texts = [random_text(generator) for _ in range(500)]
    texts += ["", " ", "  a  b ", "\r\n\t\n", "it 's , n't .", "<0x41>", "e\u0301 \u00e9", "a<|end|>b", "\ufffd"]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_one_token_per_printable_character_and_one_per_other_byte() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == 358
    assert len(tokenizer.encode("def f(x):\n\treturn x")) == len("def f(x):\n\treturn x")
    assert len(tokenizer.encode("漢")) == 3


def test_chat_template_ends_only_the_assistants_turn() -> None:
    tokenizer = tiny_tokenizer()
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": " U\n"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "V"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>S<|user|> U\n<|assistant|>A<|end|><|user|>V<|assistant|>"
    whole = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "W"}], tokenize=False)
    assert whole == text + "W<|end|>"
    with pytest.raises(Exception, match="not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


CODE = ['def add(left, right):\n    """Their sum."""\n    return left + right\n\n\n'] * 20


def test_a_tokenizer_learned_from_code_gives_every_text_back() -> None:
    tokenizer = code_tokenizer(CODE, 600, 64)
    assert 264 < len(tokenizer) <= 600
    generator = random.Random(1)
    for text in [*CODE, *(random_text(generator) for _ in range(300)), "\tif x:\n\n\n        y = 12345  # z\n", " \n "]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    again = code_tokenizer(CODE, 600, 64)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_line_of_code_ends_with_a_token_of_its_own() -> None:
    tokenizer = code_tokenizer(CODE, 600, 64)
    (end,) = tokenizer.encode("\n")
    for line in ("def add(left, right):", "    return left + right", ""):
        assert tokenizer.encode(line + "\n\n    return") == [
            *tokenizer.encode(line),
            end,
            end,
            *tokenizer.encode("    return"),
        ]
    assert len(tokenizer.encode("    return left")) < 6
    assert len(tokenizer.encode("1234")) == 4


def test_it_fills_in_the_middle_and_one_of_characters_does_not() -> None:
    found = fim_of(code_tokenizer(CODE, 600, 64))
    assert found == FillInTheMiddle("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    assert fim_of(tiny_tokenizer()) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_depend_on_the_seed_alone(architecture: str) -> None:
    shape = NewModel(architecture=architecture, hidden_size=32, layers=3, heads=2, context=64)
    before = torch.random.get_rng_state()
    one = new_model(shape, 3)[0].state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    same, other = new_model(shape, 3)[0].state_dict(), new_model(shape, 4)[0].state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_created_model_loads_as_it_was_made(architecture: str, tmp_path) -> None:
    shape = NewModel(architecture=architecture, hidden_size=32, layers=3, heads=2, context=64)
    create_model(shape, 1, tmp_path / "m")
    made, tokenizer = new_model(shape, 1)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert loaded.dtype == torch.float32
    ids = torch.tensor([tokenizer.encode("Hello, 漢字!")])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, made(ids).logits)
    again = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    assert again.decode(again.encode(" a , 漢\r ")) == " a , 漢\r "
    assert loaded.generation_config.eos_token_id == again.eos_token_id == again.convert_tokens_to_ids("<|end|>")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_deepseek_routes_by_token_to_distinct_experts() -> None:
    shape = NewModel(architecture="deepseek_v4", hidden_size=32, layers=3, heads=2, context=64)
    table = new_model(shape, 0)[0].model.layers[0].mlp.gate.tid2eid
    assert (table[:, 0] != table[:, 1]).all()
    assert table.unique().tolist() == [0, 1, 2, 3]


def test_a_shape_that_does_not_divide_is_refused_with_a_size_that_does() -> None:
    with pytest.raises(ModelError, match=r"hidden_size 100 .* use hidden_size 96"):
        new_model(NewModel(hidden_size=100, heads=3), 0)


def test_helpers_for_tests_do_what_they_say(tmp_path) -> None:
    from peft import PeftModel

    base = save_tiny(tmp_path / "base", "qwen3", seed=0, padded_rows=6)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    assert model.get_output_embeddings().weight.shape[0] == 364
    ids = torch.tensor([[10, 20, 30]])
    with torch.no_grad():
        plain = model(ids).logits
        adapted = PeftModel.from_pretrained(model, save_adapter(tmp_path / "adapter", base)).eval()(ids).logits
    assert (plain - adapted).abs().max() > 1e-2
