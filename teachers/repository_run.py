"""One run of a repository's tests in the sandbox, with one file as an answer leaves it: Trial -> Ran."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from teachers.canaries import FAILING, PASSING, SOURCE
from teachers.config import RepositorySuite, Sandbox
from teachers.errors import TeacherError
from teachers.repository_copy import Clear, Copy, copied, mounts_of
from teachers.sandbox import Outcome, run
from teachers.walls import PACKAGES, PYTHON

JUDGE = Path(__file__).with_name("repository_judge.py")
MOST_TESTS = 200  # of one run; parametrised ones count each
LEAST_OUTPUT = 512  # kilobytes: what is printed is the judge's own, not the tests'
HELPERS = re.compile(r"^\s*(?:from|import)\s+(\w+(?:\.\w+)*\.testing)\b", re.MULTILINE)  # such as numpy.testing
TestResult = Literal["passed", "failed", "skipped", "unfinished"]


@dataclass(frozen=True)
class Trial:
    """path: the file that is replaced, below `root`, by `text`, whose lines `lines`, from 1, are the answer's. clear:
    what takes secrets out of everything else before it is run.

    select: what pytest is asked for, node ids or files. chosen: of what it finds there, the tests that run; None: all.
    """

    root: Path
    path: str
    text: str
    lines: tuple[int, int]
    select: tuple[str, ...]
    chosen: tuple[str, ...] | None
    suite: RepositorySuite
    clear: Clear


@dataclass(frozen=True)
class Ran:
    """What came of it. tests: by node id, in order. code: digests of the tests' own code. said: by test, why it failed.

    complete: the run came to its end by itself, and its canaries did as they should; else `ending` says what happened.
    touched: what the answer's lines reached for, and what functions were no longer the same at the end.
    hung: the test that ran when a limit ended it all.
    """

    tests: Mapping[str, TestResult] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False
    ending: str = ""
    touched: tuple[str, ...] = ()
    hung: str | None = None
    missing: str | None = None

    def proof(self, tests: tuple[str, ...]) -> str:
        """Of the code of these tests."""
        return sha256(json.dumps([[name, self.code.get(name)] for name in tests]).encode()).hexdigest()[:16]


async def ran(trial: Trial) -> Ran:
    """Within the suite's limits. Raises SandboxError: no bubblewrap, whatever they say of it; TeacherError: no such
    folder, a command that is not pytest's."""
    limits = trial.suite.sandbox
    copy = await asyncio.to_thread(copied, trial.root, trial.clear)
    with tempfile.TemporaryDirectory(prefix="answer-", dir=copy.folder.parent) as room:
        answer = Path(room) / "answer"
        answer.write_text(trial.text, encoding="utf-8", errors="replace", newline="\n")
        answer.chmod(0o644)
        mounts = mounts_of(copy, trial.root, trial.path, answer, trial.suite.packages)
        if trial.suite.runner == "command":
            outcome = await run(_command(copy, trial), {}, limits, mounts=mounts)
            return _ran_command(outcome, limits)
        nonce = secrets.token_hex(16)
        order = json.dumps({"nonce": nonce, **_order(copy, trial)}).encode()
        printing = limits.model_copy(update={"output_kilobytes": max(limits.output_kilobytes, LEAST_OUTPUT)})
        words = [PYTHON, "-P", "-s", "-S", "repository_judge.py"]
        files = {"repository_judge.py": JUDGE.read_bytes()}
        return _read(await run(words, files, printing, order, mounts=mounts), nonce, copy.canaries, limits)


def key_of(trial: Trial) -> str:
    """Equal keys have equal results: of the repository, the answer, the tests, the command, the limits, the judge."""
    suite = trial.suite.model_dump_json(exclude={"places"})
    decides = [
        copied(trial.root, trial.clear).digest, trial.path, trial.text, trial.lines, trial.select, trial.chosen,
        suite, JUDGE.read_text(encoding="utf-8"),
        SOURCE, sys.version,
    ]  # fmt: skip
    return sha256(json.dumps(decides).encode()).hexdigest()


# ---- pytest ----


def _order(copy: Copy, trial: Trial) -> dict[str, Any]:
    options = _options(trial.suite)
    helpers = {name for test in trial.select for name in HELPERS.findall(_source(copy, test))}
    return {
        "folder": copy.inside,
        "path": copy.path,
        "packages": [*(f"/packages/{n}" for n in range(len(trial.suite.packages))), *PACKAGES],
        "helpers": sorted(helpers),
        "path_of_answer": f"{copy.inside}/{trial.path}",
        "lines": trial.lines,
        "arguments": [
            *(word for word in options if word not in ("-x", "--exitfirst")), f"--rootdir={copy.inside}",
            "-p", "no:cacheprovider", "--continue-on-collection-errors", *_alone(), *trial.select, copy.canaries,
        ],
        "stop_at_first": trial.chosen is not None and ("-x" in options or "--exitfirst" in options),
        "chosen": trial.chosen,
        "most": MOST_TESTS,
        "canaries": copy.canaries,
    }  # fmt: skip


def _options(suite: RepositorySuite) -> list[str]:
    """What the suite's command gives to pytest."""
    names = [Path(word).name for word in suite.run]
    if "pytest" not in names:
        said = " ".join(suite.run)
        raise TeacherError(f"source.tests.run: `{said}` does not name pytest; say so, or set runner: command")
    return list(suite.run[names.index("pytest") + 1 :])


def _alone() -> list[str]:
    """Against plugins that start processes, measure, or mix the order, where a repository's settings ask for it."""
    from importlib.util import find_spec

    words = {"xdist": ["-n", "0"], "pytest_cov": ["--no-cov"], "pytest_randomly": ["-p", "no:randomly"]}
    return [word for name, options in words.items() if find_spec(name) for word in options]


def _source(copy: Copy, test: str) -> str:
    path = copy.folder / test.partition("::")[0]
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read(outcome: Outcome, nonce: str, canaries: str, limits: Sandbox) -> Ran:
    lines = outcome.output.decode(errors="replace").split("\n")
    events = [json.loads(line.removeprefix(nonce)) for line in lines if line.startswith(nonce) and line.endswith("]")]
    told: dict[str, list[Any]] = {}
    for kind, content in events:
        told.setdefault(kind, []).append(content)
    tests: dict[str, TestResult] = {}
    said: dict[str, str] = {}
    collected = dict(told.get("collected", [[]])[0])
    for name in told.get("started", ()):
        tests[name] = "unfinished"
    for name, when, result, words in told.get("test", ()):
        if result == "failed" or tests.get(name) == "failed":
            tests[name] = "failed"
        elif result == "skipped" or tests.get(name) == "skipped":
            tests[name] = "skipped"
        elif when == "teardown":  # only then has all of it passed
            tests[name] = "passed"
        if words:
            said.setdefault(name, words)
    birds = {name.partition("::")[2]: tests.pop(name) for name in list(tests) if canaries in name}
    said |= dict(told.get("uncollected", ()))
    finished = told.get("finished", [None])[0]
    touched = [*told.get("touched", ()), *(finished["changed"] if finished else ())]
    touched += ["a forged report"] if "forged" in told else []
    as_they_should = _as_they_should(birds)
    touched += ["what a test asserts"] if birds and not as_they_should and finished else []
    ending = _ending(outcome, finished, told.get("log", [""])[0], limits)
    running = [name for name, result in tests.items() if result == "unfinished"]
    return Ran(
        tests, {name: digest for name, digest in collected.items() if canaries not in name}, said,
        finished is not None and as_they_should and "forged" not in told, ending,
        tuple(dict.fromkeys(touched)), running[-1] if running and outcome.killed_by else None,
        next(iter(told.get("missing", ())), None),
    )  # fmt: skip


def _as_they_should(birds: Mapping[str, str]) -> bool:
    return dict(birds) == {**dict.fromkeys(FAILING, "failed"), **dict.fromkeys(PASSING, "passed")}


def _ending(outcome: Outcome, finished: Any, log: str, limits: Sandbox) -> str:
    if outcome.killed_by is not None:
        return killed(outcome, limits)
    if finished is None:
        return "the process of the tests ended before they did" + (f": {log}" if log else "")
    if finished["status"] not in (0, 1):
        return f"pytest ended with status {finished['status']}" + (f": {log}" if log else "")
    return ""


def killed(outcome: Outcome, limits: Sandbox) -> str:
    """Which limit ended it."""
    return {
        "time": f"the tests ran longer than {limits.seconds:g} s",
        "memory": f"the tests used more than {limits.memory_megabytes} MB",
        "output": f"the tests printed more than {limits.output_kilobytes} kB",
        "processes": f"the tests started more than {limits.processes} processes",
        "signal": f"the tests were ended by signal {outcome.status - 128}",
    }[outcome.killed_by or "signal"]


# ---- any other command ----

COPY_AND_RUN = """
import os, shutil, sys
source, path, *command = sys.argv[1:]
shutil.copytree(source, "code", symlinks=True)
os.chdir("code")
os.environ["PYTHONPATH"] = path
os.execvp(command[0], command)
"""


def _command(copy: Copy, trial: Trial) -> list[str]:
    """In a copy of its own, since what is no pytest may have to build first. Its exit status is believed."""
    here = [path.replace(copy.inside, "/tmp/scratch/code", 1) for path in copy.path]
    path = ":".join([*here, *(f"/packages/{n}" for n in range(len(trial.suite.packages)))])
    return [PYTHON, "-I", "-S", "-c", COPY_AND_RUN, copy.inside, path, *trial.suite.run]


def _ran_command(outcome: Outcome, limits: Sandbox) -> Ran:
    lines = [line.strip() for line in outcome.output.decode(errors="replace").split("\n") if line.strip()]
    last = lines[-1][:300] if lines else ""
    passed = outcome.status == 0 and outcome.killed_by is None
    ending = killed(outcome, limits) if outcome.killed_by else ""
    return Ran({"command": "passed" if passed else "failed"}, {}, {"command": last}, not ending, ending)
