"""What goes wrong in training, told from the last lines of metrics alone. Pure functions; imports no torch.

Two guards are none of these: numbers that are not finite end the step in which they are met, before there is a line
(`keeping.py`), and refusals are counted when training is over (`assess.py`).

Growth and falls are those of the last RECENT steps' mean against that of the first RECENT in the window, with none in
common: what comes within WINDOW steps is seen, what takes hundreds is learning, and what goes wrong before RECENT steps
are done has nothing sound to be compared with. They count where they are NOISE times their own standard error: steps of
few prompts go up and down by themselves. How far they do is told from how far each step is from the one before, so that
growth itself is not taken for noise (von Neumann 1941, the mean square successive difference).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean
from typing import Any

Line = Mapping[str, Any]

WINDOW = 32  # lines
RECENT = 4  # of them on either side of a comparison
NOISE = 4.0  # standard errors
NOISE_OF_SCORES = 5.0  # right or wrong, of few answers: at 4 a sound run of ten domains set it off 7 times
LEAST_KL = 0.2  # nats; that to the student as it was begins at 0, and grows to 0.13 in recipes/codebase.yaml
LEAST_LOOPS = 3  # answers of the last RECENT steps; one or two that repeat themselves are chance

READ = (
    *("step", "length", "truncated", "repetition", "entropy", "overlap", "kl", "score"),
    *("gradient_share", "domain_rows", "mass_in_support", "sharpness", "grade", "advantage"),
)


@dataclass(frozen=True)
class Finding:
    """What a guard found. subject: a domain or a teacher, None for the whole run. said: one plain sentence."""

    name: str
    subject: str | None
    value: float
    threshold: float
    said: str


Found = tuple[str | None, float]  # a subject and its value
Detector = Callable[[Sequence[Line]], Iterator[Found]]


def findings(name: str, window: Sequence[Line], threshold: float) -> list[Finding]:
    """What the guard called `name` finds in `window`, oldest line first; nothing at the threshold itself."""
    detector, says, below = DETECTORS[name]
    return [
        Finding(name, subject, value, threshold, says.format(subject=subject, value=value, threshold=threshold))
        for subject, value in detector(window)
        if (value < threshold if below else value > threshold)
    ]


def seen(line: Line) -> dict[str, Any]:
    """The part of a metrics line that detectors read."""
    return {name: line[name] for name in READ if name in line}


# ---- what is compared ----


def _sides(window: Sequence[Line], *path: str, noise: float = NOISE) -> Iterator[tuple[str | None, float, float]]:
    """(subject, mean before, mean now) of a number, or of each one in a table by subject; those that are measured often
    enough."""
    rows = [value for line in window if (value := _at(line, path)) is not None]
    if rows and isinstance(rows[0], Mapping):
        for subject in sorted({name for row in rows for name in row}):
            yield from _two(subject, [row[subject] for row in rows if subject in row], noise)
    else:
        yield from _two(None, rows, noise)


def _two(subject: str | None, values: Sequence[float], errors: float) -> Iterator[tuple[str | None, float, float]]:
    if len(values) >= 2 * RECENT:
        before, now = fmean(values[:RECENT]), fmean(values[-RECENT:])
        noise = fmean((later - value) ** 2 for value, later in pairwise(values)) / 2  # of one step, squared
        if abs(now - before) > errors * sqrt(2 * noise / RECENT):
            yield subject, before, now


def _at(line: Line, path: Sequence[str]) -> Any:
    value: Any = line
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _means(window: Sequence[Line], *path: str) -> dict[str, float]:
    """Means over the last RECENT lines, by subject; none before there are as many."""
    if len(window) < RECENT:
        return {}
    rows = [value for line in window[-RECENT:] if (value := _at(line, path))]
    return {name: fmean(row[name] for row in rows if name in row) for name in sorted({n for row in rows for n in row})}


# ---- the detectors ----


def _times(*path: str) -> Detector:
    def grown(window: Sequence[Line]) -> Iterator[Found]:
        return ((subject, now / before) for subject, before, now in _sides(window, *path) if before > 0)

    return grown


def _more(*path: str) -> Detector:
    return lambda window: ((subject, now - before) for subject, before, now in _sides(window, *path))


def _less(*path: str, noise: float = NOISE) -> Detector:
    return lambda window: ((subject, before - now) for subject, before, now in _sides(window, *path, noise=noise))


def _fallen(window: Sequence[Line]) -> Iterator[Found]:
    return ((subject, before / max(now, 1e-9)) for subject, before, now in _sides(window, "entropy"))


def _looping(window: Sequence[Line]) -> Iterator[Found]:
    rows = _means(window, "domain_rows")
    for subject, before, now in _sides(window, "repetition"):
        if subject is not None and now * RECENT * rows[subject] >= LEAST_LOOPS:
            yield subject, now - before


def _diverging(window: Sequence[Line]) -> Iterator[Found]:
    for subject, before, now in _sides(window, "kl", "domain"):
        if now - before > LEAST_KL:
            yield subject, now / max(before, 1e-9)


def pulls(window: Sequence[Line]) -> dict[str, float]:
    """Each domain's gradient per row, over that of a row of the others: above 1, it pulls harder than they do."""
    share, rows = _means(window, "gradient_share"), _means(window, "domain_rows")
    found = {}
    for domain in share:
        others = [name for name in share if name != domain]
        rest, of_rest = sum(share[name] for name in others), sum(rows.get(name, 0.0) for name in others)
        if rest > 0 and of_rest and rows.get(domain):
            found[domain] = (share[domain] / rows[domain]) / (rest / of_rest)
    return found


def _outside(window: Sequence[Line]) -> Iterator[Found]:
    recent = [line["mass_in_support"] for line in window[-RECENT:] if "mass_in_support" in line]
    if len(recent) == RECENT:
        yield None, 1 - fmean(recent)


def _sharpness(window: Sequence[Line]) -> Mapping[str, Mapping[str, float]]:
    """Of the last line: a teacher that answers so teaches nothing from the first step on."""
    return (window[-1].get("sharpness") or {}) if window else {}


def _flat(window: Sequence[Line]) -> Iterator[Found]:
    return ((teacher, found["mean"]) for teacher, found in _sharpness(window).items())


def _the_same(window: Sequence[Line]) -> Iterator[Found]:
    """How far a teacher's answers differ: a distribution's best token is the same everywhere, by as much; all grades of
    the last RECENT steps are one. All right, or all wrong, is what grades may say for that long, unless the prompts'
    own checkers say of every domain that some are and some are not."""
    for teacher, found in _sharpness(window).items():
        if found["one_token"]:
            yield teacher, found["deviation"]
    recent = window[-RECENT:]
    mixed = all(_is_mixed(line) for line in recent)
    for teacher in sorted(recent[-1].get("grade") or {}) if len(recent) == RECENT else ():
        rows = [(_at(line, ("grade", teacher)), _at(line, ("advantage", teacher))) for line in recent]
        grades = [grade for grade, advantage in rows if grade is not None and advantage is not None]
        if len(grades) == RECENT and (mixed or 0 < fmean(grades) < 1):
            yield teacher, max(grades) - min(grades) + max(advantage for _, advantage in rows)


def _is_mixed(line: Line) -> bool:
    scores = line.get("score") or {}
    return scores.keys() == line.get("domain_rows", {}).keys() and all(0 < score < 1 for score in scores.values())


# By guard: what finds values, what is said of one beyond the threshold, whether beyond is below.
DETECTORS: Mapping[str, tuple[Detector, str, bool]] = {
    "repetition": (_looping, "{value:.0%} more of the answers in {subject} repeat themselves", False),
    "length": (_times("length", "mean"), "answers have become {value:.3g} times as long", False),
    "truncation": (_more("truncated"), "{value:.0%} more of the answers are cut at the limit", False),
    "entropy": (_fallen, "the student's entropy has fallen {value:.3g} times", False),
    "overlap": (_less("overlap"), "student and teachers have {value:.2g} less of their best tokens in common", False),
    "kl": (_diverging, "the KL to the teachers of {subject} has grown {value:.3g} times", False),
    "score": (_less("score", noise=NOISE_OF_SCORES), "the score in {subject} has fallen by {value:.2g}", False),
    "gradient": (
        lambda window: iter(pulls(window).items()),
        "a row of {subject} pulls {value:.3g} times as hard as one of the other domains", False,
    ),
    "mass": (_outside, "{value:.0%} of the student's mass lies outside of what the teachers give", False),
    "uniform": (
        _flat, "{subject} finds all tokens equally good: its best is {value:.2g} nats above a mean one",
        True,
    ),
    "stale": (_the_same, "{subject} gives the same answer whatever it is asked", True),
}  # fmt: skip
