"""A task's two sides: what a source may lack, and what is said of it."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.codebase.source import Examples, Reader, Shelf, examples_of, open_codebase
from pipeline.codebase.tested import Bench
from pipeline.display import Display
from pipeline.errors import DataError
from pipeline.recipe import Codebase, CodebaseSource
from tests.codes import count
from tests.programs import program
from tests.repositories import commit, make_repository

NAMES = ("apples", "bridges", "candles", "doors", "engines", "flutes", "gardens", "hats")


class Committed:
    """A repository of eight files, each on one side of its split, with a commit to each file of one side."""

    def __init__(self, folder: Path, *, touch_held_out: bool) -> None:
        files = {f"{name}.py": program(number) for number, name in enumerate(NAMES)}
        root = make_repository(folder / "repository", files)
        self.config = Codebase(path=str(root), held_out=0.4, commits=50)
        self.shelf = Shelf(folder)
        self.heard = io.StringIO()
        sides = open_codebase(self.config.model_copy(update={"commits": 0}), self.shelf).split
        touched: Collection[str] = sides.held_out if touch_held_out else sides.train
        for number, path in enumerate(sorted(touched)):
            commit(root, {path: f"{files[path]}LIMIT_OF_{number} = {number} + 17\n"}, f"A limit for {path}")

    def examples(self, **rest: float) -> Examples:
        source = CodebaseSource.model_validate(
            {"kind": "codebase", "task": "commit", "reference_tokens": 300, "count": 20, **rest}
        )
        bench = Bench(None, Display(Console(file=self.heard, width=300)))
        return examples_of(source, "history", 4, Reader(self.config, self.shelf, count, 3_000, None, bench))


def test_what_has_nothing_held_out_is_trained_and_that_is_said(tmp_path: Path) -> None:
    committed = Committed(tmp_path, touch_held_out=False)
    found = committed.examples()
    assert found.train
    assert not found.held_out
    said = " ".join(committed.heard.getvalue().split())
    assert "data.sources.history: no place for the task commit is held out" in said
    assert said.endswith("it is trained, and not measured")


def test_what_is_only_measured_needs_something_to_measure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no place for the task commit is held out in .*tutelage ingest"):
        Committed(tmp_path, touch_held_out=False).examples(weight=0)


def test_where_nothing_fits_both_sides_and_the_ways_out_are_named(tmp_path: Path) -> None:
    committed = Committed(tmp_path, touch_held_out=False)
    said = r"is to train on or held out in .* prompts of 3,000 tokens and answers of 1; .*max_prompt_tokens.*commits=0"
    with pytest.raises(DataError, match=said):
        committed.examples(reference_tokens=1)


def test_what_is_trained_needs_something_to_train_on(tmp_path: Path) -> None:
    committed = Committed(tmp_path, touch_held_out=True)
    with pytest.raises(DataError, match=r"no place for the task commit is to train on in .*tutelage ingest"):
        committed.examples()
    assert committed.examples(weight=0).held_out
    assert not committed.heard.getvalue()
