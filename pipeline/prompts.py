"""From the recipe's `data` to prompts: a training side and a held-out side that never meet.

What is held out of a data set is decided by the hash of the prompt's words alone, so it depends neither on the order of
the rows nor on a seed, and a question that appears in two sources lands on one side in both.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np

from pipeline.checkers import last_number
from pipeline.codebase import types
from pipeline.codebase.source import Reader, examples_of
from pipeline.errors import DataError
from pipeline.recipe import CodebaseSource, Data, DatasetSource, Source, TaskSource
from pipeline.tables import Example, find_layout, open_table, reader
from pipeline.types import Prompt
from teachers.types import Chat, Conversation, Message, RawText

READ_AHEAD = 1_000  # rows decoded at once
Size = tuple[int, int]  # bytes of a prompt's text, and of its reference
# Generated held-out questions do not depend on the run's seed, so that runs with different seeds compare.
HELD_OUT_SEED = 0


@dataclass(frozen=True)
class PromptSets:
    """train: per source, lazily read. held_out: per domain. weights: per source, from the recipe.

    dropped: per source, rows left out because they have no prompt or repeat another row. fingerprint: a hash over what
    all rows say, in order, and the split; equal fingerprints mean the same prompts.
    """

    train: Mapping[str, Rows]
    held_out: Mapping[str, tuple[Prompt, ...]]
    weights: Mapping[str, float]
    dropped: Mapping[str, int]
    fingerprint: str


class Rows(Sequence[Prompt]):
    """Prompts of some rows of a table, built when they are asked for: a million of them cost a few megabytes.

    sizes (n, 2): the bytes of each prompt's text and of its reference.
    """

    def __init__(self, prompt_at: Callable[[int], Prompt], numbers: Sequence[int], sizes: Sequence[Size]) -> None:
        self._prompt_at = prompt_at
        self._numbers = np.array(numbers, dtype=np.int64)
        self.sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prompt, ...]: ...
    def __getitem__(self, index: int | slice) -> Prompt | tuple[Prompt, ...]:
        if isinstance(index, slice):
            return tuple(self._prompt_at(int(number)) for number in self._numbers[index])
        return self._prompt_at(int(self._numbers[index]))


@dataclass(frozen=True)
class _Scan:
    """One source after one pass. numbers, ids, keys, sizes: of the distinct training candidates, in order.

    held_out: its own; those of a data set are among the candidates too, until all sources' are known. digest: of all
    that the rows say.
    """

    prompt_at: Callable[[int], Prompt]
    numbers: Sequence[int]
    ids: Sequence[str]
    keys: Sequence[bytes]
    sizes: Sequence[Size]
    held_out: tuple[Prompt, ...]
    dropped: int
    digest: bytes


def load_prompts(data: Data, *, folder: Path, seed: int, code: Reader | None = None) -> PromptSets:
    """Every source's prompts. `folder` is the recipe's, for relative paths; `seed` moves generated tasks only; `code`
    reads codebases, for recipes that have sources of that kind. A source of weight 0 has no training side; one of
    commits is left out where the recipe reads no history, so that `source.commits` alone decides about it.

    Raises DataError: see `tables`; too few rows to hold any out and train on the rest; an unknown task.
    """

    def scan(name: str, source: Source) -> _Scan:
        if isinstance(source, TaskSource):
            return _scan_tasks(source, name, data.held_out, folder, seed)
        if isinstance(source, DatasetSource):
            return _scan_table(source, name, data.held_out, folder)
        assert code is not None
        return _scan_code(source, name, data.held_out, folder, code)

    sources = {name: source for name, source in data.sources.items() if not _without_history(source, code)}
    scans = {name: scan(name, source) for name, source in sources.items()}
    hidden = {text_key(prompt.conversation, prompt.reference) for found in scans.values() for prompt in found.held_out}
    train: dict[str, Rows] = {}
    for name, found in scans.items():
        if sources[name].weight == 0:
            continue
        kept = [place for place, key in enumerate(found.keys) if key not in hidden]
        if not kept:
            raise DataError(
                f"data.sources.{name} has no training prompts left: {len(set(found.keys))} distinct prompts, "
                f"data.held_out is {data.held_out}; lower data.held_out or give more rows"
            )
        train[name] = Rows(
            found.prompt_at, [found.numbers[place] for place in kept], [found.sizes[place] for place in kept]
        )
    return PromptSets(
        MappingProxyType(train),
        MappingProxyType(_by_domain(scans)),
        MappingProxyType({name: source.weight for name, source in sources.items()}),
        MappingProxyType({name: found.dropped for name, found in scans.items()}),
        _hash(
            [str(data.held_out), *(part for name, found in scans.items() for part in (name, found.digest.hex()))], 16
        ).hex(),
    )


def require(prompt_sets: PromptSets, prompts_per_step: int) -> None:
    """Raises DataError where a source has fewer prompts than its share of one step, which never repeats a prompt."""
    total = sum(prompt_sets.weights.values())
    for name, prompts in prompt_sets.train.items():
        share = ceil(prompts_per_step * prompt_sets.weights[name] / total)
        if len(prompts) < share:
            raise DataError(
                f"data.sources.{name} has {len(prompts)} training prompts and a step takes {share} of them: lower "
                f"training.prompts_per_step or data.held_out, or give more rows"
            )


# ---- one source ----


def _scan_table(source: DatasetSource, name: str, held_out: int, folder: Path) -> _Scan:
    table = open_table(source, name, folder)
    layout = find_layout(source, name, table.column_names)
    table = table.select_columns(layout.columns)
    read = reader(source, name, layout)
    checker = _checker_path(source.checker, folder)

    def prompt_at(number: int) -> Prompt:
        example = read(table[number], number)
        assert example is not None, "only rows with a prompt are kept"
        return _prompt(example, source, name, checker)

    numbers: list[int] = []
    ids: list[str] = []
    keys: list[bytes] = []
    sizes: list[Size] = []
    seen: set[str] = set()
    digest = blake2b(digest_size=16)
    for number, row in enumerate(_row_dicts(table)):
        example = read(row, number)
        if example is None:
            continue
        prompt_id = prompt_hash(name, example.conversation, example.reference)
        if prompt_id not in seen:
            seen.add(prompt_id)
            _require_judgeable(source, name, example.reference)
            digest.update(_hash([prompt_id, str(example.domain), str(example.privileged)], 16))
            numbers.append(number)
            ids.append(prompt_id)
            keys.append(text_key(example.conversation, example.reference))
            sizes.append(_size(example.conversation, example.reference))
    places = _held_out_places(ids, keys, held_out)
    if len(places) < held_out:
        raise DataError(
            f"data.sources.{name}: {source.path} has {len(places)} distinct prompts, and data.held_out asks for "
            f"{held_out} beside those to train on; lower data.held_out or give more rows"
        )
    chosen = tuple(prompt_at(numbers[place]) for place in places)
    return _Scan(prompt_at, numbers, ids, keys, sizes, chosen, len(table) - len(numbers), digest.digest())


def _scan_tasks(source: TaskSource, name: str, held_out: int, folder: Path, seed: int) -> _Scan:
    from pipeline import tasks

    checker = _checker_path(source.checker, folder)

    def prompts(count: int, with_seed: int, split: tasks.Split) -> Iterator[Prompt]:
        try:
            pairs = tasks.generate(source.task, count, with_seed, split)
        except ValueError as error:
            key = "task" if source.task not in tasks.DOMAINS else "count" if split == "train" else "data.held_out"
            raise DataError(f"data.sources.{name}: {error} ({key})") from error
        for question, answer in pairs:
            chat = Chat((Message("user", question),))
            example = Example(chat if source.as_chat else RawText(question), answer, source.task, None)
            _require_judgeable(source, name, answer)
            yield _prompt(example, source, name, checker)

    distinct = tuple({prompt.prompt_id: prompt for prompt in prompts(source.count, seed, "train")}.values())
    hidden = tuple(prompts(held_out, HELD_OUT_SEED, "held_out"))
    ids = [prompt.prompt_id for prompt in distinct]
    keys = [text_key(prompt.conversation, prompt.reference) for prompt in distinct]
    sizes = sizes_of(distinct)
    digest = _hash([*ids, *(prompt.prompt_id for prompt in hidden)], 16)
    return _Scan(distinct.__getitem__, range(len(ids)), ids, keys, sizes, hidden, source.count - len(ids), digest)


def _without_history(source: Source, code: Reader | None) -> bool:
    if not isinstance(source, CodebaseSource) or source.task != "commit" or code is None:
        return False
    config = source.of or code.own
    return config is not None and not config.commits


def _scan_code(source: CodebaseSource, name: str, held_out: int, folder: Path, reader: Reader) -> _Scan:
    """Its split keeps the sides apart, by file and not by a prompt's words; what has the same words is left out too."""
    found = examples_of(source, name, held_out, reader)
    checker = _checker_path(found.checker, folder)

    def prompts(examples: Sequence[types.Example]) -> dict[str, Prompt]:
        made = {}
        for each in examples:
            beside = each.retrieved if source.shows == "file" else None
            example = Example(each.conversation, each.reference, source.domain, beside)
            prompt = replace(_prompt(example, source, name, checker), grading=each.grading)
            made[prompt.prompt_id] = prompt
        return made

    hidden = tuple(prompts(found.held_out).values())
    distinct = tuple(prompts(found.train).values())
    ids = [prompt.prompt_id for prompt in distinct]
    keys = [text_key(prompt.conversation, prompt.reference) for prompt in distinct]
    dropped = len(found.train) - len(distinct)
    return _Scan(distinct.__getitem__, range(len(ids)), ids, keys, sizes_of(distinct), hidden, dropped, found.digest)


def _row_dicts(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `datasets.Dataset` in order, decoded some at a time."""
    for batch in table.iter(batch_size=READ_AHEAD):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _prompt(example: Example, source: Source, name: str, checker: str) -> Prompt:
    return Prompt(
        prompt_id=prompt_hash(name, example.conversation, example.reference),
        source=name,
        domain=example.domain or (isinstance(source, DatasetSource) and source.domain) or name,
        conversation=example.conversation,
        reference=example.reference,
        privileged=example.privileged,
        private=source.private,
        checker=checker,
    )


def _require_judgeable(source: Source, name: str, reference: str | None) -> None:
    """Raises DataError for a reference that the source's checker could not compare an answer with, hours into a run."""
    if source.checker == "numeric" and reference is not None and last_number(reference) is None:
        short = reference if len(reference) <= 40 else f"...{reference[-40:]}"
        raise DataError(
            f"data.sources.{name}: the answer {short!r} has no number, and the checker is numeric: "
            "leave its prompt out, or set checker to exact or a file's function"
        )


def _checker_path(checker: str, folder: Path) -> str:
    """A checker in a file gets its whole path, so that nobody after this needs to know where the recipe lies."""
    path, colon, function = checker.rpartition(":")
    return f"{(folder / path).resolve()}:{function}" if colon else checker


# ---- hashes and the split ----


def prompt_hash(source: str, conversation: Conversation, reference: str | None) -> str:
    """The id of a prompt: 24 hexadecimal digits of a hash over its source, conversation and reference."""
    parts = [source, *_parts(conversation), "reference" if reference is None else f"reference {reference}"]
    return _hash(parts, 12).hex()


def text_key(conversation: Conversation, reference: str | None) -> bytes:
    """What decides a prompt's side: its words, without system prompts, roles and the width of white space.

    A prompt without words (a document, whose whole text is the reference) goes by its reference.
    """
    if isinstance(conversation, RawText):
        texts = [conversation.text]
    else:
        texts = [message.content for message in conversation.messages if message.role != "system"]
    words = " ".join(word for text in texts for word in text.split())
    return _hash([words or " ".join((reference or "").split())], 12)


def _size(conversation: Conversation, reference: str | None) -> Size:
    prompt = sum(len(part.encode("utf-8", "surrogatepass")) for part in _parts(conversation))
    return prompt, len((reference or "").encode("utf-8", "surrogatepass"))


def sizes_of(prompts: Sequence[Prompt]) -> list[Size]:
    return [_size(prompt.conversation, prompt.reference) for prompt in prompts]


def beginning(conversation: Conversation) -> str:
    """The first words of a prompt, for messages about it."""
    text = conversation.text if isinstance(conversation, RawText) else conversation.messages[-1].content
    return text if len(text) <= 40 else f"{text[:40]}..."


def _parts(conversation: Conversation) -> list[str]:
    if isinstance(conversation, RawText):
        return ["text", conversation.text]
    return ["chat", *(part for message in conversation.messages for part in (message.role, message.content))]


def _hash(parts: Sequence[str], size: int) -> bytes:
    """Lengths keep ["ab", "c"] and ["a", "bc"] apart; lone surrogates, which JSON can hold, have no plain UTF-8."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return blake2b(b"".join(len(part).to_bytes(8, "big") + part for part in encoded), digest_size=size).digest()


def _held_out_places(ids: Sequence[str], keys: Sequence[bytes], count: int) -> list[int]:
    """One row for each of the `count` smallest keys, in order of key; of rows with equal words that of the least id."""
    smallest: Set[bytes] = set(heapq.nsmallest(count, set(keys)))
    best: dict[bytes, int] = {}
    for place, key in enumerate(keys):
        if key in smallest and (key not in best or ids[place] < ids[best[key]]):
            best[key] = place
    return [best[key] for key in sorted(best)]


def _by_domain(scans: Mapping[str, _Scan]) -> dict[str, tuple[Prompt, ...]]:
    """Held-out prompts per domain; of those that two sources share, the first source's."""
    domains: dict[str, dict[bytes, Prompt]] = {}
    for scan in scans.values():
        for prompt in scan.held_out:
            key = text_key(prompt.conversation, prompt.reference)
            domains.setdefault(prompt.domain, {}).setdefault(key, prompt)
    return {domain: tuple(prompts.values()) for domain, prompts in domains.items()}
