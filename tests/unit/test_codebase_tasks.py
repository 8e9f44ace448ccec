"""Tasks from code: what every example keeps to, over networkx and over a file of each language."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from pipeline.codebase.candidates import own_lines
from pipeline.codebase.context import LEAST_TELLING, squeezed
from pipeline.codebase.examples import fim_text
from pipeline.codebase.links import Links, links_of, outline
from pipeline.codebase.patches import PatchError, patch_of, patched
from pipeline.codebase.tasks import TASKS, example, places
from pipeline.codebase.types import Change, Code, Edit, Example, Language, Place, Room, TaskName
from teachers.types import Chat, RawText
from tests.codes import FIM, code_of, count, networkx_code, networkx_links, paths_of, room

DATA = Path(__file__).parents[1] / "data/code"
IN_A_FILE: tuple[TaskName, ...] = ("document", "line", "body", "fim", "docstring", "explain", "feature")
OF_LANGUAGES: tuple[TaskName, ...] = ("line", "body", "fim")


@cache
def languages() -> tuple[Code, Links]:
    code = code_of({path.name: path.read_text("utf-8") for path in sorted(DATA.iterdir())})
    return code, links_of(code)


def sample(task: TaskName, code: Code, size: int, within: Room) -> list[Place]:
    """Some of the places, not the first ones alone."""
    found = places(task, code, paths_of(code), 2_000, within)
    return random.Random(0).sample(found, min(size, len(found)))


def made(task: TaskName, code: Code, links: Links, within: Room, size: int = 60) -> list[tuple[Place, Example]]:
    pairs = [(place, example(task, code, links, place, within)) for place in sample(task, code, size, within)]
    return [(place, each) for place, each in pairs if each is not None]


def prompt_of(each: Example) -> str:
    asked = each.conversation
    return asked.text if isinstance(asked, RawText) else asked.messages[-1].content


# ---- what all of them keep to ----


@pytest.mark.parametrize("as_chat", [False, True])
@pytest.mark.parametrize("task", IN_A_FILE)
def test_nothing_passes_its_budget(task: TaskName, as_chat: bool) -> None:
    within = room(prompt=300, retrieved=80, reference=60, as_chat=as_chat)
    found = made(task, networkx_code(), networkx_links(), within)
    assert len(found) >= 5
    for _, each in found:
        assert count(prompt_of(each)) <= 300
        assert 0 < count(each.reference) <= 60
        assert each.retrieved is None or count(each.retrieved) <= 80
        assert isinstance(each.conversation, Chat) == (as_chat and task not in ("fim", "document"))


@pytest.mark.parametrize("task", [task for task in IN_A_FILE if task != "explain"])
def test_the_reference_is_what_stands_at_the_place(task: TaskName) -> None:
    code = networkx_code()
    for place, each in made(task, code, networkx_links(), room()):
        assert each.reference == code.files[place.file].text[place.span.start : place.span.end]


@pytest.mark.parametrize("task", ["line", "body"])
def test_a_prompt_goes_on_with_its_reference(task: TaskName) -> None:
    """Both together are a piece of the file, under a line with its path, whatever is retrieved."""
    code = networkx_code()
    for place, each in made(task, code, networkx_links(), room(retrieved=0)):
        head, _, shown = prompt_of(each).partition("\n")
        assert head == f"# {code.files[place.file].path}"
        assert each.retrieved is None
        assert code.files[place.file].text[: place.span.end].endswith(shown + each.reference)


def test_what_is_retrieved_is_from_other_files_and_apart_from_the_prompt() -> None:
    code = networkx_code()
    seen = 0
    for place, each in made("body", code, networkx_links(), room(prompt=900, retrieved=300)):
        if each.retrieved is None:
            continue
        seen += 1
        titles = [line for line in each.retrieved.split("\n") if line.startswith("# ") and line.count(": ") == 1]
        paths = {title[2:].partition(": ")[0] for title in titles} & paths_of(code)
        assert paths
        assert code.files[place.file].path not in paths
        assert each.retrieved not in prompt_of(each)
    assert seen >= 10


@pytest.mark.parametrize("task", ["line", "body", "fim", "docstring", "feature"])
def test_no_prompt_tells_its_answer(task: TaskName) -> None:
    for _, each in made(task, networkx_code(), networkx_links(), room(prompt=1_500, retrieved=500), 120):
        answer = squeezed(each.reference)
        if len(answer) >= LEAST_TELLING:
            assert answer not in squeezed(prompt_of(each))
            assert answer not in squeezed(each.retrieved or "")


def test_what_is_retrieved_stands_in_the_prompt_where_that_is_asked_for() -> None:
    code, links = networkx_code(), networkx_links()
    seen = 0
    for place in sample("body", code, 40, room()):
        apart = example("body", code, links, place, room(prompt=900, retrieved=300))
        within = example("body", code, links, place, room(prompt=900, retrieved=300, shows_retrieved=True))
        if apart is None or within is None or within.retrieved is None:
            continue
        seen += 1
        assert apart.retrieved == within.retrieved
        assert prompt_of(within) == within.retrieved + prompt_of(apart)
    assert seen >= 10


def test_the_same_function_in_a_copy_is_not_shown() -> None:
    body = "    total = 0\n    for item in items:\n        total += weight(item) * scale\n    return total\n"
    texts = {
        "pkg/__init__.py": "",
        "pkg/one.py": f"from pkg.base import weight\n\n\ndef total_of(items, scale):\n{body}",
        "pkg/two.py": f"def total_of(items, scale):\n{body}\n\ndef use(x):\n    return total_of(x, 1)\n",
        "pkg/base.py": "def weight(item):\n    '''How heavy it is.'''\n    return item.weight\n",
    }
    code = code_of(texts)
    links = links_of(code)
    (place,) = places("body", code, {"pkg/one.py"}, 10, room())
    each = example("body", code, links, place, room(prompt=900, retrieved=400))
    assert each is not None
    assert each.retrieved is not None
    assert "pkg/base.py: weight" in each.retrieved
    assert "scale" not in each.retrieved


@pytest.mark.parametrize("task", ["line", "body", "fim", "docstring", "document"])
def test_another_file_moves_no_place(task: TaskName) -> None:
    files = {file.path: file.text for file in networkx_code().files if file.path.startswith("classes/")}
    more = files | {"classes/another.py": "def f(x):\n    '''What it says of x.'''\n    return [x + 1 for x in x]\n"}

    def found(texts: dict[str, str]) -> set[tuple[str, int, int]]:
        code = code_of(texts)
        named = places(task, code, paths_of(code) - {"classes/another.py"}, 10_000, room())
        return {(code.files[place.file].path, *place.span) for place in named}

    assert found(files) == found(more) != set()


def test_places_are_spread_over_the_files() -> None:
    code = networkx_code()
    first = places("line", code, paths_of(code), 250, room())
    assert len({place.file for place in first}) == 250
    few = {"classes/graph.py", "classes/digraph.py"}
    found = [code.files[place.file].path for place in places("line", code, few, 50, room())]
    assert abs(found.count("classes/graph.py") - found.count("classes/digraph.py")) <= 1


def test_tests_are_read_and_nothing_is_asked_of_them() -> None:
    code = networkx_code()
    tests = {file.path for file in code.files if file.is_test}
    assert len(tests) > 100
    for task in IN_A_FILE:
        assert bool(places(task, code, tests, 10, room())) == (task == "document"), task


def test_every_task_has_a_summary_and_a_checker() -> None:
    assert set(TASKS) == set(get_args(TaskName))
    assert all(task.summary and task.checker for task in TASKS.values())


# ---- each of them ----


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.py", "# A comment of some length.\nkept = compute(1, 2)\ndropped = compute(3, 4)  # which nobody knows\n"),
        ("a.py", '"""\nlonger = text.of(some)\n"""\nkept = compute(1, 2)\n}\n'),
        ("a.go", "/* one = 1\n two = 2 */\nvar kept = compute(1, 2)\nvar gone = 34567 // why\n"),
        ("a.js", "// one = two(3);\nconst kept = compute(1, 2);\nconst gone = `of ${some}\n text`;\n"),
    ],
)
def test_a_line_is_asked_where_code_is_all_that_is_left(path: str, text: str) -> None:
    code = code_of({path: text})
    spans = [place.span for place in places("line", code, {path}, 50, room())]
    assert [span.end for span in spans] == [text.index("\n", text.index("kept"))]
    assert "kept" not in text[spans[0].start : spans[0].end]


def test_documents_are_the_whole_file() -> None:
    code, within = networkx_code(), room(reference=150)
    for path in ("classes/graph.py", "utils/misc.py"):
        number, file = next((n, file) for n, file in enumerate(code.files) if file.path == path)
        found = sorted(place for place in places("document", code, {path}, 10_000, within))
        text = "".join(file.text[place.span.start : place.span.end] for place in found)
        assert text == file.text
        assert {place.file for place in found} == {number}
        each = example("document", code, networkx_links(), found[0], within)
        assert each is not None
        assert prompt_of(each) == f"# {path}\n"


def test_the_middle_stands_between_what_is_shown() -> None:
    code = networkx_code()
    for place, each in made("fim", code, networkx_links(), room(retrieved=0)):
        text = prompt_of(each)
        before, _, after = text.removeprefix(FIM.prefix).removesuffix(FIM.middle).partition(FIM.suffix)
        assert fim_text(FIM, before, after) == text
        shown = before.partition("\n")[2] + each.reference + after
        assert shown in code.files[place.file].text
        boundaries = outline(code.files[place.file]).statements
        assert place.span.start in {span.start for span in boundaries}
        assert place.span.end in {span.end for span in boundaries}


def test_without_tokens_for_it_nothing_is_filled_in() -> None:
    assert places("fim", networkx_code(), paths_of(networkx_code()), 10, room(fim=None)) == []


def test_a_body_is_asked_behind_its_head_and_its_documentation() -> None:
    code = networkx_code()
    for place, each in made("body", code, networkx_links(), room(prompt=900)):
        symbol = outline(code.files[place.file]).symbols[place.symbol]
        text = code.files[place.file].text
        known = text[own_lines(text, symbol.whole).start : place.span.start]
        assert prompt_of(each).endswith(known)
        if symbol.docstring is not None:
            assert text[symbol.docstring.start : symbol.docstring.end] in known


def test_documentation_is_asked_of_a_function_shown_without_it() -> None:
    for _, each in made("docstring", networkx_code(), networkx_links(), room(prompt=900)):
        assert each.reference.strip("\"'rR \n")[:60] not in prompt_of(each)


def test_who_uses_a_symbol_is_all_who_do() -> None:
    texts = {
        "pkg/__init__.py": "",
        "pkg/shapes.py": "def area_of(shape):\n    return shape.width * shape.height\n",
        "pkg/a.py": "from pkg.shapes import area_of\n\n\ndef cost(shape):\n    return 3 * area_of(shape)\n",
        "pkg/b.py": "from pkg.shapes import area_of\n\n\nclass Wall:\n"
        "    def paint(self):\n        return area_of(self)\n",
    }
    code = code_of(texts)
    links = links_of(code)
    found = [
        (place, example("explain", code, links, place, room()))
        for place in places("explain", code, {"pkg/shapes.py"}, 5, room())
    ]
    assert [each.reference for _, each in found if each] == ["pkg/a.py: cost\npkg/b.py: Wall.paint"]


@pytest.mark.parametrize("task", OF_LANGUAGES)
@pytest.mark.parametrize("language", get_args(Language))
def test_every_language_has_each_task_within_a_file(task: TaskName, language: Language) -> None:
    code, links = languages()
    if language == "python":
        code, links = networkx_code(), networkx_links()
    paths = {file.path for file in code.files if file.language == language}
    found = [(place, example(task, code, links, place, room())) for place in places(task, code, paths, 200, room())]
    good = [(place, each) for place, each in found if each is not None]
    assert len(good) >= 1, (language, task)
    for place, each in good:
        file = code.files[place.file]
        assert each.reference == file.text[place.span.start : place.span.end]
        mark = "#" if language == "python" else "//"
        head = prompt_of(each).removeprefix(FIM.prefix) if task == "fim" else prompt_of(each)
        assert f"{mark} {file.path}\n" in head


# ---- changes ----


def edits_of(numbers: random.Random) -> Edit:
    """A file and what some cuts and insertions make of it."""
    before = [f"line {numbers.randrange(12)}" for _ in range(numbers.randrange(1, 40))]
    after = list(before)
    for _ in range(numbers.randrange(1, 5)):
        at = numbers.randrange(len(after) + 1)
        after[at : at + numbers.randrange(3)] = [f"new {numbers.randrange(9)}" for _ in range(numbers.randrange(3))]
    return Edit("a.py", "\n".join(before) + "\n", "\n".join(after) + "\n")


@pytest.mark.parametrize("seed", range(80))
def test_a_patch_makes_after_of_before(seed: int) -> None:
    edit = edits_of(random.Random(seed))
    patch = patch_of([edit])
    assert edit.before is not None
    assert patch is None or patched({"a.py": edit.before}, patch) == {"a.py": edit.after}
    assert patch is not None or seed % 10 == 9, "nearly every change has a patch"


def test_files_come_and_go() -> None:
    edits = [Edit("new.py", None, "x = 1\n"), Edit("old.py", "y = 1\n", None)]
    patch = patch_of(edits)
    assert patch is not None
    assert patched({"old.py": "y = 1\n"}, patch) == {"new.py": "x = 1\n", "old.py": None}
    with pytest.raises(PatchError, match="no such file"):
        patched({}, patch)


def test_a_change_is_asked_by_its_message_with_the_files_as_they_were() -> None:
    before = "def area(x):\n    return x\n\n\ndef other(x):\n    return x + 1\n"
    after = before.replace("    return x\n", "    return x * x\n")
    message = "An area is a square\n\nSigned-off-by: Someone <someone@example.org>"
    change = Change("c1", message, 0, (Edit("pkg/a.py", before, after),))
    merge = replace(change, commit="c2", message="Merge branch 'x'")
    code = code_of({"pkg/a.py": after, "pkg/b.py": "x = 1\n"}, changes=(change, merge))
    links = links_of(code)
    (place,) = places("commit", code, {"c1", "c2"}, 5, room())
    each = example("commit", code, links, place, room())
    assert each is not None
    assert patched({"pkg/a.py": before}, each.reference) == {"pkg/a.py": after}
    prompt = prompt_of(each)
    assert before.rstrip() in prompt
    assert "An area is a square" in prompt
    assert "example.org" not in prompt
    assert "x * x" not in prompt
    assert example("commit", code, links, place, room(reference=3)) is None
    assert places("commit", code, {"c2"}, 5, room()) == []
