"""What bubblewrap puts around a program: what it sees, what it may, and its environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PYTHON = str(Path(sys.executable).resolve())  # the one that a virtual environment's link leads to
PACKAGES = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
LAUNCH = Path(__file__).with_name("launch.py")
INSIDE = "/launch.py"
SCRATCH = "/tmp/scratch"
TELL = "{tell}"
NOBODY = 65534


@dataclass(frozen=True)
class Mount:
    """What a program sees at `place`, read-only: a file or a folder of this machine, or an empty folder (None)."""

    place: str
    source: Path | None


@lru_cache(maxsize=1)
def missing_protection() -> str | None:
    """None where bubblewrap works; else why not, in one line. Found out once, by starting it."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    try:
        tried = subprocess.run(
            [*_walls(1 << 20), "--", PYTHON, "-I", "-S", "-c", ""],
            env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "bubblewrap did not start within 30 seconds"
    if tried.returncode == 0:
        return None
    said = " ".join(tried.stderr.split()) or f"exit status {tried.returncode}"
    return f"bubblewrap does not work here ({said}): user namespaces may be switched off"


def bwrap(scratch_bytes: int, mounts: Sequence[Mount] = ()) -> list[str]:
    """The words before a program's own. TELL among them: the descriptor that hears its first process's number."""
    return [*_walls(scratch_bytes, mounts), "--json-status-fd", TELL, "--"]


def _walls(scratch_bytes: int, mounts: Sequence[Mount] = ()) -> list[str]:
    """bwrap and its options. What is mounted later hides what was mounted before."""
    words = [str(shutil.which("bwrap"))]
    words += ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--hostname", "sandbox", "--die-with-parent", "--new-session"]
    words += _rights()
    size = str(scratch_bytes)
    words += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"]
    words += ["--perms", "1777", "--size", size, "--tmpfs", "/tmp", "--perms", "0777", "--dir", SCRATCH]
    words += [*_system(), *_mounted(mounts), "--ro-bind", str(LAUNCH), INSIDE]
    # /proc too: whoever is root outside, however little it may inside, could set what the kernel starts (core_pattern).
    words += [word for place in ("/proc", "/dev", "/") for word in ("--remount-ro", place)]
    words += ["--chdir", SCRATCH, "--clearenv"]
    return words + [word for name, value in environment(SCRATCH).items() for word in ("--setenv", name, value)]


def _rights() -> list[str]:
    """A user namespace; but none for root.

    The kernel does not hold root to a number of processes, nor whoever is root outside a user namespace. So for root
    `launch.py` becomes another user instead, and needs the right to do so until then.
    """
    if is_root():
        return ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    words = ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    return [*words, "--disable-userns"] if "--disable-userns" in _help() else words


def is_root() -> bool:
    """Root of the machine; root of a container with users of its own is nobody special."""
    return os.getuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]


@lru_cache(maxsize=1)
def _help() -> str:
    return subprocess.run([str(shutil.which("bwrap")), "--help"], env={}, capture_output=True, text=True).stdout


def _system() -> list[str]:
    """Read-only: /usr, what leads into it, the loader's cache, this environment's Python; nothing else of a home."""
    words = ["--ro-bind", "/usr", "/usr"]
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")):
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    parts = [Path("/etc/ld.so.cache"), Path("/etc/alternatives")]
    parts += [prefix / name for prefix in _prefixes() for name in ("bin", "lib", "pyvenv.cfg")]
    known = [Path("/usr"), *parts]
    parts += [path for path in map(Path, PACKAGES) if not any(path.is_relative_to(place) for place in known)]
    for path in filter(Path.exists, parts):
        for folder in reversed(path.parents[:-1]):  # which would be closed to others where a home is
            words += ["--perms", "0755", "--dir", str(folder)]
        words += ["--ro-bind", str(path), str(path)]
    return words


def _mounted(mounts: Sequence[Mount]) -> list[str]:
    """In order, so that one may lie within another. A user's checkout may be closed to others; what is mounted is not
    closed to the program, who is another user where root starts it, if its own rights are open."""
    words = []
    for mount in mounts:
        for folder in reversed(Path(mount.place).parents[:-1]):
            words += ["--perms", "0755", "--dir", str(folder)]
        if mount.source is None:
            words += ["--perms", "0755", "--tmpfs", mount.place, "--remount-ro", mount.place]
        else:
            words += ["--ro-bind", str(mount.source), mount.place]
    return words


def _prefixes() -> list[Path]:
    """Where Python is installed, and the virtual environment over it, if not below /usr."""
    places = dict.fromkeys([Path(sys.prefix), Path(sys.base_prefix), Path(PYTHON).parents[1]])
    return [place for place in places if not place.is_relative_to("/usr")]


def environment(home: str) -> dict[str, str]:
    """All that a program sees of an environment. Threads that nobody can use are not started: they count."""
    places = [*(str(prefix / "bin") for prefix in _prefixes()), "/usr/local/bin", "/usr/bin", "/bin"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    fixed = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "2"}
    return {"PATH": ":".join(places), "HOME": home, "TMPDIR": home, **threads, **fixed}
