"""A transformers causal LM with its tokenizer: what the student, the local teachers and the evaluations all start from.

Loading, rendering a conversation, and last hidden states of rows of different lengths, done the way the architecture
tolerates (`probe.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import nn

from teachers.errors import TeacherError
from teachers.grouping import grouped
from teachers.probe import Tolerance, probe
from teachers.types import Chat, Conversation

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class CausalLM:
    """A loaded model. `model` is a transformers model, or the peft model around one.

    vocab_size: V, the tokenizer's real entries; the model's embedding may have padded rows past it, which are never
        sampled and never scored. end_ids: tokens that end an answer. context: the most tokens it takes.
    probed: what its architecture computes right, found when it is first asked for: with a large vocabulary that takes
        seconds, and many models never need it.
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    end_ids: frozenset[int]
    context: int
    probed: Callable[[], Tolerance]

    @property
    def tolerance(self) -> Tolerance:
        return self.probed()


class ModelKey(NamedTuple):
    """What makes two loaded models the same one."""

    path: str
    revision: str | None
    dtype: str


def model_key(path: str, revision: str | None, dtype: str) -> ModelKey:
    """`path` is a hub name or a folder; a folder is the same however it is written."""
    return ModelKey(str(Path(path).resolve()) if Path(path).is_dir() else path, revision, dtype)


# ---- loading ----


def load_causal_lm(
    path: str,
    *,
    name: str,
    dtype: str,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    chat_template: str | None = None,
) -> CausalLM:
    """Loads a hub name or a folder: in eval mode, nothing trainable, with the attention transformers prefers for it.

    `name` is what messages call it. `chat_template` replaces the tokenizer's own.

    Raises:
        TeacherError: files that are missing, truncated or of another shape; no end token; an embedding that is
            smaller than the tokenizer.
    """
    tokenizer = load_tokenizer(path, name=name, revision=revision)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    model = _load_model(path, name, dtype, revision, torch.device(device))
    vocab_size = _vocab_size(model, tokenizer, f"{name}: {path}")
    return CausalLM(
        name=name,
        model=model,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        end_ids=_end_ids(model, tokenizer, vocab_size, f"{name}: {path}"),
        context=_context(model, tokenizer),
        probed=cache(lambda: probe(model, vocab_size)),
    )


def load_tokenizer(path: str, *, name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or a folder. Raises TeacherError where it is missing or cannot be read."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(_cannot_load(name, path, "tokenizer", error)) from error
    return tokenizer


def _load_model(path: str, name: str, dtype: str, revision: str | None, device: torch.device) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=getattr(torch, dtype),
            device_map=None if device.type == "cpu" else {"": device},
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TeacherError(_cannot_load(name, path, "model", error)) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise  # out of memory, and what only a programmer can cause
        raise TeacherError(
            f"{name}: {path}: its weights do not have the shapes that its config.json says; fetch or export it again"
        ) from error
    if missing := sorted(info["missing_keys"]):
        # transformers fills these with random numbers and goes on.
        raise TeacherError(
            f"{name}: {path}: {len(missing)} weights are not in its files, {missing[0]} first; fetch or export it again"
        )
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _cannot_load(name: str, path: str, what: str, error: Exception) -> str:
    """One line: which files, what is wrong with them, what to do."""
    why = " ".join(str(error).split())
    # The reason stands in the first sentence; lists of all known architectures and links to manuals follow it.
    why = re.split(r"(?<=[a-z)'])\. |, found in directory", why)[0].rstrip(".")[:200]
    if isinstance(error, SafetensorError):
        why = f"a .safetensors file is truncated or damaged ({why})"
    folder = Path(path)
    if folder.is_dir():
        return f"{name}: cannot load the {what} in {path}: {why}; fetch or export it again"
    if folder.is_absolute() or path.startswith((".", "~")):
        return f"{name}: there is no folder {path}; name a folder that save_pretrained wrote, or a model of the hub"
    return f"{name}: cannot load the {what} {path}: {why}; check the name, or fetch it first and name its folder"


def _vocab_size(model: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> int:
    """One past the tokenizer's highest id, or the embedding's rows where only special tokens lie beyond them.

    Gemma 3's text models come with a tokenizer that has an image token, and no row for it.
    """
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    rows: int = min(table.weight.shape[0] for table in tables if table is not None)
    ids: set[int] = set(tokenizer.get_vocab().values())
    added = tokenizer.added_tokens_decoder
    beyond = sorted(token for token in ids if token >= rows)
    if real := [token for token in beyond if token not in added or not added[token].special]:
        raise TeacherError(
            f"{where}: its embedding has {rows} rows and its tokenizer {max(ids) + 1} entries "
            f"({tokenizer.convert_ids_to_tokens(real[0])!r} has none); use the tokenizer that belongs to this model"
        )
    return min(max(ids) + 1, rows)


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase, vocab_size: int, where: str) -> frozenset[int]:
    named = getattr(model.generation_config, "eos_token_id", None)
    generation: Iterable[int] = [named] if isinstance(named, int) else named or ()
    ends = frozenset(token for token in (*generation, tokenizer.eos_token_id) if token is not None)
    if not any(token < vocab_size for token in ends):
        raise TeacherError(
            f"{where}: no token ends an answer; set eos_token in its tokenizer_config.json "
            "or eos_token_id in its generation_config.json"
        )
    return frozenset(token for token in ends if token < vocab_size)


def _context(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Models without positions (Mamba) take any length: there the tokenizer's limit counts, if it has one."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit or min(tokenizer.model_max_length, 1 << 30))


# ---- conversations to token ids ----


def render(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    system: str | None = None,
    *,
    open_turn: bool = True,
) -> tuple[int, ...]:
    """The conversation as token ids: a Chat through the tokenizer's template, a RawText with its own special tokens.

    `system` is put before a Chat's own system prompt. `open_turn`: end where the assistant's answer begins.

    Raises:
        TeacherError: no chat template, one that refuses the conversation, or a system prompt for a raw text.
    """
    where = f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
    if not isinstance(conversation, Chat):
        if system is not None:
            raise TeacherError(
                f"{where}: a system prompt needs a chat and the prompt is raw text; "
                "set as_chat: true for its source, or take the teacher's system away"
            )
        return tuple(tokenizer(conversation.text)["input_ids"])
    if tokenizer.chat_template is None:
        raise TeacherError(
            f"{where} has no chat template and the prompts are chats; set student.chat_template (a teacher: add "
            "chat_template.jinja to its folder), or set as_chat: false for the sources"
        )
    try:
        # The template writes a BOS where it wants one; apply_chat_template adds none.
        ids = tokenizer.apply_chat_template(
            _messages(conversation, system),
            tools=[dict(tool) for tool in conversation.tools] or None,
            add_generation_prompt=open_turn,
            return_dict=False,
            **conversation.template_options,
        )
    except TemplateError as error:
        raise TeacherError(f"{where}: its chat template refuses a conversation: {error}; change the prompt") from error
    return tuple(ids)


def _messages(conversation: Chat, system: str | None) -> list[dict[str, str]]:
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    if system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


# ---- hidden states ----


def decoder(model: Any) -> nn.Module:
    """The part of a causal LM whose output's `last_hidden_state` goes to the head; peft's layers stay in it."""
    causal_lm = unwrapped(model)
    found: Any = causal_lm.base_model
    if found is causal_lm:
        found = causal_lm.get_decoder()
    if found is causal_lm:  # Llama 4's prefix names an attribute that its text model has not
        found = causal_lm.model
    assert isinstance(found, nn.Module)
    return found


def unwrapped(model: Any) -> Any:
    """The transformers model, taken out of peft's wrapper if it is in one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def last_hidden(
    lm: CausalLM, rows: Sequence[Sequence[int]], *, tokens_per_forward: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields (index of the row, its (length, D) last hidden states), longest rows first, each row once.

    Rows are right-padded, at most `tokens_per_forward` padded tokens at once (a longer row runs alone), and no mask is
    given: nothing that counts sees a later token. The states are views of one forward's output: copy what is kept.
    Not inference mode, whose tensors cannot be saved for a backward pass.
    """
    device = next(lm.model.parameters()).device
    body: Any = decoder(lm.model)
    lengths = [len(row) for row in rows]
    if 0 in lengths:
        raise ValueError("a row without tokens has no hidden states")
    for group in grouped(lengths, tokens_per_forward):
        width = padded_width(len(rows[group[0]]), lm)
        ids = torch.tensor([[*rows[index], *[0] * (width - len(rows[index]))] for index in group], device=device)
        hidden = body(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
        for place, index in enumerate(group):
            yield index, hidden[place, : len(rows[index])]


def padded_width(longest: int, lm: CausalLM) -> int:
    """Of the rows in a forward: a multiple of 16 where a CPU multiplies in bf16. There a product is compiled for every
    new shape, which takes longer than a few columns more, and is kept, so that memory would grow with the shapes."""
    weight = next(lm.model.parameters())
    products = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    if weight.device.type != "cpu" or products != torch.bfloat16:
        return longest
    return min(-(-longest // 16) * 16, lm.context)
