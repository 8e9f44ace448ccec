"""The one exception for what a user can cause: one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class TutelageError(Exception):
    """A message for the user, printed without a traceback. `exit_status`: 2 for a bad recipe or call, else 1."""

    exit_status = 1


class RecipeError(TutelageError):
    """Everything that is wrong with a recipe, one line each."""

    exit_status = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(TutelageError):
    """Prompts that cannot be used: an empty set, a missing column, a prompt longer than the context."""


class ModelError(TutelageError):
    """A student or a teacher that cannot be loaded or does not fit the others."""


class RunError(TutelageError):
    """A run directory that cannot be used, or a run that cannot go on."""


class CallError(TutelageError):
    """What a command was asked for is not possible, or is not there."""


class NotFinite(RunError):
    """A loss, a gradient or a weight that is not a finite number: no update was made with it."""
