"""What a recipe may say. A frozen model per section; reading YAML into it is `recipe_file.py`.

Every section holds at most a dozen fields, and where one choice makes other fields meaningless the choice is a union
on `kind`, so that a wrong pairing is refused when the file is read. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, ValidationInfo, field_validator, model_validator

from pipeline.codebase.types import Language, TaskName
from pipeline.recipe_asking import ByDomain, PoolSettings, Privacy, Routing
from pipeline.recipe_checks import disagreements
from pipeline.recipe_guards import Guards
from pipeline.recipe_losses import Average, Objective
from pipeline.recipe_optimizer import AdamW, OptimizerChoice
from pipeline.recipe_quantize import Quantize
from pipeline.recipe_rollouts import LocalRollouts, Rollouts
from pipeline.recipe_values import (
    Fraction,
    Name,
    Positive,
    TextList,
    TextOrList,
    named,
    text_or,
)
from teachers.config import (
    MAX_TEACHERS,
    REVISION,
    RepositorySuite,
    Section,
    TeacherConfig,
    example,
)

# ---- code ----


class Codebase(Section):
    """A repository or a folder of source code: what is read of it, and what is held out."""

    model_config = example("{path: ~/code/our-repo, exclude: [third_party/**], commits: 500, split: module}")

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

    model_config = example("{kind: code, size: 4096, of: {path: package:stdlib}}")

    kind: Literal["code"]
    size: Annotated[int, Field(ge=512)] = Field(4096, description="entries of the vocabulary")
    of: Codebase = Field(description="what the pairs are learned from", examples=["{path: package:stdlib}"])


Tokenizer = Annotated[
    Annotated[Literal["characters"], Tag("text")] | Annotated[CodeTokenizer, Tag("code")], text_or("code")
]


class NewModel(Section):
    """A small model made on the spot with random weights, and a tokenizer that needs no download."""

    model_config = example("{architecture: qwen3, hidden_size: 96, layers: 3, context: 128}")

    architecture: Literal["qwen3", "qwen3_moe", "llama", "mistral", "gemma2", "gemma3", "gpt_oss", "deepseek_v4"] = (
        "qwen3"
    )
    hidden_size: Positive = 128
    layers: Positive = 4
    heads: Positive = Field(4, description="of attention; they divide hidden_size")
    context: Positive = Field(512, description="tokens of a prompt and its answer together, at most")
    tokenizer: Tokenizer = "characters"


class Lora(Section):
    """Low-rank matrices beside the weights are trained, the weights are not."""

    rank: Positive = 32
    alpha: Positive = Field(64, description="the adapter's part is scaled by alpha / rank")
    dropout: Fraction = 0.0
    targets: TextOrList = Field("all-linear", description="peft's target_modules")


class FullTuning(Section):
    """All weights are trained."""

    kind: Literal["full"] = "full"


class LoraTuning(Lora):
    """A LoRA adapter is trained, the weights are not. Exported as an adapter and merged."""

    model_config = example("{kind: lora, rank: 32, alpha: 64}")

    kind: Literal["lora"]


Tuning = Annotated[FullTuning | LoraTuning, Field(discriminator="kind"), BeforeValidator(named)]
ModelName = Annotated[str, Field(min_length=1)]
Model = Annotated[Annotated[ModelName, Tag("text")] | Annotated[NewModel, Tag("new")], text_or("new")]


class Student(Section):
    """The model that is trained."""

    model_config = example("{model: Qwen/Qwen3-1.7B, dtype: bfloat16, tune: lora}")

    model: Model = Field(description="hub name, local folder, prepared:NAME, or a new model's shape")
    revision: str | None = Field(None, description=REVISION)
    tune: Tuning = Field(FullTuning(), description="all weights, or an adapter; the kind alone is enough")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the weights; bfloat16 suits LoRA, whose adapter stays in float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="activations are computed again: less memory, a slower update"
    )
    mlp_tokens: Positive | None = Field(
        None, description="of each row, that an MLP takes at once in a forward; fewer: less memory for long answers"
    )
    offload_activations: bool = Field(
        False, description="those that are kept wait in the machine's memory, not in the accelerator's"
    )
    chat_template: Path | None = Field(None, description="a Jinja file, instead of the tokenizer's own template")
    quantize: Quantize | None = Field(
        None, description="weights of 4 bits, which it trains with and answers with; the kind alone is enough"
    )


# ---- prompts ----


class Columns(Section):
    """Which column of a data set holds what. Unset ones are found by the ecosystem's usual names."""

    model_config = example("{question: problem, answer: solution}")

    messages: str | None = Field(
        None, description="conversations: lists of {role, content}, or ShareGPT's {from, value}"
    )
    prompt: str | None = Field(None, description="a text, or such a list")
    text: str | None = Field(None, description="raw text, no conversation")
    question: str | None = None
    answer: str | None = Field(None, description="the reference: what a checker compares with, or its tests")
    domain: str | None = Field(None, description="of each row, where a data set holds several")
    privileged: str | None = Field(None, description="what a teacher of kind self may be shown and the student is not")


PRIVATE = "its prompts go to teachers on this machine, and to privacy.allowed, alone"
CHECKERS = "exact|numeric|first_line|similarity|python_tests|repository_tests|none"
JUDGES = f"how an answer is judged: {CHECKERS.replace('|', ', ')}, or file.py:function, one of yours"
Checker = Annotated[str, Field(pattern=rf"^({CHECKERS}|.+\.py:[A-Za-z_]\w*)$", description=JUDGES)]


class SourceBase(Section):
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="0: its held-out prompts are measured, no more")
    private: bool = Field(False, description=PRIVATE)


AnyChecker = Annotated[Checker, Field(description=JUDGES, examples=["exact", "numeric", "none", "checks.py:judge"])]


class DatasetSource(SourceBase):
    """A data set, from the hub or a file."""

    model_config = example("{kind: dataset, path: openai/gsm8k, config: main, checker: numeric}")

    kind: Literal["dataset"]
    checker: AnyChecker = "exact"
    path: str = Field(min_length=1, description="hub name, or a local jsonl, json, parquet or csv file")
    config: str | None = Field(None, description="of a data set that has several")
    split: str = "train"
    columns: Columns = Field(Columns(), description="default: found by their usual names")
    domain: Name | None = Field(None, description="default: the source's own name")
    system: str | None = Field(None, description="a system prompt put before each conversation")
    as_chat: bool = Field(True, description="false: prompts are raw text, no chat template")
    limit: Positive | None = Field(None, description="rows that are used, the first ones; default: all")


class CodebaseSource(SourceBase):
    """One task over a codebase. Its source is private unless the recipe says otherwise."""

    model_config = example("{kind: codebase, task: line, domain: code, retrieved_tokens: 256}")

    kind: Literal["codebase"]
    task: TaskName = Field(description="what the student is asked; README has a table")
    of: Codebase | None = Field(None, description="another codebase than the recipe's `source`")
    count: Positive = Field(20_000, description="places at most, spread over the files")
    retrieved_tokens: int = Field(0, ge=0, description="for code from other files that belongs to the place")
    shows: Literal["file", "retrieved"] = Field(
        "file",
        description="retrieved: that code stands in the prompt; file: only teachers that see `privileged` see it",
    )
    reference_tokens: Positive = Field(128, description="a place whose answer is longer is left out")
    checker: Checker | None = Field(None, description="default: the task's own; tests, where they can be run")
    private: bool = Field(True, description=PRIVATE)
    as_chat: bool = Field(False, description="true: a conversation, for students that were trained on them")
    domain: Name | None = Field(None, description="default: the source's own name")


class TaskSource(SourceBase):
    """Questions and answers made by a rule, without a download."""

    model_config = example("{kind: tasks, task: addition, count: 6000}")

    kind: Literal["tasks"]
    checker: AnyChecker = "exact"
    task: Name = Field(description="a generated task, see pipeline.tasks; its name is the domain")
    count: Positive = Field(20_000, description="questions to train on")
    as_chat: bool = Field(True, description="false: prompts are raw text, no chat template")


Source = Annotated[DatasetSource | TaskSource | CodebaseSource, Field(discriminator="kind")]


class Data(Section):
    """Where prompts come from, and which of them never train."""

    model_config = example("{held_out: 100, sources: {math: {kind: dataset, path: openai/gsm8k, config: main}}}")

    sources: dict[Name, Source] = Field(
        min_length=1,
        description="by name, which is the domain unless the source says otherwise",
        examples=["{math: {kind: dataset, path: openai/gsm8k, config: main}}"],
    )
    mixing: Literal["fixed", "remaining_kl"] = Field("fixed", description="by weight, or weight × the KL that is left")
    held_out: Positive = Field(200, description="prompts per source that training never sees")
    max_prompt_tokens: Positive = Field(1024, description="a longer prompt is refused before training")


# ---- training, evaluation ----


class Training(Section):
    """How many updates, how large, how fast, and by which optimizer."""

    model_config = example("{steps: 100, prompts_per_step: 128, learning_rate: 1e-4, warmup_steps: 5}")

    steps: Positive = Field(100, description="updates")
    prompts_per_step: Positive = 64
    tokens_per_forward: Positive = Field(16_384, description="padded tokens of one forward; lower it for less memory")
    learning_rate: float = Field(
        1e-5, gt=0, allow_inf_nan=False, description="at its highest; about 1e-4 for LoRA, 1e-6 to 1e-5 for all weights"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after the warm-up, down to zero")
    warmup_steps: int = Field(0, ge=0, description="in which the rate rises to learning_rate")
    weight_decay: float = Field(0.0, ge=0, description="of matrices; norms, biases and embeddings do not decay")
    optimizer: OptimizerChoice = Field(AdamW(), description="adamw, muon or adamw_8bit; the kind alone is enough")
    clip_norm: float = Field(1.0, gt=0, description="a longer gradient is shortened to it")
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16: products in bf16 over fp32 weights")
    checkpoint_every: Positive = Field(25, description="steps")
    keep_checkpoints: Positive = Field(2, description="the last ones; older ones are deleted")


class Sharding(Section):
    """What the processes of a run share out between them; without effect in a single one."""

    model_config = example("{student: true, teachers: shards, context: 2}")

    student: bool = Field(False, description="weights, gradients, optimizer: FSDP2; whole only while it writes")
    teachers: Literal["whole", "shards", "groups"] = Field(
        "whole",
        description="those that are models: whole in every process; layers in shards, each whole only in its turn; or "
        "in groups, each whole in some processes, which answer for all",
    )
    context: Positive = Field(1, description="processes that share each row in training, a stretch of its tokens each")


Measure = Literal["loss", "similarity"]


class Evaluation(Section):
    """Every model on the same held-out prompts."""

    model_config = example("{every: 50, prompts_per_domain: 200, measures: [loss]}")

    every: int = Field(0, ge=0, description="steps between evaluations; 0: before and after only")
    prompts_per_domain: Positive = Field(100, description="held-out ones")
    samples: Positive = Field(1, description="answers to each prompt: 1, greedy; more are sampled, and give pass@k")
    max_new_tokens: Positive | None = Field(None, description="default: the rollout's")
    measures: tuple[Measure, ...] = Field(
        (), description="beside the score, against the references: loss (nats per token), similarity (edit similarity)"
    )


class Prepare(Section):
    """A recipe that runs first, unless its result is there already; `set` overrides its keys by dotted path."""

    model_config = example("{recipe: parts/specialist.yaml, set: {training.steps: 100}}")

    recipe: Path = Field(description="its file")
    set: dict[str, Any] = Field(default_factory=dict, description="its keys, by dotted path, to other values")


Tracker = Literal["trackio", "wandb", "tensorboard"]
Comparison = Literal["parameter_average", "sft_on_teacher_samples", "sft_on_code", "base_with_context"]


class RecipeBase(Section):
    """What both methods share."""

    output: Path | None = Field(None, description="the run directory; default: runs/<the file's name>")
    seed: int = Field(0, ge=0, description="of sampling, the order of prompts, new weights")
    threads: int = Field(0, ge=0, description="CPU threads for torch; 0: one per core this process may use")
    prepare: dict[Name, Prepare] = Field(
        default_factory=dict, description="recipes that run first; their models are called prepared:NAME"
    )
    student: Student = Field(description="the model that is trained", examples=["{model: Qwen/Qwen3-1.7B}"])
    source: Codebase | None = Field(None, description="the codebase that sources of kind codebase read")
    data: Data = Field(
        description="where prompts come from, and which of them never train",
        examples=["{sources: {math: {kind: dataset, path: openai/gsm8k, config: main}}}"],
    )
    rollout: Rollouts = Field(LocalRollouts(), description="how the student writes its answers")
    teachers: dict[Name, TeacherConfig] = Field(default_factory=dict, max_length=MAX_TEACHERS)
    routing: Routing = Field(ByDomain(), description="who is asked about which prompt")
    pool: PoolSettings = PoolSettings()
    privacy: Privacy = Privacy()
    training: Training = Training()
    sharding: Sharding = Sharding()
    evaluation: Evaluation = Evaluation()
    guards: Guards = Guards()
    tracking: tuple[Tracker, ...] = Field((), description="where its numbers are logged too; one name, or several")

    @field_validator("tracking", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _agreement(self, info: ValidationInfo) -> RecipeBase:
        found = disagreements(self.model_dump(mode="json"), (info.context or {}).get("prepared", ()))
        if found:
            raise ValueError("; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in found))
        return self


class SftRecipe(RecipeBase):
    """Supervised fine-tuning, on the data's references or on answers that the teachers write."""

    method: Literal["sft"]
    answers: Literal["reference", "teachers"] = Field(
        "reference", description="the data's own, or what the teachers write to its prompts"
    )
    average: Average = "trajectory"
    tokens: Positive | None = Field(None, description="stop when so many completion tokens are trained on, if earlier")


class DistillRecipe(RecipeBase):
    """On-policy distillation: the student writes, the teachers score."""

    method: Literal["distill"]
    teachers: dict[Name, TeacherConfig] = Field(
        min_length=1,
        max_length=MAX_TEACHERS,
        description="who teaches, by name",
        examples=["{math: {kind: transformers, model: Qwen/Qwen3-8B}}"],
    )
    objective: Objective = Objective()
    compare: tuple[Comparison, ...] = Field((), description="baselines that are made and measured as well")


Recipe = Annotated[SftRecipe | DistillRecipe, Field(discriminator="method")]
