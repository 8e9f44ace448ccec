"""Git repositories made on the fly: each commit is a folder's files as they then are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

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
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], **dates, **alone},
    ).stdout.decode(errors="surrogateescape")


def make(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q")
    return root


def write(root: Path, files: Mapping[str, str | bytes | None]) -> None:
    """None removes a file."""
    for name, content in files.items():
        path = root / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


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
        if path.is_file() and not path.is_symlink()
    }
