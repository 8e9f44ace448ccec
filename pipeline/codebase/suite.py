"""Which places of a codebase its own tests can judge: what an answer there is graded by, found out by running.

A place is tellable if tests that reach it pass on the code as it is, and at least one of them fails once the place is
emptied. Two runs for each place; with `Results` in a file none of them is made again for the same code.

    with Results(cache / "tests.sqlite") as results:
        told = tellable(code, places, recipe.source.tests, results, advance)
    Example(..., grading=told.gradings[place])        # and the source's checker: repository_tests
    told.left_out                                      # place -> why not, one line each

`tested.py` calls it for as many places as are wanted: a run costs seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.codebase.reach import reach
from pipeline.codebase.results import Results
from pipeline.codebase.secrets import redact
from pipeline.codebase.types import Code, Place, SourceFile
from pipeline.errors import RunError
from teachers.config import RepositorySuite
from teachers.errors import TeacherError
from teachers.repository_copy import copied, text_of
from teachers.repository_run import Ran, Trial
from teachers.repository_tests import Grading, digest_of, trial_of
from teachers.sandbox import SandboxError

EMPTY = "pass"  # not an error, which a test that only calls the function would tell: it is the cheapest answer
MOST_BAD = 4  # runs in which a test meets a limit or cannot be imported, after which a place is left
COMMAND = ("command",)  # the one test of a suite that is no pytest's


@dataclass(frozen=True)
class Told:
    """gradings: place -> a `Grading` as JSON. left_out: place -> why its answers cannot be graded. hung: tests that
    met a limit on the unchanged code, and are never chosen -> which."""

    gradings: Mapping[Place, str]
    left_out: Mapping[Place, str]
    hung: Mapping[str, str]


def tellable(
    code: Code,
    places: Sequence[Place],
    suite: RepositorySuite,
    results: Results,
    advance: Callable[[int], None] = lambda _: None,
) -> Told:
    """Runs the tests that reach each place, twice; `advance(1)` after each place. Places are of functions' bodies.

    Raises RunError: no bubblewrap, no pytest, a checkout that cannot be copied.
    """
    return asyncio.run(_tellable(code, places, suite, results, advance))


@dataclass
class _Bad:
    """Test functions, and their files, that met a limit on the unchanged code -> which; files that cannot be imported
    -> why. Found out once for all places."""

    hung: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


async def _tellable(
    code: Code,
    places: Sequence[Place],
    suite: RepositorySuite,
    results: Results,
    advance: Callable[[int], None],
) -> Told:
    bad = _Bad()

    async def one(place: Place) -> Grading | str:
        found = await _grading(code, place, suite, results, bad)
        advance(1)
        return found

    try:
        found = await asyncio.gather(*map(one, places))
    except (TeacherError, SandboxError) as error:
        raise RunError(f"source.tests: {error}") from error
    pairs = list(zip(places, found, strict=True))
    gradings = {place: told.to_json() for place, told in pairs if isinstance(told, Grading)}
    return Told(gradings, {place: told for place, told in pairs if isinstance(told, str)}, bad.hung)


async def _grading(code: Code, place: Place, suite: RepositorySuite, results: Results, bad: _Bad) -> Grading | str:
    """What answers there are graded by, or why they cannot be. bad: grows."""
    file = code.files[place.file]
    if text_of(await asyncio.to_thread(copied, code.root, clear), file.path) != file.text:
        return "its file is not on disk as it was read"
    select = _select(code, place, file, suite)
    if not select:
        return "no test reaches it"
    grading = _first_grading(code, place, file, suite, select)
    whole = replace(trial_of(grading, file.text, file.text[place.span.start : place.span.end], clear), chosen=None)
    before = await _without_bad(replace(whole, select=select), results, bad)
    if isinstance(before, str):
        return before
    passed = tuple(name for name, result in before.tests.items() if result == "passed")
    if not passed:
        return f"no test that reaches it passes on the unchanged code: {_why(before)}"
    grading = replace(grading, tests=passed, proof=before.proof(passed), allowed=before.touched)
    after = await results.of(trial_of(grading, file.text, EMPTY, clear))
    telling = [name for name in passed if after.tests.get(name) != "passed"]
    if not telling:
        return "its tests pass without it"
    first = tuple(sorted(passed, key=lambda name: name not in telling))  # what fails tells soonest
    return replace(grading, tests=first, proof=before.proof(first))


async def _without_bad(trial: Trial, results: Results, bad: _Bad) -> Ran | str:
    """A run on the unchanged code of which no test meets a limit and every file can be imported: those that do, or
    cannot, are left out, one after the other. Where all together take too long, those that came to their end stay."""
    for number in range(MOST_BAD):
        left = tuple(test for test in trial.select if test not in bad.hung and _file_of(test) not in bad.broken)
        if not left:
            return _none_left(trial, bad)
        found = await results.of(replace(trial, select=left))
        if found.missing is not None:
            raise TeacherError(f"{found.missing} is not installed for this Python: pip install {found.missing}")
        broken = {name: words for name, words in found.said.items() if name in map(_file_of, left)}
        bad.broken.update(broken)
        if found.complete and not found.ending:
            return found
        if found.hung is not None:
            function = found.hung.partition("[")[0]
            bad.hung[function] = bad.hung[_file_of(found.hung)] = f"{found.hung}: {found.ending}"
        fewer = _half_that_ended(found)
        if fewer and not broken and (number > 0 or found.hung is None):
            trial = replace(trial, select=fewer)
        elif not broken and found.hung is None:
            return f"its tests cannot be run here: {_why(found)}"
    return _none_left(trial, bad)


def _half_that_ended(found: Ran) -> tuple[str, ...]:
    """Of the functions that passed before a limit ended it all; they need about half of the time, too."""
    ended = dict.fromkeys(name.partition("[")[0] for name, result in found.tests.items() if result == "passed")
    return tuple(ended)[: (len(ended) + 1) // 2]


def _none_left(trial: Trial, bad: _Bad) -> str:
    for test in trial.select:
        if test in bad.hung:
            return f"its tests do not end by themselves: {bad.hung[test]}"
    first = next(_file_of(test) for test in trial.select if _file_of(test) in bad.broken)
    return f"its tests cannot be run here: {bad.broken[first]}"


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def _select(code: Code, place: Place, file: SourceFile, suite: RepositorySuite) -> tuple[str, ...]:
    if suite.runner == "command":
        return COMMAND
    if file.outline is None or place.symbol < 0:
        return ()
    return reach(code, file.path, file.outline.symbols[place.symbol].path)


def _first_grading(
    code: Code, place: Place, file: SourceFile, suite: RepositorySuite, select: tuple[str, ...]
) -> Grading:
    symbol = file.outline.symbols[place.symbol].path if file.outline is not None and place.symbol >= 0 else ""
    start, end = place.span
    return Grading(str(code.root), file.path, digest_of(file.text), start, end, symbol, select, "", (), suite)


def _why(found: Ran) -> str:
    said = next(iter(found.said.values()), "") or found.ending or "none ran"
    return f"{said}; {', '.join(found.touched[:2])}" if found.touched and not found.complete else said


def clear(text: str) -> str:
    """Without secrets, as all that is read of a codebase."""
    return redact(text)[0]
