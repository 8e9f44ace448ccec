"""What stands behind an address that scores texts: found by asking, and asked one question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import torch

from teachers.client import Client, Reply, place
from teachers.served_rows import BadAnswerError, Question, top_k
from teachers.served_wire import SGLANG, VLLM, VLLM_LEAN, Format, Texts, completions, usage_of
from teachers.types import Answer, TeacherFailure

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Kind = Literal["vllm", "sglang", "completions"]

# An answer that says nothing about what the server is: it is down, busy or far.
_NO_ANSWER = frozenset({"unavailable", "timeout", "broken", "rate_limited"})
_PROBE = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class Server:
    """What an address turned out to be.

    models: the names that it serves, empty where it does not list them. context: the most tokens it takes, the one
    that it has to write included; None where it does not say. served_as: the model's name, where answers lack it.
    """

    kind: Kind
    version: str | None
    models: tuple[str, ...]
    context: int | None
    served_as: str | None
    format: Format


@dataclass(eq=False)
class Asker:
    """How one teacher asks: whose name stands in failures, the model and K it wants, the student's tokens."""

    name: str
    client: Client
    model: str
    k: int
    kind: Kind | None
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def vocab_size(self) -> int:
        """V: one past the highest of the student's ids."""
        ids: list[int] = list(self.tokenizer.get_vocab().values())
        return max(ids) + 1

    @cached_property
    def texts(self) -> Texts:
        """Made where a server answers with texts only: it takes a second for a large vocabulary."""
        return texts_of(self.tokenizer, self.vocab_size)

    def cut(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    async def ask(
        self, root: str, form: Format, question: Question, wanted: Tensor, *, private: bool, deadline: float
    ) -> Answer | TeacherFailure:
        """One question to one server. wanted (N,) bool: the tokens that are scored. Answer: TopK."""
        reply = await self.client.post(root + form.path, form.body(question), private=private, deadline=deadline)
        if isinstance(reply, TeacherFailure):
            return reply
        usage = usage_of(reply.body, question)
        try:
            signal = top_k(form.rows(reply.body, question), question, wanted, self.vocab_size)
        except BadAnswerError as error:
            # Asked again, another server may answer, or the same one in better health.
            return TeacherFailure(self.name, error.reason, True, f"{place(root)}: {error}", usage=usage)
        named = reply.body.get("model")
        return Answer(signal, usage, named if isinstance(named, str) else None, reply.seconds)

    async def find(self, url: str, deadline: float) -> Server | TeacherFailure:
        """What stands behind a base URL. It asks for names and versions, and scores one harmless sentence."""
        root = root_of(url)
        kind, version, served_as = self.kind, None, None
        if kind is None:
            found = await self._identify(root, deadline)
            if isinstance(found, TeacherFailure):
                return found
            kind, version, served_as = found
        listed = await self.client.get(root + "/v1/models", deadline=deadline)
        if isinstance(listed, TeacherFailure) and listed.reason in _NO_ANSWER:
            return listed
        models, context = _models(listed, self.model) if isinstance(listed, Reply) else ((), None)
        form = await self._choose(root, self._formats(kind), deadline)
        if isinstance(form, TeacherFailure):
            return form
        return Server(kind, version, models, context, served_as, form)

    async def _identify(self, root: str, deadline: float) -> tuple[Kind, str | None, str | None] | TeacherFailure:
        """(kind, version, the model's name there)."""
        signs: tuple[tuple[str, str, Kind], ...] = (
            ("/get_model_info", "model_path", "sglang"),
            ("/model_info", "model_path", "sglang"),
            ("/version", "version", "vllm"),
        )
        for path, sign, kind in signs:
            reply = await self.client.get(root + path, deadline=deadline)
            if isinstance(reply, TeacherFailure):
                if reply.reason in _NO_ANSWER:
                    return reply
            elif isinstance(value := reply.body.get(sign), str):
                return (kind, None, value) if kind == "sglang" else (kind, value, None)
        return "completions", None, None

    def _formats(self, kind: Kind) -> Sequence[Callable[[], Format]]:
        """The ways to ask a kind of server, the best first."""
        if kind == "vllm":
            return (lambda: VLLM_LEAN, lambda: VLLM) if self.k == 0 else (lambda: VLLM,)
        if kind == "sglang":
            return (lambda: SGLANG,)
        ways = ((True, True), (True, False), (False, False))
        return [partial(self._completions, as_ids, ask_for_ids) for as_ids, ask_for_ids in ways]

    def _completions(self, as_ids: bool, ask_for_ids: bool) -> Format:
        return completions(self.texts, as_ids=as_ids, ask_for_ids=ask_for_ids)

    async def _choose(
        self, root: str, formats: Sequence[Callable[[], Format]], deadline: float
    ) -> Format | TeacherFailure:
        """The first way of asking that this server understands; the failure of the last where it understands none."""
        if len(formats) == 1:
            return formats[0]()
        result: Answer | TeacherFailure | None = None
        question = self.question(_PROBE)
        for make in formats:
            form = make()
            wanted = torch.ones(len(question.completion_ids), dtype=torch.bool)
            result = await self.ask(root, form, question, wanted, private=False, deadline=deadline)
            if isinstance(result, Answer):
                return form
            if result.reason in _NO_ANSWER:
                return result
        assert isinstance(result, TeacherFailure)
        return result

    def question(self, text: str, *, temperature: float = 1.0, most: int = 1 << 30) -> Question:
        """A text of ours as a question: one token in eight is the prompt, the rest is scored. most: tokens."""
        ids = tuple(self.cut(text))[:most]
        prompt = max(1, len(ids) // 8)
        return Question(self.model, ids[:prompt], ids[prompt:], self.k, temperature)


def root_of(url: str) -> str:
    """A base URL without its /v1: servers have addresses beside it."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def texts_of(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Texts:
    """The text of each of the student's V tokens, as it stands inside a text."""

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    # Alone, a first token would lose the space that it begins with.
    before: list[int] = tokenizer.encode("a", add_special_tokens=False)[-1:]
    start = len(decode(before))
    of_id = [decode([*before, token])[start:] for token in range(vocab_size)]
    counts: dict[str, int] = {}
    for text in of_id:
        counts[text] = counts.get(text, 0) + 1
    ids = {text: token for token, text in enumerate(of_id) if text and counts[text] == 1 and "\ufffd" not in text}
    return Texts(of_id, ids, decode)


def _models(reply: Reply, wanted: str) -> tuple[tuple[str, ...], int | None]:
    """(names, context) of a /v1/models. The context is the wanted model's, or what any of them says."""
    data = reply.body.get("data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    names = tuple(entry["id"] for entry in entries if isinstance(entry.get("id"), str))
    entries.sort(key=lambda entry: entry.get("id") != wanted)
    for entry in entries:
        meta = entry.get("meta")
        said = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
        if isinstance(said, int) and said > 0:
            return names, said
    return names, None
