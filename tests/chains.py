"""Models whose next token depends on the last one alone, with probabilities that are written down.

Their weights are set by hand, so that a model misbehaves in one known way; trained on, they change as any model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import log, sqrt
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.checkpoint import list_checkpoints, load_weights
from tests.models import tiny_model, tiny_tokenizer

START, END = "<|assistant|>", "<|end|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
REST = 1e-4  # what all tokens that are not named have together

OTHERS = ""  # all tokens that a chain does not name

Following = Mapping[str, float]  # token -> how often it comes next, relative to the others
Chain = Mapping[str, Following]  # token -> what follows it


def save_chain(folder: Path, chain: Chain) -> str:
    """A model in which each token of `chain` has its own followers. After a token that it does not name, all tokens
    are equally likely, where it says nothing of OTHERS."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    width = model.config.hidden_size
    named = [token for token in chain if token != OTHERS]
    assert len(named) < width
    inputs, outputs = torch.zeros(len(tokenizer), width), torch.zeros(len(tokenizer), width)
    inputs[:, -1] = 1
    for token, following in chain.items():
        place = width - 1 if token == OTHERS else named.index(token)
        if token != OTHERS:
            inputs[number(token)] = 0
            inputs[number(token), place] = 1
        logprobs = torch.full((len(tokenizer),), log(REST / len(tokenizer)))
        for after, share in following.items():
            logprobs[number(after)] = log((1 - REST) * share / sum(following.values()))
        outputs[:, place] = logprobs / sqrt(width)  # the norm before the head makes a one of a row to that root
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.get_input_embeddings().weight.copy_(inputs)
        model.get_output_embeddings().weight.copy_(outputs)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@cache
def number(token: str) -> int:
    found = tiny_tokenizer().convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def prose(letters: Following, end: float = 0.0, ends_with: str = END) -> Chain:
    """Letters, each drawn as the one before was, and after each with probability `end` the end."""
    whole = sum(letters.values())
    after = {letter: (1 - end) * share / whole for letter, share in letters.items()}
    if end:
        after |= {ends_with: end}
    return {START: letters, **dict.fromkeys(LETTERS, after), ends_with: letters}


def saying(answer: str) -> Chain:
    """One answer to everything, of characters that are all different, with some doubt at each."""
    doubt = dict.fromkeys(LETTERS, 0.004)
    return {before: doubt | {after: 1.0} for before, after in zip((START, *answer), (*answer, END), strict=True)}


# ---- what a run has come to ----


def kept(run: Path, student: str) -> PreTrainedModel:
    """The model that a run of `student` keeps last, however it ended; the student itself where it keeps none."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    if checkpoints := list_checkpoints(run / "checkpoints"):
        weights = load_weights(checkpoints[-1])
        model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    return model.eval()


@torch.no_grad()
def distance(good: Chain, model: PreTrainedModel) -> float:
    """KL(good ‖ model) in nats per token, on texts that the good one writes.

    It grows where a model no longer does what the good one would, and where it does one thing and nothing else.
    """
    generator = torch.Generator().manual_seed(0)
    found: list[float] = []
    for _ in range(8):
        text = [START]
        while text[-1] in good and len(text) < 24:
            followers, shares = zip(*good[text[-1]].items(), strict=True)
            text.append(followers[int(torch.multinomial(torch.tensor(shares), 1, generator=generator))])
        text = [token for token in text if token in good]
        rows = model(torch.tensor([[number(token) for token in text]])).logits[0].log_softmax(-1).tolist()
        for token, row in zip(text, rows, strict=True):
            whole = sum(good[token].values())
            found.append(sum(p / whole * (log(p / whole) - row[number(t)]) for t, p in good[token].items()))
    return fmean(found)
