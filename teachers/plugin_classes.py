"""The classes that plugins are: found, loaded, held against what a teacher has to be, each fault with file and line."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from teachers.errors import TeacherError
from teachers.types import SignalKind

if TYPE_CHECKING:
    from teachers.tools import Tools

GROUP = "tutelage.teachers"
# Anything may go wrong in a user's code, and it is their line that is named. A linter's main ends by leaving.
MISTAKES = (Exception, SystemExit)


class Method(NamedTuple):
    """How a method of a plugin has to be defined. arguments: besides self."""

    shape: str
    arguments: int
    waits: bool


REMOTE = {
    "score": Method("async def score(self, request, deadline)", 2, True),
    "key": Method("def key(self, request)", 1, False),
    "estimate": Method("def estimate(self, request)", 1, False),
    "examine": Method("async def examine(self, deadline)", 1, True),
    "aclose": Method("async def aclose(self)", 0, True),
}
LOCAL = {"score": Method("def score(self, requests)", 1, False), "close": Method("def close(self)", 0, False)}


# ---- loading ----


def load(use: str, folder: Path) -> type:
    """The class that `use` names: path/to/file.py:Class, seen from `folder`, or an entry point of `tutelage.teachers`.

    Raises:
        TeacherError: there is none, or it does not load.
    """
    file, _, name = use.rpartition(":")
    if not file.endswith(".py"):
        return _from_entry_point(use)
    places = (base / Path(file).expanduser() for base in (folder, Path.cwd()))
    path = next((place.resolve() for place in places if place.is_file()), None)
    if path is None:
        raise TeacherError(f"there is no file {file} in {folder}; correct the path")
    found = getattr(_run(path), name, None)
    if not isinstance(found, type):
        raise TeacherError(f"{path} has no class {name}; define one, or name another")
    return found


def _run(path: Path) -> ModuleType:
    # Dataclasses and pickle look for a class's module by its name, so it needs one of its own.
    name = f"tutelage_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except MISTAKES as error:
        del sys.modules[name]
        raise TeacherError(f"{fault(error, path)}; the file does not load, mend it") from error
    return module


def _from_entry_point(use: str) -> type:
    found = entry_points(group=GROUP)
    chosen = [entry for entry in found if entry.name == use]
    if len(chosen) != 1:
        installed = ", ".join(sorted({entry.name for entry in found})) or "none"
        what = f"{len(chosen)} packages have" if chosen else "no installed package has"
        raise TeacherError(
            f"{what} a teacher called {use} (entry points {GROUP}: {installed}); correct the name, or give "
            "path/to/file.py:Class"
        )
    try:
        loaded = chosen[0].load()
    except MISTAKES as error:
        raise TeacherError(f"{chosen[0].value} does not load: {first_line(error)}; mend the package") from error
    if not isinstance(loaded, type):
        raise TeacherError(f"{chosen[0].value} is no class; the entry point {use} has to name one")
    return loaded


# ---- what a class has to be ----


def is_remote(kind: type) -> bool:
    """Whether its answers are waited for; else it answers a batch in this process."""
    return inspect.iscoroutinefunction(getattr(kind, "score", None))


def require_methods(kind: type) -> None:
    """Raises TeacherError for the first method that is missing or cannot be called as it will be."""
    if not callable(getattr(kind, "score", None)):
        raise TeacherError(f"{begins(kind)}: {kind.__name__} has no score; write `{REMOTE['score'].shape}`")
    if not _takes(kind, 3):
        raise TeacherError(f"{begins(kind)}: {kind.__name__} has to have `def __init__(self, name, options, tools)`")
    remote = is_remote(kind)
    for name, wanted in (REMOTE if remote else LOCAL).items():
        found = getattr(kind, name, None)
        if found is not None and not _fits(found, wanted):
            other = f", or `{REMOTE[name].shape}`" if name in REMOTE and not remote else ""
            raise TeacherError(f"{begins(found)}: {kind.__name__}.{name} has to be `{wanted.shape}`{other}")


def _fits(method: Any, wanted: Method) -> bool:
    waits = inspect.iscoroutinefunction(method)
    return (
        callable(method)
        and not inspect.isasyncgenfunction(method)
        and waits == wanted.waits
        and _takes(method, 1 + wanted.arguments)
    )


def _takes(function: Any, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def construct(kind: type, name: str, options: Mapping[str, Any], tools: Tools) -> tuple[Any, frozenset[SignalKind]]:
    """(Class(name, options, tools), its signals). Raises TeacherError where that fails, or it does not say them."""
    try:
        plugin: Any = kind(name, dict(options), tools)
    except MISTAKES as error:
        raise TeacherError(f"{fault(error, file_of(kind))}; mend it, or its options") from error
    try:
        signals = frozenset(SignalKind(signal) for signal in plugin.signals)
    except (AttributeError, TypeError, ValueError):
        signals = frozenset()
    if not signals:
        raise TeacherError(
            f"{begins(kind)}: {kind.__name__} has to say what it gives: `signals = frozenset({{SignalKind.JUDGMENT}})`"
        )
    return plugin, signals


# ---- where things are ----


def file_of(kind: type) -> Path:
    return Path(inspect.getfile(kind))


def begins(thing: Any) -> str:
    """file:line where a class or a function begins."""
    try:
        return f"{inspect.getfile(thing)}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):  # made while running, or not in Python
        return str(getattr(thing, "__module__", "?"))


def fault(error: BaseException, file: Path) -> str:
    """file:line: what happened. The line is the innermost one in the plugin's own file, or a syntax error's."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    line = error.lineno if isinstance(error, SyntaxError) and not lines else lines[-1] if lines else None
    return f"{file}: {first_line(error)}" if line is None else f"{file}:{line}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip(": ").splitlines()[0]
    return text if len(text) <= 200 else f"{text[:199]}…"
