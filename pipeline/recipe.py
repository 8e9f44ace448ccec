"""What a recipe may say. A frozen model per section; reading YAML into it is `recipe_file.py`.

Every section holds at most a dozen fields, and where one choice makes other fields meaningless the choice is a union
on `kind`, so that a wrong pairing is refused when the file is read. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, ValidationInfo, model_validator

from pipeline.codebase.types import Language, TaskName
from pipeline.recipe_checks import disagreements
from pipeline.recipe_guards import Guards
from pipeline.recipe_losses import Average, Objective
from pipeline.recipe_values import (
    AsTuple,
    Decay,
    Fraction,
    Name,
    Positive,
    TextList,
    TextOrList,
    Weight,
    named,
    text_or,
)
from teachers.config import MAX_TEACHERS, Budget, Price, RepositorySuite, Section, TeacherConfig

# ---- code ----


class Codebase(Section):
    """A repository or a folder of source code: what is read of it, and what is held out."""

    path: str = Field(min_length=1, description="a folder, or package:NAME for an installed Python package")
    include: TextList = Field(("**",), description="paths that may be read, as patterns")
    exclude: tuple[str, ...] = Field((), description="paths that are left out, as patterns")
    languages: tuple[Language, ...] = Field((), description="default: all that can be read")
    licences: tuple[str, ...] = Field((), description="SPDX names; default: any, and files without one")
    largest_kilobytes: Positive = Field(512, description="a larger file is left out")
    commits: int = Field(0, ge=0, description="of the history, the newest first; 0: none")
    split: Literal["file", "module", "time"] = Field("file", description="what never stands on both sides")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="the share of files, modules or commits")
    tests: RepositorySuite | None = Field(None, description="how its tests run; default: answers are not run")


# ---- the student ----


class CodeTokenizer(Section):
    """Byte pairs learned from code: every text comes back exactly, a line's end is a token of its own, and there are
    tokens to fill in the middle with."""

    kind: Literal["code"]
    size: Annotated[int, Field(ge=512)] = Field(4096, description="entries of the vocabulary")
    of: Codebase = Field(description="what the pairs are learned from", examples=["{path: package:stdlib}"])


Tokenizer = Annotated[
    Annotated[Literal["characters"], Tag("text")] | Annotated[CodeTokenizer, Tag("code")], text_or("code")
]


class NewModel(Section):
    """A small model made on the spot with random weights, and a tokenizer that needs no download."""

    architecture: Literal["qwen3", "llama", "gemma2", "deepseek_v4"] = "qwen3"
    hidden_size: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    context: Positive = 512
    tokenizer: Tokenizer = "characters"


class Lora(Section):
    rank: Positive = 32
    alpha: Positive = 64
    dropout: Fraction = 0.0
    targets: TextOrList = Field("all-linear", description="peft's target_modules")


class FullTuning(Section):
    kind: Literal["full"] = "full"


class LoraTuning(Lora):
    kind: Literal["lora"]


Tuning = Annotated[FullTuning | LoraTuning, Field(discriminator="kind"), BeforeValidator(named)]
ModelName = Annotated[str, Field(min_length=1)]
Model = Annotated[Annotated[ModelName, Tag("text")] | Annotated[NewModel, Tag("new")], text_or("new")]


class Student(Section):
    model: Model = Field(description="hub name, local folder, prepared:NAME, or a new model's shape")
    revision: str | None = None
    tune: Tuning = FullTuning()
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the weights; bfloat16 suits LoRA, whose adapter stays in float32"
    )
    gradient_checkpointing: bool = False
    chat_template: Path | None = Field(None, description="a Jinja file, instead of the tokenizer's own template")


# ---- prompts ----


class Columns(Section):
    """Which column of a data set holds what. Unset ones are found by the ecosystem's usual names."""

    messages: str | None = None
    prompt: str | None = None
    text: str | None = None
    question: str | None = None
    answer: str | None = None
    domain: str | None = None
    privileged: str | None = None


CHECKERS = "exact|numeric|first_line|similarity|python_tests|repository_tests|none"
Checker = Annotated[str, Field(pattern=rf"^({CHECKERS}|.+\.py:[A-Za-z_]\w*)$")]


class SourceBase(Section):
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="0: its held-out prompts are measured, no more")
    private: bool = False


AnyChecker = Annotated[Checker, Field(examples=["exact", "numeric", "none", "checks.py:judge"])]


class DatasetSource(SourceBase):
    kind: Literal["dataset"]
    checker: AnyChecker = "exact"
    path: str = Field(min_length=1, description="hub name, or a local jsonl, json, parquet or csv file")
    config: str | None = None
    split: str = "train"
    columns: Columns = Columns()
    domain: Name | None = Field(None, description="default: the source's own name")
    system: str | None = Field(None, description="a system prompt put before each conversation")
    as_chat: bool = Field(True, description="false: prompts are raw text, no chat template")
    limit: Positive | None = None


class CodebaseSource(SourceBase):
    """One task over a codebase. Its source is private unless the recipe says otherwise."""

    kind: Literal["codebase"]
    task: TaskName
    of: Codebase | None = Field(None, description="another codebase than the recipe's `source`")
    count: Positive = Field(20_000, description="places at most, spread over the files")
    retrieved_tokens: int = Field(0, ge=0, description="for code from other files that belongs to the place")
    shows: Literal["file", "retrieved"] = Field(
        "file",
        description="retrieved: that code stands in the prompt; file: only teachers that see `privileged` see it",
    )
    reference_tokens: Positive = Field(128, description="a place whose answer is longer is left out")
    checker: Checker | None = Field(None, description="default: the task's own; tests, where they can be run")
    private: bool = True
    as_chat: bool = Field(False, description="true: a conversation, for students that were trained on them")
    domain: Name | None = Field(None, description="default: the source's own name")


class TaskSource(SourceBase):
    kind: Literal["tasks"]
    checker: AnyChecker = "exact"
    task: Name = Field(description="a generated task, see pipeline.tasks; its name is the domain")
    count: Positive = 20_000
    as_chat: bool = True


Source = Annotated[DatasetSource | TaskSource | CodebaseSource, Field(discriminator="kind")]


class Data(Section):
    sources: dict[Name, Source] = Field(
        min_length=1, examples=["{math: {kind: dataset, path: openai/gsm8k, config: main}}"]
    )
    mixing: Literal["fixed", "remaining_kl"] = Field("fixed", description="by weight, or weight × the KL that is left")
    held_out: Positive = Field(200, description="prompts per source that training never sees")
    max_prompt_tokens: Positive = 1024


class Rollouts(Section):
    kind: Literal["local"] = "local"
    max_new_tokens: Positive = 512
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: the whole vocabulary")
    samples_per_prompt: Positive = 1
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    stop_token_ids: tuple[int, ...] = Field((), description="beside the model's own end tokens")
    rows: Positive = Field(64, description="sequences decoded together; lower it when memory runs out")


# ---- who is asked ----


Shares = Annotated[dict[str, Weight], Field(min_length=1)]
TeacherOrShares = Annotated[Annotated[str, Tag("text")] | Annotated[Shares, Tag("shares")], text_or("shares")]


class ByDomain(Section):
    """Each prompt goes to its domain's teacher, or is shared between several by fixed weights."""

    kind: Literal["domain"] = "domain"
    table: dict[str, TeacherOrShares] = Field(
        default_factory=dict, description="domain: teacher, or domain: {teacher: share}; default: of the same name"
    )
    default: str | None = Field(None, description="the teacher of domains that the table leaves out")


class Mixture(Section):
    """Every prompt is shared between the same teachers by fixed weights."""

    kind: Literal["mixture"]
    shares: Shares


class AllTeachers(Section):
    """Every prompt goes to every teacher, in equal shares."""

    kind: Literal["all"]


class Cascade(Section):
    """The cheapest teacher is asked first, and the next one only where it fails, is unsure or disagrees.

    The last one that answers teaches alone.
    """

    kind: Literal["cascade"]
    order: TextList = Field(description="teachers, the cheapest first")
    unsure: Annotated[tuple[Fraction, Fraction], AsTuple] = Field(
        (0.25, 0.75), description="scores between these are unsure", examples=["[0.25, 0.75]"]
    )
    entropy: float | None = Field(
        None, gt=0, description="nats per token; a teacher whose distributions have more on average is unsure"
    )
    disagreement: float | None = Field(
        None, gt=0, description="nats per token of a teacher's surprise at the student's answer, from which to go on"
    )
    checker: bool = Field(True, description="go on where the prompt's checker contradicts the score or the rewrite")


def _routing(value: Any) -> Any:
    """`routing: all` is short for `routing: {kind: all}`, and a table alone is by domain."""
    return {"kind": "domain", **value} if isinstance(value, dict) else named(value)


Routing = Annotated[ByDomain | Mixture | AllTeachers | Cascade, Field(discriminator="kind"), BeforeValidator(_routing)]


# ---- the pool ----


class PoolSettings(Section):
    """How the teachers are asked together."""

    staleness: Literal[0, 1] = Field(0, description="1: train on the step before while the teachers answer this one")
    quorum: Fraction = Field(0.5, description="the share of a step's rows that some teacher must have answered")
    below_quorum: Literal["stop", "wait"] = Field("stop", description="wait: ask again, after a rest, for ever")
    budget: Budget | None = Field(None, description="for all teachers together")
    journal: Path | None = Field(None, description="a journal shared between runs; private answers never enter it")
    model_change: Literal["stop", "go_on"] = Field(
        "stop", description="where a server begins to return another model's name"
    )
    student_price: Price | None = Field(None, description="of the student, served: when it has paid its teachers back")


class Privacy(Section):
    """What may leave this machine."""

    mode: Literal["open", "sealed"] = Field(
        "open", description="sealed: the run has no network but the allowed addresses, by the kernel"
    )
    allowed: tuple[str, ...] = Field((), description="host or host:port that private prompts may go to")


# ---- training, evaluation ----


class Training(Section):
    steps: Positive = 100
    prompts_per_step: Positive = 64
    tokens_per_forward: Positive = Field(16_384, description="padded tokens of one forward; lower it for less memory")
    learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    clip_norm: float = Field(1.0, gt=0)
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16: products in bf16 over fp32 weights")
    checkpoint_every: Positive = 25
    keep_checkpoints: Positive = 2


Measure = Literal["loss", "similarity"]


class Evaluation(Section):
    every: int = Field(0, ge=0, description="steps between evaluations; 0: before and after only")
    prompts_per_domain: Positive = 100
    samples: Positive = Field(1, description="answers to each prompt: 1, greedy; more are sampled, and give pass@k")
    max_new_tokens: Positive | None = Field(None, description="default: the rollout's")
    measures: tuple[Measure, ...] = Field(
        (), description="beside the score, against the references: loss (nats per token), similarity (edit similarity)"
    )


class Prepare(Section):
    """A recipe that runs first, unless its result is there already; `set` overrides its keys by dotted path."""

    recipe: Path
    set: dict[str, Any] = Field(default_factory=dict)


Comparison = Literal["parameter_average", "sft_on_teacher_samples", "sft_on_code", "base_with_context"]


class RecipeBase(Section):
    """What both methods share."""

    output: Path | None = Field(None, description="the run directory; default: runs/<the file's name>")
    seed: int = Field(0, ge=0)
    threads: int = Field(0, ge=0, description="CPU threads for torch; 0: one per core this process may use")
    prepare: dict[Name, Prepare] = Field(default_factory=dict)
    student: Student = Field(examples=["{model: Qwen/Qwen3-1.7B}"])
    source: Codebase | None = Field(None, description="the codebase that sources of kind codebase read")
    data: Data = Field(examples=["{sources: {math: {kind: dataset, path: openai/gsm8k, config: main}}}"])
    rollout: Rollouts = Rollouts()
    teachers: dict[Name, TeacherConfig] = Field(default_factory=dict, max_length=MAX_TEACHERS)
    routing: Routing = ByDomain()
    pool: PoolSettings = PoolSettings()
    privacy: Privacy = Privacy()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    guards: Guards = Guards()

    @model_validator(mode="after")
    def _agreement(self, info: ValidationInfo) -> RecipeBase:
        found = disagreements(self.model_dump(mode="json"), (info.context or {}).get("prepared", ()))
        if found:
            raise ValueError("; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in found))
        return self


class SftRecipe(RecipeBase):
    """Supervised fine-tuning, on the data's references or on answers that the teachers write."""

    method: Literal["sft"]
    answers: Literal["reference", "teachers"] = "reference"
    average: Average = "trajectory"
    tokens: Positive | None = Field(None, description="stop when so many completion tokens are trained on, if earlier")


class DistillRecipe(RecipeBase):
    """On-policy distillation: the student writes, the teachers score."""

    method: Literal["distill"]
    teachers: dict[Name, TeacherConfig] = Field(
        min_length=1, max_length=MAX_TEACHERS, examples=["{math: {kind: transformers, model: Qwen/Qwen3-8B}}"]
    )
    objective: Objective = Objective()
    compare: tuple[Comparison, ...] = ()


Recipe = Annotated[SftRecipe | DistillRecipe, Field(discriminator="method")]
