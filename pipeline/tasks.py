"""Generated tasks: ten domains of short questions whose answers take several steps, each resting on the one before.

They exist so that a whole distillation fits into minutes on a laptop and shows something true: where an answer is one
look-up, imitating a teacher's samples works as well as learning from one's own mistakes, so every answer here is a
chain in which a wrong step spoils those after it. Two domains are code: real lines of the Python standard library.

Everything is a pure function of (domain, count, seed, split); the code domains depend on the Python version as well.
"""

from __future__ import annotations

import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, groupby, pairwise
from operator import and_, or_, xor
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal

Split = Literal["train", "held_out"]

HELD_OUT_PERCENT = 10
# A domain of code is finite: after this many fruitless draws in a row, no further distinct question is expected.
PATIENCE = 2_000

EAST, NORTH = {"E": 1, "W": -1}, {"N": 1, "S": -1}
LETTERS = "abcdefghijklmnopqrstuvwxyz"

STDLIB_MODULES = (
    *("abc", "argparse", "ast", "base64", "bdb", "bisect", "calendar", "cmd", "code", "codecs", "colorsys"),
    *("configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "dis", "doctest"),
    *("enum", "filecmp", "fileinput", "fractions", "ftplib", "functools", "getopt", "gettext", "glob", "gzip"),
    *("hashlib", "heapq", "hmac", "imaplib", "inspect", "ipaddress", "keyword", "linecache", "locale", "mailbox"),
    *("mimetypes", "netrc", "nturl2path", "numbers", "opcode", "operator", "optparse", "os", "pdb", "pickle"),
    *("pickletools", "pkgutil", "platform", "plistlib", "poplib", "pprint", "profile", "pstats", "pyclbr", "pydoc"),
    *("queue", "quopri", "random", "reprlib", "runpy", "sched", "selectors", "shelve", "shlex", "shutil", "site"),
    *("smtplib", "socket", "socketserver", "ssl", "stat", "statistics", "string", "stringprep", "subprocess"),
    *("symtable", "tabnanny", "tarfile", "tempfile", "textwrap", "threading", "timeit", "token", "tokenize", "trace"),
    *("traceback", "types", "typing", "uuid", "warnings", "wave", "weakref", "webbrowser", "zipapp", "zipfile"),
)
SNAKE_CASE = re.compile(r"[a-z]+(_[a-z]+){1,3}")
FORMATTED = re.compile(r"""\b(?:f|rf|fr)['"]""", re.IGNORECASE)
LAYOUT = frozenset({tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER})


@dataclass(frozen=True)
class Task:
    """A domain: `make` draws one (question, answer) from the given random numbers."""

    name: str
    summary: str
    make: Callable[[Random], tuple[str, str]]


def generate(domain: str, count: int, seed: int, split: Split) -> list[tuple[str, str]]:
    """`count` (question, answer) pairs. A question belongs to one split by its own hash, whatever the seed and count.

    Held-out questions are distinct, so that intervals computed over them mean something; training ones may repeat.
    Raises ValueError for an unknown domain and where a domain has fewer distinct held-out questions than asked for.
    """
    task = DOMAINS.get(domain)
    if task is None:
        raise ValueError(f"unknown domain {domain!r}: choose one of {', '.join(DOMAINS)}")
    pairs = _draws(task, seed, split)
    return [next(pairs) for _ in range(count)] if split == "train" else _distinct(pairs, count, domain)


def split_of(question: str) -> Split:
    """The split a question belongs to, the same in every process and on every machine."""
    digest = int.from_bytes(blake2b(question.encode(), digest_size=8).digest(), "big")
    return "held_out" if digest % 100 < HELD_OUT_PERCENT else "train"


def _draws(task: Task, seed: int, split: Split) -> Iterator[tuple[str, str]]:
    """Endless pairs of one split. A string seeds Random through SHA-512, so PYTHONHASHSEED plays no part."""
    random = Random(f"{task.name}/{split}/{seed}")
    while True:
        question, answer = task.make(random)
        if split_of(question) == split:
            yield question, answer


def _distinct(pairs: Iterator[tuple[str, str]], count: int, domain: str) -> list[tuple[str, str]]:
    """The first `count` pairs with different questions."""
    found: dict[str, str] = {}
    fruitless = 0
    while len(found) < count:
        question, answer = next(pairs)
        fruitless = fruitless + 1 if question in found else 0
        found[question] = answer
        if fruitless == PATIENCE:
            raise ValueError(f"{domain} has only {len(found)} held-out questions, not {count}: ask for fewer")
    return list(found.items())


# --- numbers ---------------------------------------------------------------------------------------------------------


def running_sums(random: Random) -> tuple[str, str]:
    """Sums of the digits so far, modulo 5: every digit of the answer is the former one plus the question's next."""
    digits = [random.randrange(5) for _ in range(8)]
    return f"sums mod 5: {_join(digits)}", _join(total % 5 for total in accumulate(digits))


def addition(random: Random) -> tuple[str, str]:
    """Column addition from the right, each column written out as digit+digit+carry=sum: the carry links the columns."""
    left, right = random.randint(100, 999), random.randint(100, 999)
    columns: list[str] = []
    carry = 0
    for place in (1, 10, 100):
        a, b = left // place % 10, right // place % 10
        columns.append(f"{a}+{b}+{carry}={a + b + carry:02}")
        carry = (a + b + carry) // 10
    return f"add: {left}+{right}", " ".join(columns)


def division(random: Random) -> tuple[str, str]:
    """Long division by 7, quotient digit and remainder per step: each step needs the remainder of the one before."""
    dividend = [random.randint(1, 9), *(random.randrange(10) for _ in range(4))]
    steps = []
    remainder = 0
    for digit in dividend:
        quotient, remainder = divmod(10 * remainder + digit, 7)
        steps.append(f"{quotient}r{remainder}")
    return f"divide: {_join(dividend)}/7", _join(steps, " ")


def boolean(random: Random) -> tuple[str, str]:
    """An expression of bits folded from the left, every intermediate value written: each needs the one before."""
    operators: dict[str, Callable[[int, int], int]] = {"&": and_, "|": or_, "^": xor}
    value = random.randrange(2)
    text, values = str(value), []
    for _ in range(8):
        symbol, bit = random.choice("&|^"), random.randrange(2)
        value = operators[symbol](value, bit)
        text += f"{symbol}{bit}"
        values.append(value)
    return f"fold: {text}", _join(values)


def walking(random: Random) -> tuple[str, str]:
    """Steps on a 10 by 10 grid that wraps around, every position (x, y) written: each is a step from the one before."""
    x, y = random.randrange(10), random.randrange(10)
    moves = "".join(random.choice("NESW") for _ in range(6))
    question, positions = f"walk: {x}{y} {moves}", []
    for move in moves:
        x, y = (x + EAST.get(move, 0)) % 10, (y + NORTH.get(move, 0)) % 10
        positions.append(f"{x}{y}")
    return question, " ".join(positions)


# --- strings ---------------------------------------------------------------------------------------------------------


def sorting(random: Random) -> tuple[str, str]:
    """Letters into alphabetical order: each is the smallest of those that the answer does not hold yet."""
    letters = random.sample(LETTERS, random.randint(8, 12))
    return f"sort: {_join(letters)}", _join(sorted(letters))


def run_lengths(random: Random) -> tuple[str, str]:
    """Run-length coding: a run can be counted only once it is known where the one before ended."""
    letters = [random.choice(LETTERS[:6])]
    while len(letters) < 5:
        letters.append(random.choice([letter for letter in LETTERS[:6] if letter != letters[-1]]))
    text = "".join(letter * random.randint(1, 4) for letter in letters)
    return f"runs: {text}", "".join(f"{letter}{len([*run])}" for letter, run in groupby(text))


def cancelling(random: Random) -> tuple[str, str]:
    """String rewriting: the leftmost two equal neighbours vanish, again and again; every intermediate string counts."""
    text = "".join(random.sample("abcde", 3))
    for _ in range(random.randint(2, 3)):
        place = random.randint(0, len(text))
        text = text[:place] + random.choice("abcde") * 2 + text[place:]
    return f"cancel: {text}", " ".join(_cancellations(text))


def _cancellations(text: str) -> Iterator[str]:
    """The strings left after each removal of the leftmost pair, until no pair is left."""
    while (place := next((i for i, pair in enumerate(pairwise(text)) if pair[0] == pair[1]), None)) is not None:
        text = text[:place] + text[place + 2 :]
        yield text


# --- code: statements of the standard library ------------------------------------------------------------------------


def code_brackets(random: Random) -> tuple[str, str]:
    """The brackets of a real statement with the depth after each: a running count over text that distracts from it."""
    return random.choice(_bracket_questions())


@lru_cache(maxsize=1)
def _bracket_questions() -> tuple[tuple[str, str], ...]:
    """Every short statement with four to ten brackets, and the answer."""
    questions = []
    for text, tokens in _statements():
        brackets = [token.string for token in tokens if token.type == tokenize.OP and token.string in "()[]{}"]
        depths = [*accumulate(1 if bracket in "([{" else -1 for bracket in brackets)]
        if len(text) <= 44 and 4 <= len(brackets) <= 10:
            questions.append((f"brackets: {text}", "".join(f"{b}{d}" for b, d in zip(brackets, depths, strict=True))))
    return tuple(questions)


def camel_case(random: Random) -> tuple[str, str]:
    """A real name in snake case turned into camel case: letter by letter, a capital after each underscore passed."""
    name = random.choice(_snake_names())
    head, *rest = name.split("_")
    return f"camelCase: {name}", head + "".join(part.capitalize() for part in rest)


@lru_cache(maxsize=1)
def _snake_names() -> tuple[str, ...]:
    """The distinct names of the standard library of two to four parts in snake case."""
    names = {token.string: None for _, tokens in _statements() for token in tokens if token.type == tokenize.NAME}
    return tuple(name for name in names if len(name) <= 18 and SNAKE_CASE.fullmatch(name))


@lru_cache(maxsize=1)
def _statements() -> tuple[tuple[str, tuple[tokenize.TokenInfo, ...]], ...]:
    """The distinct statements of the standard library that stand on one line, as text and tokens, in order."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, tuple[tokenize.TokenInfo, ...]] = {}
    for path in (library / f"{module}.py" for module in STDLIB_MODULES):
        if path.is_file():
            with tokenize.open(path) as file:
                found.update(_one_line_statements(file.readline))
    return tuple(found.items())


def _one_line_statements(readline: Callable[[], str]) -> Iterator[tuple[str, tuple[tokenize.TokenInfo, ...]]]:
    """The ASCII statements of one file that stand on one line, without comments and formatted strings.

    Python 3.12 began to split formatted strings into tokens; without them every version sees the same brackets.
    """
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(readline):
        if token.type == tokenize.NEWLINE:
            text = token.line[statement[0].start[1] : statement[-1].end[1]]
            if statement[0].start[0] == statement[-1].end[0] and text.isascii() and not FORMATTED.search(text):
                yield text, tuple(statement)
            statement = []
        elif token.type not in LAYOUT:
            statement.append(token)


def _join(items: Iterable[object], separator: str = "") -> str:
    return separator.join(str(item) for item in items)


def _task(make: Callable[[Random], tuple[str, str]]) -> Task:
    return Task(make.__name__, (make.__doc__ or "").strip(), make)


_NUMBERS = (running_sums, addition, division, boolean, walking)
_STRINGS = (sorting, run_lengths, cancelling)
_CODE = (code_brackets, camel_case)
DOMAINS: Mapping[str, Task] = MappingProxyType({make.__name__: _task(make) for make in _NUMBERS + _STRINGS + _CODE})
