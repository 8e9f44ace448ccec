"""A run's student and those it is tried against, loaded.

Teachers in this process are loaded together, as a run does it: adapters change the base that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from pipeline.chat.names import BASE, IN_PROCESS, SERVED, STUDENT
from pipeline.chat.remote import remote_speaker
from pipeline.chat.speakers import LocalSpeaker, Speaker
from pipeline.opened_run import open_base
from pipeline.recorded import RecordedRun
from pipeline.student import Student
from teachers.pool import build_pool


def student_speaker(run: RecordedRun, student: Student) -> LocalSpeaker:
    return LocalSpeaker(STUDENT, student.lm, nullcontext, seed=run.recipe.seed)


def others(
    run: RecordedRun, names: Sequence[str], student: Student, loading: Callable[[str], None]
) -> tuple[Speaker, ...]:
    """Who answers beside the student, in the order of `names`, which are good ones. loading: told what is loaded.

    Raises TutelageError or TeacherError for a model that cannot be loaded, a key that is not set.
    """
    found: dict[str, Speaker] = {name: remote_speaker(run, name) for name in _of(run, names, *SERVED)}
    if BASE in names:
        loading("loading the base")
        lm, running = open_base(run, student)
        found[BASE] = LocalSpeaker(BASE, lm, running, seed=run.recipe.seed)
    found |= {speaker.name: speaker for speaker in _local(run, names, student, loading)}
    return tuple(found[name] for name in names)


def _local(
    run: RecordedRun, names: Sequence[str], student: Student, loading: Callable[[str], None]
) -> Iterator[LocalSpeaker]:
    configs = {name: run.recipe.teachers[name] for name in _of(run, names, *IN_PROCESS)}
    if not configs:
        return
    loading(f"loading {', '.join(configs)}")
    pool = build_pool(configs, student.lm, shared=student.shared_bases(), device=student.device, resolve=run.resolve)
    for name in configs:
        yield LocalSpeaker(name, *pool.model(name), seed=run.recipe.seed)


def _of(run: RecordedRun, names: Sequence[str], *kinds: type) -> list[str]:
    """The names whose teachers are of these kinds. A teacher called base cannot be asked: that is the base."""
    return [name for name in names if name != BASE and isinstance(run.recipe.teachers[name], kinds)]
