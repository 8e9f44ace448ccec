"""A run's student and those it is tried against, by name; what is wrong with a name is said before anything is loaded.

Teachers in this process are loaded when the first prompt is there to be answered. They are loaded together, as a run
does it: adapters change the base that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

from peft import PeftModel

from pipeline.chat.speakers import LocalSpeaker, RemoteSpeaker, Speaker
from pipeline.errors import RunError
from pipeline.opened_run import Moment, base_path
from pipeline.privacy import addresses, far, guard_of, is_marked
from pipeline.recorded import RecordedRun
from pipeline.remote import tariffs
from pipeline.student import Student
from teachers.catalog import lookup
from teachers.causal_lm import load_causal_lm
from teachers.client import read_key
from teachers.config import AdapterTeacher, ChatTeacher, ServedTeacher, TransformersTeacher
from teachers.guard import host_of, is_loopback
from teachers.pool import build_pool
from teachers.talking import Line

STUDENT, BASE = "student", "base"


def named(run: RecordedRun, names: Sequence[str]) -> tuple[str, ...]:
    """The names of who answers beside the student, each once.

    Raises RunError: a name that is nobody's, a teacher that writes nothing, a remote one that may not be asked.
    """
    for name in names:
        config = run.recipe.teachers.get(name)
        if name == BASE:
            continue
        if config is None:
            there = ", ".join([BASE, *run.recipe.teachers])
            raise RunError(f"--against {name}: nobody of this run is called that; there is {there}")
        if not isinstance(config, TransformersTeacher | AdapterTeacher | ServedTeacher | ChatTeacher):
            why = "is the student itself" if config.kind == "self" else "writes no answers"
            raise RunError(f"--against {name}: a teacher of the kind {config.kind} {why}; name another one")
        if isinstance(config, ServedTeacher | ChatTeacher) and is_marked(run.folder):
            for problem in far(name, config, guard_of(run.recipe)):
                raise RunError(f"--against {name}: the run is private, and {problem} (in {run.folder / 'recipe.yaml'})")
    return tuple(dict.fromkeys(names))


def student_speaker(run: RecordedRun, student: Student) -> LocalSpeaker:
    return LocalSpeaker(STUDENT, student.lm, nullcontext, seed=run.recipe.seed)


def others(
    run: RecordedRun, moment: Moment, names: Sequence[str], student: Student, loading: Callable[[str], None]
) -> tuple[Speaker, ...]:
    """Who answers beside the student, in the order of `names`. loading: told what is loaded. Raises TutelageError or
    TeacherError for a model that cannot be loaded, a key that is not set."""
    found: dict[str, Speaker] = {name: _remote(run, name) for name in names if _is_remote(run, name)}
    if BASE in names:
        found[BASE] = _base(run, moment, student, loading)
    found |= {speaker.name: speaker for speaker in _local(run, moment, names, student, loading)}
    return tuple(found[name] for name in names)


def _is_remote(run: RecordedRun, name: str) -> bool:
    return isinstance(run.recipe.teachers.get(name), ServedTeacher | ChatTeacher)


def _base(run: RecordedRun, moment: Moment, student: Student, loading: Callable[[str], None]) -> LocalSpeaker:
    """A LoRA student with its adapter off; else the model that it was, loaded beside it."""
    model, seed = student.lm.model, run.recipe.seed
    if isinstance(model, PeftModel):
        from teachers.switching import adapters_disabled

        return LocalSpeaker(BASE, student.lm, partial(adapters_disabled, model), seed=seed)
    loading(f"loading the base, {run.recipe.student.model if isinstance(run.recipe.student.model, str) else 'new'}")
    lm = load_causal_lm(
        base_path(run),
        name=BASE,
        dtype=run.recipe.student.dtype,
        revision=run.recipe.student.revision,
        device=student.device,
        chat_template=student.lm.tokenizer.chat_template,
    )
    return LocalSpeaker(BASE, lm, nullcontext, seed=seed)


def _local(
    run: RecordedRun, moment: Moment, names: Sequence[str], student: Student, loading: Callable[[str], None]
) -> Iterator[LocalSpeaker]:
    teachers = run.recipe.teachers
    kinds = (TransformersTeacher, AdapterTeacher)
    configs = {name: teachers[name] for name in names if isinstance(teachers.get(name), kinds)}
    if not configs:
        return
    loading(f"loading {', '.join(configs)}")
    pool = build_pool(configs, student.lm, shared=student.shared_bases(), device=student.device, resolve=run.resolve)
    for name in configs:
        teacher = pool.teachers[name]
        lm = getattr(teacher, "lm")  # noqa: B009
        running = getattr(teacher, "running", nullcontext)
        yield LocalSpeaker(name, lm, running, getattr(teacher, "system", None), run.recipe.seed)


def _remote(run: RecordedRun, name: str) -> RemoteSpeaker:
    config = run.recipe.teachers[name]
    assert isinstance(config, ServedTeacher | ChatTeacher)
    entry = lookup(config.model, config.url)
    urls = addresses(config)
    if not urls:
        raise RunError(f"--against {name}: {config.model} is not in the catalog; its teacher has no url")
    line = Line(
        name=name,
        model=entry.model if entry is not None else config.model,
        url=urls[0],
        key=read_key(name, config.key or (entry.key if entry is not None else None)),
        guard=guard_of(run.recipe),
        private=is_marked(run.folder),
        options=config.options if isinstance(config, ChatTeacher) else {},
    )
    here = is_loopback(host_of(urls[0]))
    return RemoteSpeaker(line, tariffs(run.recipe).get(name), here, isinstance(config, ServedTeacher), config.system)
