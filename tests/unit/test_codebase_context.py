"""What stands around a place: the nearest first, within budgets, and nothing that tells the answer or is held out."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.codebase.context import LEAST_TELLING, squeezed, tells
from pipeline.codebase.links import links_of
from pipeline.codebase.source import Reader, Shelf, examples_of, open_codebase, withheld
from pipeline.codebase.tasks import example, places
from pipeline.codebase.tested import Bench
from pipeline.codebase.types import Example, Place, Span, TaskName
from pipeline.display import Display
from pipeline.recipe import Codebase, CodebaseSource
from teachers.types import RawText
from tests.codes import code_of, count, networkx_code, networkx_links, paths_of, room

CHAIN = {
    "pkg/__init__.py": "",
    "pkg/used.py": "def weight_of(item):\n    '''How heavy it is.'''\n    return item.grams / 1_000\n",
    "pkg/here.py": (
        "from pkg.used import weight_of\n\n\ndef heaviest_of(items):\n    '''The one that weighs most.'''\n"
        "    ranked = sorted(items, key=weight_of)\n    return ranked[-1]\n"
    ),
    "pkg/caller.py": "from pkg.here import heaviest_of\n\n\ndef shelve(items):\n    return [heaviest_of(items)]\n",
    "pkg/aside.py": "def unrelated(x):\n    return x\n",
    "pkg/test_here.py": "from pkg.here import heaviest_of\n\n\ndef test_heaviest():\n    assert heaviest_of([1])\n",
}


def text_of(each: Example) -> str:
    asked = each.conversation
    assert isinstance(asked, RawText)
    return asked.text


def chained(retrieved: int, hidden: frozenset[str] = frozenset()) -> str:
    code = code_of(CHAIN)
    within = room(prompt=900, retrieved=retrieved)
    (place,) = places("body", code, {"pkg/here.py"}, 5, within)
    each = example("body", code, links_of(code), place, replace(within, withheld=hidden))
    assert each is not None
    return each.retrieved or ""


def titles(retrieved: str) -> list[str]:
    return [line[2:] for line in retrieved.split("\n") if line.startswith("# pkg/")]


# ---- nearest first ----


def test_what_is_used_is_nearest_then_who_calls_then_what_stands_beside() -> None:
    wanted = ["pkg/used.py: weight_of", "pkg/caller.py: shelve", "pkg/test_here.py: test_heaviest"]
    assert titles(chained(400))[::-1] == [*wanted, "pkg/aside.py: unrelated"]


def test_with_less_room_the_order_stays_and_the_nearest_stays_longest() -> None:
    """A piece that does not fit makes way for a shorter one that is farther; one that fits is never left out for it."""
    whole = titles(chained(400))
    found = {budget: titles(chained(budget)) for budget in range(0, 200, 4)}
    assert all(count(chained(budget)) <= budget for budget in found)
    assert all(each == [title for title in whole if title in each] for each in found.values())
    assert {len(each) for each in found.values()} == {0, 1, 2, 3, 4}
    enough = min(budget for budget, each in found.items() if whole[-1] in each)
    assert all(whole[-1] in each for budget, each in found.items() if budget >= enough)
    assert len(found[enough]) < len(whole)


@pytest.mark.parametrize("task", ["line", "body", "fim", "docstring", "feature"])
def test_budgets_of_any_size_hold_with_what_is_retrieved_in_the_prompt(task: TaskName) -> None:
    code, links, numbers = networkx_code(), networkx_links(), random.Random(1)
    found = places(task, code, paths_of(code), 400, room())
    made = 0
    for place in numbers.sample(found, 120):
        most = numbers.randrange(20, 900)
        within = room(prompt=most, retrieved=numbers.randrange(0, most), shows_retrieved=True)
        each = example(task, code, links, place, within)
        if each is None:
            continue
        made += 1
        assert count(text_of(each)) <= most
        assert each.retrieved is None or count(each.retrieved) <= within.retrieved
    assert made >= 15


# ---- nothing that tells ----


@pytest.mark.parametrize("task", ["line", "body", "docstring", "feature"])
def test_nothing_that_is_long_enough_stands_in_the_prompt_or_beside_it(task: TaskName) -> None:
    code, links = networkx_code(), networkx_links()
    within = room(prompt=1_500, retrieved=500, shows_retrieved=True)
    found = random.Random(2).sample(places(task, code, paths_of(code), 1_500, within), 250)
    made = [each for place in found if (each := example(task, code, links, place, within))]
    long = [each for each in made if len(squeezed(each.reference)) >= LEAST_TELLING]
    assert len(long) >= 30
    assert len(long) == len(made) or task == "line"
    assert not [each.reference for each in long if squeezed(each.reference) in squeezed(text_of(each))]


def test_a_line_that_the_file_says_twice_is_not_asked() -> None:
    long = "    shifted = rotate_by_degrees(shape, 90, about=centre_of(shape))\n"
    text = f"def one(shape):\n{long}    return shifted\n\n\ndef two(shape):\n{long}    return shifted\n"
    code = code_of({"a.py": text})
    starts = [text.index("    shifted"), text.rindex("    shifted")]
    asked = [Place(0, span, 0) for span in _rests(text, starts, "= ")]
    first, second = (example("line", code, links_of(code), place, room()) for place in asked)
    assert first is not None, "what comes later is not shown"
    assert second is None


def _rests(text: str, starts: list[int], behind: str) -> list[Span]:
    return [Span(text.index(behind, start) + 1, text.index("\n", start)) for start in starts]


def test_blanks_hide_no_answer() -> None:
    answer = "    return first(second)\n    + third(fourth)"
    assert tells("x = 1\nreturn first( second ) + third(\n fourth)\n", answer)
    assert not tells("x = 1\nreturn first(second)\n", answer)
    assert not tells("return 1", "return 1"), "many texts say so by chance"


# ---- nothing that is held out ----


def test_what_is_withheld_is_not_retrieved() -> None:
    assert "pkg/used.py: weight_of" in titles(chained(400))
    hidden = frozenset({"pkg/used.py", "pkg/test_here.py"})
    assert titles(chained(400, hidden)) == ["pkg/aside.py: unrelated", "pkg/caller.py: shelve"]


def test_a_symbol_is_not_explained_by_callers_that_are_withheld() -> None:
    code = code_of(CHAIN)
    links = links_of(code)
    (place,) = places("explain", code, {"pkg/used.py"}, 5, room())
    open_, hidden = (
        example("explain", code, links, place, room_)
        for room_ in (room(), replace(room(), withheld=frozenset({"pkg/here.py"})))
    )
    assert open_ is not None
    assert open_.reference == "pkg/here.py: heaviest_of"
    assert hidden is None


@pytest.mark.parametrize("task", ["line", "body"])
def test_a_source_trains_on_nothing_of_its_held_out_files(task: TaskName, tmp_path: Path) -> None:
    config = Codebase(path="package:networkx", include=("classes/**", "utils/**", "algorithms/tree/**"), held_out=0.3)
    shelf = Shelf(tmp_path)
    source = CodebaseSource.model_validate(
        {"kind": "codebase", "task": task, "retrieved_tokens": 200, "shows": "retrieved", "reference_tokens": 100}
    )
    bench = Bench(None, Display(Console(file=io.StringIO())))
    found = examples_of(source, "code", 4, Reader(config, shelf, count, 800, None, bench))
    sides = open_codebase(config, shelf).split
    hidden = withheld(sides)
    assert hidden >= sides.held_out
    assert len(sides.train) >= 5
    titled = [f"# {path}: " for path in hidden]
    assert any(each.retrieved for each in found.train)
    for each in found.train:
        assert not [title for title in titled if title in text_of(each) or title in (each.retrieved or "")]
    shown = "".join(each.retrieved or "" for each in found.held_out)
    assert any(f"# {path}: " in shown for path in sides.train), "what is held out may be shown all else"
