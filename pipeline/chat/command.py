"""`tutelage chat RUN`: the student answers a person, beside its base and its teachers if asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from pipeline.chat.cast import others, student_speaker
from pipeline.chat.names import named
from pipeline.chat.session import Session
from pipeline.chat.speakers import Speaker
from pipeline.chat.talk import Talk
from pipeline.opened_run import device_here, moment_of, open_student
from pipeline.recorded import RecordedRun


@dataclass(frozen=True)
class Wanted:
    """What the command line says. once: one prompt, and no more. max_new_tokens: default, the recipe's."""

    against: tuple[str, ...] = ()
    once: str | None = None
    temperature: float = 0.0
    max_new_tokens: int | None = None
    step: int | None = None


def chat_with(run: RecordedRun, wanted: Wanted) -> None:
    """Raises TutelageError for what a user can mend; without a person at the other end, TeacherError as well."""
    names = named(run, wanted.against)
    moment = moment_of(run, wanted.step)
    tells = Console(stderr=True)
    person = sys.stdin.isatty() and wanted.once is None
    student = open_student(run, moment, device_here())

    def loading(what: str) -> None:
        tells.print(Text(what, style="dim"), soft_wrap=True)

    def load() -> tuple[Speaker, ...]:
        return (student_speaker(run, student), *others(run, names, student, loading))

    raw = _is_raw(run) or student.lm.tokenizer.chat_template is None
    session = Session(wanted.temperature, wanted.max_new_tokens or run.recipe.rollout.max_new_tokens, raw=raw)
    if person:
        kind = "each prompt is raw text to be continued" if raw else "a conversation"
        with_whom = f", beside {', '.join(names)}" if names else ""
        loading(f"{run.name} as it was after step {moment.step}{with_whom}; {kind}. /help lists the commands")
    lines = iter((wanted.once,)) if wanted.once is not None else _lines(person)
    talk = Talk(run, Console(), tells, load, person=person)
    talk.go(session, lines, commands=wanted.once is None)


def _is_raw(run: RecordedRun) -> bool:
    """Whether the student was trained on raw text alone."""
    return not any(source.as_chat for source in run.recipe.data.sources.values())


def _lines(person: bool) -> Iterator[str]:
    """What is typed, or what stands in a pipe: a prompt a line."""
    if not person:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  (lines can be edited, and had back)

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
