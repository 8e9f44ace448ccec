"""The kind `self`: the student as its own teacher, shown what it does not see when it writes.

With a reference answer and its initial weights this is on-policy self-distillation (OPSD, arXiv 2601.18734); with
feedback on the very answer that is scored and averaged weights, SDPO (2601.20802).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from teachers.errors import TeacherError
from teachers.models import where
from teachers.scoring import TOKENS_PER_FORWARD, HiddenStateTeacher
from teachers.switching import is_adapted
from teachers.types import (
    Answer,
    Chat,
    Conversation,
    Message,
    RawText,
    ScoreRequest,
    SignalKind,
    TeacherFailure,
)

if TYPE_CHECKING:
    from teachers.causal_lm import CausalLM
    from teachers.config import SelfTeacher

# The student with one set of its weights, as they are when this is called.
Own = Callable[[], HiddenStateTeacher]

_FEEDBACK = "feedback:"
_CHAT = {
    "reference": (
        "{prompt}\n\nHere is an answer that is known to be right:\n\n{seen}\n\n"
        "Understand what makes it right. Then answer in your own way, step by step, as if you had not been shown it."
    ),
    "privileged": (
        "{prompt}\n\nHere is something that may help:\n\n{seen}\n\n"
        "Use what is useful in it and answer, without mentioning it."
    ),
    "feedback": (
        "{prompt}\n\nA first answer to this was reviewed. The review:\n\n{seen}\n\n"
        "Answer again from the start and do better, without mentioning the review."
    ),
}
# The answer goes on where a raw text ends, so the prompt stands last.
_RAW = {
    "reference": "An answer that is known to be right:\n{seen}\n\n{prompt}",
    "privileged": "Something that may help:\n{seen}\n\n{prompt}",
    "feedback": "A review of a first answer:\n{seen}\n\n{prompt}",
}


@dataclass(frozen=True, eq=False)
class Selves:
    """The student as a teacher, by the weights that it computes with.

    initial: as before training; with an adapter that is its base, since a new adapter changes nothing.
    averaged: by the new weights' share at each step.
    """

    student: CausalLM
    initial: Own
    averaged: Callable[[float], Own]


@dataclass(eq=False)
class PrivilegedTeacher:
    """A LocalTeacher that answers like the student in `own`, shown what `sees` names, in the words of a template.

    chat, raw: the templates of the last user message and of a raw text; {seen} and {prompt} are filled in.
    """

    name: str
    own: Own
    sees: str
    chat: str
    raw: str
    signals: frozenset[SignalKind] = field(default=frozenset({SignalKind.FULL_VOCAB}))

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[tuple[str, Answer | TeacherFailure]]:
        """As `HiddenStateTeacher.score`; the N completion ids are the student's, unchanged.

        Failures besides: no_reference, no_privileged, no_feedback. Raises TeacherError as `show`.
        """
        shown: list[ScoreRequest] = []
        for request in requests:
            seen = seen_in(request, self.sees)
            if seen is None:
                yield request.request_id, self._nothing_to_see(request)
                continue
            template = self.chat if isinstance(request.conversation, Chat) else self.raw
            try:
                shown.append(replace(request, conversation=show(request.conversation, template, seen)))
            except TeacherError as error:
                raise TeacherError(f"{where(self.name)}.template: {error}") from error
        yield from self.own().score(shown)

    def close(self) -> None:
        """Nothing of its own is held: the weights are the student's."""

    def _nothing_to_see(self, request: ScoreRequest) -> TeacherFailure:
        source, _, teacher = self.sees.partition(":")
        lacks = f"{teacher} said nothing about it" if teacher else f"its prompt has no {source}"
        return TeacherFailure(self.name, f"no_{source}", retryable=False, detail=f"{request.request_id}: {lacks}")


def build(
    name: str, config: SelfTeacher, selves: Selves, tokens_per_forward: int = TOKENS_PER_FORWARD
) -> PrivilegedTeacher:
    """Call it before the first update: what the initial weights are is settled here.

    Raises:
        TeacherError: a template without {seen} or {prompt}; the base of a student that has no adapter.
    """
    own = _weights(name, config, selves)
    source = config.sees.partition(":")[0]
    template = None if config.template is None else _checked(name, config.template)

    def configured() -> HiddenStateTeacher:
        teacher = own()
        return replace(
            teacher,
            name=name,
            lm=replace(teacher.lm, name=name),
            spans=config.spans,
            system=config.system,
            tokens_per_forward=tokens_per_forward,
        )

    return PrivilegedTeacher(name, configured, config.sees, template or _CHAT[source], template or _RAW[source])


def seen_in(request: ScoreRequest, sees: str) -> str | None:
    """What a teacher that `sees` reference, privileged or feedback:TEACHER is shown; None where there is nothing."""
    if sees.startswith(_FEEDBACK):
        judgment = request.upstream.get(sees.removeprefix(_FEEDBACK))
        seen = judgment.feedback if judgment else None
    else:
        seen = request.reference if sees == "reference" else request.privileged
    return seen if seen is not None and seen.strip() else None


def show(conversation: Conversation, template: str, seen: str) -> Conversation:
    """The conversation with the filled-in template in place of its last user message, or of the whole raw text.

    A chat without a user message gets one at its end. Raises TeacherError for a raw text and a template that does not
    end with {prompt}: the answer that is scored goes on from the prompt's last letter.
    """
    if isinstance(conversation, RawText):
        if not template.endswith("{prompt}"):
            raise TeacherError("for prompts of raw text it has to end with {prompt}, where the answer goes on")
        return RawText(_filled(template, seen, conversation.text))
    messages = conversation.messages
    users = [place for place, message in enumerate(messages) if message.role == "user"]
    place = users[-1] if users else len(messages)
    prompt = messages[place].content if users else ""
    told = Message("user", _filled(template, seen, prompt))
    return replace(conversation, messages=(*messages[:place], told, *messages[place + 1 :]))


def _filled(template: str, seen: str, prompt: str) -> str:
    """One pass: what is filled in may hold braces, and even the words {seen} and {prompt}."""
    return re.sub(r"\{(seen|prompt)\}", lambda match: seen if match[1] == "seen" else prompt, template)


def _weights(name: str, config: SelfTeacher, selves: Selves) -> Own:
    if config.weights == "average":
        return selves.averaged(config.decay)
    if config.weights == "base" and not is_adapted(selves.student.model):
        raise TeacherError(
            f"{where(name)}.weights: base is the student without its adapter and it has none; use initial, which is "
            "the same before training, or student.tune: lora"
        )
    initial = selves.initial()
    return lambda: initial


def _checked(name: str, template: str) -> str:
    """Without the white space around it, which YAML's block texts end with."""
    template = template.strip()
    if absent := [part for part in ("{seen}", "{prompt}") if part not in template]:
        raise TeacherError(f"{where(name)}.template: it has no {absent[0]}, which stands for what is filled in; add it")
    return template
