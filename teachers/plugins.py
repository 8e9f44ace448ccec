"""The kind `plugin`: a class of the user's, with what it leaves out added.

One that is waited for has `async def score(self, request, deadline)`, one that answers a batch in this process
`def score(self, requests)`. Its mistakes are failures that name its file and line, never a crash.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from teachers.errors import TeacherError
from teachers.models import where
from teachers.plugin_classes import (
    LOCAL,
    MISTAKES,
    REMOTE,
    begins,
    construct,
    fault,
    file_of,
    is_remote,
    load,
    require_methods,
)
from teachers.types import (
    Answer,
    Finding,
    FullVocab,
    Judgment,
    ScoreRequest,
    SignalKind,
    TeacherFailure,
    TopK,
    Usage,
)

if TYPE_CHECKING:
    from teachers.config import PluginTeacher
    from teachers.tools import Tools

T = TypeVar("T")

_KIND_OF = {FullVocab: SignalKind.FULL_VOCAB, TopK: SignalKind.TOP_K, Judgment: SignalKind.JUDGMENT}
_NOT_ASKED = ("request_id", "group_id", "step", "source")  # they name a question, and are no part of it


@dataclass(frozen=True)
class Voice:
    """How a plugin's answers and mistakes are told.

    stays_here: the recipe says that it sends nothing to anybody. secret: what no message may show.
    """

    name: str
    file: Path
    signals: frozenset[SignalKind]
    stays_here: bool
    secret: str | None = field(repr=False)

    def failure(self, reason: str, detail: str, *, retryable: bool = False, in_doubt: bool = False) -> TeacherFailure:
        return TeacherFailure(self.name, reason, retryable, _without(self.secret, detail), in_doubt=in_doubt)

    def failed(self, error: BaseException) -> TeacherFailure:
        return self.failure("plugin_failed", fault(error, self.file))

    def refusal(self, request: ScoreRequest) -> TeacherFailure | None:
        """Where this request may not be shown to it."""
        if not request.private or self.stays_here:
            return None
        advice = "if it sends nothing anywhere, the recipe has to say so: provider: {region: local}"
        return self.failure("private", f"a plugin is not trusted with private prompts; {advice}")

    def checked(self, result: Any, request: ScoreRequest) -> Answer | TeacherFailure:
        """The plugin's result, or a failure that says why it is none."""
        if isinstance(result, TeacherFailure):
            return replace(result, teacher=self.name, detail=_without(self.secret, result.detail))
        if not isinstance(result, Answer):
            problem = f"its score returned {_short(result)}; return an Answer or a TeacherFailure"
        elif (found := _problem(result, request, self.signals)) is None:
            return result
        else:
            problem = found
        return self.failure("plugin_failed", f"{self.file}: {problem}")

    def warn_of_closing(self, error: BaseException) -> None:
        """All answers are in: nothing is lost but what it wanted to tidy up."""
        warnings.warn(f"{where(self.name)}: closing it failed: {self.failed(error).detail}", stacklevel=3)


def build(name: str, config: PluginTeacher, tools: Tools) -> RemotePlugin | LocalPlugin:
    """Loads the class, makes Class(name, options, tools) of it, and adds what it leaves out.

    Raises:
        TeacherError: there is no such class, it does not load, or it is no teacher; with its file and line.
    """
    secret = _secret(name, config)
    if config.system is not None:
        raise TeacherError(f"{where(name)}.system: a plugin decides itself what it reads; say it in its options")
    try:
        kind = load(config.use, tools.folder)
        require_methods(kind)
        plugin, signals = construct(kind, name, config.options, tools)
        if is_remote(kind):
            _require_remote(plugin, signals, priced=config.price is not None or config.budget is not None)
    except TeacherError as error:
        raise TeacherError(f"{where(name)}.use: {_without(secret, str(error))}") from error
    voice = Voice(name, file_of(kind), signals, config.provider.region == "local", secret)
    if not is_remote(kind):
        return LocalPlugin(name, signals, plugin, voice)
    return RemotePlugin(name, signals, getattr(plugin, "identity", None) or identity(kind, config), plugin, voice)


# ---- the two teachers that a class becomes ----


@dataclass(eq=False)
class RemotePlugin:
    """A RemoteTeacher around a plugin's object."""

    name: str
    signals: frozenset[SignalKind]
    identity: str
    plugin: Any
    voice: Voice

    def key(self, request: ScoreRequest) -> str:
        """The plugin's own, else `fingerprint`."""
        try:
            return self._key(request)
        except MISTAKES:  # `score` does it again, and says what is wrong
            return fingerprint(request)

    def estimate(self, request: ScoreRequest) -> Usage:
        """The plugin's own, else nothing."""
        try:
            return self._estimate(request)
        except MISTAKES:  # as in `key`
            return Usage()

    async def score(self, request: ScoreRequest, deadline: float) -> Answer | TeacherFailure:
        """What the plugin says. Failures besides its own: plugin_failed, timeout, private."""
        if refusal := self.voice.refusal(request):
            return refusal
        try:
            self._key(request)
            self._estimate(request)
            async with asyncio.timeout_at(deadline):
                return self.voice.checked(await self.plugin.score(request, deadline), request)
        except TimeoutError:
            return self.voice.failure("timeout", "it gave no answer in time", retryable=True, in_doubt=True)
        except MISTAKES as error:
            return self.voice.failed(error)

    async def examine(self, deadline: float) -> tuple[Finding, ...]:
        """Where the plugin is, and its own findings if it has any."""
        here = Finding("plugin", None, f"{type(self.plugin).__name__} in {self.voice.file}")
        if not hasattr(self.plugin, "examine"):
            return (here,)
        try:
            async with asyncio.timeout_at(deadline):
                return (here, *await self.plugin.examine(deadline))
        except MISTAKES as error:
            return (here, Finding("examine", False, self.voice.failed(error).detail))

    async def aclose(self) -> None:
        if not hasattr(self.plugin, "aclose"):
            return
        try:
            await self.plugin.aclose()
        except MISTAKES as error:
            self.voice.warn_of_closing(error)

    def _key(self, request: ScoreRequest) -> str:
        return _of_type(str, self.plugin.key(request)) if hasattr(self.plugin, "key") else fingerprint(request)

    def _estimate(self, request: ScoreRequest) -> Usage:
        return _of_type(Usage, self.plugin.estimate(request)) if hasattr(self.plugin, "estimate") else Usage()


@dataclass(eq=False)
class LocalPlugin:
    """A LocalTeacher around a plugin's object."""

    name: str
    signals: frozenset[SignalKind]
    plugin: Any
    voice: Voice

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]:
        """What the plugin says, once for each request; plugin_failed for those that it leaves or trips over."""
        left: dict[str, ScoreRequest] = {}
        for request in requests:
            if refusal := self.voice.refusal(request):
                yield request.request_id, refusal
            else:
                left[request.request_id] = request
        try:
            for request_id, result in self.plugin.score(tuple(left.values())):
                if request_id not in left:
                    raise ValueError(f"{request_id} was not asked, or is answered already")
                yield request_id, self.voice.checked(result, left.pop(request_id))
            failure = self.voice.failure("plugin_failed", f"{self.voice.file}: its score left this one unanswered")
        except MISTAKES as error:
            failure = self.voice.failed(error)
        for request_id in left:
            yield request_id, failure

    def close(self) -> None:
        if not hasattr(self.plugin, "close"):
            return
        try:
            self.plugin.close()
        except MISTAKES as error:
            self.voice.warn_of_closing(error)


# ---- what is added ----


def identity(kind: type, config: PluginTeacher) -> str:
    """Of the whole file that the class is in, since its helpers decide too, and of the options.

    What the file imports from elsewhere is not seen: a plugin that needs it to be has an `identity` of its own.
    """
    source = hashlib.sha256(file_of(kind).read_bytes()).hexdigest()
    return _digest(["plugin", kind.__qualname__, source, config.options])


def fingerprint(request: ScoreRequest) -> str:
    """Of all that a plugin can read in a request, but for its step and what names it."""
    return _digest({part.name: getattr(request, part.name) for part in fields(request) if part.name not in _NOT_ASKED})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {part.name: getattr(value, part.name) for part in fields(value)}
    return dict(value) if isinstance(value, Mapping) else str(value)


# ---- what is refused ----


def _require_remote(plugin: Any, signals: frozenset[SignalKind], *, priced: bool) -> None:
    kind = type(plugin)
    this = f"{begins(kind)}: {kind.__name__}"
    if SignalKind.FULL_VOCAB in signals:
        raise TeacherError(
            f"{this} is waited for, and hidden states stay in this process: give top_k, or write "
            f"`{LOCAL['score'].shape}`"
        )
    if not isinstance(getattr(plugin, "identity", ""), str):
        raise TeacherError(f"{this}.identity has to be a text")
    if priced and not hasattr(plugin, "estimate"):
        raise TeacherError(
            f"{this} has a price or a budget and no estimate; write `{REMOTE['estimate'].shape}`: the most Usage that "
            "a question can come to"
        )


def _problem(answer: Answer, request: ScoreRequest, signals: frozenset[SignalKind]) -> str | None:
    """What is wrong with a plugin's answer."""
    signal = answer.signal
    if _KIND_OF.get(type(signal)) not in signals:
        said = ", ".join(sorted(signals))
        return f"its score gave a {type(signal).__name__} and its signals are {said}; make them agree"
    if isinstance(signal, Judgment):
        score = signal.score
        if score is not None and not (isinstance(score, int | float) and 0 <= score <= 1):
            return f"its score gave {_short(score)}; a score lies in [0, 1]"
        return None
    tokens = len(request.token_ids)
    rows = signal.hidden if isinstance(signal, FullVocab) else signal.token_logprobs
    if {rows.shape[0], signal.valid.shape[0]} != {tokens}:
        return f"its score gave {rows.shape[0]} rows for {tokens} tokens; give one for each"
    return None


def _secret(name: str, config: PluginTeacher) -> str | None:
    """The value of the recipe's `key`, which the plugin reads itself and no message may show."""
    if config.key is None:
        return None
    if not os.environ.get(config.key):
        raise TeacherError(f"{where(name)}.key: the environment variable {config.key} is not set; export it")
    return os.environ[config.key]


def _without(secret: str | None, text: str) -> str:
    return text.replace(secret, "***") if secret else text


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of_type(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{_short(value)} is no {kind.__name__}")
    return value
