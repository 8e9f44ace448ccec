"""A recipe about to run, and its parts loaded: the student, the pool, the prompts, the loop over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipeline.asking import Asking, judged_by_checker, judged_by_prompt
from pipeline.averaging import Averages, averages_of, selves_of
from pipeline.checkpoint import list_checkpoints, load_weights
from pipeline.codebase.fim import fim_of
from pipeline.codebase.source import Opened, Reader, Shelf, cache_file, open_codebase, results_file
from pipeline.codebase.suite import clear
from pipeline.codebase.tested import Bench
from pipeline.display import Display
from pipeline.errors import RunError
from pipeline.judgments import JudgedSettings
from pipeline.loop import Loop
from pipeline.new_model import create_model
from pipeline.optim import build_optimizer
from pipeline.privacy import guard_of
from pipeline.prompt_lengths import require_lengths, require_references
from pipeline.prompts import PromptSets, load_prompts, require
from pipeline.ranks import World
from pipeline.recipe import Codebase, CodebaseSource, DistillRecipe, NewModel, SftRecipe
from pipeline.recipe_file import LoadedRecipe, prepared_name
from pipeline.recipe_losses import chunk_bytes
from pipeline.recipe_rollouts import EngineInside, VllmRollouts
from pipeline.remote import Desk
from pipeline.rollout.inside import InsideGenerator
from pipeline.rollout.inside_open import open_inside
from pipeline.rollout.protocol import SamplingSettings
from pipeline.rollout.vllm import VllmGenerator
from pipeline.rollout.vllm_http import Access
from pipeline.rollout.vllm_open import open_vllm
from pipeline.routing import plan_of, routes_of
from pipeline.run_directory import same_data
from pipeline.sharding import cut, is_cut
from pipeline.shares import Share, share_of_all, share_of_teachers
from pipeline.stretches import share_rows
from pipeline.student import Student, load_student
from pipeline.student_state import load_trainable_state
from pipeline.targets import ANCHOR, build_batch, normaliser
from pipeline.writers import (
    Writer,
    generated_writer,
    products_of,
    reference_length,
    reference_writer,
    student_writer,
    teacher_writer,
)
from teachers.causal_lm import load_tokenizer, render
from teachers.pool import Pool, build_pool
from teachers.privileged import Selves
from teachers.tools import Tools
from teachers.types import Conversation

WRITTEN_TOGETHER = 16  # steps of teachers' answers; a teacher that writes six rows at a time takes as long as for fifty
LEAST_PROMPT = 64  # tokens that a server has room for: it is tried with a sentence
COUNTED = 65_536  # texts whose tokens are remembered: the same functions belong to many places


@dataclass(frozen=True, eq=False)
class Job:
    """A recipe about to run. `prepared`: names of earlier runs' results, those of an enclosing recipe included."""

    loaded: LoadedRecipe
    folder: Path
    prepared: Mapping[str, Path]
    accelerator: Accelerator
    world: World
    display: Display

    @property
    def recipe(self) -> SftRecipe | DistillRecipe:
        return self.loaded.recipe

    @property
    def in_shards(self) -> bool:
        """Whether its student is in shards, once it is loaded."""
        return is_cut(self.recipe, self.world.processes)


@dataclass(frozen=True, eq=False)
class Parts:
    """What a job's recipe names, loaded."""

    student: Student
    averages: Averages
    selves: Selves
    pool: Pool
    prompts: PromptSets
    desk: Desk
    engine: VllmGenerator | InsideGenerator | None = None  # where vLLM writes the student's answers


def resolve(job: Job, model: str, what: str = "model") -> str:
    """prepared:NAME -> the folder that holds its `what` (model or adapter); anything else as it is."""
    name = prepared_name(model)
    if name is None:
        return model
    path = job.prepared[name] / what
    if not path.exists():
        raise RunError(f"{path}: the prepared recipe {name} left no {what}; a full fine-tune has only a model")
    return str(path)


# ---- from the recipe to its parts ----


def load_parts(job: Job) -> Parts:
    recipe = job.recipe
    _require_room_inside(job)
    job.display.phase("loading prompts and models")
    model_path = _student_path(job)
    prompts = _prompts(job, model_path)
    require(prompts, recipe.training.prompts_per_step)
    if job.world.is_main:
        same_data(job.folder, prompts.fingerprint)
    device = job.accelerator.device
    objective = recipe.objective if isinstance(recipe, DistillRecipe) else None
    student = load_student(
        recipe.student,
        model_path=model_path,
        seed=recipe.seed,
        chunk_bytes=chunk_bytes(objective, gpu=device.type != "cpu"),
        device=device,
        in_shards=job.in_shards,
        products=products_of(recipe.training) if job.in_shards else None,
    )
    tokenizer = student.lm.tokenizer
    written = isinstance(recipe, DistillRecipe) or recipe.answers == "teachers"
    require_lengths(
        prompts,
        lambda conversation: render(conversation, tokenizer),
        recipe.data.max_prompt_tokens,
        context=student.lm.context,
        new=recipe.rollout.max_new_tokens if written else 0,
    )
    if _learns_references(recipe):
        require_references(prompts, lambda prompt: reference_length(prompt, student.lm), student.lm.context)
    averages = averages_of(student, recipe.teachers.values())
    selves = selves_of(student, averages)
    desk = Desk(recipe, job.folder)
    pool = build_pool(
        recipe.teachers,
        student.lm,
        shared=student.shared_bases(),
        device=device,
        resolve=lambda model, what: resolve(job, model, what),
        selves=selves,
        tools=_tools(job, student),
        courier=desk.courier if job.world.is_main else lambda _: None,
        tokens_per_forward=recipe.training.tokens_per_forward,
        temperature=recipe.rollout.temperature,
        in_shards=recipe.sharding.teachers == "shards" and job.world.processes > 1,
        peers=job.world if recipe.sharding.teachers == "groups" and job.world.size > 1 else None,
    )
    return Parts(student, averages, selves, pool, prompts, desk, _engine(job, student))


def _engine(job: Job, student: Student) -> VllmGenerator | InsideGenerator | None:
    recipe, rollouts = job.recipe, job.recipe.rollout
    if not isinstance(rollouts, VllmRollouts) or not isinstance(recipe, DistillRecipe):
        return None
    tokens = max(recipe.data.max_prompt_tokens, LEAST_PROMPT) + rollouts.max_new_tokens
    if isinstance(rollouts.server, EngineInside):
        return open_inside(
            rollouts.server, student, rows=rollouts.rows, tokens=tokens, folder=job.folder, world=job.world
        )
    return open_vllm(
        rollouts,
        student,
        tokens=tokens,
        folder=job.folder,
        access=Access(guard_of(recipe)),
        world=job.world,
        say=job.display.warn,
        twin=partial(_loaded_whole, job, student) if job.in_shards else None,
    )


def _require_room_inside(job: Job) -> None:
    """Raises RunError where vLLM's engine would have to stand whole in every process beside a part of the student."""
    rollouts = job.recipe.rollout
    if job.in_shards and isinstance(rollouts, VllmRollouts) and isinstance(rollouts.server, EngineInside):
        raise RunError(
            "rollout.server: inside has the whole model in every process, and the student is in shards; use "
            "rollout.server=start, or sharding.student=false"
        )


def _loaded_whole(job: Job, student: Student) -> Student:
    """Another one of the same, on the CPU, as it was before training."""
    return load_student(
        job.recipe.student,
        model_path=student.key.path,
        seed=job.recipe.seed,
        chunk_bytes=1 << 20,
        device=torch.device("cpu"),
    )


def _prompts(job: Job, model_path: str) -> PromptSets:
    """Read by the main process first: what it has read, and run, of a codebase is remembered for the others."""
    recipe = job.recipe
    if not job.world.is_main:
        job.world.wait()
    found = load_prompts(
        recipe.data, folder=job.loaded.path.parent, seed=recipe.seed, code=_code_reader(job, model_path)
    )
    if job.world.is_main:
        job.world.wait()
    return found


def _learns_references(recipe: SftRecipe | DistillRecipe) -> bool:
    """Whether the prompts' references are trained on, alone or beside what the teachers say."""
    if isinstance(recipe, DistillRecipe):
        return recipe.objective.reference > 0
    return recipe.answers == "reference"


def _tools(job: Job, student: Student) -> Tools:
    tokenizer = student.lm.tokenizer

    def rendered(conversation: Conversation, system: str | None) -> tuple[int, ...]:
        return render(conversation, tokenizer, system=system)

    return Tools(tokenizer, rendered, guard_of(job.recipe), job.loaded.path.parent, judged_by_checker, clear)


def _student_path(job: Job) -> str:
    model = job.recipe.student.model
    if not isinstance(model, NewModel):
        return resolve(job, model)
    folder = job.folder / "initial"
    if job.world.is_main and not folder.exists():
        create_model(model, job.recipe.seed, folder, _texts_to_learn_from(job, model))
    job.world.wait()
    return str(folder)


def _texts_to_learn_from(job: Job, model: NewModel) -> Iterator[str]:
    """What a new model's tokenizer is learned from: a codebase's training side."""
    if model.tokenizer != "characters":
        opened = _opened(job, model.tokenizer.of)
        yield from (file.text for file in opened.code.files if file.path in opened.split.train)


def _code_reader(job: Job, model_path: str) -> Reader | None:
    """What reads codebases, where a source is of that kind: prompts are packed by the student's own tokens."""
    recipe = job.recipe
    sources = [source for source in recipe.data.sources.values() if isinstance(source, CodebaseSource)]
    if not sources:
        return None
    for config in dict.fromkeys(source.of or recipe.source for source in sources):
        if config is not None:
            _opened(job, config)
    tokenizer = load_tokenizer(model_path, name="student", revision=recipe.student.revision)
    return Reader(
        own=recipe.source,
        shelf=_shelf(job),
        count=lru_cache(COUNTED)(lambda text: len(tokenizer.encode(text, add_special_tokens=False, verbose=False))),
        prompt_tokens=recipe.data.max_prompt_tokens,
        fim=fim_of(tokenizer),
        bench=Bench(results_file(), job.display),
    )


def _opened(job: Job, config: Codebase) -> Opened:
    with job.display.counted("reading the code") as advance:
        return open_codebase(config, replace(_shelf(job), advance=advance))


def _shelf(job: Job) -> Shelf:
    return Shelf(job.loaded.path.parent, cache_file())


def build_loop(job: Job, parts: Parts) -> Loop:
    recipe = job.recipe
    objective = recipe.objective if isinstance(recipe, DistillRecipe) else None
    # While the student is whole: how it decodes is tried here, and copied what it was before training.
    write = _writer(recipe, parts)
    asking = _asking(recipe, parts) if isinstance(recipe, DistillRecipe) else None
    if job.world.stretch is not None:
        share_rows(parts.student.lm, job.world.stretch)
    model, optimizer = _prepared(job, parts.student)
    return Loop(
        data=recipe.data,
        training=recipe.training,
        seed=recipe.seed,
        prompts=parts.prompts.train,
        student=parts.student,
        model=model,
        optimizer=optimizer,
        accelerator=job.accelerator,
        world=job.world,
        write=write,
        share=_share(recipe, parts, job.world),
        writing=_writing(recipe, parts),
        averages=parts.averages,
        asking=asking,
        staleness=recipe.pool.staleness if isinstance(recipe, DistillRecipe) else 0,
        block=WRITTEN_TOGETHER if isinstance(recipe, SftRecipe) and recipe.answers == "teachers" else 1,
        average=recipe.objective.average if isinstance(recipe, DistillRecipe) else recipe.average,
        reference=objective.reference if objective else 0.0,
        temperature=recipe.rollout.temperature if objective else 1.0,
        token_limit=None if isinstance(recipe, DistillRecipe) else recipe.tokens,
        stop=recipe.rollout.stop,
        guards=recipe.guards,
        folder=job.folder,
        display=job.display,
        elsewhere=parts.engine is not None,
    )


def _prepared(job: Job, student: Student) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The student as it trains, with its optimizer: in shards, or as accelerate wraps it."""
    training = job.recipe.training
    if not job.in_shards:
        model, optimizer = job.accelerator.prepare(student, build_optimizer(student, training))
        return model, optimizer
    cut(job.accelerator, student)
    # The first forward has to go through the root: FSDP2 then finds out which module that is.
    empty = build_batch([], normaliser([], "trajectory"), temperature=1.0, device=job.accelerator.device)
    with torch.no_grad():
        student(empty)
    root: Any = student
    root.reshard()  # a root stays whole after a forward
    return student, build_optimizer(student, training)


def whole_student(job: Job, parts: Parts) -> Student:
    """The student as it is at the end of training, on the CPU where it is in shards: loaded again, and what it learned
    from the last checkpoint, which is the end's. Only the main process needs it."""
    if not job.in_shards:
        return parts.student
    student = _loaded_whole(job, parts.student)
    load_trainable_state(student, load_weights(list_checkpoints(job.folder / "checkpoints")[-1]))
    return student


def _writing(recipe: SftRecipe | DistillRecipe, parts: Parts) -> tuple[torch.nn.Module, ...]:
    """The models that write."""
    if isinstance(recipe, DistillRecipe):
        return (parts.student,)
    return parts.pool.models if recipe.answers == "teachers" else ()


def _share(recipe: SftRecipe | DistillRecipe, parts: Parts, world: World) -> Share:
    if isinstance(recipe, SftRecipe) and recipe.answers == "teachers":
        return partial(share_of_teachers, parts.pool, routes_of(recipe), world)
    return partial(share_of_all, world)


def _writer(recipe: SftRecipe | DistillRecipe, parts: Parts) -> Writer:
    settings = SamplingSettings.from_recipe(recipe.rollout)
    if parts.engine is not None:
        return generated_writer(parts.engine, parts.student.lm, settings, recipe.seed)
    if isinstance(recipe, DistillRecipe):
        return student_writer(parts.student.lm, settings, recipe.seed, products_of(recipe.training))
    if recipe.answers == "teachers":
        return teacher_writer(parts.pool, routes_of(recipe), parts.student.lm, settings, recipe.seed)
    return reference_writer(parts.student.lm)


def _asking(recipe: DistillRecipe, parts: Parts) -> Asking:
    objective = recipe.objective
    anchor = None
    if objective.anchor:
        initial = replace(parts.selves.initial(), name=ANCHOR, tokens_per_forward=recipe.training.tokens_per_forward)
        anchor = (initial, objective.anchor)
    return Asking(
        pool=parts.pool,
        plan=plan_of(recipe, judged_by_prompt),
        weights={name: config.weight for name, config in recipe.teachers.items()},
        losses=objective.losses(),
        judged=JudgedSettings(objective.grades, objective.rewrites, recipe.rollout.max_new_tokens, recipe.rollout.stop),
        lm=parts.student.lm,
        stop=recipe.rollout.stop,
        anchor=anchor,
        quorum=recipe.pool.quorum,
        waits=recipe.pool.below_quorum == "wait",
    )
