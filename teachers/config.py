"""One model per kind of teacher, joined on `kind`. Imports no torch: a recipe is validated before anything heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Dtype = Literal["float32", "bfloat16", "float16"]
SpanKind = Literal["think", "answer"]

MAX_TEACHERS = 10


class Section(BaseModel):
    """A part of a recipe: frozen, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def example(text: str) -> ConfigDict:
    """A section's `model_config` with an example of it in YAML, for recipes/REFERENCE.md."""
    return ConfigDict(json_schema_extra={"examples": [text]})


REVISION = "a branch or a commit on the hub"

Positive = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# No name and password before the host: what a recipe says is kept in the run's directory.
Url = Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/|$)", examples=["http://127.0.0.1:8000/v1"])]
KeyVariable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$", description="the environment variable with the key")]


def _as_tuple(value: Any) -> Any:
    """One entry is short for a list of one; and behind a validator of ours a list is no longer JSON's."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class TeacherBase(Section):
    """What every kind of teacher has."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="scales this teacher's whole loss")
    system: str | None = Field(None, description="a system prompt that this teacher sees and the student does not")


class ScoringBase(TeacherBase):
    """What every teacher has that scores token by token. A grader reads the answer as a text, never the thinking."""

    spans: tuple[SpanKind, ...] = Field(("think", "answer"), min_length=1, description="the segments it scores")


# ---- in this process ----


class Alignment(Section):
    """A teacher with another tokenizer: it is scored where its tokens and the student's end at the same bytes."""

    model_config = example("{top_k: 16, least_coverage: 0.4}")

    top_k: Positive = Field(16, description="of the teacher's entries that are carried over")
    least_coverage: Fraction = Field(
        0.4,
        description="of the student's tokens; below it a run is refused, on probe texts, and each answer fails",
    )


class TransformersTeacher(ScoringBase):
    """A transformers causal LM in this process."""

    model_config = example("{kind: transformers, model: Qwen/Qwen3-8B}")

    kind: Literal["transformers"]
    model: str = Field(min_length=1, description="hub name, local folder, or prepared:NAME")
    revision: str | None = Field(None, description=REVISION)
    dtype: Dtype = Field("bfloat16", description="that it computes in")
    align: Alignment | None = Field(None, description="only for a teacher with another tokenizer than the student's")


class AdapterTeacher(ScoringBase):
    """A LoRA adapter over a base that all adapter teachers with the same base (and a LoRA student) share."""

    model_config = example("{kind: adapter, base: Qwen/Qwen3-1.7B, adapter: ./adapters/our-code}")

    kind: Literal["adapter"]
    base: str = Field(min_length=1, description="hub name, local folder, or prepared:NAME")
    adapter: str = Field(min_length=1, description="hub name, local folder, or prepared:NAME")
    revision: str | None = Field(None, description=f"of the base: {REVISION}")
    dtype: Dtype = Field("bfloat16", description="that it computes in")


class SelfTeacher(ScoringBase):
    """The student itself, shown something that it does not see when it writes (OPSD, SDPO)."""

    model_config = example("{kind: self, weights: average, decay: 0.05, sees: reference}")

    kind: Literal["self"]
    weights: Literal["initial", "average", "base"] = Field(
        "initial", description="as it was before training, its moving average, or without its adapter"
    )
    decay: float = Field(0.05, gt=0, le=1, description="of weights: average: the new weights' share at each step")
    sees: str = Field(
        "reference",
        pattern=r"^(reference|privileged|feedback:.+)$",
        description="reference, privileged, or feedback:TEACHER, what another teacher said of the very answer",
    )
    template: str | None = Field(None, description="the words around it; {seen} stands for it, {prompt} for the prompt")


# ---- over the wire ----


class Limits(Section):
    """How hard a teacher is asked, and how long it is waited for."""

    model_config = example("{concurrency: 32, requests_per_minute: 500, timeout: 30, retries: 2}")

    concurrency: Positive = Field(16, description="questions under way at once")
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    timeout: Seconds = Field(60.0, description="of one attempt")
    deadline: Seconds = Field(
        300.0, description="of one question from its first attempt; and how long a teacher may say nothing at all"
    )
    retries: int = Field(4, ge=0, description="of a question that failed in a way that may pass, after growing pauses")
    breaker: Positive = Field(8, description="failures in a row after which an address rests")
    rest: Seconds = Field(20.0, description="of an address that failed too often, before it is tried again")


class Price(Section):
    """US dollars per million tokens. Reasoning tokens are charged as output."""

    model_config = example("{input: 0.14, output: 0.28, cached: 0.0028, date: '2026-07-01'}")

    input: Amount
    output: Amount
    cached: Amount | None = Field(None, description="default: as input")
    date: str | None = Field(None, description="when it was read")
    source: str | None = Field(None, description="where it was read")


class Budget(Section):
    """What may be spent, checked before each question with the most that it can cost."""

    model_config = example("{dollars: 10, then: drop}")

    dollars: Amount | None = Field(None, description="default: no limit")
    tokens: Positive | None = Field(None, description="of questions and answers together; default: no limit")
    then: Literal["stop", "drop"] = Field("stop", description="the run stops, or goes on without this teacher")


class Provider(Section):
    """Who runs the server, and what may be done with its outputs. Default: the catalog's entry for the model."""

    model_config = example("{region: eu, training: allowed, date: '2026-07-01'}")

    region: str | None = Field(
        None, description="where it runs; local: on this machine", examples=["local", "eu", "us", "cn"]
    )
    training: Literal["allowed", "forbidden", "unknown"] | None = Field(
        None, description="whether its terms allow training on its outputs"
    )
    date: str | None = Field(None, description="when the terms were read")
    source: str | None = Field(None, description="where they were read")


class RemoteBase(TeacherBase):
    """What every teacher that is waited for has."""

    limits: Limits = Limits()
    fallback: str | None = Field(None, description="the teacher that is asked where this one fails")


class ProvidedBase(RemoteBase):
    """What every teacher has that somebody runs, and perhaps is paid for."""

    key: KeyVariable | None = None
    price: Price | None = Field(None, description="default: the catalog's entry for the model, else nothing")
    budget: Budget | None = None
    provider: Provider = Provider()


class ServedTeacher(ProvidedBase, ScoringBase):
    """A server that scores a given text by prompt log-probabilities."""

    model_config = example("{kind: served, url: 'http://10.0.0.5:8000/v1', model: Qwen/Qwen3-32B, top_k: 32}")

    kind: Literal["served"]
    url: Annotated[tuple[Url, ...], BeforeValidator(_as_tuple)] = Field(
        min_length=1, description="one, or several that share the load"
    )
    model: str = Field(min_length=1, description="as the server names it")
    server: Literal["auto", "vllm", "sglang", "completions"] = Field("auto", description="which protocol it speaks")
    top_k: int = Field(20, ge=0, description="entries per token; 0: the sampled token alone")
    tokenizer: str | None = Field(None, description="hub name or folder, where it is not the student's; needs align")
    align: Alignment | None = None


RUBRICS = ("chat", "math", "code")  # those that come with the program


def is_text(value: str) -> bool:
    """Whether this is a text itself (YAML's `|`) and not the name of a file with one."""
    return "\n" in value


Gift = Literal["score", "feedback", "rewrite"]
GIFTS: tuple[Gift, ...] = ("score", "feedback", "rewrite")


class ChatTeacher(ProvidedBase):
    """A chat API that reads the completion and grades, explains or rewrites it."""

    model_config = example("{kind: chat, model: deepseek-v4-pro, rubric: math, gives: [score, rewrite]}")

    kind: Literal["chat"]
    model: str = Field(min_length=1, description="a name in the catalog, or as the server names it")
    url: Url | None = Field(None, description="default: the catalog's")
    gives: Annotated[tuple[Gift, ...], BeforeValidator(_as_tuple)] = Field(
        GIFTS, min_length=1, description="what it is asked for: score, feedback, rewrite"
    )
    rubric: str = Field("chat", description="chat, math, code, a file with your own, or its text, of several lines")
    instructions: str | None = Field(
        None, description="the whole prompt instead of the built-in one: a file, or its text, of several lines"
    )
    max_tokens: Positive = Field(2048, description="of an answer, reasoning included")
    temperature: Amount | None = Field(0.0, description="null: the server's own")
    options: dict[str, Any] = Field(default_factory=dict, description="sent along as they are, such as a thinking mode")


# ---- programs ----


class ExactAnswer(Section):
    """The recipe's own checkers: the prompt's, or one named here."""

    model_config = example("{kind: answer, checker: numeric}")

    kind: Literal["answer"]
    checker: str | None = Field(None, description="exact, numeric or file.py:function; default: the prompt's own")


class Pattern(Section):
    """A regular expression, found or not."""

    model_config = example("{kind: pattern, regex: 'answer: {reference}$'}")

    kind: Literal["pattern"]
    regex: str = Field(min_length=1, description="must be found in the answer; {reference} stands for it, escaped")


class JsonSchema(Section):
    """The answer is JSON, and fits a schema."""

    model_config = example("{kind: json_schema, file: ./schema.json}")

    kind: Literal["json_schema"]
    file: Path = Field(description="the schema")


class PythonTests(Section):
    """The answer is a Python program; the prompt's reference holds its tests (HumanEval's `check` among them)."""

    model_config = example("python_tests")

    kind: Literal["python_tests"]


class Sandbox(Section):
    """What a program may use. It never has a network, and writes to its scratch folder alone."""

    model_config = example("{seconds: 5, memory_megabytes: 512}")

    seconds: Seconds = Field(10.0, description="of one run")
    memory_megabytes: Positive = 1024
    processes: Positive = 64
    output_kilobytes: Positive = Field(64, description="that are kept of what it prints")
    required: bool = Field(True, description="false: run unprotected where bubblewrap is missing")


class RepositorySuite(Section):
    """A repository's own tests. They run on a scratch copy, in the sandbox; the checkout itself is never written to."""

    model_config = example("{places: 50, sandbox: {seconds: 30}}")

    run: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        ("python", "-m", "pytest", "-q", "-x"), description="the command; the tests to run are added to it"
    )
    runner: Literal["pytest", "command"] = Field(
        "pytest", description="command: run as it is, passed with exit status 0; no test is chosen"
    )
    packages: tuple[Path, ...] = Field((), description="folders that the tests import from, read-only")
    sandbox: Sandbox = Field(Sandbox(), description="what one run of them may use")
    places: Positive = Field(100, description="of a task, at most, on each side of the split, whose tests are run")


class RepositoryTests(Section):
    """The answer is put into a copy of the repository that its prompt comes from, and the tests it can reach run."""

    model_config = example("repository_tests")

    kind: Literal["repository_tests"]


class Command(Section):
    """A command in the sandbox, with the answer in the file ANSWER; it passes with exit status 0.

    A last line of output that is a number in [0, 1] is the score.
    """

    model_config = example("{kind: command, run: [python, check.py], files: ./checks}")

    kind: Literal["command"]
    run: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        min_length=1, description="the command", examples=["[python, check.py]"]
    )
    files: Path | None = Field(None, description="a folder that is copied into the scratch folder first")
    answer: str = Field("ANSWER", description="where the answer is written, in the scratch folder")


Check = Annotated[
    ExactAnswer | Pattern | JsonSchema | PythonTests | RepositoryTests | Command,
    Field(discriminator="kind"),
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


class ProgramTeacher(RemoteBase):
    """A checker or a test command that grades by running."""

    model_config = example("{kind: program, check: python_tests, sandbox: {seconds: 5}}")

    kind: Literal["program"]
    check: Check = Field(description="what is run; the kind alone is enough where it needs no key")
    sandbox: Sandbox = Sandbox()


class PluginTeacher(ProvidedBase):
    """A class of your own: by entry point in the group `tutelage.teachers`, or path/to/file.py:Class."""

    model_config = example("{kind: plugin, use: './citations.py:Citations'}")

    kind: Literal["plugin"]
    use: str = Field(
        min_length=1,
        description="the entry point's name, or file.py:Class",
        examples=["my-teacher", "teachers/mine.py:MyTeacher"],
    )
    options: dict[str, Any] = Field(default_factory=dict, description="handed to the class as they are")


TeacherConfig = Annotated[
    TransformersTeacher | AdapterTeacher | SelfTeacher | ServedTeacher | ChatTeacher | ProgramTeacher | PluginTeacher,
    Field(discriminator="kind"),
]
