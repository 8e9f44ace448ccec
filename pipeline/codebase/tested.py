"""Examples whose answers the codebase's own tests judge: tests are run for as many places as are wanted, and no more.

For `feature` a place that no test tells is no example. For `body` it is one all the same, and its answers are not
judged: a domain's score is either the share that passes or nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.codebase.results import Results
from pipeline.codebase.suite import tellable
from pipeline.codebase.types import Code, Example, Place
from pipeline.recipe_checks import RUN_BY_TESTS
from teachers.config import RepositorySuite

if TYPE_CHECKING:
    from pipeline.display import Display

TASKS = RUN_BY_TESTS
# Of what a test said, what may be shown: what is not installed, and the limit that was met. The rest may quote source.
_SAYABLE = re.compile(
    r"(?:ModuleNotFoundError|ImportError): No module named '[\w.]+'|could not import '[\w.]+'"
    r"|the tests (?:ran|used|printed|started) [\w ]+|pytest ended with status \d"
)


@dataclass(frozen=True, eq=False)
class Bench:
    """results: the file in which runs of tests are remembered, None for nowhere. display: where their progress, and
    what they do not tell, is shown."""

    results: Path | None
    display: Display


@dataclass
class _Tried:
    """Places by what came of them."""

    gradings: dict[Place, str] = field(default_factory=dict)
    left_out: dict[Place, str] = field(default_factory=dict)
    hung: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.gradings) + len(self.left_out)


Found = tuple[Place, Example]


def with_gradings(
    found: Iterator[Found], count: int, code: Code, suite: RepositorySuite, bench: Bench, what: str, *, only: bool
) -> list[Example]:
    """At most `count` examples of `found`, in its order, with gradings where tests tell; with `only`, no others.

    Tests are run for at most `suite.places` places. what: whose they are, for the display. Raises RunError, DataError:
    see `tellable` and `Results`.
    """
    tried = _Tried()
    kept: list[Found] = []
    with Results(bench.results) as results:
        while more := list(islice(found, _next(count, len(kept), len(tried), suite.places, only=only))):
            left = suite.places - len(tried)
            _try(more[:left], code, suite, results, bench, what, tried)
            kept += [each for each in more if each[0] in tried.gradings or not only]
    _show(tried, code, bench.display, what)
    return [replace(example, grading=tried.gradings.get(place)) for place, example in kept]


def _next(count: int, kept: int, tried: int, most: int, *, only: bool) -> int:
    """How many places to look at next."""
    wanted = count - kept
    return min(wanted, most - tried) if only else wanted


def _try(
    found: Sequence[Found], code: Code, suite: RepositorySuite, results: Results, bench: Bench, what: str, tried: _Tried
) -> None:
    if not found:
        return
    with bench.display.progress(f"running tests for {what}", len(found)) as counter:
        told = tellable(code, [place for place, _ in found], suite, results, counter.advance)
    tried.gradings |= told.gradings
    tried.left_out |= told.left_out
    tried.hung |= told.hung


# ---- what is shown ----


def _show(tried: _Tried, code: Code, display: Display, what: str) -> None:
    """Numbers, names and reasons; nothing that a test printed."""
    if not tried:
        return
    display.note(f"{what}: tests tell for {len(tried.gradings)} of {len(tried)} places")
    if tried.left_out:
        display.table(
            f"{what}: places that no test tells",
            ["why", "places", "the first one"],
            [list(each) for each in reasons(tried.left_out, code)],
        )
    if tried.hung:
        names = sorted(tried.hung)
        display.warn(f"{what}: {len(names)} tests that met a limit are never chosen, such as {names[0]}")


def reasons(left_out: Mapping[Place, str], code: Code) -> list[tuple[str, int, str]]:
    """(why, how many, the first one), the most frequent first."""
    whys = {place: _sayable(why) for place, why in left_out.items()}
    first: dict[str, str] = {}
    for place, why in whys.items():
        first.setdefault(why, _name(place, code))
    return [(why, number, first[why]) for why, number in Counter(whys.values()).most_common()]


def _sayable(why: str) -> str:
    reason, _, details = why.partition(": ")
    said = _SAYABLE.search(details)
    return f"{reason}: {said[0]}" if said else reason


def _name(place: Place, code: Code) -> str:
    file = code.files[place.file]
    return (
        f"{file.path}::{file.outline.symbols[place.symbol].path}" if file.outline and place.symbol >= 0 else file.path
    )
