"""A read-only copy of a repository for the sandbox, made once; each run sees it with one file replaced.

The checkout is read and never written to. Secrets in its text files are replaced in the copy: what is not there no
answer can read, and no test can print. The copy has what git lists, untracked files that it does not ignore, and
ignored files that lie between listed ones (a generated version, a compiled extension); of a plain folder all but caches
and environments. No history, and of compiled Python only what is compiled here, once, so that no run has to. A run
sees neither the compiled form of the file that an answer replaces, nor any installed copy of its package.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.util import cache_from_source
from pathlib import Path, PurePosixPath
from threading import Lock
from tokenize import detect_encoding
from typing import IO

from teachers.canaries import SOURCE
from teachers.errors import TeacherError
from teachers.walls import PACKAGES, PYTHON, Mount

PLACE = "/repository"  # in the sandbox
SYSTEM_PACKAGES = tuple(str(path) for path in Path("/usr").glob("lib/python3*/dist-packages"))
SKIPPED = {
    ".git", ".hg", ".svn", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox",
    ".venv", "venv", "node_modules", ".eggs",
}  # fmt: skip
BUILT = ("build", "dist")  # at the top of a plain folder: copies of the code itself
COMPILED_ENDS = (".pyc", ".pyo")
PREFIX = "tutelage-copy-"
MOST_BYTES = 1 << 30
MOST_TEXT_BYTES = 1 << 25  # of one file that secrets are looked for in
COMPILE_SECONDS = 300


@dataclass(frozen=True)
class Copy:
    """folder: the copy; inside: where a run sees it. canaries: its file of them.

    empty: a file with nothing in it. digest: of all paths and contents. path: where modules are imported from, inside.
    """

    folder: Path
    inside: str
    canaries: str
    empty: Path
    digest: str
    path: tuple[str, ...]


Clear = Callable[[str], str]  # a text -> the same without secrets


_making = Lock()
_held: list[IO[str]] = []


def copied(root: Path, clear: Clear) -> Copy:
    """Made once in a process, by whichever thread is first. Raises TeacherError: no folder, no room, more than 1 GB."""
    with _making:
        return _made(root, clear)


@lru_cache(maxsize=8)
def _made(root: Path, clear: Clear) -> Copy:
    if not root.is_dir():
        raise TeacherError(f"{root}: there is no such folder; name the checkout whose tests are to run")
    _sweep()
    room = Path(tempfile.mkdtemp(prefix=PREFIX))  # closed to others
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    _hold(room)
    package = (root / "__init__.py").is_file()
    inside = f"{PLACE}/{root.name if package else 'code'}"
    folder = room / "code"
    try:
        digest = _copy(root, folder, clear)
        canaries = f"test_{secrets.token_hex(8)}.py"
        (folder / canaries).write_text(SOURCE, encoding="utf-8")
        (room / "empty").touch(0o644)
        _compile(folder, inside)
        _open(folder)
    except OSError as error:
        raise TeacherError(f"{root} cannot be copied for its tests: {error.strerror or error}") from error
    path = (PLACE,) if package else (inside, *([f"{inside}/src"] if (folder / "src").is_dir() else []))
    return Copy(folder, inside, canaries, room / "empty", digest, path)


def _hold(room: Path) -> None:
    """Locks it as long as this process lives. The lock has its name once it is taken: a free one is swept up."""
    file = (room / "new").open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (room / "new").rename(room / "lock")
    _held.append(file)


def _sweep() -> None:
    """Removes what killed processes have left: whose lock is free."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # another user's, or in use
            continue


def text_of(copy: Copy, path: str) -> str | None:
    """A file as a reader of the code has it, with plain line ends; None where it cannot be read."""
    try:
        raw = (copy.folder / path).read_bytes()
        encoding = detect_encoding(iter(raw.splitlines(keepends=True)).__next__)[0] if path.endswith(".py") else "utf-8"
        return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, SyntaxError, UnicodeDecodeError, StopIteration):
        return None


def mounts_of(copy: Copy, root: Path, path: str, answer: Path, packages: Sequence[Path]) -> list[Mount]:
    """What a run sees: the copy with `answer` at `path`, the packages; the original compiled or installed nowhere."""
    inside = f"{copy.inside}/{path}"
    found = [Mount(copy.inside, copy.folder), Mount(inside, answer)]
    compiled = cache_from_source(path)
    if (copy.folder / compiled).exists():
        found.append(Mount(f"{copy.inside}/{compiled}", copy.empty))
    found += [Mount(f"/packages/{n}", package) for n, package in enumerate(packages)]
    places = [(Path(place), place) for place in (*PACKAGES, *SYSTEM_PACKAGES)]
    places += [(package, f"/packages/{n}") for n, package in enumerate(packages)]
    for outside, place in places:
        for name in _installed(copy, root, path, outside):
            is_folder = (outside / name).is_dir()
            found.append(Mount(f"{place}/{name}", None if is_folder else copy.empty))
    return found


def _installed(copy: Copy, root: Path, path: str, place: Path) -> list[str]:
    """What has to be hidden in a folder of packages so that the original of `path` cannot be read there."""
    parts = PurePosixPath(path).parts
    first = len(parts) - 1  # of the module's name: behind all folders that are no packages
    while first > 0 and (copy.folder.joinpath(*parts[:first]) / "__init__.py").is_file():
        first -= 1
    names = [parts[n:] for n in range(first + 1)]
    if (copy.folder / "__init__.py").is_file():
        names = [(root.name, *parts)]
    found = []
    for name in names:
        if not place.joinpath(*name).is_file():
            continue
        top = place / name[0]
        if len(name) == 1:
            found += [name[0], *(["__pycache__"] if (place / "__pycache__").is_dir() else [])]
        elif (top / "__init__.py").is_file():
            found.append(name[0])
        else:
            found.append("/".join(name[:-1]))
    return list(dict.fromkeys(found))


# ---- making one ----


def _copy(root: Path, folder: Path, clear: Clear) -> str:
    """Copies what is needed; the digest of it all as it then is."""
    found, total = sha256(), 0
    folder.mkdir(mode=0o755)
    for path in sorted(set(_listed(root) or _walked(root))):
        source = root / path
        if not source.is_file() or not source.resolve().is_relative_to(root.resolve()):
            continue  # a link that leads out, or to nowhere
        total += source.stat().st_size
        if total > MOST_BYTES:
            raise TeacherError(f"{root} has more than 1 GB, which is copied for its tests: have git ignore the rest")
        target = folder / path
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        content = _cleared(source.read_bytes(), clear)
        target.write_bytes(content)
        shutil.copymode(source, target)
        found.update(f"{len(path)} {path} {len(content)} ".encode("utf-8", "surrogateescape"))
        found.update(content)
    return found.hexdigest()


def _cleared(content: bytes, clear: Clear) -> bytes:
    """A text without its secrets, in whichever encoding: what replaces them is ASCII. What is no text as it is."""
    if b"\0" in content or len(content) > MOST_TEXT_BYTES:
        return content
    for encoding in ("utf-8", "latin-1"):  # the latter fits all
        try:
            return clear(content.decode(encoding)).encode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 decodes everything")


def _open(folder: Path) -> None:
    """To be read: the program is another user where root starts it. Nobody writes here any more."""
    for place, _, names in os.walk(folder):
        os.chmod(place, 0o755)
        for name in names:
            path = os.path.join(place, name)
            os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)


def _listed(root: Path) -> list[str] | None:
    """What git lists, and what it ignores beside that; None where it does not know the folder."""
    words = ["git", "-c", "core.fsmonitor=false", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    try:
        told = subprocess.run([*words, "--exclude-standard"], capture_output=True, check=False)
    except OSError:
        return None
    listed = [os.fsdecode(name) for name in told.stdout.split(b"\0") if name]
    if told.returncode != 0 or not listed:
        return None
    found = [name for name in listed if not name.endswith(COMPILED_ENDS)]
    for name in listed:  # a submodule is listed as its folder
        if (root / name).is_dir() and not (root / name).is_symlink():
            found += [f"{name.rstrip('/')}/{path}" for path in _walked(root / name)]
    for folder in {str(PurePosixPath(name).parent) for name in listed}:
        beside = (root / folder).iterdir() if (root / folder).is_dir() else ()
        found += [str(PurePosixPath(folder) / path.name) for path in beside if path.suffix in (".py", ".so", ".pyd")]
    return found


def _walked(root: Path) -> Iterator[str]:
    for place, folders, names in os.walk(root):
        here = Path(place)
        top = here == root
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED and not (top and name in BUILT) and not (here / name / "pyvenv.cfg").exists()
        ]
        for name in names:
            if name not in SKIPPED and not name.endswith(COMPILED_ENDS):
                yield (here / name).relative_to(root).as_posix()


COMPILE = """
import json, py_compile, sys
for source, inside, target in json.load(sys.stdin):
    try:
        py_compile.compile(source, target, inside, doraise=True)
    except (py_compile.PyCompileError, OSError, ValueError, RecursionError, MemoryError):
        continue
"""


def _compile(folder: Path, inside: str) -> None:
    """In a process of its own, which only reads the code: what cannot be compiled is left to the runs."""
    names = [source.relative_to(folder).as_posix() for source in sorted(folder.rglob("*.py"))]
    work = [[str(folder / name), f"{inside}/{name}", str(folder / cache_from_source(name))] for name in names]
    try:
        subprocess.run(
            [PYTHON, "-I", "-S", "-c", COMPILE], input=json.dumps(work).encode(), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=COMPILE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return  # the rest is compiled by each run
