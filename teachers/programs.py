"""The kind `program`: a checker, a pattern, a schema, tests or a command grades an answer by running.

A program that fails, dies or runs out of time is a score of 0 with what failed as feedback. A TeacherFailure is what
says nothing about the answer: no reference, tests that test nothing, a sandbox that does not start.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path

from teachers import repository_tests
from teachers.config import (
    Check,
    Command,
    ExactAnswer,
    JsonSchema,
    Pattern,
    ProgramTeacher,
    PythonTests,
    RepositoryTests,
    Sandbox,
)
from teachers.errors import TeacherError
from teachers.python_tests import fenced, parts_of, prompt_text, read_tests
from teachers.repository_copy import Clear
from teachers.repository_run import JUDGE as REPOSITORY_JUDGE
from teachers.sandbox import WALL, Outcome, SandboxError, run
from teachers.tools import Checker, Tools
from teachers.types import Answer, Finding, Judgment, ScoreRequest, SignalKind, TeacherFailure, Usage
from teachers.walls import PACKAGES, PYTHON, missing_protection

Grade = Callable[[ScoreRequest], Awaitable["Judgment | NotJudged"]]

JUDGE = Path(__file__).with_name("judge.py")
PROSE = ("", ".txt", ".md")  # names of answers that are no programs
MOST_FILES_BYTES = 64 << 20
MOST_WORDS = 300  # characters of feedback


@dataclass(frozen=True)
class NotJudged:
    """Why there is no score; becomes a TeacherFailure."""

    reason: str
    detail: str
    retryable: bool = False


def build(name: str, config: ProgramTeacher, tools: Tools) -> Programs:
    """Raises TeacherError: see `programs`."""
    return programs(name, config, folder=tools.folder, check=tools.check, clear=tools.clear)


def programs(name: str, config: ProgramTeacher, *, folder: Path, check: Checker, clear: Clear) -> Programs:
    """A program as a teacher. folder: what relative paths are relative to. check, clear: as in `Tools`.

    Raises TeacherError: no bubblewrap though it is required, a pattern or a schema that is none, no such files, too
    little time for one attempt.
    """
    at = f"teachers.{name}"
    limits, notes = _limits_of(at, config)
    grade, decides = _graded(at, config.check, limits, folder, check, clear)
    identity = _digest("program", config.check.model_dump_json(), limits.model_dump_json(), *decides)
    return Programs(name, identity, grade, limits, notes)


def _limits_of(at: str, config: ProgramTeacher) -> tuple[Sandbox, tuple[str, ...]]:
    """The limits, and what there is to say about them. Where no code of the answer runs, no walls are required."""
    limits = config.sandbox
    if isinstance(config.check, RepositoryTests) and limits != Sandbox():
        raise TeacherError(
            f"{at}.sandbox: a repository's tests have their limits under source.tests.sandbox; set it there"
        )
    if not isinstance(config.check, PythonTests | RepositoryTests | Command):
        return limits.model_copy(update={"required": False}), ()
    longest = limits.seconds * WALL
    if config.limits.timeout < longest:
        raise TeacherError(
            f"{at}: a program may take {longest:g} s on the clock and limits.timeout is {config.limits.timeout:g} s: "
            f"raise it or lower sandbox.seconds"
        )
    missing = missing_protection()
    if missing is None:
        return limits, ()
    if limits.required:
        raise TeacherError(f"{at}: {missing}: make it work, or set sandbox.required: false to run programs unprotected")
    return limits, (f"{at} runs programs unprotected, with your rights, files and network: {missing}",)


def _graded(
    at: str, chosen: Check, limits: Sandbox, folder: Path, check: Checker, clear: Clear
) -> tuple[Grade, list[str]]:
    """How to grade, and what decides the grades beside the configuration's own words."""
    if isinstance(chosen, ExactAnswer):
        checker = chosen.checker and _placed(chosen.checker, folder)
        return partial(_grade_answer, checker, check), [_source_of(checker)]
    if isinstance(chosen, Pattern):
        return partial(_grade_pattern, _regex(at, chosen.regex), limits), []
    if isinstance(chosen, JsonSchema):
        schema = _schema(at, folder / chosen.file)
        return partial(_grade_schema, schema, limits), [schema]
    if isinstance(chosen, PythonTests):
        return partial(_grade_tests, limits), [JUDGE.read_text(encoding="utf-8"), sys.version]
    if isinstance(chosen, RepositoryTests):
        return partial(_grade_in_repository, clear), [REPOSITORY_JUDGE.read_text(encoding="utf-8"), sys.version]
    files = _files(at, chosen.files and folder / chosen.files)
    contents = [_digest(name, sha256(content).hexdigest()) for name, content in files.items()]
    return partial(_grade_command, chosen, files, limits), contents


@dataclass(eq=False)
class Programs:
    """A RemoteTeacher whose answers are Judgments with a score. notes: what a user should know, one line each."""

    name: str
    identity: str
    grade: Grade
    sandbox: Sandbox
    notes: tuple[str, ...] = ()
    signals: frozenset[SignalKind] = frozenset({SignalKind.JUDGMENT})

    def key(self, request: ScoreRequest) -> str:
        parts = (request.completion, request.reference, request.checker, request.grading, _source_of(request.checker))
        return _digest(*map(json.dumps, parts), prompt_text(request.conversation), str(request.sample_index))

    def estimate(self, request: ScoreRequest) -> Usage:
        return Usage()

    async def score(self, request: ScoreRequest, deadline: float) -> Answer | TeacherFailure:
        start = time.perf_counter()
        try:
            async with asyncio.timeout_at(deadline):
                found = await self.grade(request)
        except TimeoutError:
            return TeacherFailure(self.name, "timeout", retryable=True, detail="its turn or its end came too late")
        except SandboxError as error:
            return TeacherFailure(self.name, "sandbox_failed", retryable=True, detail=str(error))
        if isinstance(found, NotJudged):
            return TeacherFailure(self.name, found.reason, found.retryable, found.detail)
        return Answer(found, latency=time.perf_counter() - start)

    async def examine(self, deadline: float) -> tuple[Finding, ...]:
        start = time.perf_counter()
        try:
            async with asyncio.timeout_at(deadline):
                outcome = await run([PYTHON, "-I", "-S", "-c", "print(6 * 7)"], {}, self.sandbox)
        except (SandboxError, TimeoutError) as error:
            return (Finding("sandbox", False, str(error) or "a program did not start in time"),)
        seconds = time.perf_counter() - start
        missing = missing_protection()
        said = "bubblewrap: no network, a scratch folder" if missing is None else f"unprotected: {missing}"
        works = outcome.status == 0 and outcome.output == b"42\n"
        return (
            Finding("sandbox", None if works and missing else works, said if works else "a first program did not work"),
            Finding("latency", None, f"{seconds:.2f} s to start a program", seconds),
        )

    async def aclose(self) -> None:
        """Nothing is held between answers."""


# ---- each check ----


async def _grade_answer(checker: str | None, check: Checker, request: ScoreRequest) -> Judgment | NotJudged:
    """In a thread: a checker of the user's may take its time. It is trusted, as it is wherever else it judges."""
    wanted = checker or request.checker or "none"
    score = await asyncio.to_thread(check, wanted, request.completion, request.reference, request)
    if score is None:
        why = "the prompt has no reference" if request.reference is None else "the prompt has no checker"
        return NotJudged("no_reference" if request.reference is None else "no_checker", why)
    return Judgment(score, None if score == 1 else _shortened(f"wrong by the checker {Path(wanted).name}"))


MATCH = "import json, re, sys; regex, text = json.load(sys.stdin); sys.exit(0 if re.search(regex, text) else 3)"


async def _grade_pattern(regex: str, limits: Sandbox, request: ScoreRequest) -> Judgment | NotJudged:
    """In a process of its own: some patterns take longer than the universe on some texts, and cannot be interrupted."""
    if "{reference}" in regex:
        if request.reference is None:
            return NotJudged("no_reference", "the pattern names {reference} and the prompt has none")
        regex = regex.replace("{reference}", re.escape(request.reference))
    outcome = await _applied(MATCH, [regex, request.completion], limits)
    if outcome.killed_by is not None or outcome.status not in (0, 3):
        return NotJudged("pattern_failed", f"the pattern did not end on this answer: {_ending(outcome, limits)}")
    return Judgment(1.0) if outcome.status == 0 else Judgment(0.0, _shortened(f"not found in the answer: {regex}"))


VALIDATE = """
import json, sys
path, schema, value = json.load(sys.stdin)
sys.path += path
from jsonschema import validators
error = next(validators.validator_for(schema)(schema).iter_errors(value), None)
if error is not None:
    print(error.json_path, error.message[:300])
    sys.exit(3)
"""


async def _grade_schema(schema: str, limits: Sandbox, request: ScoreRequest) -> Judgment | NotJudged:
    """The answer, or what is in its first fence, as JSON. A schema may hold patterns, so not in this process."""
    try:
        value = json.loads(next(iter(fenced(request.completion)), request.completion))
    except (ValueError, RecursionError) as error:
        return Judgment(0.0, _shortened(f"not JSON: {error}"))
    outcome = await _applied(VALIDATE, [PACKAGES, json.loads(schema), value], limits)
    if outcome.killed_by is not None or outcome.status not in (0, 3):
        return NotJudged("schema_failed", f"the schema could not be applied: {_ending(outcome, limits)}")
    return Judgment(1.0) if outcome.status == 0 else Judgment(0.0, _shortened(outcome.output.decode(errors="replace")))


async def _applied(script: str, given: object, limits: Sandbox) -> Outcome:
    """A script of ours on the answer as data: exit status 0 where it passes, 3 where not."""
    return await run([PYTHON, "-I", "-S", "-c", script], {}, limits, json.dumps(given).encode())


async def _grade_tests(limits: Sandbox, request: ScoreRequest) -> Judgment | NotJudged:
    tests = read_tests(request.reference, request.conversation)
    if tests is None:
        return NotJudged("no_reference", "the prompt has no reference, which would hold the tests")
    nonce = secrets.token_hex(16)
    work = {
        "nonce": nonce, "path": PACKAGES, "parts": parts_of(request.completion, tests), "stub": tests.stub,
        "test": tests.test, "entry": tests.entry,
    }  # fmt: skip
    files = {"judge.py": JUDGE.read_bytes()}
    outcome = await run([PYTHON, "-I", "-S", "judge.py"], files, limits, json.dumps(work).encode())
    last = outcome.output.decode(errors="replace").rstrip().rpartition("\n")[2]
    if not last.startswith(nonce) or outcome.killed_by is not None:
        return Judgment(0.0, _shortened(_ending(outcome, limits)))
    verdict = json.loads(last.removeprefix(nonce))
    if verdict["fault"] == "tests":
        return NotJudged("bad_tests", _shortened(f"the prompt's tests cannot be run: {verdict['feedback']}"))
    return Judgment(1.0) if verdict["passed"] else Judgment(0.0, _shortened(verdict["feedback"]))


async def _grade_in_repository(clear: Clear, request: ScoreRequest) -> Judgment | NotJudged:
    if request.grading is None:
        return NotJudged("no_grading", "the prompt does not say which tests of which repository judge its answers")
    try:
        return await repository_tests.grade(request.grading, request.completion, clear)
    except (repository_tests.UnusableGrading, TeacherError) as error:
        return NotJudged("bad_tests", _shortened(f"the repository's tests cannot be run: {error}"))


async def _grade_command(
    command: Command, files: Mapping[str, bytes], limits: Sandbox, request: ScoreRequest
) -> Judgment | NotJudged:
    """What the command prints and how it ends is believed: a command that runs the answer has to shield itself."""
    prose = Path(command.answer).suffix in PROSE
    blocks = [] if prose else fenced(request.completion)
    text = "\n".join(blocks) if blocks else request.completion
    outcome = await run(command.run, {**files, command.answer: text.encode("utf-8", "replace")}, limits)
    if outcome.killed_by is not None or outcome.status != 0:
        return Judgment(0.0, _shortened(_ending(outcome, limits)))
    last = outcome.output.decode(errors="replace").rstrip().rpartition("\n")[2].strip()
    score = float(last) if re.fullmatch(r"0(\.\d*)?|\.\d+|1(\.0*)?", last) else 1.0
    return Judgment(score, None if score == 1 else _shortened(outcome.output.decode(errors="replace")))


# ---- before the first question ----


def _placed(checker: str, folder: Path) -> str:
    """A checker in a file with its whole path."""
    path, colon, function = checker.rpartition(":")
    return f"{(folder / path).resolve()}:{function}" if colon else checker


def _regex(at: str, regex: str) -> str:
    try:
        re.compile(regex.replace("{reference}", ""))
    except re.error as error:
        raise TeacherError(f"{at}.check.regex: {error}; mend the pattern") from error
    return regex


def _schema(at: str, path: Path) -> str:
    from jsonschema import validators
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        validators.validator_for(schema).check_schema(schema)
    except OSError as error:
        raise TeacherError(f"{at}.check.file: {path} cannot be read ({error.strerror}); name a JSON schema") from error
    except (ValueError, SchemaError) as error:
        said = error.message if isinstance(error, SchemaError) else str(error)
        raise TeacherError(f"{at}.check.file: {path} is no JSON schema: {' '.join(said.split())}") from error
    return json.dumps(schema, sort_keys=True)


def _files(at: str, folder: Path | None) -> dict[str, bytes]:
    if folder is None:
        return {}
    if not folder.is_dir():
        raise TeacherError(f"{at}.check.files: there is no folder {folder}; name one, seen from the recipe's folder")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if sum(path.stat().st_size for path in paths) > MOST_FILES_BYTES:
        raise TeacherError(f"{at}.check.files: {folder} has more than 64 MB, copied for each answer; leave some out")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@lru_cache(maxsize=64)
def _source_of(checker: str | None) -> str:
    """The source of a checker in a file, which decides its scores; read once, as it is loaded once."""
    path, colon, _ = (checker or "").rpartition(":")
    return Path(path).read_text(encoding="utf-8") if colon and Path(path).is_file() else ""


# ---- words ----


def _ending(outcome: Outcome, limits: Sandbox) -> str:
    """How a program ended, with the last line that it printed."""
    how = {
        "time": f"it ran longer than {limits.seconds:g} s",
        "memory": f"it used more than {limits.memory_megabytes} MB",
        "output": f"it printed more than {limits.output_kilobytes} kB",
        "processes": f"it started more than {limits.processes} processes",
        "signal": f"it was ended by signal {outcome.status - 128}",
        None: f"it ended with exit status {outcome.status}",
    }[outcome.killed_by]
    lines = outcome.output.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last}" if last and outcome.killed_by in (None, "signal") else how


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST_WORDS else f"{text[: MOST_WORDS - 3]}..."


def _digest(*parts: str) -> str:
    """Lengths keep ("ab", "c") and ("a", "bc") apart; a lone surrogate has no plain UTF-8."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return sha256(b"".join(len(part).to_bytes(8, "big") + part for part in encoded)).hexdigest()
