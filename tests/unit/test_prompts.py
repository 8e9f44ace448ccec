"""Data sets and tasks to prompts: every form, the split that nothing leaks through, and what is said about bad data."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.prompt_lengths import require_lengths
from pipeline.prompts import PromptSets, load_prompts, require
from pipeline.recipe import Data
from pipeline.types import Prompt
from teachers.types import Chat, Conversation, Message, RawText

SHARED = Path(os.environ.get("TUTELAGE_SHARED", Path(__file__).parents[3] / "shared"))
GSM8K = SHARED / "data" / "gsm8k-train.jsonl"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow files go to a folder of the tests' own, and nothing looks at the network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(folder: Path, *, held_out: int = 1, seed: int = 0, **sources: Mapping[str, Any]) -> PromptSets:
    data = Data.model_validate({"sources": sources, "held_out": held_out})
    return load_prompts(data, folder=folder, seed=seed)


def everything(sets: PromptSets) -> list[Prompt]:
    return [prompt for prompts in (*sets.train.values(), *sets.held_out.values()) for prompt in prompts]


def rows_of(count: int, tag: str = "q") -> list[dict[str, str]]:
    return [{"question": f"{tag} {i}", "answer": f"answer {i}"} for i in range(count)]


# ---- forms ----


def user(text: str) -> Chat:
    return Chat((Message("user", text),))


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


@pytest.mark.parametrize(
    ("row", "conversation", "reference"),
    [
        ({"question": "q", "answer": "a"}, user("q"), "a"),
        ({"problem": "p", "solution": "s", "answer": 7}, user("p"), "7"),
        ({"prompt": "p", "completion": "c"}, user("p"), "c"),
        ({"prompt": "p", "response": "r", "extra": "x"}, user("p"), "r"),
        ({"prompt": "p"}, user("p"), None),
        ({"text": "t"}, user("t"), None),
        ({"instruction": "do", "input": "this", "output": "done"}, user("do\n\nthis"), "done"),
        ({"instruction": "do", "input": "", "output": "done"}, user("do"), "done"),
    ],
)
def test_forms_of_text(tmp_path: Path, row: dict[str, Any], conversation: Chat, reference: str | None) -> None:
    write_rows(tmp_path / "form.jsonl", [row, {**row, next(iter(row)): "something else"}])
    sets = load(tmp_path, a={"kind": "dataset", "path": "form.jsonl"})
    assert (conversation, reference) in [(prompt.conversation, prompt.reference) for prompt in everything(sets)]


@pytest.mark.parametrize(
    ("column", "messages", "roles", "reference"),
    [
        ("messages", TURNS, ["system", "user", "assistant", "user"], "four"),
        ("messages", TURNS[:4], ["system", "user", "assistant", "user"], None),
        ("conversations", SHAREGPT, ["user"], "hello"),
        ("prompt", TURNS[:2], ["system", "user"], None),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}], ["user"], None),
    ],
)
def test_forms_of_messages(
    tmp_path: Path, column: str, messages: list[Any], roles: list[str], reference: str | None
) -> None:
    filler = [{key: "filler" if key in ("content", "value") else value for key, value in messages[0].items()}]
    filler[0] = {**filler[0], **({"role": "user"} if "role" in filler[0] else {})}
    write_rows(tmp_path / "form.jsonl", [{column: messages}, {column: filler}])
    sets = load(tmp_path, a={"kind": "dataset", "path": "form.jsonl"})
    prompt = next(prompt for prompt in everything(sets) if "filler" not in str(prompt.conversation))
    assert isinstance(prompt.conversation, Chat)
    assert [message.role for message in prompt.conversation.messages] == roles
    assert prompt.reference == reference


def test_columns_override_the_guesses_and_fill_the_rest(tmp_path: Path) -> None:
    rows = [
        {"prompt": "not this", "q": f"q {i}", "gold": "g", "topic": "math" if i % 2 else "code", "hint": "psst"}
        for i in range(8)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    columns = {"question": "q", "answer": "gold", "domain": "topic", "privileged": "hint"}
    source = {"kind": "dataset", "path": "rows.jsonl", "columns": columns, "system": "Think.", "private": True}
    sets = load(tmp_path, held_out=4, a=source)
    for prompt in everything(sets):
        assert isinstance(prompt.conversation, Chat)
        system, question = prompt.conversation.messages
        assert system == Message("system", "Think.")
        assert prompt.domain == ("math" if int(question.content[2:]) % 2 else "code")
        assert (prompt.reference, prompt.privileged, prompt.private, prompt.source) == ("g", "psst", True, "a")
    assert set(sets.held_out) <= {"math", "code"}
    assert sum(map(len, sets.held_out.values())) == 4


def test_a_systems_prompt_goes_before_the_conversations_own(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"messages": TURNS}, {"messages": TURNS[1:3]}])
    sets = load(tmp_path, a={"kind": "dataset", "path": "rows.jsonl", "system": "First."})
    conversations = [prompt.conversation for prompt in everything(sets)]
    systems = [chat.messages[0].content for chat in conversations if isinstance(chat, Chat)]
    assert set(systems) == {"First.\n\nBe brief.", "First."}
    assert all(chat.messages[1].role == "user" for chat in conversations if isinstance(chat, Chat))


def test_raw_text_is_a_prompt_and_documents_are_references(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": f"document {i}"} for i in range(3)])
    source = {"kind": "dataset", "path": "rows.jsonl", "as_chat": False}
    raw = everything(load(tmp_path, a=source))
    assert {(str(p.conversation), p.reference) for p in raw} == {
        (str(RawText(f"document {i}")), None) for i in range(3)
    }
    documents = everything(load(tmp_path, a={**source, "columns": {"answer": "text"}}))
    assert {p.conversation for p in documents} == {RawText("")}
    assert {p.reference for p in documents} == {f"document {i}" for i in range(3)}


def test_csv_parquet_and_json_say_the_same(tmp_path: Path) -> None:
    import datasets

    rows = rows_of(6)
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    found = [load(tmp_path, a={"kind": "dataset", "path": f"a.{kind}"}) for kind in ("jsonl", "json", "csv", "parquet")]
    assert len({sets.fingerprint for sets in found}) == 1
    assert len({prompt.prompt_id for prompt in everything(found[0])}) == 6


# ---- the split ----


def words(prompts: Sequence[Prompt]) -> set[str]:
    """The words of each prompt without system prompts and white space: what must not be on both sides."""
    texts = [
        prompt.conversation.text
        if isinstance(prompt.conversation, RawText)
        else " ".join(message.content for message in prompt.conversation.messages if message.role != "system")
        for prompt in prompts
    ]
    return {" ".join(text.split()) for text in texts}


def ids(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.prompt_id for prompt in prompts}


def test_the_split_depends_on_neither_order_nor_seed_nor_new_rows(tmp_path: Path) -> None:
    rows = rows_of(200)
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", random.Random(3).sample(rows, len(rows)))
    first = load(tmp_path, held_out=30, a={"kind": "dataset", "path": "a.jsonl"})
    second = load(tmp_path, held_out=30, seed=9, a={"kind": "dataset", "path": "b.jsonl"})
    assert first.held_out["a"] == second.held_out["a"]
    assert ids(first.train["a"]) == ids(second.train["a"])
    assert first.fingerprint != second.fingerprint  # the order of training differs
    assert len(first.held_out["a"]) == 30
    assert len(first.train["a"]) == 170
    more = load(tmp_path, held_out=40, a={"kind": "dataset", "path": "a.jsonl"})
    assert ids(first.held_out["a"]) < ids(more.held_out["a"])


def test_equal_words_never_stand_on_both_sides(tmp_path: Path) -> None:
    """Across sources, references, system prompts, white space, and chat against raw text."""
    rows = rows_of(60)
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", [{"text": f" {row['question']} ".replace(" ", "  ")} for row in rows[:40]])
    again = [{**row, "answer": "another answer"} for row in rows]
    write_rows(tmp_path / "c.jsonl", [*rows[20:], *again[20:], *rows_of(30, "new")])
    sets = load(
        tmp_path,
        held_out=15,
        a={"kind": "dataset", "path": "a.jsonl", "system": "Think."},
        b={"kind": "dataset", "path": "b.jsonl", "as_chat": False},
        c={"kind": "dataset", "path": "c.jsonl"},
    )
    hidden = set().union(*(words(prompts) for prompts in sets.held_out.values()))
    assert {name: len(prompts) for name, prompts in sets.held_out.items()} == {"a": 15, "b": 15, "c": 15}
    assert all(words(prompts) for prompts in sets.train.values())
    assert not any(words(prompts) & hidden for prompts in sets.train.values())


def test_repeated_and_empty_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = rows_of(10)
    blank = [{"question": "  ", "answer": "x"}, {"question": None, "answer": "x"}]
    write_rows(tmp_path / "a.jsonl", [*rows, *rows[:4], *blank, {**rows[0], "answer": "not the same"}])
    sets = load(tmp_path, held_out=2, a={"kind": "dataset", "path": "a.jsonl"})
    assert sets.dropped == {"a": 6}
    found = [prompt.prompt_id for prompt in everything(sets)]
    assert len(found) == len(set(found))


def test_ids_are_stable() -> None:
    """A changed id changes every rollout's random numbers and so every run: it must not happen by accident."""
    from pipeline.prompts import prompt_hash

    assert prompt_hash("gsm", user("How many?"), "#### 72") == "a5cf34c46b837590659f7e4b"
    assert prompt_hash("a", RawText("x"), None) != prompt_hash("a", user("x"), None)
    assert prompt_hash("a", user("x"), None) != prompt_hash("a", user("x"), "")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", rows_of(5))
    before = load(tmp_path, a={"kind": "dataset", "path": "a.jsonl"})
    write_rows(tmp_path / "a.jsonl", rows_of(6))
    after = load(tmp_path, a={"kind": "dataset", "path": "a.jsonl"})
    assert (len(everything(before)), len(everything(after))) == (5, 6)
    assert before.fingerprint != after.fingerprint


def test_limit_and_slices(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", rows_of(50))
    sets = load(
        tmp_path,
        held_out=2,
        a={"kind": "dataset", "path": "a.jsonl", "limit": 10},
        b={"kind": "dataset", "path": "a.jsonl", "split": "train[30:]"},
    )
    assert len(everything(sets)) == 10 + 20
    assert sets.train["a"][:3] == tuple(sets.train["a"])[:3]


def test_tasks(tmp_path: Path) -> None:
    sources = {"sums": {"kind": "tasks", "task": "addition", "count": 300, "checker": "numeric"}}
    first, second = (load(tmp_path, held_out=20, seed=seed, **sources) for seed in (0, 1))
    assert first.held_out == second.held_out
    assert ids(first.train["sums"]) != ids(second.train["sums"])
    assert len(first.held_out["addition"]) == 20
    assert not words(first.held_out["addition"]) & words([*first.train["sums"], *second.train["sums"]])
    with pytest.raises(DataError, match=r"data\.sources\.sums.*unknown domain"):
        load(tmp_path, sums={"kind": "tasks", "task": "nonsense"})


def test_a_task_whose_answers_have_no_number_is_not_judged_by_one(tmp_path: Path) -> None:
    load(tmp_path, sums={"kind": "tasks", "task": "addition", "count": 5, "checker": "numeric"})
    with pytest.raises(DataError, match=r"^data\.sources\.letters: .*has no number"):
        load(tmp_path, letters={"kind": "tasks", "task": "sorting", "count": 5, "checker": "numeric"})


def test_a_checkers_file_is_found_from_the_recipes_folder(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", rows_of(3))
    sets = load(tmp_path, a={"kind": "dataset", "path": "a.jsonl", "checker": "checks/mine.py:judge"})
    assert sets.train["a"][0].checker == f"{tmp_path}/checks/mine.py:judge"


@pytest.mark.skipif(not GSM8K.exists(), reason="the GSM8K file is not beside the checkout")
def test_gsm8k(tmp_path: Path) -> None:
    from pipeline.checkers import check

    sets = load(tmp_path, held_out=500, math={"kind": "dataset", "path": str(GSM8K), "checker": "numeric"})
    prompts = everything(sets)
    assert len(prompts) == 7473
    assert sets.dropped == {"math": 0}
    assert len(sets.held_out["math"]) == 500
    assert not words(sets.held_out["math"]) & words(sets.train["math"])
    for prompt in prompts:
        assert prompt.reference is not None
        final = prompt.reference.rpartition("####")[2]
        assert check("numeric", prompt.reference, prompt.reference) == 1
        assert check("numeric", f"So the answer is \\boxed{{{final}}}.", prompt.reference) == 1
        assert check("numeric", f"It is {final}1.", prompt.reference) == 0


# ---- what is said about bad data ----


@pytest.mark.parametrize(
    ("content", "source", "said"),
    [
        (None, {}, "there is no file"),
        ("", {}, "is empty"),
        ("\n\n", {}, "has no rows"),
        ('{"question": "a"}\n{oops\n', {}, "cannot be read.*row 1"),
        ('{"a": "x", "b": "y"}\n', {}, "columns a, b; set one of .*columns.question"),
        (
            '{"question": "x"}\n',
            {"columns": {"question": "q"}},
            "no column 'q', which columns.question names.*question",
        ),
        ('{"question": "x"}\n', {"columns": {"question": "question", "text": "question"}}, "both name the prompt"),
        ('{"question": "x"}\n', {"split": "test"}, r"unknown split.*\['train'\].*split"),
        ('{"question": "x"}\n', {}, "held_out"),
        ('{"question": {"a": 1}}\n', {}, "row 0: column 'question' holds a dict"),
        ('{"messages": [{"role": "owl", "content": "x"}]}\n', {}, "row 0.*role 'owl'; known are system"),
        ('{"messages": ["x"]}\n', {}, "row 0.*list of messages"),
        (json.dumps({"messages": TURNS}), {"as_chat": False}, "row 0.*set `as_chat: true`"),
        ('{"text": "x"}\n', {"as_chat": False, "system": "Think."}, "row 0.*remove `system`"),
        ('{"question": " "}\n{"question": ""}\n', {}, "0 distinct prompts"),
        ('{"question": "x", "answer": "ten"}\n', {"checker": "numeric"}, "'ten' has no number"),
    ],
)
def test_bad_data_is_one_line(tmp_path: Path, content: str | None, source: dict[str, Any], said: str) -> None:
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        load(tmp_path, mine={"kind": "dataset", "path": "a.jsonl", **source})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data.sources.mine")


@pytest.mark.parametrize("path", ["nobody/nothing", "nothing"])
def test_the_hub_out_of_reach_is_one_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=f"{path}.*cannot be reached on the hub.*local file"):
        load(tmp_path, mine={"kind": "dataset", "path": path})


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "a.jsonl", rows_of(5))
    load(tmp_path, a={"kind": "dataset", "path": "a.jsonl"})
    with pytest.raises(DataError):
        load(tmp_path, a={"kind": "dataset", "path": "nobody/nothing"})
    assert capfd.readouterr() == ("", "")


def test_require(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", rows_of(20))
    write_rows(tmp_path / "b.jsonl", rows_of(6, "few"))
    sets = load(
        tmp_path,
        a={"kind": "dataset", "path": "a.jsonl", "weight": 3},
        b={"kind": "dataset", "path": "b.jsonl"},
    )
    require(sets, 20)  # 5 of each 20 come from b, which has 5 to train on
    with pytest.raises(DataError, match=r"data\.sources\.b has 5 training prompts and a step takes 6"):
        require(sets, 24)


def test_require_lengths(tmp_path: Path) -> None:
    rows = rows_of(20)
    rows[7]["question"] = "long " * 100
    write_rows(tmp_path / "a.jsonl", rows)

    def render(conversation: Conversation) -> list[str]:
        assert isinstance(conversation, Chat)
        rendered.append(conversation.messages[0].content)
        return ["<user>", *conversation.messages[0].content]

    rendered: list[str] = []
    for held_out in (1, 19):  # the long one is trained on, or held out
        sets = load(tmp_path, held_out=held_out, a={"kind": "dataset", "path": "a.jsonl"})
        rendered.clear()
        require_lengths(sets, render, 501, context=521, new=20)
        assert sorted(rendered) == ["", "", "long " * 100]
        with pytest.raises(
            DataError, match=r"data\.sources\.a: a prompt has 501 tokens.*max_prompt_tokens is 500.*'long"
        ):
            require_lengths(sets, render, 500, context=521, new=20)
        with pytest.raises(DataError, match=r"501 tokens, and with 21 new ones passes the model's context of 521"):
            require_lengths(sets, render, 501, context=521, new=21)
