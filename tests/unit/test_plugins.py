"""Teachers that are classes of the user's: README's own, what is added, and each fault in one line."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import textwrap
from collections.abc import Callable, Coroutine
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from pipeline.recipe_file import load_recipe
from teachers.causal_lm import render
from teachers.config import Budget, PluginTeacher, Price, Provider
from teachers.errors import TeacherError
from teachers.guard import Guard
from teachers.plugin_classes import load
from teachers.plugins import LocalPlugin, RemotePlugin, build, fingerprint
from teachers.tools import Tools
from teachers.types import (
    Answer,
    Chat,
    Finding,
    Judgment,
    LocalTeacher,
    Message,
    RawText,
    RemoteTeacher,
    ScoreRequest,
    Segment,
    SignalKind,
    TeacherFailure,
    Usage,
)
from tests.models import tiny_tokenizer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tests" / "plugins"
T = TypeVar("T")


def tools_in(folder: Path) -> Tools:
    tokenizer = tiny_tokenizer()
    return Tools(
        student_tokenizer=tokenizer,
        student_render=lambda conversation, system: render(conversation, tokenizer, system),
        guard=Guard(),
        folder=folder,
        check=lambda checker, completion, reference, request: None,
        clear=str,
    )


def written(folder: Path, body: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(body), encoding="utf-8")
    return path


def plugin(folder: Path, body: str, **settings: Any) -> RemotePlugin | LocalPlugin:
    """The class `Mine` of a file with this body."""
    written(folder, body)
    return build("me", PluginTeacher(kind="plugin", **{"use": "mine.py:Mine", **settings}), tools_in(folder))


def remote(folder: Path, body: str, **settings: Any) -> RemotePlugin:
    teacher = plugin(folder, body, **settings)
    assert isinstance(teacher, RemotePlugin)
    return teacher


def request(completion: str = "yes", **more: Any) -> ScoreRequest:
    segments = (Segment("assistant", "answer", (60, 61, 62), True),)
    conversation = Chat((Message("user", "[1] A lies north of B.\n[2] B lies north of C.\nWhere is A?"),))
    return replace(
        ScoreRequest("p/0", "p", 0, 3, "d", conversation, segments, "end", completion=completion),
        **more,
    )


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def ask(teacher: RemotePlugin, asked: ScoreRequest, seconds: float = 30.0) -> Answer | TeacherFailure:
    async def once() -> Answer | TeacherFailure:
        return await teacher.score(asked, asyncio.get_running_loop().time() + seconds)

    return run(once())


def judgment(result: Answer | TeacherFailure) -> Judgment:
    assert isinstance(result, Answer), result
    assert isinstance(result.signal, Judgment)
    return result.signal


def failure(result: Answer | TeacherFailure) -> TeacherFailure:
    assert isinstance(result, TeacherFailure)
    assert "\n" not in result.detail
    return result


HEAD = """\
    from teachers.types import *

    class Mine:
        signals = frozenset({SignalKind.JUDGMENT})

        def __init__(self, name, options, tools):
            self.options = options

"""
GOOD = f"""{HEAD}
        async def score(self, request, deadline):
            return Answer(Judgment(score=0.5))
"""


# ---- README's own, and its neighbour ----


def readme() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("\n## A teacher of your own\n")[2].partition("\n## ")[0]


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", readme(), flags=re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_example_in_the_readme_is_short_and_the_one_that_is_tested() -> None:
    assert len(block("python").splitlines()) < 40
    assert block("python") == (EXAMPLES / "citations.py").read_text(encoding="utf-8")


def test_its_lines_in_a_recipe_are_a_recipes(tmp_path: Path) -> None:
    (tmp_path / "citations.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "data.jsonl").write_text('{"question": "q", "answer": "a"}\n', encoding="utf-8")
    rest = "method: distill\nstudent: {model: hub/name}\ndata: {sources: {d: {kind: dataset, path: ./data.jsonl}}}\n"
    (tmp_path / "recipe.yaml").write_text(rest + block("yaml"), encoding="utf-8")
    (name, config), *others = load_recipe(tmp_path / "recipe.yaml").recipe.teachers.items()
    assert not others
    assert isinstance(config, PluginTeacher)
    teacher = build(name, config, tools_in(tmp_path))
    assert isinstance(teacher, RemotePlugin)
    assert judgment(ask(teacher, request("A is north of C [1] [2]."))).score == 1


@pytest.mark.parametrize(
    ("completion", "score", "bare"),
    [
        ("A is north of B [1]. So it is north of C [2].", 1.0, []),
        ("A is north of B [1]. C is a village.\nIt is small [3]!", 1 / 3, ["C is a village.", "It is small [3]!"]),
        ("North", 0.0, ["North"]),
        ("", 0.0, []),
    ],
)
def test_citations(completion: str, score: float, bare: list[str]) -> None:
    teacher = build("c", PluginTeacher(kind="plugin", use="citations.py:Citations"), tools_in(EXAMPLES))
    assert isinstance(teacher, RemotePlugin)
    found = judgment(ask(teacher, request(completion)))
    assert found.score == pytest.approx(score)
    assert (found.feedback or "").splitlines() == [f"No source for: {text}" for text in bare]
    unsourced = failure(ask(teacher, request(completion, conversation=RawText("Where is A?"))))
    assert (unsourced.teacher, unsourced.reason, unsourced.retryable) == ("c", "no_sources", False)


def test_a_teacher_in_this_process_sees_a_whole_batch() -> None:
    config = PluginTeacher(kind="plugin", use="shortest.py:Shortest", options={"unit": "letters"})
    teacher = build("s", config, tools_in(EXAMPLES))
    assert isinstance(teacher, LocalTeacher)
    assert not isinstance(teacher, RemoteTeacher)
    texts = {"a": ["x", "xxx", "xx"], "b": ["yy", "yy"]}
    requests = [
        request(text, request_id=f"{group}/{n}", group_id=group)
        for group in texts
        for n, text in enumerate(texts[group])
    ]
    scores = {name: judgment(result).score for name, result in teacher.score(requests)}
    assert scores == {"a/0": 1.0, "a/1": 0.0, "a/2": 0.5, "b/0": 1.0, "b/1": 1.0}
    teacher.close()


# ---- what is added ----


def test_a_small_class_is_a_whole_remote_teacher(tmp_path: Path) -> None:
    teacher = remote(tmp_path, GOOD)
    assert isinstance(teacher, RemoteTeacher)
    assert not isinstance(teacher, LocalTeacher)
    assert (teacher.name, teacher.signals) == ("me", {SignalKind.JUDGMENT})
    assert teacher.estimate(request()) == Usage()
    (finding,) = run(teacher.examine(1e12))
    assert finding.good is None
    assert "Mine" in finding.text
    assert "mine.py" in finding.text
    run(teacher.aclose())


def test_what_it_has_itself_is_used(tmp_path: Path) -> None:
    body = f"""{GOOD}
        identity = "mine-2"

        def key(self, request):
            return request.completion

        def estimate(self, request):
            return Usage(input=7)

        async def examine(self, deadline):
            return (Finding("reachable", True, "it is here"),)

        async def aclose(self):
            self.options["closed"] = True
    """
    written(tmp_path, body)
    config = PluginTeacher(kind="plugin", use="mine.py:Mine")
    teacher = build("me", config, tools_in(tmp_path))
    assert isinstance(teacher, RemotePlugin)
    assert (teacher.identity, teacher.key(request("k")), teacher.estimate(request())) == ("mine-2", "k", Usage(input=7))
    assert run(teacher.examine(1e12))[-1] == Finding("reachable", True, "it is here")
    run(teacher.aclose())
    assert teacher.plugin.options == {"closed": True}
    assert config.options == {}


def test_the_identity_is_of_the_file_the_class_and_the_options(tmp_path: Path) -> None:
    def identity(body: str, use: str = "mine.py:Mine", name: str = "me", **options: Any) -> str:
        written(tmp_path, body)
        config = PluginTeacher(kind="plugin", use=use, options=options)
        teacher = build(name, config, tools_in(tmp_path))
        assert isinstance(teacher, RemotePlugin)
        return teacher.identity

    two = f"{GOOD}\n    Other = type('Other', (Mine,), {{}})\n"
    first = identity(two, a=1, b=[2])
    assert identity(two, b=[2], a=1) == first == identity(two, name="another", a=1, b=[2])
    others = [identity(two, a=2, b=[2]), identity(f"{two}\n    HELPER = 1\n", a=1, b=[2])]
    assert len({first, *others}) == 3


def test_the_key_is_of_all_of_a_request_but_its_names() -> None:
    other: dict[str, Any] = {
        "sample_index": 1,
        "domain": "e",
        "conversation": RawText("q"),
        "segments": (Segment("assistant", "answer", (60, 61, 63), True),),
        "finish_reason": "length",
        "reference": "r",
        "privileged": "p",
        "private": True,
        "checker": "exact",
        "grading": "{}",
        "completion": "no",
        "upstream": {"t": Judgment(feedback="f")},
        "checked": 1.0,
    }
    names = {part.name for part in fields(ScoreRequest)}
    assert names - other.keys() == {"request_id", "group_id", "step", "source"}
    base = request()
    keys = [fingerprint(replace(base, **{name: value})) for name, value in other.items() if name in names]
    assert len({fingerprint(base), *keys}) == len(keys) + 1
    assert fingerprint(replace(base, request_id="q/7", group_id="q", step=9, source="s")) == fingerprint(base)
    upstream = [{"a": Judgment(0.1), "b": Judgment(0.2)}, {"b": Judgment(0.2), "a": Judgment(0.1)}]
    assert len({fingerprint(replace(base, upstream=each)) for each in upstream}) == 1


def test_a_price_needs_an_estimate(tmp_path: Path) -> None:
    for more in ({"price": Price(input=1, output=1)}, {"budget": Budget(dollars=1)}):
        with pytest.raises(TeacherError, match=r"mine\.py:3: Mine has a price or a budget and no estimate; write `def"):
            plugin(tmp_path, GOOD, **more)
    body = f"{GOOD}\n        def estimate(self, request):\n            return Usage(output=9)\n"
    assert remote(tmp_path, body, price=Price(input=1, output=1)).estimate(request()).output == 9


def test_private_prompts_go_only_where_the_recipe_says_that_nothing_is_sent(tmp_path: Path) -> None:
    secret = request(private=True)
    assert failure(ask(remote(tmp_path, GOOD), secret)).reason == "private"
    judgment(ask(remote(tmp_path, GOOD), request()))
    judgment(ask(remote(tmp_path, GOOD, provider=Provider(region="local")), secret))
    batch = f"""{HEAD}
        def score(self, requests):
            return [(request.request_id, Answer(Judgment(1.0))) for request in requests]
    """
    local = plugin(tmp_path, batch)
    assert isinstance(local, LocalPlugin)
    results = dict(local.score([secret, request(request_id="open")]))
    assert failure(results["p/0"]).reason == "private"
    judgment(results["open"])


# ---- its mistakes while it answers ----

SCORES: dict[str, tuple[str, str]] = {
    "raises": ("x = request.completion\n            return x.no_such", r"mine\.py:12: AttributeError: .*no_such"),
    "deep": ("return deep(request)", r"mine\.py:14: ZeroDivisionError"),
    "a number": ("return 0.5", r"mine\.py: its score returned 0\.5; return an Answer or a TeacherFailure"),
    "nothing": ("pass", r"mine\.py: its score returned None"),
    "past one": ("return Answer(Judgment(score=1.5))", r"gave 1\.5; a score lies in \[0, 1\]"),
    "no number": ("return Answer(Judgment(score=float('nan')))", r"gave nan; a score lies"),
    "a word": ("return Answer(Judgment(score='good'))", r"gave 'good'; a score lies"),
    "another signal": ("import torch\n            e = torch.zeros(3)\n            "
        "return Answer(TopK(e, e[:, None], e[:, None], e, e > 0))", r"gave a TopK and its signals are judgment"),
    "many lines": ("raise ValueError('a\\nb')", r"mine\.py:11: ValueError: a$"),
    "leaves": ("import sys\n            sys.exit(2)", r"mine\.py:12: SystemExit: 2"),
    "leaves in a thread": ("import asyncio, sys\n            await asyncio.to_thread(sys.exit)", r":12: SystemExit"),
    "no words": ("raise ValueError", r"mine\.py:11: ValueError$"),
}  # fmt: skip


@pytest.mark.parametrize("case", SCORES)
def test_a_mistake_is_a_failure_with_file_and_line(tmp_path: Path, case: str) -> None:
    body, said = SCORES[case]
    text = f"{HEAD}\n        async def score(self, request, deadline):\n            {body}\n"
    text += "\n    def deep(request):\n        return 1 / 0\n"
    found = failure(ask(remote(tmp_path, text), request()))
    assert (found.teacher, found.reason, found.retryable, found.in_doubt) == ("me", "plugin_failed", False, False)
    assert re.search(said, found.detail), found.detail


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("def key(self, request):\n            return request.nothing", r"mine\.py:14: AttributeError"),
        ("def key(self, request):\n            return 7", r"TypeError: 7 is no str"),
        ("def estimate(self, request):\n            return None", r"TypeError: None is no Usage"),
    ],
)
def test_a_mistake_in_what_the_courier_asks_first_is_the_answer(tmp_path: Path, method: str, said: str) -> None:
    teacher = remote(tmp_path, f"{GOOD}\n        {method}\n")
    assert isinstance(teacher.key(request()), str)
    assert isinstance(teacher.estimate(request()), Usage)
    found = failure(ask(teacher, request()))
    assert found.reason == "plugin_failed"
    assert re.search(said, found.detail), found.detail


def test_one_that_never_answers_is_ended_at_its_deadline(tmp_path: Path) -> None:
    body = f"""{HEAD}
        async def score(self, request, deadline):
            import asyncio
            await asyncio.Event().wait()
    """
    found = failure(ask(remote(tmp_path, body), request(), seconds=0.05))
    assert (found.reason, found.retryable, found.in_doubt) == ("timeout", True, True)


def test_a_failure_of_its_own_is_passed_on_under_its_name(tmp_path: Path) -> None:
    body = f"""{HEAD}
        async def score(self, request, deadline):
            return TeacherFailure("who", "busy", retryable=True, retry_after=3.0, usage=Usage(input=1))
    """
    found = ask(remote(tmp_path, body), request())
    assert found == TeacherFailure("me", "busy", retryable=True, retry_after=3.0, usage=Usage(input=1))


def test_a_key_is_in_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_KEY", "hush-hush")
    body = f"""{HEAD}
        async def score(self, request, deadline):
            import os
            if request.completion == "say":
                return TeacherFailure("me", "busy", retryable=True, detail="with " + os.environ["MINE_KEY"])
            raise ValueError("at https://host/?key=" + os.environ["MINE_KEY"])
    """
    teacher = remote(tmp_path, body, key="MINE_KEY")
    details = [failure(ask(teacher, request(text))).detail for text in ("say", "raise")]
    assert all("***" in detail and "hush" not in detail for detail in details)
    assert "hush" not in repr(teacher)
    broken = body.replace("self.options = options", "raise ValueError('hush-hush')")
    with pytest.raises(TeacherError, match=r"\*\*\*") as caught:
        plugin(tmp_path, broken, key="MINE_KEY")
    assert "hush" not in str(caught.value)
    monkeypatch.delenv("MINE_KEY")
    with pytest.raises(TeacherError, match=r"teachers\.me\.key: the environment variable MINE_KEY is not set"):
        plugin(tmp_path, body, key="MINE_KEY")


def test_a_fault_in_its_examination_or_its_end_stops_nothing(tmp_path: Path) -> None:
    body = f"""{GOOD}
        async def examine(self, deadline):
            raise OSError("gone")

        async def aclose(self):
            raise OSError("gone")
    """
    teacher = remote(tmp_path, body)
    finding = run(teacher.examine(1e12))[-1]
    assert finding.good is False
    assert re.search(r"mine\.py:14: OSError: gone", finding.text)
    with pytest.warns(UserWarning, match=r"teachers\.me: closing it failed: .*mine\.py:17: OSError: gone"):
        run(teacher.aclose())


BATCHES: dict[str, tuple[str, dict[str, str]]] = {
    "trips after the first": ("yield requests[0].request_id, good\n            1 / 0", {"b": "ZeroDivisionError"}),
    "leaves one": ("yield requests[0].request_id, good", {"b": "left this one unanswered"}),
    "answers a stranger": ("yield 'x', good", {"a": "x was not asked", "b": "x was not asked"}),
    "answers twice": ("yield 'a', good\n            yield 'a', good", {"b": "a was not asked, or is answered"}),
    "gives nonsense": ("yield 'a', 7\n            yield 'b', good", {"a": "returned 7"}),
    "no pairs": ("return 3", {"a": "TypeError", "b": "TypeError"}),
    "tokens missing": ("yield 'a', states\n            yield 'b', good", {"a": "gave 1 rows for 3 tokens"}),
}


@pytest.mark.parametrize("case", BATCHES)
def test_every_request_of_a_batch_is_answered_once_whatever_it_does(tmp_path: Path, case: str) -> None:
    body, wrong = BATCHES[case]
    text = f"""{HEAD}
        def score(self, requests):
            import torch
            good = Answer(Judgment(score=1.0))
            states = Answer(FullVocab(torch.zeros(1, 4), None, torch.ones(1).bool()))
            {body}
    """
    text = text.replace("{SignalKind.JUDGMENT}", "{SignalKind.JUDGMENT, SignalKind.FULL_VOCAB}")
    teacher = plugin(tmp_path, text)
    assert isinstance(teacher, LocalPlugin)
    results = list(teacher.score([request(request_id="a"), request(request_id="b")]))
    assert sorted(name for name, _ in results) == ["a", "b"]
    for name, result in results:
        if name in wrong:
            assert failure(result).reason == "plugin_failed"
            assert wrong[name] in failure(result).detail
        else:
            judgment(result)


def test_states_of_a_plugin_in_this_process_are_passed_on(tmp_path: Path) -> None:
    body = """\
    import torch
    from teachers.types import *

    class Mine:
        signals = ["full_vocab"]

        def __init__(self, name, options, tools):
            self.head = Head("h", 4, lambda: HeadWeights(torch.eye(4)))

        def score(self, requests):
            for request in requests:
                count = len(request.token_ids)
                yield request.request_id, Answer(FullVocab(torch.zeros(count, 4), self.head, torch.ones(count).bool()))
    """
    teacher = plugin(tmp_path, body)
    assert isinstance(teacher, LocalPlugin)
    ((_, result),) = teacher.score([request()])
    assert isinstance(result, Answer)
    assert torch.equal(result.signal.hidden, torch.zeros(3, 4))  # type: ignore[union-attr]


# ---- what is no teacher ----

NO_TEACHERS: dict[str, tuple[str, str]] = {
    "syntax": ("class Mine\n    pass\n", r"mine\.py:1: SyntaxError: .*; the file does not load, mend it"),
    "import": ("\nimport nothing_of_this_name\n", r"mine\.py:2: ModuleNotFoundError"),
    "leaves": ("import sys\nsys.exit('no')\n", r"mine\.py:2: SystemExit: no; the file does not load"),
    "no class": ("class Other: ...\n", r"mine\.py has no class Mine; define one, or name another"),
    "a function": ("def Mine(): ...\n", r"mine\.py has no class Mine"),
    "no score": ("\n\nclass Mine:\n    ...\n", r"mine\.py:3: Mine has no score; write `async def score"),
    "no async": (GOOD.replace("async def", "def"), r"mine\.py:10: Mine\.score has to be `def score\(self, requests\)`, "
        r"or `async def score\(self, request, deadline\)`"),
    "async batch": (GOOD.replace("request, deadline", "requests"), r"mine\.py:10: Mine\.score has to be `async def"),
    "async generator": (GOOD.replace("return", "yield"), r"mine\.py:10: Mine\.score has to be"),
    "async batches": (GOOD.replace("request, deadline", "requests").replace("return", "yield"), r"Mine\.score has"),
    "no deadline": (GOOD.replace(", deadline", ""), r"mine\.py:10: Mine\.score has to be `async def score"),
    "constructor": (GOOD.replace("name, options, tools", "name"), r"mine\.py:3: Mine has to have `def __init__"),
    "constructor fails": (GOOD.replace("= options", "= options['a']"), r"mine\.py:7: KeyError: 'a'; mend it, or"),
    "no signals": (GOOD.replace("signals =", "signs ="), r"mine\.py:3: Mine has to say what it gives: `signals = "),
    "a word": (GOOD.replace("frozenset({SignalKind.JUDGMENT})", "'judgment'"), r"Mine has to say what it gives"),
    "empty": (GOOD.replace("{SignalKind.JUDGMENT}", ""), r"Mine has to say what it gives"),
    "states from afar": (GOOD.replace("JUDGMENT", "FULL_VOCAB"), r"mine\.py:3: Mine is waited for, and hidden states"),
    "identity": (f"{GOOD}\n        identity = 7\n", r"mine\.py:3: Mine\.identity has to be a text"),
    "key": (f"{GOOD}\n        async def key(self, request): ...\n", r"mine\.py:13: Mine\.key has to be `def key"),
    "estimate": (f"{GOOD}\n        estimate = 3\n", r"Mine\.estimate has to be `def estimate\(self, request\)`"),
    "aclose": (f"{GOOD}\n        def aclose(self): ...\n", r"mine\.py:13: Mine\.aclose has to be `async def aclose"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_TEACHERS)
def test_what_is_no_teacher_is_one_line_with_its_place(tmp_path: Path, case: str) -> None:
    body, said = NO_TEACHERS[case]
    with pytest.raises(TeacherError, match=said) as caught:
        plugin(tmp_path, body)
    assert str(caught.value).startswith("teachers.me.use: ")
    assert "\n" not in str(caught.value)


def test_a_system_prompt_is_not_silently_left_out(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"teachers\.me\.system: a plugin decides itself .*options"):
        plugin(tmp_path, GOOD, system="be kind")


# ---- where it is looked for ----


def test_a_file_is_looked_for_beside_the_recipe_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, here = tmp_path / "recipe", tmp_path / "here"
    for folder in (recipe, here):
        (folder / "deep").mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(TeacherError, match=rf"there is no file deep/mine\.py in {recipe}; correct the path"):
        load("deep/mine.py:Mine", recipe)
    path = written(here, "class Mine:\n    place = 'here'\n", "deep/mine.py")
    assert vars(load("deep/mine.py:Mine", recipe))["place"] == "here"
    written(recipe, "class Mine:\n    place = 'recipe'\n", "deep/mine.py")
    assert vars(load("deep/mine.py:Mine", recipe))["place"] == "recipe"
    assert vars(load(f"{path}:Mine", recipe))["place"] == "here"


def test_a_dataclass_with_late_annotations_loads(tmp_path: Path) -> None:
    """dataclasses looks its module up in sys.modules; a file that is only executed is not there."""
    body = """\
    from __future__ import annotations
    from dataclasses import dataclass
    from teachers.types import *

    @dataclass
    class Mine:
        name: str
        options: dict[str, int]
        tools: object

        signals = frozenset({SignalKind.JUDGMENT})

        async def score(self, request: ScoreRequest, deadline: float) -> Answer | TeacherFailure:
            return Answer(Judgment(score=self.options["score"]))
    """
    assert judgment(ask(remote(tmp_path, body, options={"score": 1}), request())).score == 1


def install(folder: Path, entries: str, module: str) -> None:
    """A package as pip leaves it: a module, and its metadata with entry points."""
    info = folder / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tutelage.teachers]\n{entries}\n")
    written(folder, module, "mine_installed_plugin.py")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Tools]:
    def put(entries: str, module: str) -> Tools:
        install(tmp_path, entries, module)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "mine_installed_plugin", raising=False)
        return tools_in(tmp_path)

    return put


def test_an_entry_point_is_a_teacher(installed: Callable[[str, str], Tools]) -> None:
    tools = installed("good-teacher = mine_installed_plugin:Mine", GOOD)
    teacher = build("me", PluginTeacher(kind="plugin", use="good-teacher"), tools)
    assert isinstance(teacher, RemotePlugin)
    assert judgment(ask(teacher, request())).score == 0.5
    with pytest.raises(TeacherError, match=r"no installed package has a teacher called bad.*: good-teacher\); correct"):
        build("me", PluginTeacher(kind="plugin", use="bad"), tools)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mine_installed_plugin:Nobody", r"mine_installed_plugin:Nobody does not load: AttributeError"),
        ("no_such_module_here:Mine", r"no_such_module_here:Mine does not load: ModuleNotFoundError"),
        ("mine_installed_plugin", r"mine_installed_plugin is no class; the entry point it has to name one"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_said(
    installed: Callable[[str, str], Tools], target: str, said: str
) -> None:
    tools = installed(f"it = {target}", GOOD)
    with pytest.raises(TeacherError, match=rf"teachers\.me\.use: {said}"):
        build("me", PluginTeacher(kind="plugin", use="it"), tools)


def test_the_config_that_a_plugin_gets_is_the_recipes(tmp_path: Path) -> None:
    body = f"{GOOD.replace('self.options = options', 'self.seen = (name, options, tools.folder)')}"
    options = {"a": [1, {"b": None}]}
    teacher = remote(tmp_path, body, options=options)
    assert teacher.plugin.seen == ("me", options, tmp_path)
    assert json.dumps(teacher.plugin.seen[1]) == json.dumps(options)
