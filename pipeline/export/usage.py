"""The part of a card that is run: how to load what was exported with transformers, peft and vLLM."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.export.facts import Facts
from pipeline.export.form import Kind

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes for --max-lora-rank


def usage(facts: Facts, kind: Kind, name: str, chat: bool) -> Iterator[str]:
    """Paragraphs and code. name: as it is loaded, a hub name or a folder. chat: whether it has a chat template."""
    where = "In this folder, with" if name == "." else "With"
    yield f"{where} {'peft' if kind == 'adapter' else 'transformers'}:"
    yield f"```python\n{_python(facts, kind, name, chat)}\n```"
    yield "With vLLM:"
    yield f"```bash\n{_vllm(facts, kind, name)}\n```"


def _python(facts: Facts, kind: Kind, name: str, chat: bool) -> str:
    model = "AutoPeftModelForCausalLM" if kind == "adapter" else "AutoModelForCausalLM"
    imports = ["from transformers import AutoTokenizer, GenerationConfig"]
    if kind == "adapter":
        imports.insert(0, f"from peft import {model}")
    else:
        imports = [f"from transformers import {model}, AutoTokenizer, GenerationConfig"]
    if chat:
        ask = [
            'messages = [{"role": "user", "content": "Hello"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        ask = ['inputs = tokenizer("Once", return_tensors="pt")']
    lines = [
        *imports,
        "",
        f'name = "{name}"',
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f'model = {model}.from_pretrained(name, dtype="auto")',
        f"config = GenerationConfig.from_pretrained(name, max_new_tokens={facts.max_new_tokens})",
        *ask,
        "answer = model.generate(**inputs, generation_config=config)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(lines)


def _vllm(facts: Facts, kind: Kind, name: str) -> str:
    if kind != "adapter":
        return f"vllm serve {name}"
    rank = next((rank for rank in VLLM_RANKS if rank >= (facts.adapted or 0)), VLLM_RANKS[-1])
    base = facts.origin.hub or "BASE"
    template = f" --chat-template {name}/chat_template.jinja" if facts.own_template and name == "." else ""
    return f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules student={name}{template}"
