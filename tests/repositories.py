"""Git repositories made on the fly: each commit is a folder's files as they then are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

<<<<<<< HEAD
START = 1_700_000_000


def git(root: Path, *arguments: str, time: int = START, message: str | None = None) -> str:
    """What git prints. Nothing of the user's own settings counts."""
    dates = {"GIT_AUTHOR_DATE": f"{time} +0000", "GIT_COMMITTER_DATE": f"{time} +0000"}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(root)}
    settings = ["-c", "user.name=A", "-c", "user.email=a@b.invalid", "-c", "init.defaultBranch=main"]
    settings += ["-c", "protocol.file.allow=always", "-c", "core.autocrlf=false"]
    return subprocess.run(
        ["git", "-C", str(root), *settings, *arguments],
        input=None if message is None else message.encode(),
=======
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
>>>>>>> af2c673e
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], **dates, **alone},
    ).stdout.decode(errors="surrogateescape")


def make(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q")
    return root


<<<<<<< HEAD
def write(root: Path, files: Mapping[str, str | bytes | None]) -> None:
    """None removes a file."""
    for name, content in files.items():
        path = root / name
=======
def write_files(folder: Path, files: Mapping[str, str | bytes | None]) -> None:
    """None removes a file."""
    for name, content in files.items():
        path = folder / name
>>>>>>> af2c673e
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


<<<<<<< HEAD
def commit(root: Path, files: Mapping[str, str | bytes | None], message: str = "A change", time: int = START) -> str:
    """Its name. An empty one is made as well."""
    write(root, files)
    git(root, "add", "-A")
    git(
        root,
        "commit",
        "-q",
        "--allow-empty",
        "--allow-empty-message",
        "--cleanup=verbatim",
        "-F-",
        time=time,
        message=message,
    )
    return git(root, "rev-parse", "HEAD").strip()


def make_repository(root: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """A repository with one commit of these files, those that git would ignore included."""
    write(make(root), files)
    git(root, "add", "-A", "-f")
    git(root, "commit", "-q", "--allow-empty", "-m", "first")
    return root


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file, git's own included: content and time of its last change."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
=======
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
>>>>>>> af2c673e
        if path.is_file() and not path.is_symlink()
    }
