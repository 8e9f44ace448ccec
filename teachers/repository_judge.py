"""Runs a repository's tests inside the sandbox with pytest and says what came of each: a process that watches another.

    python -P -s -S repository_judge.py    standard input: JSON (`repository_run._order`)
                                           output: lines of the nonce and JSON, [kind, content]

Tests import what they test, so here, unlike in `judge.py`, answer and tests share a process. What that process says is
believed only as far as this goes:

- It reports over a pipe, by a plugin that holds a key; the nonce and the process that prints it are out of its reach
  (PR_SET_DUMPABLE). An unkeyed line is a forgery. A process that ends before it says so has failed.
- `canaries.py` runs behind the chosen tests, and has to fail: an answer that makes everything pass is found.
- Functions of pytest, unittest, the helpers that tests import and the repository itself have to be, at the end, what
  they were before the first test ran. So has the code of the tests to be what it was without the answer.
- An audit hook tells, before it happens, when the answer's own lines reach for frames, for the collector's lists, for
  ctypes or tracing, or make code out of text.

What remains possible: an answer written against this file, that finds the plugin through names which are not audited
and forges the report of each chosen test while it leaves the canaries alone; and one that recognises its test's
arguments. Standard library and pytest only.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import select
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from threading import get_ident
from typing import Any

PR_SET_DUMPABLE = 4
MOST_LINE = 1 << 22  # bytes of one report
MOST_WORDS = 300  # characters of what a test says
LOOK_EVERY = 0.1  # seconds between two looks at whether the tests' process lives, while it says nothing
LOG = "output-of-the-tests"

Tell = Callable[[str, Any], None]

# ---- the process that watches ----


def main() -> None:
    protect(True)
    (order_end, order), (report_end, report) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(order)
        os.close(report_end)
        redirect()
        protect(False)  # what it uses has to be seen from outside
        work_in_child(os.fdopen(order_end, "rb"), report)
    os.close(order_end)
    os.close(report)
    work = json.load(sys.stdin.buffer)
    nonce = work.pop("nonce")
    key = work["key"] = os.urandom(16).hex()
    with os.fdopen(order, "wb") as pipe:
        pipe.write(json.dumps(work).encode())
    for kind, content in reports(report_end, child, key):
        print(f"\n{nonce}{json.dumps([kind, content])}", flush=True)
        if kind in ("finished", "forged"):
            break
    print(f"\n{nonce}{json.dumps(['log', last_line(LOG)])}", flush=True)
    os._exit(0)


def reports(pipe: int, child: int, key: str) -> Iterator[tuple[str, Any]]:
    """What the tests' process says, up to its end. A line without the key is of kind `forged`."""
    buffer, alive = b"", True
    while True:
        ready, _, _ = select.select([pipe], [], [], LOOK_EVERY if alive else 0)
        if ready:
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                return
            buffer += chunk
        elif not alive:
            return
        elif os.waitpid(child, os.WNOHANG)[0]:
            alive = False
        *lines, buffer = buffer.split(b"\n")
        yield from (read_report(line, key) for line in lines)
        if len(buffer) > MOST_LINE:
            yield "forged", ""
            return


def read_report(line: bytes, key: str) -> tuple[str, Any]:
    try:
        given, kind, content = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return "forged", ""
    return (kind, content) if given == key else ("forged", "")


def protect(closed: bool) -> None:
    """Whether other processes of the same user are kept out of this one's memory and files."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(not closed), 0, 0, 0)


def redirect() -> None:
    """What the tests print goes to a file in the scratch folder, which is read for a last line of words alone."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.close(nothing)
    os.close(log)


def last_line(path: str) -> str:
    """The last one that names an error, else the last one."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    words = [cut(line.strip(), MOST_WORDS) for line in reversed(lines) if line.strip()]
    return next((line for line in words if "error" in line.lower()), words[0] if words else "")


# ---- the tests' process ----


def work_in_child(orders: Any, report: int) -> None:
    work = json.load(orders)
    orders.close()
    key, write, leave = work.pop("key"), os.write, os._exit

    def tell(kind: str, content: Any) -> None:
        left = json.dumps([key, kind, content]).encode() + b"\n"
        while left:
            left = left[write(report, left) :]

    sys.path[:0] = work["path"]
    sys.path.extend(work["packages"])
    sys.modules["__main__"] = types.ModuleType("__main__")  # nothing of this file lies where an answer can name it
    os.chdir(work["folder"])
    try:
        import pytest
    except ImportError:
        tell("missing", "pytest")
        leave(0)
    for name in work["helpers"]:
        try:
            __import__(name)
        except ImportError:
            continue  # the tests that need it will be skipped, or fail
    plugin, run = plugin_for(work, tell), pytest.main
    sys.addaudithook(hook_for(work, tell))
    status = run(work["arguments"], plugins=[plugin])
    tell("finished", {"status": int(status), "changed": plugin.changed})
    leave(0)


def plugin_for(work: Mapping[str, Any], tell: Tell) -> Any:
    """chosen: the tests that are run, all that are found where it is None. most: of them."""
    chosen, most, canaries = work["chosen"], work["most"], work["canaries"]
    stop_at_first, folder = work["stop_at_first"], work["folder"]
    words = MOST_WORDS

    class Reporter:
        def __init__(self) -> None:
            self.early: dict[str, tuple[int, ...]] = {}
            self.late: dict[str, tuple[int, ...]] = {}
            self.config: Any = None
            self.changed: list[str] = []
            self.stopped = False

        def pytest_sessionstart(self, session: Any) -> None:
            self.early, self.config = functions(folder), session.config

        def pytest_collection_modifyitems(self, session: Any, config: Any, items: list[Any]) -> None:
            birds = [item for item in items if canaries in item.nodeid]
            own = [item for item in items if canaries not in item.nodeid]
            own = [item for item in own if chosen is None or item.nodeid in chosen][:most]
            items[:] = own + birds

        def pytest_collection_finish(self, session: Any) -> None:
            tell("collected", [[item.nodeid, digest_of(item)] for item in session.items])
            self.late = functions(folder)

        def pytest_sessionfinish(self, session: Any) -> None:
            self.changed = sorted({*changes(self.early, folder), *changes(self.late, folder)})[:most]

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                tell("uncollected", [report.nodeid, shown(report, words)])

        def pytest_runtest_logstart(self, nodeid: str) -> None:
            tell("started", nodeid)

        def pytest_runtest_logreport(self, report: Any) -> None:
            plain = report.outcome if not hasattr(report, "wasxfail") else "skipped"
            own = canaries not in report.nodeid
            tell("test", [report.nodeid, report.when, plain, shown(report, words) if plain == "failed" and own else ""])
            self.stopped |= plain == "failed" and own and stop_at_first

        def pytest_runtest_logfinish(self, nodeid: str) -> None:
            if self.stopped and self.config is not None:
                self.config.pluginmanager.get_plugin("session").shouldfail = "stopped at the first failure"

    return Reporter()


def shown(report: Any, most: int) -> str:
    """What a report says of its failure, on one line."""
    crash = getattr(getattr(report, "longrepr", None), "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr)
    errors = [line[1:] for line in text.split("\n") if line.startswith("E ")]  # of a file that cannot be imported
    text = " ".join(errors) or text
    return cut(" ".join(text.split()), most)


def cut(text: str, most: int) -> str:
    """Between words: a part of a secret is not known for one any more."""
    return text if len(text) <= most else text[: most + 1].rpartition(" ")[0]


def digest_of(item: Any) -> str:
    """Of the code of a test's function, and of what that wraps."""
    found, function = hashlib.sha256(), getattr(item, "obj", None)
    while function is not None:
        function = getattr(function, "__func__", function)
        if isinstance(function, types.FunctionType):
            add_code(found, function.__code__)
        function = getattr(function, "__wrapped__", None)
    return found.hexdigest()[:16]


def add_code(found: Any, code: types.CodeType) -> None:
    found.update(code.co_code)
    found.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            add_code(found, constant)
        else:  # a set's order is not its content's
            plain = sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
            found.update(str(plain).encode())


# ---- what must stay as it is ----

GUARDED = ("_pytest", "pytest", "pluggy", "unittest", "builtins")
FUNCTIONS = (
    types.FunctionType, types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType,
    staticmethod, classmethod, property, type,
)  # fmt: skip


def functions(folder: str) -> dict[str, tuple[int, ...]]:
    """The functions and classes, with their methods, of pytest, unittest, test helpers and all modules below `folder`.

    By name; each as what makes it the same one, and for pytest and the helpers unchanged: a repository may compile its
    own functions when they are first called. Whoever sets a function's code is seen by the audit hook.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, module in list(sys.modules.items()):
        inside = str(getattr(module, "__file__", None) or "").startswith(f"{folder}/")
        if not (inside or name.partition(".")[0] in GUARDED or ".testing" in name):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, FUNCTIONS):
                found[f"{name}.{key}"] = identity(value, inside)
            if isinstance(value, type) and value.__module__ == name:
                for inner, method in list(vars(value).items()):
                    if isinstance(method, FUNCTIONS):
                        found[f"{name}.{key}.{inner}"] = identity(method, inside)
    return found


def identity(value: Any, alone: bool) -> tuple[int, ...]:
    value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    if isinstance(value, types.FunctionType) and not alone:
        return id(value), id(value.__code__), id(value.__defaults__), id(value.__kwdefaults__)
    return (id(value),)


def changes(before: Mapping[str, tuple[int, ...]], folder: str) -> list[str]:
    """What was replaced, taken away, or put over an inherited method."""
    after = functions(folder)
    classes = {name.rpartition(".")[0] for name in before} & before.keys()
    return [
        *(name for name, known in before.items() if after.get(name) != known),
        *(name for name in after if name not in before and name.rpartition(".")[0] in classes),
    ]


# ---- what an answer's lines reach for ----

WATCHED = frozenset({
    "code.__new__", "compile", "exec", "gc.get_objects", "gc.get_referents", "gc.get_referrers", "marshal.loads",
    "object.__delattr__", "object.__getattr__", "object.__setattr__", "open", "sys._current_exceptions",
    "sys._current_frames", "sys._getframe", "sys.addaudithook", "sys.monitoring.register_callback", "sys.setprofile",
    "sys.settrace",
})  # fmt: skip
FRAMES = frozenset({"tb_frame", "gi_frame", "cr_frame", "ag_frame"})
ON_BEHALF = (
    "inspect.py",
    "traceback.py",
    "bdb.py",
    "threading.py",
    "code.py",
    "ctypes/__init__.py",
)  # that do it for whoever calls them


def hook_for(work: Mapping[str, Any], tell: Tell) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook; it cannot be taken away. It tells what the lines of the answer do, each kind once."""
    path, (first, last) = work["path_of_answer"], work["lines"]
    watched, frames, standard = WATCHED, FRAMES, os.path.dirname(os.__file__)
    deputies = frozenset(os.path.join(standard, name) for name in ON_BEHALF)
    busy: set[int] = set()
    told: set[str] = set()
    frame_at, thread = sys._getframe, get_ident

    def by_answer(frame: Any) -> bool:
        """Whether the innermost frame that acts for itself is in the answer's lines. Code made of text does not."""
        while frame is not None:
            name = frame.f_code.co_filename
            if name not in deputies and (not name.startswith("<") or name.startswith("<frozen")):
                return bool(name == path and first <= (frame.f_lineno or 0) <= last)
            frame = frame.f_back
        return False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in watched and not event.startswith("ctypes."):
            return
        me = thread()
        if me in busy or event in told:
            return
        busy.add(me)
        try:
            if event == "object.__getattr__" and args[1] not in frames:
                return
            if event == "open" and not str(args[0]).startswith("/proc"):
                return
            if by_answer(frame_at(1)):
                told.add(event)
                tell("touched", event)
        finally:
            busy.discard(me)

    return hook


if __name__ == "__main__":
    main()
