"""A view drawn into so many columns and rows: a pure function, the same for a run and for who watches it.

What matters most stands first; what has no room is left out whole, never cut in the middle of a line. Styles are
styles alone: without colour everything is still said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.text import Text

from pipeline.screen.view import Bar, Curve, Health, View

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = "_.-~=+*#"
FILLED, EMPTY = "━", "─"
PLAIN_FILLED, PLAIN_EMPTY = "#", "-"
WIDEST_CURVE = 40
TWO_COLUMNS = 80  # from this width on, curves stand beside each other
NAME = 15


def draw(view: View, width: int, height: int, *, plain: bool = False) -> RenderableType:
    """The screen in at most `width` columns and `height` rows. plain: for terminals that know ASCII alone."""
    width, height = max(width, 10), max(height, 1)
    sections = [
        _head(view, width, plain),
        _events(view, width, 2),
        _curves(view, width, plain),
        _scores(view, width, plain),
        _teachers(view.teachers, width),
        _sample(view, width, plain),
    ]
    rows: list[Text] = []
    for number, section in enumerate(sections):
        room = height - len(rows)
        # A sample in part still says something, and so do the first curves; half a heading does not.
        rows += section[:room] if number != len(sections) - 1 or room > 1 else []
    return Group(*(_fitted(row, width, plain) for row in rows))


def spark(values: Sequence[float], width: int, *, plain: bool = False) -> str:
    """`values` in `width` characters at most, each the mean of its share, between their smallest and their largest."""
    blocks = PLAIN_BLOCKS if plain else BLOCKS
    finite = [value for value in values if isfinite(value)]
    if not finite or width < 1:
        return ""
    shares = min(width, len(finite))
    edges = [place * len(finite) // shares for place in range(shares + 1)]
    means = [sum(finite[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return blocks[0] * shares
    return "".join(blocks[min(len(blocks) - 1, int((mean - low) / (high - low) * len(blocks)))] for mean in means)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def number(value: float) -> str:
    """Four figures at most, without an exponent where none is needed."""
    if value == 0 or not isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


# ---- sections, each as rows ----


def _head(view: View, width: int, plain: bool) -> list[Text]:
    arrow = " > " if plain else " › "
    where = [view.title, *(_part(part.name, part.number, part.of) for part in view.parts), view.phase]
    rows = [Text(arrow.join(filter(None, where)) or "starting", "bold")]
    if view.state:
        rows.append(Text(view.state, "yellow"))
    if view.steps and view.step:
        left, speed = view.seconds_left, view.tokens_per_second
        said = [
            f"{100 * view.step // view.steps}%",
            f"{duration(left)} left" if left is not None else "",
            f"{speed:,.0f} tokens/s" if speed is not None else "",
        ]
        text = Text("step ").append(f"{view.step}/{view.steps}", "bold cyan")
        tail = "  ".join(filter(None, said))
        room = width - cell_len(text.plain) - cell_len(tail) - 4
        text.append("  ").append_text(_filled(view.step, view.steps, min(room, 30), plain))
        rows.append(text.append("  " if room >= 5 else "").append(tail))
    rows += [_counted(bar, width, plain) for bar in view.bars]
    return rows


def _part(name: str, place: int, of: int) -> str:
    return f"{name} ({place} of {of})" if of else name


def _filled(done: int, total: int, width: int, plain: bool) -> Text:
    if width < 5:
        return Text()
    full = min(width, done * width // total) if total else width
    on, off = (PLAIN_FILLED, PLAIN_EMPTY) if plain else (FILLED, EMPTY)
    return Text(on * full, "cyan").append(off * (width - full), "bright_black")


def _counted(bar: Bar, width: int, plain: bool) -> Text:
    tail = f"{bar.done:,}/{bar.total:,}"
    name = shortened(bar.name, max(8, width - len(tail) - 12), plain)
    room = min(24, width - cell_len(name) - len(tail) - 4)
    return Text(f"{name}  ").append_text(_filled(bar.done, bar.total, room, plain)).append(f"  {tail}")


def _curves(view: View, width: int, plain: bool) -> list[Text]:
    return _beside([_curve(name, curve, plain) for name, curve in view.curves.items()], width)


def _scores(view: View, width: int, plain: bool) -> list[Text]:
    named = [_curve(f"score {name}", curve, plain, "green") for name, curve in view.scores.items()]
    return _beside(named, width)


_Cell = tuple[str, str, Curve, bool, str]


def _curve(name: str, curve: Curve, plain: bool, style: str = "cyan") -> _Cell:
    return name, number(curve.last), curve, plain, style


def _beside(cells: Sequence[_Cell], width: int) -> list[Text]:
    """Name, number and curve of each, in two columns where there is room."""
    columns = 2 if width >= TWO_COLUMNS else 1
    room = (width - 2 * (columns - 1)) // columns
    names = min(max((cell_len(name) for name, *_ in cells), default=0), max(NAME, room // 3))
    each = [_cell(cell, names, room) for cell in cells]
    rows = []
    for place in range(0, len(each), columns):
        row = each[place].copy()
        for text in each[place + 1 : place + columns]:
            row.pad_right(max(0, room + 2 - cell_len(row.plain)))
            row.append_text(text)
        rows.append(row)
    return rows


def _cell(cell: _Cell, names: int, room: int) -> Text:
    name, value, curve, plain, style = cell
    text = Text(set_cell_size(shortened(name, names, plain), names), "default")
    text.append(f" {value:>8} ", "bold")
    width = min(WIDEST_CURVE, room - cell_len(text.plain))
    return text.append(spark(curve.points or (curve.last,), width, plain=plain), style)


def _teachers(teachers: Mapping[str, Health], width: int) -> list[Text]:
    rows = []
    for name, health in teachers.items():
        failed = sum(health.failed.values())
        why = f" ({', '.join(sorted(health.failed))})" if failed and width >= TWO_COLUMNS else ""
        said = [
            f"${health.dollars:,.4f}" if health.dollars else "",
            f"{health.answered:,} answered",
            f"{failed:,} failed{why}" if failed else "",
            f"{health.latency:.2f} s each" if health.latency is not None else "",
            f"{health.under_way:,} asked" if health.under_way else "",
            f"{health.waiting:,} waiting" if health.waiting else "",
        ]
        text = Text(f"{name}  ", "bold").append("  ".join(filter(None, said)), "yellow" if failed else "not bold")
        rows.append(text)
    return rows


def _events(view: View, width: int, most: int) -> list[Text]:
    rows = []
    for event in view.events[-most:]:
        action = f" [{event['action']}]" if event.get("action") else ""
        said = str(event.get("said") or event.get("name") or event.get("what"))
        rows.append(Text(f"step {event.get('step')}: {said}{action}", "yellow"))
    return rows


def _sample(view: View, width: int, plain: bool) -> list[Text]:
    if view.sample is None:
        return []
    asked = _one_line(str(view.sample.get("prompt", "")))
    said = _one_line(str(view.sample.get("completion", "")))
    head = Text(f"{view.sample.get('domain', 'sample')}  ", "bold").append(
        shortened(asked, max(4, width - cell_len(str(view.sample.get("domain", "sample"))) - 2), plain, end=False),
        "dim",
    )
    return [head, *(Text(line) for line in _wrapped(said, width, 3, plain))]


# ---- text ----


def shortened(text: str, width: int, plain: bool = False, *, end: bool = True) -> str:
    """At most `width` columns, with dots for what is left out: at the end, or at the beginning."""
    if cell_len(text) <= width:
        return text
    dots = "..." if plain else "…"
    room = max(0, width - cell_len(dots))
    if end:
        return set_cell_size(text, room).rstrip() + dots
    kept = text[-room:] if room else ""
    while cell_len(kept) > room:
        kept = kept[1:]
    return dots + kept


def _wrapped(text: str, width: int, most: int, plain: bool) -> list[str]:
    rows: list[str] = []
    while text and len(rows) < most:
        taken = text
        if cell_len(taken) > width:
            taken = text[:width]
            while cell_len(taken) > width:
                taken = taken[:-1]
        rows.append(taken)
        text = text[len(taken) :]
    if text and rows:
        rows[-1] = shortened(rows[-1] + text, width, plain)
    return rows


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎").strip()


def _fitted(row: Text, width: int, plain: bool) -> Text:
    """Within the width, and without anything that would steer the terminal: a model may write escape sequences."""
    shown = row.copy()
    shown.plain = "".join(_shown(character, plain) for character in shown.plain)
    shown.truncate(width, overflow="crop" if plain else "ellipsis")
    shown.no_wrap, shown.overflow = True, "crop"
    return shown


def _shown(character: str, plain: bool) -> str:
    if not character.isprintable() or (plain and character == "⏎"):
        return " "
    return "?" if plain and not character.isascii() else character
