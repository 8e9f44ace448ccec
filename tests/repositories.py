"""Git repositories made on the fly, with the real git, from a mapping of paths to contents."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

START = 1_700_000_000  # seconds since 1970, of what is committed without a time
IDENTITY = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


def run_git(folder: Path, *arguments: str, time: int = START, give: str = "") -> str:
    """What a git command prints in `folder`. give: its standard input."""
    command = ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *arguments]
    dates = {"GIT_AUTHOR_DATE": f"{time} +0000", "GIT_COMMITTER_DATE": f"{time} +0000"}
    environment = os.environ | IDENTITY | dates
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        input=give,
        check=True,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
    ).stdout


def write_files(folder: Path, files: Mapping[str, str | bytes | None]) -> None:
    """None removes a file."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def make_repository(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """A repository with one commit of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    run_git(folder, "init", "-q")
    write_files(folder, files)
    run_git(folder, "add", "-A", "-f")
    run_git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def empty_repository(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run_git(folder, "init", "-q")
    return folder


def commit(folder: Path, files: Mapping[str, str | bytes | None], message: str = "A change", time: int = START) -> str:
    """The name of a commit of all that is in the folder once these files are written. An empty one is made as well."""
    write_files(folder, files)
    run_git(folder, "add", "-A")
    allowed = ("--allow-empty", "--allow-empty-message", "--cleanup=verbatim")
    run_git(folder, "commit", "-q", *allowed, "-F-", time=time, give=message)
    return run_git(folder, "rev-parse", "HEAD").strip()


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file, git's own included: content and time of its last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
