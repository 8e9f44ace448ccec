"""How a command ends: plain lines on stderr and an exit status for what can be mended, a traceback for a bug."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from pipeline.errors import TutelageError
from teachers.errors import TeacherError

INTERRUPTED = 130  # what shells report for Ctrl-C


def rank() -> int:
    """This process's place under torchrun; 0, the main one, without it."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def one_line_errors(go_on: str) -> Iterator[None]:
    """What a user or a machine can cause ends in plain lines on stderr and an exit status; a bug keeps its traceback.

    go_on: how to resume, to be added where work is kept.
    """
    try:
        yield
    except (TutelageError, TeacherError) as error:
        if rank() == 0:  # the other ranks have met the same
            typer.echo(str(error), err=True)
        raise typer.Exit(getattr(error, "exit_status", 1)) from error
    except KeyboardInterrupt as error:
        if rank() == 0:
            typer.echo(f"interrupted{go_on}", err=True)
        raise typer.Exit(INTERRUPTED) from error
    except Exception as error:
        problem = machine_problem(error)
        if problem is None:
            raise
        where = f"rank {rank()}: " if rank() else ""
        typer.echo(f"{where}{problem}{go_on}", err=True)
        raise typer.Exit(1) from error


_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "Cannot allocate memory", "std::bad_alloc")
_DISK = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system cannot be written; set another directory with output=…",
    errno.EACCES: "permission denied; correct the permissions, or set another directory with output=…",
    errno.ENOTDIR: "a file stands where a directory is needed; set another directory with output=…",
    errno.EPERM: "not permitted; correct the permissions, or set another directory with output=…",
}


def machine_problem(error: BaseException) -> str | None:
    """One line for memory and disk errors, by whichever library they were raised or wrapped; None for any other."""
    link: BaseException | None = error
    while link is not None:
        said = str(link)
        if isinstance(link, MemoryError) or type(link).__name__ == "OutOfMemoryError" or _any_in(_NO_MEMORY, said):
            return "out of memory; lower training.tokens_per_forward, rollout.rows or objective.chunk_megabytes"
        number = link.errno if isinstance(link, OSError) else None
        if number is None and "No space left on device" in said:  # safetensors tells the number in words only
            number = errno.ENOSPC
        if number in _DISK:
            name = getattr(link, "filename", None)
            return f"{name}: {_DISK[number]}" if name else _DISK[number]
        # A context alone does not make a bug a full disk; torch's writer raises RuntimeError while it meets one.
        link = link.__cause__ or (link.__context__ if isinstance(link, RuntimeError | OSError) else None)
    return None


def _any_in(phrases: Sequence[str], text: str) -> bool:
    return any(phrase in text for phrase in phrases)
