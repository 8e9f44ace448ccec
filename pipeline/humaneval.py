"""HumanEval, and any prompts whose references are Python tests: read, judged in the sandbox, summed up as pass@k.

The same program teacher judges here and in training, so a score means the same in both.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.codebase.suite import clear
from pipeline.errors import DataError
from pipeline.prompts import prompt_hash
from pipeline.statistics import PASS_AT, pass_rates
from pipeline.types import Prompt
from teachers.config import ProgramTeacher, PythonTests, RepositoryTests, Sandbox
from teachers.programs import Programs, programs
from teachers.types import Answer, Chat, Conversation, Judgment, Message, RawText, ScoreRequest, TeacherFailure

COLUMNS = ("task_id", "prompt", "test", "entry_point")
INSTRUCTION = "Complete this function. Answer with all of it, in one block of Python.\n\n"
PYTHON_TESTS = PythonTests(kind="python_tests")
NO_HURRY = 1e9  # seconds: how long one question may wait for its turn; what it may run is the sandbox's to say


def prompts_of(path: Path, *, source: str = "humaneval", as_chat: bool) -> tuple[Prompt, ...]:
    """The problems of a HumanEval file (.jsonl, .jsonl.gz), in order; a reference holds what judging needs, as JSON.

    as_chat: the function's head in a message that asks for the rest; else as it stands, to be continued.
    Raises DataError: no such file, or a line that is no such problem.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: give HumanEval's problems, as .jsonl or .jsonl.gz")
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt", encoding="utf-8") as file:
        return tuple(
            _prompt(line, f"{path}, line {n}", source, as_chat) for n, line in enumerate(file, 1) if line.strip()
        )


def _prompt(line: str, at: str, source: str, as_chat: bool) -> Prompt:
    try:
        row: dict[str, str] = json.loads(line)
    except ValueError as error:
        raise DataError(f"{at}: not JSON: {error}; give a file of HumanEval's form") from error
    if missing := [name for name in COLUMNS if not isinstance(row.get(name), str)]:
        raise DataError(f"{at}: has no {', no '.join(missing)}; a problem of HumanEval has {', '.join(COLUMNS)}")
    head = row["prompt"]
    ask = f"{INSTRUCTION}```python\n{head.strip()}\n```"
    conversation: Conversation = Chat((Message("user", ask),)) if as_chat else RawText(head)
    reference = json.dumps({name: row[name] for name in COLUMNS})
    prompt_id = prompt_hash(source, conversation, reference)
    return Prompt(prompt_id, source, source, conversation, reference, checker="python_tests")


@dataclass(frozen=True)
class Passed:
    """counts: by prompt id, (samples that were judged, those that passed). not_judged: by sample, why it was not.

    feedback: by sample, prompt_id/number, what failed.
    """

    counts: Mapping[str, tuple[int, int]]
    feedback: Mapping[str, str]
    not_judged: Mapping[str, str]

    def to_json(self, ks: Sequence[int] = PASS_AT) -> dict[str, Any]:
        """pass@k with its 95% interval for each of `ks`, and for all samples, that all problems have samples for."""
        judged = [count for count in self.counts.values() if count[0] > 0]
        samples = sum(samples for samples, _ in judged)
        found = pass_rates(judged, ks)
        return {**found, "problems": len(judged), "samples": samples, "not_judged": len(self.not_judged)}


def evaluate(prompts: Sequence[Prompt], completions: Mapping[str, Sequence[str]], limits: Sandbox) -> Passed:
    """Runs every completion, by prompt id, against its prompt's tests. Raises TeacherError as `judge` does."""
    asked = [_request(prompt, n, text) for prompt in prompts for n, text in enumerate(completions[prompt.prompt_id])]
    counts = {prompt.prompt_id: (0, 0) for prompt in prompts}
    feedback, not_judged = {}, {}
    for request, result in zip(asked, _judge(asked, limits, PYTHON_TESTS), strict=True):
        if isinstance(result, TeacherFailure):
            not_judged[request.request_id] = result.detail
            continue
        assert isinstance(result.signal, Judgment)
        samples, passed = counts[request.group_id]
        counts[request.group_id] = (samples + 1, passed + (result.signal.score == 1))
        if result.signal.feedback is not None:
            feedback[request.request_id] = result.signal.feedback
    return Passed(counts, feedback, not_judged)


def judge(
    asked: Sequence[tuple[Prompt, str]], limits: Sandbox, check: PythonTests | RepositoryTests
) -> list[float | None]:
    """The score of each completion by its prompt's tests, in order; None where there is no judging it.

    As many run at once as there are cores. limits: of python_tests; a repository's are its suite's own.
    Raises TeacherError: no bubblewrap though `limits` require it.
    """
    results = _judge([_request(prompt, n, text) for n, (prompt, text) in enumerate(asked)], limits, check)
    signals = [result.signal if isinstance(result, Answer) else None for result in results]
    return [signal.score if isinstance(signal, Judgment) else None for signal in signals]


def _judge(
    asked: Sequence[ScoreRequest], limits: Sandbox, check: PythonTests | RepositoryTests
) -> list[Answer | TeacherFailure]:
    config = ProgramTeacher(kind="program", check=check, sandbox=limits)
    teacher = programs(check.kind, config, folder=Path(), check=lambda *_: None, clear=clear)
    return asyncio.run(_judged(teacher, asked))


async def _judged(teacher: Programs, asked: Sequence[ScoreRequest]) -> list[Answer | TeacherFailure]:
    deadline = asyncio.get_running_loop().time() + NO_HURRY
    return await asyncio.gather(*(teacher.score(request, deadline) for request in asked))


def _request(prompt: Prompt, sample_index: int, completion: str) -> ScoreRequest:
    return ScoreRequest(
        request_id=f"{prompt.prompt_id}/{sample_index}",
        group_id=prompt.prompt_id,
        sample_index=sample_index,
        step=0,
        domain=prompt.domain,
        conversation=prompt.conversation,
        segments=(),
        finish_reason="end",
        reference=prompt.reference,
        private=prompt.private,
        checker=prompt.checker,
        grading=prompt.grading,
        completion=completion,
    )
