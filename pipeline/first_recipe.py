"""A first recipe from a few answers, with a comment at every key. Imports no torch.

What may be answered is small on purpose: the reference has every key, and a recipe is edited more often than made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.errors import CallError
from teachers.catalog import lookup
from teachers.config import MAX_TEACHERS

TeacherKind = Literal["model", "server", "chat", "self"]
DataKind = Literal["dataset", "code"]
Machine = Literal["cpu", "gpu", "gpus"]

MACHINES = {
    "cpu": "processor cores alone",
    "gpu": "one GPU",
    "gpus": "several GPUs of one machine",
}
USUAL_TEACHER = {"model": "Qwen/Qwen3-8B", "server": "Qwen/Qwen3-32B", "chat": "deepseek-v4-pro", "self": ""}
USUAL_DATA = {"dataset": "openai/gsm8k", "code": "."}
ONE_ANSWER_EACH = {"cpu": 8, "gpu": 64, "gpus": 128}  # prompts of a step


@dataclass(frozen=True)
class Teaching:
    """A teacher: model, in this process; server, a vLLM or SGLang one on this machine; chat, a hosted one; self."""

    kind: TeacherKind
    model: str


@dataclass(frozen=True)
class Answers:
    """What a first recipe is made of. where: a data set's name or file, or the folder of a codebase."""

    student: str
    teachers: tuple[Teaching, ...]
    data: DataKind
    where: str
    machine: Machine


def usual_student(data: DataKind, machine: Machine) -> str:
    if data == "code":
        return "Qwen/Qwen2.5-Coder-0.5B" if machine == "cpu" else "Qwen/Qwen2.5-Coder-1.5B"
    return "Qwen/Qwen3-0.6B" if machine == "cpu" else "Qwen/Qwen3-1.7B"


def usual_teacher(kind: TeacherKind, data: DataKind, machine: Machine) -> str:
    if kind == "model" and data == "code":
        return "Qwen/Qwen2.5-Coder-1.5B" if machine == "cpu" else "Qwen/Qwen2.5-Coder-7B"
    if kind == "model" and machine == "cpu":
        return "Qwen/Qwen3-1.7B"
    return "Qwen/Qwen2.5-Coder-32B" if kind == "server" and data == "code" else USUAL_TEACHER[kind]


def teaching(text: str, data: DataKind, machine: Machine) -> Teaching:
    """KIND or KIND=MODEL, as `--teacher` takes it. Raises CallError."""
    kind, _, model = text.partition("=")
    for known in get_args(TeacherKind):
        if kind == known:
            return Teaching(known, model or usual_teacher(known, data, machine))
    raise CallError(f"--teacher {text}: no such kind; write model=NAME, server=NAME, chat=NAME or self")


def data_of(text: str) -> tuple[DataKind, str]:
    """dataset=NAME or code=FOLDER, as `--data` takes it. Raises CallError."""
    kind, _, where = text.partition("=")
    for known in get_args(DataKind):
        if kind == known:
            return known, where or USUAL_DATA[known]
    raise CallError(f"--data {text}: no such kind; write dataset=NAME, dataset=FILE.jsonl or code=FOLDER")


def require_possible(answers: Answers) -> None:
    """Raises CallError for answers that do not fit together."""
    kinds = [teacher.kind for teacher in answers.teachers]
    if not kinds:
        raise CallError("no teacher was named; name one, such as --teacher model=Qwen/Qwen3-8B")
    if len(kinds) > MAX_TEACHERS:
        raise CallError(
            f"{len(kinds)} teachers are more than the {MAX_TEACHERS} that a recipe may have; leave some out"
        )
    if kinds.count("self") > 1:
        raise CallError("the student can be its own teacher once; leave the other `self` out")
    if answers.data == "code" and "chat" in kinds:
        raise CallError(
            "a codebase is private, and a chat teacher is not on this machine; use a teacher of kind model, server or "
            "self, or allow its address in the recipe by privacy.allowed"
        )
    for teacher in answers.teachers:
        if teacher.kind == "chat" and lookup(teacher.model, None) is None:
            raise CallError(
                f"{teacher.model}: teachers/catalog.yaml does not know this chat model; name one that it does, as "
                f"{USUAL_TEACHER['chat']}, and set its url and key in the recipe afterwards"
            )


# ---- the text ----


@dataclass(frozen=True)
class Line:
    """A line of YAML and what its key does."""

    text: str
    says: str = ""


def recipe_text(answers: Answers, file: Path) -> str:
    """The recipe, of which every key has its comment. Raises CallError for answers that do not fit together."""
    require_possible(answers)
    names = names_of(answers.teachers)
    sections = [
        _heading(answers, file),
        [Line("method: distill", "the student writes, the teachers score what it wrote")],
        list(_student(answers)),
        [Line("teachers:", "who teaches, by a name of yours"), *_teachers(answers, names)],
        [Line("routing: all", "every prompt goes to every teacher; by domain: a table of domain and teacher")],
        list(_data(answers)),
        list(_rollout(answers)),
        list(_objective(answers)),
        list(_training(answers)),
        list(_evaluation()),
    ]
    return "\n\n".join("\n".join(_aligned(section)) for section in sections if section) + "\n"


def names_of(teachers: Sequence[Teaching]) -> list[str]:
    """A name for each: its kind, numbered where there are several."""
    kinds = [teacher.kind for teacher in teachers]
    return [
        kind if kinds.count(kind) == 1 else f"{kind}{kinds[: place + 1].count(kind)}"
        for place, kind in enumerate(kinds)
    ]


def _aligned(lines: Sequence[Line]) -> Iterator[str]:
    width = max((len(line.text) for line in lines if line.says and len(line.text) < 60), default=0)
    for line in lines:
        yield f"{line.text.ljust(width)}  # {line.says}" if line.says else line.text


def _heading(answers: Answers, file: Path) -> list[Line]:
    start = "torchrun --nproc_per_node 2 -m pipeline.cli run" if answers.machine == "gpus" else "tutelage run"
    keys = sorted(
        {entry.key for each in answers.teachers if each.kind == "chat" and (entry := lookup(each.model, None))}
    )
    lines = [f"{_value(answers.student).strip(chr(34))} learns from {len(answers.teachers)} teacher(s)", ""]
    lines += [f"  export {key}=…" for key in keys if key]
    lines += [f"  vllm serve {each.model} --max-logprobs 32" for each in answers.teachers if each.kind == "server"]
    lines += [f"  tutelage check {file}", f"  {start} {file}", ""]
    lines += [f"Hardware  {MACHINES[answers.machine]}.", "Every key there is: recipes/REFERENCE.md."]
    return [Line(f"# {line}".rstrip()) for line in lines]


def _student(answers: Answers) -> Iterator[Line]:
    yield Line("student:", "the model that is trained")
    yield Line(f"  model: {_value(answers.student)}", "a name on the hub, or a folder")
    if answers.machine == "cpu":
        yield Line("  dtype: float32", "of the weights; processors are slow at bfloat16")
    else:
        yield Line("  dtype: bfloat16", "of the weights; the adapter stays in float32")
        yield Line("  gradient_checkpointing: true", "less memory, for a third more time in the update")
    yield Line("  tune: lora", "an adapter is trained; full: all weights, for which dtype should be float32")


def _teachers(answers: Answers, names: Sequence[str]) -> Iterator[Line]:
    for name, teacher in zip(names, answers.teachers, strict=True):
        yield Line(f"  {name}:")
        if teacher.kind == "model":
            yield Line("    kind: transformers", "a model in this process; it needs the student's tokenizer")
            yield Line(f"    model: {_value(teacher.model)}", "a name on the hub, or a folder")
            if answers.machine == "cpu":
                yield Line("    dtype: float32", "of its weights")
        elif teacher.kind == "server":
            yield Line("    kind: served", "a vLLM or SGLang server, which has to return log-probabilities")
            yield Line("    url: http://127.0.0.1:8000/v1", "where it is; several share the load")
            yield Line(f"    model: {_value(teacher.model)}", "as the server calls it")
            yield Line("    top_k: 32", "log-probabilities of each token that it returns")
        elif teacher.kind == "chat":
            yield Line(
                "    kind: chat", "a hosted model, which grades and corrects; teachers/catalog.yaml has its address"
            )
            yield Line(f"    model: {_value(teacher.model)}", "as the catalog calls it")
            yield Line("    gives: [score, rewrite]", "a grade, and the answer as it should be")
            yield Line("    budget: {dollars: 5, then: drop}", "where it is spent: drop, go on without it; stop")
        else:
            sees = "privileged" if answers.data == "code" else "reference"
            told = "the code that belongs to the place" if answers.data == "code" else "the right answer"
            yield Line("    kind: self", "the student itself, shown what it does not see when it writes")
            yield Line("    weights: initial", "as it was before training; average: its moving average")
            yield Line(f"    sees: {sees}", told)


def _data(answers: Answers) -> Iterator[Line]:
    if answers.data == "code":
        yield Line("source:", "the codebase; `tutelage ingest` shows what is used of it")
        yield Line(f"  path: {_value(answers.where)}", "a checkout, a folder, or package:NAME")
        yield Line("  split: module", "whole modules are held out; file; time: the newest commits")
        yield Line("")
    yield Line("data:", "where prompts come from")
    yield Line("  held_out: 100", "prompts of each source that training never sees")
    yield Line("  sources:", "by name, which is the domain unless the source says otherwise")
    if answers.data == "code":
        for task, says in (("line", "the rest of a line"), ("body", "a function's body, from its signature")):
            yield Line(f"    {task}:")
            yield Line("      kind: codebase", "private: nothing of it leaves this machine")
            yield Line(f"      task: {task}", says)
            yield Line("      retrieved_tokens: 256", "for code from other files that belongs to the place")
        return
    gsm8k = answers.where == USUAL_DATA["dataset"]
    yield Line("    questions:")
    yield Line("      kind: dataset", "from the hub, or a local jsonl, json, parquet or csv file")
    yield Line(
        f"      path: {_value(answers.where)}", "its columns are found by their usual names, or named by `columns`"
    )
    if gsm8k:
        yield Line("      config: main", "of a data set that has several")
    checker = "numeric" if gsm8k else "exact"
    yield Line(f"      checker: {checker}", "how an answer is judged; none; or file.py:function, one of yours")


def _rollout(answers: Answers) -> Iterator[Line]:
    graded = any(teacher.kind == "chat" for teacher in answers.teachers)
    yield Line("rollout:", "how the student writes its answers")
    yield Line(f"  max_new_tokens: {128 if answers.data == 'code' else 512}", "of an answer; a longer one is cut")
    if graded:
        yield Line("  samples_per_prompt: 4", "answers to each prompt; grades are compared between them")
    yield Line(f"  rows: {4 if answers.machine == 'cpu' else 64}", "answers written together; lower it for less memory")


def _objective(answers: Answers) -> Iterator[Line]:
    if any(teacher.kind == "chat" for teacher in answers.teachers):
        yield Line("objective:", "what is learned from the answers' scores")
        yield Line("  grades: {weight: 0.3}", "of the policy gradient on grades, beside the teachers' distributions")
        yield Line("  rewrites: {weight: 0.3}", "of learning the corrected answers by heart")


def _training(answers: Answers) -> Iterator[Line]:
    prompts = ONE_ANSWER_EACH[answers.machine]
    graded = any(teacher.kind == "chat" for teacher in answers.teachers)
    yield Line("training:", "how many updates, how large, how fast")
    yield Line("  steps: 100", "updates")
    yield Line(f"  prompts_per_step: {max(2, prompts // 4) if graded else prompts}", "of an update")
    yield Line("  learning_rate: 1e-4", "about 1e-4 for LoRA, 1e-6 to 1e-5 for all weights")
    yield Line("  warmup_steps: 5", "in which the rate rises to it")
    yield Line(f"  tokens_per_forward: {2048 if answers.machine == 'cpu' else 16384}", "lower it for less memory")
    yield Line("  checkpoint_every: 25", "steps, from which --resume goes on")


def _evaluation() -> Iterator[Line]:
    yield Line("evaluation:", "every model on the same held-out prompts")
    yield Line("  every: 50", "steps; 0: before and after alone")
    yield Line("  prompts_per_domain: 100", "held-out ones")


def _value(text: str) -> str:
    """A text as YAML reads it back."""
    return text if re.fullmatch(r"[A-Za-z0-9~./][\w./~-]*", text) and not text.isdigit() else json.dumps(text)
