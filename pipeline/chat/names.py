"""Whom a run's student may be tried against; what is wrong with a name is said before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import RunError
from pipeline.privacy import far, guard_of
from pipeline.recorded import RecordedRun
from teachers.config import AdapterTeacher, ChatTeacher, ServedTeacher, TransformersTeacher

STUDENT, BASE = "student", "base"
IN_PROCESS = (TransformersTeacher, AdapterTeacher)
SERVED = (ServedTeacher, ChatTeacher)


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
        if not isinstance(config, (*IN_PROCESS, *SERVED)):
            why = "is the student itself" if config.kind == "self" else "writes no answers"
            raise RunError(f"--against {name}: a teacher of the kind {config.kind} {why}; name another one")
        if isinstance(config, ServedTeacher | ChatTeacher) and run.private:
            for problem in far(name, config, guard_of(run.recipe)):
                raise RunError(f"--against {name}: the run is private, and {problem} (in {run.folder / 'recipe.yaml'})")
    return tuple(dict.fromkeys(names))
