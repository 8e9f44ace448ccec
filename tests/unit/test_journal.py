"""The journal: nothing answered is lost, nothing intended is forgotten, whenever the process is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

from teachers.errors import TeacherError
from teachers.journal import Journal, Totals
from teachers.types import Answer, Judgment, TeacherFailure, Usage
from tests.unit.test_encoding import random_answer, same

ROOT = Path(__file__).parents[2]
CENT = Decimal("0.01")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = Journal(path)
    yield opened
    opened.close()


def intend(journal: Journal, key: str, *, teacher: str = "grader", step: int = 1, private: bool = True) -> int:
    return journal.intend(
        key, teacher=teacher, request_id=f"r-{key}", step=step, dollars=CENT, tokens=100, private=private
    )


def ask(journal: Journal, key: str, text: str, *, private: bool = True, step: int = 1) -> None:
    """A whole question."""
    attempt = intend(journal, key, private=private, step=step)
    journal.settle(attempt, Answer(Judgment(feedback=text), Usage(3, 0, 2), "model-1", 0.5), CENT)


def feedback(answer: Answer | None) -> str | None:
    assert answer is None or isinstance(answer.signal, Judgment)
    return None if answer is None else answer.signal.feedback


# ---- answers ----


def test_an_answer_is_found_by_its_key_alone(journal: Journal) -> None:
    assert journal.find("a") is None
    rng = random.Random(3)
    answers = {f"key-{n}": random_answer(rng) for n in range(40)}
    for key, answer in answers.items():
        journal.settle(intend(journal, key), answer, CENT)
    for key, answer in answers.items():
        found = journal.find(key)
        assert found is not None
        assert found.journal_key == key
        assert same(found, Answer(answer.signal, answer.usage, answer.model_returned, answer.latency, key))
    assert journal.find("key-") is None


def test_the_first_answer_stays(journal: Journal) -> None:
    ask(journal, "a", "first")
    ask(journal, "a", "second")
    assert feedback(journal.find("a")) == "first"
    assert journal.charged("grader").requests == 2


def test_a_failure_is_no_answer_and_may_be_asked_again(journal: Journal) -> None:
    journal.settle(intend(journal, "a"), TeacherFailure("grader", "unavailable", True), Decimal(0))
    assert journal.find("a") is None
    ask(journal, "a", "now")
    assert feedback(journal.find("a")) == "now"
    found = journal.charged("grader")
    assert (found.requests, found.tokens, found.dollars, found.doubtful) == (2, 5, CENT, 0)


def test_an_attempt_is_settled_once(journal: Journal) -> None:
    attempt = intend(journal, "a")
    journal.settle(attempt, TeacherFailure("grader", "refused", False), Decimal(0))
    with pytest.raises(AssertionError, match="settled already"):
        journal.settle(attempt, Answer(Judgment()), CENT)
    with pytest.raises(AssertionError, match="never intended"):
        journal.settle(77, Answer(Judgment()), CENT)
    assert journal.find("a") is None  # all of a transaction or nothing
    ask(journal, "b", "still works")
    assert feedback(journal.find("b")) == "still works"


# ---- money ----


def test_what_was_charged_is_exact_and_by_teacher(journal: Journal, path: Path) -> None:
    rng = random.Random(5)
    expected: dict[str, Totals] = {}
    for n in range(60):
        teacher = rng.choice(("a", "b"))
        dollars = Decimal(rng.randrange(10**9)).scaleb(-12)
        usage = Usage(*(rng.randrange(1_000) for _ in range(4)))
        attempt = intend(journal, f"k{n}", teacher=teacher)
        outcome = rng.choice(("answer", "charged failure", "doubt"))
        seconds = 0.25 if outcome == "answer" else 0.0
        if outcome == "answer":
            journal.settle(attempt, Answer(Judgment(), usage, latency=seconds), dollars)
        elif outcome == "charged failure":
            journal.settle(attempt, TeacherFailure(teacher, "unparsable", False, usage=usage), dollars)
        else:
            journal.settle(attempt, TeacherFailure(teacher, "timeout", True, in_doubt=True), dollars)
        doubt = outcome == "doubt"
        used = Usage() if doubt else usage
        tokens = 100 if doubt else usage.input + usage.output
        more = Totals(
            1, used.input, used.cached, used.output, used.reasoning, tokens, seconds, dollars,
            int(doubt), dollars if doubt else Decimal(0),
        )  # fmt: skip
        expected[teacher] = expected.get(teacher, Totals()) + more
    assert {name: journal.charged(name) for name in journal.teachers()} == expected
    assert journal.charged("c") == Totals()
    journal.close()
    again = Journal(path)
    assert {name: again.charged(name) for name in again.teachers()} == expected
    again.close()


def test_a_failure_in_doubt_is_reported_apart(journal: Journal) -> None:
    journal.settle(intend(journal, "a"), TeacherFailure("grader", "timeout", True, in_doubt=True), CENT)
    known = TeacherFailure("grader", "truncated", False, usage=Usage(4, 0, 6), in_doubt=True)
    journal.settle(intend(journal, "b"), known, CENT)
    (only,) = journal.doubtful()
    assert (only.request_id, only.reason, only.dollars, only.tokens, only.step) == ("r-a", "timeout", CENT, 100, 1)
    found = journal.charged("grader")
    assert (found.tokens, found.doubtful, found.doubtful_dollars, found.dollars) == (110, 1, CENT, 2 * CENT)


# ---- what a killed process leaves ----


def test_what_was_under_way_is_in_doubt_when_opened_again(path: Path) -> None:
    first = Journal(path)
    ask(first, "answered", "yes")
    intend(first, "killed", step=7)
    assert first.doubtful() == ()
    first.close()
    again = Journal(path)
    (only,) = again.doubtful()
    assert (only.teacher, only.request_id, only.step, only.reason) == ("grader", "r-killed", 7, "killed")
    assert again.charged("grader").dollars == 2 * CENT
    assert again.charged("grader").doubtful == 1
    ask(again, "killed", "asked again")
    assert len(again.doubtful()) == 1  # it was asked twice, and perhaps paid twice
    again.close()


CHILD = """
import os, sys, threading
from decimal import Decimal
from pathlib import Path
from teachers.journal import Journal
from teachers.types import Answer, Judgment, TeacherFailure, Usage

journal = Journal(Path(sys.argv[1]))
start = int(sys.argv[2])
said = threading.Lock()

def say(text):
    with said:
        os.write(1, (text + "\\n").encode())

def work(thread):
    for n in range(start, start + 10_000):
        key = f"{thread}-{n}"
        say(f"intending {key}")
        attempt = journal.intend(
            key, teacher="grader", request_id=key, step=n, dollars=Decimal("0.01"), tokens=10
        )
        say(f"intended {key}")
        journal.settle(attempt, Answer(Judgment(feedback="x" * (n % 3000) + key), Usage(5, 0, 5)), Decimal("0.002"))
        say(f"settled {key}")

threads = [threading.Thread(target=work, args=(t,)) for t in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def killed_run(path: Path, start: int, lines: int) -> dict[str, set[str]]:
    """Runs CHILD, kills it after so many lines, and returns what it had said: intending, intended, settled -> keys."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(start)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said: dict[str, set[str]] = {"intending": set(), "intended": set(), "settled": set()}

    def note(line: str) -> None:
        if line.endswith("\n"):  # the last one may be cut
            what, key = line.split()
            said[what].add(key)

    for _ in range(lines):
        note(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    for line in child.stdout:  # what was in the pipe had happened too
        note(line)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    return said


def test_kills_at_random_points_lose_nothing(path: Path) -> None:
    rng = random.Random(11)
    settled: set[str] = set()
    lost_at_most, lost_at_least = 0, 0
    for round_ in range(25):
        said = killed_run(path, start=round_ * 10_000, lines=rng.randrange(1, 120))
        settled |= said["settled"]
        lost_at_least += len(said["intended"] - said["settled"])
        lost_at_most += len(said["intending"] - said["settled"])
        journal = Journal(path)
        for key in settled:
            length = int(key.partition("-")[2]) % 3000
            assert feedback(journal.find(key)) == "x" * length + key
        answered = {key for key in said["intending"] if journal.find(key) is not None}
        doubtful = {entry.request_id for entry in journal.doubtful()}
        assert said["settled"] <= answered
        assert said["intended"] <= answered | doubtful  # nothing that may have been sent is forgotten
        assert not answered & doubtful
        found = journal.charged("grader")
        assert found.dollars == found.doubtful * CENT + (found.requests - found.doubtful) * Decimal("0.002")
        assert found.tokens == 10 * found.requests
        journal.close()
    assert len(settled) > 50
    assert found.doubtful == len(doubtful) <= lost_at_most
    assert lost_at_least <= lost_at_most


# ---- several threads ----


def test_threads_write_and_read_at_once(path: Path) -> None:
    journal = Journal(path)
    problems: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for n in range(25):
                key = f"{thread}-{n}"
                ask(journal, key, key)
                assert feedback(journal.find(key)) == key
                journal.doubtful()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert problems == []
    assert journal.charged("grader").requests == 200
    assert journal.charged("grader").dollars == 200 * CENT
    journal.close()
    again = Journal(path)
    assert all(feedback(again.find(f"{t}-{n}")) == f"{t}-{n}" for t in range(8) for n in range(25))
    assert again.charged("grader").requests == 200
    again.close()


def write_together(journal: Journal, works: list[Callable[[], object]]) -> list[BaseException | None]:
    """Runs them on threads that all wait for the same moment. Returns what each raised."""
    raised: list[BaseException | None] = [None] * len(works)

    def run(place: int) -> None:
        try:
            works[place]()
        except AssertionError as error:
            raised[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    with journal._lock:
        for one in threads:
            one.start()
        while len(journal._waiting) < len(works):
            os.sched_yield()
    for one in threads:
        one.join()
    return raised


def test_what_waits_together_reaches_the_disk_together(journal: Journal) -> None:
    statements: list[str] = []
    journal._own.set_trace_callback(statements.append)
    works = [partial(intend, journal, f"k{n}") for n in range(6)]
    assert write_together(journal, list(works)) == [None] * 6
    assert statements.count("COMMIT") == 1
    assert len({row[0] for row in journal._own.execute("SELECT key FROM attempts")}) == 6


def test_one_threads_mistake_is_its_own(journal: Journal) -> None:
    attempts = [intend(journal, f"k{n}") for n in range(4)]
    answer = Answer(Judgment(feedback="yes"))
    works = [partial(journal.settle, attempt, answer, CENT) for attempt in (*attempts[:2], 999, *attempts[2:])]
    raised = write_together(journal, list(works))
    assert [error is not None for error in raised] == [False, False, True, False, False]
    assert [feedback(journal.find(f"k{n}")) for n in range(4)] == ["yes"] * 4
    assert journal.charged("grader").dollars == 4 * CENT


# ---- shared between runs ----


def test_shared_answers_are_found_by_another_run_and_private_ones_are_not(tmp_path: Path) -> None:
    shared = tmp_path / "shared.sqlite"
    first = Journal(tmp_path / "first.sqlite", shared=shared)
    ask(first, "open", "for all", private=False)
    ask(first, "secret", "for one", private=True)
    second = Journal(tmp_path / "second.sqlite", shared=shared)
    assert feedback(second.find("open")) == "for all"
    assert second.find("secret") is None
    assert feedback(first.find("secret")) == "for one"
    assert second.charged("grader") == Totals()  # it cost this run nothing
    assert b"for one" not in b"".join(path.read_bytes() for path in tmp_path.glob("shared.sqlite*"))
    first.close()
    second.close()
    alone = Journal(tmp_path / "second.sqlite")  # a replay does not depend on the shared one
    assert feedback(alone.find("open")) == "for all"
    alone.close()


def test_another_runs_own_journal_gives_away_nothing_private(tmp_path: Path) -> None:
    first = Journal(tmp_path / "first.sqlite")
    ask(first, "open", "for all", private=False)
    ask(first, "secret", "for one", private=True)
    intend(first, "under way")
    second = Journal(tmp_path / "second.sqlite", shared=tmp_path / "first.sqlite")
    assert feedback(second.find("open")) == "for all"
    assert second.find("secret") is None
    assert first.doubtful() == second.doubtful() == ()  # the first run is still at work
    ask(second, "more", "from the second", private=False)
    assert feedback(first.find("more")) == "from the second"
    assert first.charged("grader").requests == 2
    first.close()
    second.close()


SHARING = """
import sys
from decimal import Decimal
from pathlib import Path
from teachers.journal import Journal
from teachers.types import Answer, Judgment

journal = Journal(Path(sys.argv[1]), shared=Path(sys.argv[2]))
for n in range(30):
    attempt = journal.intend(
        f"{n}", teacher="t", request_id="r", step=1, dollars=Decimal(0), tokens=1, private=False
    )
    journal.settle(attempt, Answer(Judgment(feedback=sys.argv[1])), Decimal(0))
    assert journal.find(f"{n}").signal.feedback == sys.argv[1]
journal.close()
"""


def test_runs_at_the_same_time_share_one_journal(tmp_path: Path) -> None:
    """It does not exist when they start; of two answers to one question the first is the one that is shared."""
    shared = tmp_path / "shared.sqlite"
    names = [str(tmp_path / f"{n}.sqlite") for n in range(4)]
    children = [subprocess.Popen([sys.executable, "-c", SHARING, name, str(shared)], cwd=ROOT) for name in names]
    assert [child.wait() for child in children] == [0] * 4
    reader = Journal(tmp_path / "reader.sqlite", shared=shared)
    assert all(feedback(reader.find(f"{n}")) in names for n in range(30))
    reader.close()


def test_an_answer_in_doubt_of_privacy_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "own.sqlite", shared=tmp_path / "shared.sqlite")
    attempt = journal.intend("k", teacher="t", request_id="r", step=1, dollars=CENT, tokens=1)  # nothing was said
    journal.settle(attempt, Answer(Judgment(feedback="mine")), CENT)
    other = Journal(tmp_path / "other.sqlite", shared=tmp_path / "shared.sqlite")
    assert other.find("k") is None
    other.close()
    journal.close()


# ---- files that are wrong ----


def read_all(path: Path) -> None:
    journal = Journal(path)
    try:
        for n in range(200):
            journal.find(f"k{n}")
    finally:
        journal.close()


def test_a_damaged_file_is_one_line(path: Path) -> None:
    journal = Journal(path)
    for n in range(200):
        ask(journal, f"k{n}", "x" * 500)
    journal.close()
    whole = path.read_bytes()
    for damage in (b"not a database at all, but text" * 100, whole[: len(whole) // 3], whole[:100] + b"\xff" * 5000):
        path.write_bytes(damage)
        with pytest.raises(TeacherError) as caught:
            read_all(path)
        assert str(path) in str(caught.value)
        assert "move the file away" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_damaged_answer_is_one_line(path: Path) -> None:
    journal = Journal(path)
    ask(journal, "k", "text")
    journal.close()
    other = sqlite3.connect(path)
    other.execute("UPDATE answers SET payload = substr(payload, 1, 30)")
    other.commit()
    other.close()
    journal = Journal(path)
    with pytest.raises(TeacherError, match="cannot be read: its checksum is wrong; move the file away"):
        journal.find("k")
    journal.close()


def test_another_programs_file_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE notes (text)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(TeacherError, match="another program's file"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_later_version_is_refused(path: Path) -> None:
    Journal(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(TeacherError, match="later version of tutelage"):
        Journal(path)


def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="a folder stands"):
        Journal(tmp_path)


def test_a_full_disk_is_an_error_of_the_machine(journal: Journal) -> None:
    journal._own.execute("PRAGMA max_page_count = 20")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        ask(journal, "k", "x" * 400_000)
    assert caught.value.errno == errno.ENOSPC


def test_it_is_durable_at_every_commit(journal: Journal) -> None:
    (mode,) = journal._own.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = journal._own.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)
