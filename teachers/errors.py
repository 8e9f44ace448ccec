"""The one exception of this package: what a user can cause."""

from __future__ import annotations


class TeacherError(Exception):
    """A message for the user: one line per problem that says what is wrong, where, and what to do."""

    exit_status = 1
