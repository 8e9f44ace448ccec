"""Judges a Python answer by its tests, inside the sandbox: tests and answer run in two processes.

    python -I -S judge.py        standard input: JSON {nonce, path, parts, stub, test, entry}
                                 last line of output: the nonce and JSON {passed, fault, feedback}

The answer's process starts first, before the tests and the nonce are read, and gets its own code alone. The tests call
it through two pipes that carry plain data (`pack`). So an answer can end its process, print verdicts, look into the
frames above it or return objects that equal everything: the tests, their expected values and the verdict lie where it
cannot reach, and what it returns is compared by the tests' Python. The kernel keeps it out of the other's memory
(PR_SET_DUMPABLE). It is not kept from recognising a test by its arguments.

Functions that the tests pass to an answer cannot be carried; such tests judge nothing (fault: tests). Objects of the
answer's own classes stay on its side and are used from afar: calls, attributes, indexing, iteration, arithmetic. One
never equals plain data. Standard library only.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import itertools
import json
import numbers
import operator
import os
import sys
import types
from collections.abc import Callable
from typing import IO, Any

PR_SET_DUMPABLE = 4
MOST_BYTES = 1 << 26  # of one message
MOST_ITEMS = 100_000  # of an iterator that is carried over
MOST_WORDS = 300  # characters of feedback


# ---- plain data as JSON ----


def pack(value: Any, handle: Callable[[Any], Any]) -> Any:
    """Plain data to what JSON can hold; subclasses of plain types become plain. `handle` packs everything else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list):
        return [pack(item, handle) for item in list.__iter__(value)]
    kind: Any
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item, handle) for item in kind.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, handle), pack(item, handle)] for key, item in dict.items(value)]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, numbers.Integral):  # numpy's
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
        return float(value)
    return {"object": handle(value)}


def unpack(value: Any, object_at: Callable[[Any], Any]) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(item, object_at) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "object":
        return object_at(content)
    if kind == "dict":
        return {unpack(key, object_at): unpack(item, object_at) for key, item in content}
    if kind in ("bytes", "bytearray"):
        return bytes.fromhex(content) if kind == "bytes" else bytearray.fromhex(content)
    if kind in ("complex", "range"):
        return {"complex": complex, "range": range}[kind](*content)
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpack(item, object_at) for item in content)


def send(pipe: IO[bytes], message: Any) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Raises EOFError where the other side is gone, ValueError where what it says is no message."""
    line = pipe.readline(MOST_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError if len(line) < MOST_BYTES else ValueError("a message of more than 64 MB")
    return json.loads(line)


# ---- the answer's process ----

FORWARDED = ("getitem", "setitem", "delitem", "add", "sub", "mul", "truediv", "neg")
COMPARED = ("eq", "lt", "le", "gt", "ge")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **options: function(*args, **options),
    "list": lambda items: list(itertools.islice(items, MOST_ITEMS)),
    **{function.__name__: function for function in (getattr, bool, len, str, repr)},
    **{name: getattr(operator, name) for name in FORWARDED + COMPARED},
}


def serve(questions: IO[bytes], replies: IO[bytes]) -> None:
    """Runs the answer's code, then what it is asked for, one call at a time."""
    work = receive(questions)
    sys.path.extend(work["path"])
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    objects: list[Any] = [module]

    def handle(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    try:
        for part in work["parts"]:
            exec(compile(part, "answer.py", "exec"), module.__dict__)
        send(replies, {"names": [name for name, value in vars(module).items() if callable(value)]})
    except BaseException as error:
        send(replies, {"raised": description(error, "\n".join(work["parts"]))})
        return
    while True:
        name, packed, packed_options = receive(questions)
        try:
            args = [unpack(value, objects.__getitem__) for value in packed]
            options = {key: unpack(value, objects.__getitem__) for key, value in packed_options.items()}
            reply = {"value": pack(FUNCTIONS[name](*args, **options), handle)}
            after = [(n, pack(value, handle)) for n, value in enumerate(args) if isinstance(value, list | dict | set)]
            reply["changed"] = [[n, value] for n, value in after if value != packed[n]]
        except BaseException as error:
            reply = {"raised": description(error, work["parts"][-1])}
        send(replies, reply)


def description(error: BaseException, source: str) -> dict[str, Any]:
    """What the tests need to raise it again, and the line of the answer where it arose."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    lines, line, trace = source.split("\n"), "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "answer.py" and trace.tb_lineno <= len(lines):
            line = lines[trace.tb_lineno - 1].strip()
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = (error.text or "").strip()
    try:
        text = str(error)[:MOST_WORDS]
    except Exception as second:  # an exception of the answer's own making may fail to say what it is
        text = type(second).__name__
    return {"kinds": kinds, "name": type(error).__name__, "text": text, "line": line[:MOST_WORDS]}


# ---- the tests' process ----


class AnswerError(Exception):
    """Something in the answer that is no ordinary exception: it ended itself, or speaks no sense."""


class UnsupportedTest(BaseException):
    """Tests that cannot be judged here; no `except Exception` of theirs may swallow it."""


class Link:
    """The tests' end of the pipes. last: the last call and what it came to, for feedback."""

    def __init__(self, questions: IO[bytes], replies: IO[bytes]) -> None:
        self._questions, self._replies = questions, replies
        self.last = ""

    def start(self, path: list[str], parts: list[str]) -> list[str]:
        """Runs the answer's code; the names that it defines."""
        names = self._exchange({"path": path, "parts": parts}).get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise AnswerError("it does not say what it defines")
        return names

    def ask(self, function: str, *args: Any, **options: Any) -> Any:
        question = [function, [self._pack(value) for value in args], {k: self._pack(v) for k, v in options.items()}]
        reply = self._exchange(question)
        try:
            for place, value in reply.get("changed", ()):
                update(args[place], self._unpack(value))
            return self._unpack(reply["value"])
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise AnswerError("what it returns is no value") from error

    def _exchange(self, message: Any) -> dict[str, Any]:
        try:
            send(self._questions, message)
            reply = receive(self._replies)
        except (EOFError, BrokenPipeError) as error:
            raise AnswerError("it ended its process before it had returned") from error
        except (ValueError, RecursionError) as error:
            raise AnswerError("what it returns is no value") from error
        if not isinstance(reply, dict):
            raise AnswerError("what it returns is no value")
        if "raised" in reply:
            raise raised(reply["raised"])
        return reply

    def _pack(self, value: Any) -> Any:
        def handle(thing: Any) -> int:
            if isinstance(thing, Remote):
                return thing._place
            raise UnsupportedTest(f"they pass a {type(thing).__name__} to the answer; plain data alone can be passed")

        return pack(value, handle)

    def _unpack(self, value: Any) -> Any:
        return unpack(value, lambda place: Remote(self, int(place)))


class Remote:
    """An object on the answer's side. Only another such object can equal it."""

    def __init__(self, link: Link, place: int) -> None:
        self._link, self._place = link, place

    def __call__(self, *args: Any, **options: Any) -> Any:
        value = self._link.ask("call", self, *args, **options)
        shown = ", ".join([*(short(arg) for arg in args), *(f"{name}={short(arg)}" for name, arg in options.items())])
        self._link.last = f"called with ({shown}) it returned {short(value)}"
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("getattr", self, name)

    def __iter__(self) -> Any:
        return iter(self._link.ask("list", self))

    def __hash__(self) -> int:
        return self._place

    def __repr__(self) -> str:
        return str(self._link.ask("repr", self))


def _forward(name: str) -> Callable[..., Any]:
    return lambda self, *args: self._link.ask(name, self, *args)


def _compare(name: str) -> Callable[..., Any]:
    """With its like alone: no object of the answer's says that it equals what was expected."""
    return lambda self, other: self._link.ask(name, self, other) if isinstance(other, Remote) else NotImplemented


for _name in ("bool", "len", "str", *FORWARDED):
    setattr(Remote, f"__{_name}__", _forward(_name))
for _name in COMPARED:
    setattr(Remote, f"__{_name}__", _compare(_name))


def update(old: Any, new: Any) -> None:
    """An argument that the answer changed in place, changed here as well."""
    if isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif isinstance(old, dict | set) and type(old) is type(new):
        old.clear()
        old.update(new)


def raised(told: Any) -> Exception:
    """The answer's exception, as the nearest built-in one."""
    if not isinstance(told, dict):
        return AnswerError("what it raises is no exception")
    text = f"{told.get('name')}: {told.get('text')}" + (f", in `{told['line']}`" if told.get("line") else "")
    for name in told.get("kinds") or ():
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            error: Exception = kind.__new__(kind, text)
            error.args = (told.get("text"),)
            error.__dict__["answer"] = text
            return error
    return AnswerError(text)


def judged(link: Link, work: dict[str, Any]) -> dict[str, Any]:
    """The verdict: {passed, fault: answer | tests | None, feedback}."""
    try:
        stub, tests = compile(work["stub"], "stub.py", "exec"), compile(work["test"], "tests.py", "exec")
    except SyntaxError as error:
        return verdict("tests", said(error))
    try:
        names = link.start(work["path"], work["parts"])
    except Exception as error:
        return verdict("answer", f"the program does not run: {said(error)}")
    entry = work["entry"] or last_function(work["parts"][-1])
    if work["entry"] and entry not in names:
        return verdict("answer", f"it defines no {entry}")
    answer = Remote(link, 0)
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(stub, space)
        # The answer's names never hide a built-in one, which the tests may rely on, nor one of the prompt's.
        space |= {name: getattr(answer, name) for name in names if name not in space and not hasattr(builtins, name)}
        if entry in names:
            space[entry] = getattr(answer, entry)
        exec(tests, space)
        ran = run_functions(tests, space, entry)
    except (UnsupportedTest, SystemExit) as error:
        return verdict("tests", said(error))
    except Exception as error:
        own = isinstance(error, ImportError) and not hasattr(error, "answer")
        return verdict("tests" if own else "answer", explained(error, work["test"], link.last))
    if not ran and not asserts_at_once(ast.parse(work["test"])):
        return verdict("tests", "they test nothing: give asserts, a function check(candidate), or functions test_*")
    return verdict(None, "")


def last_function(code: str) -> str:
    """What a `check(candidate)` is about where nothing says it; no name where there is none."""
    functions = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return functions[-1] if functions else ""


def asserts_at_once(node: ast.AST) -> bool:
    """Whether tests assert something, or call what may, without being called themselves."""
    return isinstance(node, ast.Assert | ast.Raise) or any(
        asserts_at_once(child) or (isinstance(child, ast.Expr) and isinstance(child.value, ast.Call))
        for child in ast.iter_child_nodes(node)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )


def run_functions(tests: types.CodeType, space: dict[str, Any], entry: str) -> bool:
    """HumanEval's `check(candidate)`, else functions named test_*. False where there is none of them."""
    if "check" in tests.co_names and callable(space.get("check")):
        if entry not in space:
            raise AnswerError("it defines no function")
        space["check"](space[entry])
        return True
    functions = [space[name] for name in tests.co_names if name.startswith("test_") and callable(space.get(name))]
    for function in functions:
        function()
    return bool(functions)


def verdict(fault: str | None, feedback: str) -> dict[str, Any]:
    return {"passed": fault is None, "fault": fault, "feedback": feedback[:MOST_WORDS]}


def said(error: BaseException) -> str:
    """In one line; what the answer raised in the answer's words."""
    text = getattr(error, "answer", None) or (
        str(error) if isinstance(error, AnswerError | UnsupportedTest) else f"{type(error).__name__}: {error}"
    )
    return " ".join(str(text).split())


def explained(error: Exception, test: str, last: str) -> str:
    """Which assertion failed, or what was raised and where."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    statement = next(
        (
            ast.get_source_segment(test, node) or ""
            for node in ast.walk(ast.parse(test))
            if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or line)
        ),
        "",
    )
    failed = " ".join(statement.split())[: MOST_WORDS // 2]
    if isinstance(error, AssertionError) and not hasattr(error, "answer"):
        return f"failed: {failed or said(error)}" + (f"; {last}" if last else "")
    return said(error) + (f"; in the test {failed}" if failed else "")


def short(value: Any) -> str:
    text = "an object" if isinstance(value, Remote) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- both ----


def main() -> None:
    protect(True)
    sys.set_int_max_str_digits(0)
    (question_end, questions), (reply_end, replies) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(questions)
        os.close(reply_end)
        silence(0, 1, 2)
        protect(False)  # it has no secrets, and what it uses has to be seen
        try:
            serve(os.fdopen(question_end, "rb"), os.fdopen(replies, "wb"))
        finally:
            os._exit(0)
    os.close(question_end)
    os.close(replies)
    work = json.load(sys.stdin.buffer)
    out = os.fdopen(os.dup(1), "w")
    silence(0, 1)
    sys.path.extend(work["path"])
    found = judged(Link(os.fdopen(questions, "wb"), os.fdopen(reply_end, "rb")), work)
    out.write(f"\n{work['nonce']}{json.dumps(found)}\n")
    out.flush()
    os._exit(0)


def protect(closed: bool) -> None:
    """Whether other processes of the same user are kept out of this one's memory and files."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(not closed), 0, 0, 0)


def silence(*descriptors: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor)
    os.close(nothing)


if __name__ == "__main__":
    main()
