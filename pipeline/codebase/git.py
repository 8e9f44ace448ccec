"""Git, asked about a repository in the one way that cannot change it, run its code, or reach a network."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError

# A repository's own settings may name programs to run; these win over them.
_HARMLESS = (
    "core.fsmonitor=false", "core.hooksPath=/dev/null", "core.untrackedCache=false", "core.pager=cat",
    "diff.external=", "submodule.recurse=false", "gc.auto=0", "log.showSignature=false",
)  # fmt: skip


@dataclass(frozen=True)
class Repository:
    """top: the folder with `.git` in it. folder: the part that is read, `top` or below. Both resolved."""

    top: Path
    folder: Path


def repository_of(folder: Path) -> Repository | None:
    """The checkout that `folder` is in, None where there is none. Raises DataError: there is one and git is not."""
    folder = folder.resolve()
    for top in (folder, *folder.parents):
        if (top / ".git").exists():
            if shutil.which("git") is None:
                raise DataError(f"source.path: {folder} is in a git checkout and there is no git here: install git")
            return Repository(top, folder)
    return None


def git(repository: Repository, *arguments: str, give: bytes = b"") -> bytes:
    """What a git command prints, run in `repository.folder`. give: its standard input.

    Nothing is written: no index is refreshed, no hook, filter of a monitor or pager is run, no missing object is
    fetched. The user's and the machine's settings are not read. The checkout may belong to somebody else, since its
    place is given and not looked for.
    Raises DataError with git's own first line.
    """
    program = shutil.which("git")
    if program is None:
        raise DataError("source.path: there is no git here: install git")
    settings = [part for setting in _HARMLESS for part in ("-c", setting)]
    places = ["-C", str(repository.folder), f"--git-dir={repository.top / '.git'}", f"--work-tree={repository.top}"]
    result = subprocess.run(
        [program, "--no-pager", "--literal-pathspecs", *places, *settings, *arguments],
        input=give,
        capture_output=True,
        check=False,
        env=_environment(),
    )
    if result.returncode:
        said = result.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {result.returncode}"]
        raise DataError(f"source.path: git cannot read {repository.top}: {said[0].removeprefix('fatal: ')}")
    return result.stdout


def _environment() -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "HOME": os.devnull,
        "XDG_CONFIG_HOME": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
    }
