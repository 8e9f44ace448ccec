"""A small repository whose modules have nothing in common, each with tests that tell whether its functions are there;
and tiny recipes that learn it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.repositories import make_repository

MODULES = {
    "stock": (
        """
        def reorder(levels, least):
            \"\"\"What has to be bought, by name, sorted.\"\"\"
            missing = {name: least - count for name, count in levels.items() if count < least}
            return sorted(missing.items())


        def merged(first, second):
            \"\"\"Both stocks together.\"\"\"
            result = dict(first)
            for name, count in second.items():
                result[name] = result.get(name, 0) + count
            return result
        """,
        """
        def test_reorder():
            assert stock.reorder({"nail": 2, "screw": 9, "bolt": 4}, 5) == [("bolt", 1), ("nail", 3)]


        def test_merged():
            assert stock.merged({"nail": 2}, {"nail": 1, "nut": 7}) == {"nail": 3, "nut": 7}
        """,
    ),
    "words": (
        """
        def wrapped(text, width):
            \"\"\"Lines of at most `width` characters, broken at blanks.\"\"\"
            lines, line = [], ""
            for word in text.split():
                if line and len(line) + 1 + len(word) > width:
                    lines.append(line)
                    line = word
                else:
                    line = f"{line} {word}".strip()
            return [*lines, line] if line else lines


        def initials(name):
            \"\"\"The first letters, in capitals.\"\"\"
            return "".join(part[0].upper() + "." for part in name.split("-"))
        """,
        """
        def test_wrapped():
            assert words.wrapped("one two three", 7) == ["one two", "three"]


        def test_initials():
            assert words.initials("jean-luc") == "J.L."
        """,
    ),
    "grid": (
        """
        def turned(rows):
            \"\"\"A quarter turn to the right.\"\"\"
            return [list(column) for column in zip(*rows[::-1])]


        def neighbours(x, y, size):
            \"\"\"The cells beside a cell, inside of a square.\"\"\"
            around = [(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)]
            return [(a, b) for a, b in around if 0 <= a < size and 0 <= b < size]
        """,
        """
        def test_turned():
            assert grid.turned([[1, 2], [3, 4]]) == [[3, 1], [4, 2]]


        def test_neighbours():
            assert grid.neighbours(0, 0, 2) == [(1, 0), (0, 1)]
        """,
    ),
    "clockwork": (
        """
        def minutes(text):
            \"\"\"Minutes since midnight of a time such as 07:30.\"\"\"
            hours, _, rest = text.partition(":")
            return 60 * int(hours) + int(rest)


        def overlap(first, second):
            \"\"\"How long two spans of minutes have in common.\"\"\"
            begin = max(first[0], second[0])
            end = min(first[1], second[1])
            return max(0, end - begin)
        """,
        """
        def test_minutes():
            assert clockwork.minutes("07:30") == 450


        def test_overlap():
            assert clockwork.overlap((0, 10), (5, 20)) == 5
        """,
    ),
    "tree": (
        """
        def depth(node):
            \"\"\"How many levels a nested list has.\"\"\"
            if not isinstance(node, list):
                return 0
            return 1 + max((depth(child) for child in node), default=0)


        def leaves(node):
            \"\"\"All that is no list, from left to right.\"\"\"
            if not isinstance(node, list):
                return [node]
            return [leaf for child in node for leaf in leaves(child)]
        """,
        """
        def test_depth():
            assert tree.depth([1, [2, [3]]]) == 3


        def test_leaves():
            assert tree.leaves([1, [2, [3]]]) == [1, 2, 3]
        """,
    ),
    "route": (
        """
        def shortest(roads, start, goal):
            \"\"\"The number of roads on the shortest way, None where there is no way.\"\"\"
            edge, steps, seen = {start}, 0, set()
            while edge:
                if goal in edge:
                    return steps
                seen |= edge
                edge = {town for place in edge for town in roads.get(place, ())} - seen
                steps += 1
            return None


        def reachable(roads, start):
            \"\"\"Every town that one can come to.\"\"\"
            found, left = set(), [start]
            while left:
                town = left.pop()
                if town not in found:
                    found.add(town)
                    left.extend(roads.get(town, ()))
            return found
        """,
        """
        ROADS = {"a": ["b"], "b": ["c"], "d": ["a"]}


        def test_shortest():
            assert route.shortest(ROADS, "a", "c") == 2
            assert route.shortest(ROADS, "a", "d") is None


        def test_reachable():
            assert route.reachable(ROADS, "b") == {"b", "c"}
        """,
    ),
    "coins": (
        """
        def change(amount, kinds):
            \"\"\"The fewest coins that make an amount, as counts by kind.\"\"\"
            counts = {}
            for kind in sorted(kinds, reverse=True):
                counts[kind], amount = divmod(amount, kind)
            return {kind: count for kind, count in counts.items() if count}


        def shown(cents):
            \"\"\"As a price.\"\"\"
            sign = "-" if cents < 0 else ""
            return f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02d}"
        """,
        """
        def test_change():
            assert coins.change(87, [50, 20, 10, 5, 2, 1]) == {50: 1, 20: 1, 10: 1, 5: 1, 2: 1}


        def test_shown():
            assert coins.shown(-1205) == "-12.05"
        """,
    ),
    "queue": (
        """
        class Waiting:
            \"\"\"Who is next: the most urgent, and of those the first.\"\"\"

            def __init__(self):
                self.entries = []

            def add(self, name, urgency=0):
                position = len(self.entries)
                while position and self.entries[position - 1][1] < urgency:
                    position -= 1
                self.entries.insert(position, (name, urgency))

            def call(self):
                if not self.entries:
                    raise LookupError("nobody waits")
                return self.entries.pop(0)[0]
        """,
        """
        def test_waiting():
            waiting = queue.Waiting()
            waiting.add("a")
            waiting.add("b", 2)
            waiting.add("c", 2)
            assert [waiting.call(), waiting.call(), waiting.call()] == ["b", "c", "a"]
        """,
    ),
}


def workshop_files(more: dict[str, str] | None = None) -> dict[str, str]:
    files = {"workshop/__init__.py": "", "README.md": "Tools of a workshop.\n"}
    for name, (text, tests) in MODULES.items():
        files[f"workshop/{name}.py"] = dedent(text).lstrip("\n")
        files[f"tests/test_{name}.py"] = f"from workshop import {name}\n\n\n{dedent(tests).lstrip()}"
    return files | (more or {})


def make_workshop(root: Path, more: dict[str, str] | None = None) -> Path:
    """more: further files, or others in place of these."""
    return make_repository(root, workshop_files(more))


def workshop_settings(folder: Path, root: Path) -> dict[str, Any]:
    """A student of random weights, a teacher that is the student as it was, a program that runs the tests, two steps on
    missing bodies."""
    code = {"path": str(root), "held_out": 0.3}
    return {
        "method": "distill",
        "output": str(folder / "run"),
        "threads": 1,
        "source": {**code, "tests": {"sandbox": {"seconds": 5}, "places": 8}},
        "student": {
            "model": {
                "hidden_size": 32, "layers": 2, "heads": 2, "context": 640,
                "tokenizer": {"kind": "code", "size": 600, "of": code},
            },
        },
        "teachers": {
            "original": {"kind": "self", "weights": "initial"},
            "tests": {"kind": "program", "check": "repository_tests"},
        },
        "routing": "all",
        "data": {
            "held_out": 2,
            "max_prompt_tokens": 600,
            "sources": {"code": {"kind": "codebase", "task": "feature", "count": 4, "reference_tokens": 300}},
        },
        "rollout": {"max_new_tokens": 12, "samples_per_prompt": 2},
        "training": {"steps": 2, "prompts_per_step": 2, "learning_rate": 1e-3, "tokens_per_forward": 4000},
        "evaluation": {"prompts_per_domain": 2, "samples": 2, "measures": ["loss", "similarity"]},
    }  # fmt: skip
