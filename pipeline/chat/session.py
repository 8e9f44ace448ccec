"""What a chat remembers, and what a line that begins with / changes in it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from teachers.types import Chat, Conversation, Message, RawText

HELP = {
    "/help": "these commands",
    "/system TEXT": "a system prompt from now on; without TEXT, none",
    "/reset": "forget what was said; the system prompt stays",
    "/temperature X": "0 is greedy",
    "/tokens N": "of an answer, at most",
    "/quit": "or Ctrl-D",
}


@dataclass(frozen=True)
class Session:
    """turns: what each who answers has heard and said, by name. asked: prompts so far. raw: prompts are text to be
    continued, each by itself, and there is no system prompt."""

    temperature: float
    max_new_tokens: int
    raw: bool = False
    system: str | None = None
    turns: Mapping[str, tuple[Message, ...]] = field(default_factory=dict)
    asked: int = 0

    def conversation(self, name: str, prompt: str) -> Conversation:
        """What `name` is shown next."""
        if self.raw:
            return RawText(prompt)
        system = () if self.system is None else (Message("system", self.system),)
        return Chat((*system, *self.turns.get(name, ()), Message("user", prompt)))

    def after(self, prompt: str, answers: Mapping[str, str]) -> Session:
        """With a prompt and its answers remembered; who did not answer has not heard it."""
        heard = {
            name: (*self.turns.get(name, ()), Message("user", prompt), Message("assistant", text))
            for name, text in answers.items()
        }
        return replace(self, turns={**self.turns, **heard}, asked=self.asked + 1)


@dataclass(frozen=True)
class Outcome:
    """What a command came to. said: the answer to it. over: the chat is."""

    session: Session
    said: str
    over: bool = False


def is_command(line: str) -> bool:
    """A text that begins with / is sent by writing it with two."""
    return line.startswith("/") and not line.startswith("//")


def plain(line: str) -> str:
    return line[1:] if line.startswith("//") else line


def obey(line: str, session: Session) -> Outcome:
    """A line that begins with /; what it does not know it explains."""
    name, _, rest = line.partition(" ")
    act = _COMMANDS.get(name)
    if act is None:
        text = f"there is no {name}; /help lists what there is. To send a text that begins with /, write it with two"
        return Outcome(session, text)
    return act(session, rest.strip())


def _help(session: Session, _: str) -> Outcome:
    width = max(map(len, HELP))
    return Outcome(session, "\n".join(f"{name.ljust(width)}  {text}" for name, text in HELP.items()))


def _system(session: Session, text: str) -> Outcome:
    if session.raw:
        return Outcome(session, "prompts are raw text here, which has no system prompt")
    said = f"the system prompt is: {text}" if text else "no system prompt"
    return Outcome(replace(session, system=text or None), said)


def _reset(session: Session, _: str) -> Outcome:
    return Outcome(replace(session, turns={}), "forgotten")


def _temperature(session: Session, text: str) -> Outcome:
    if not text:
        return Outcome(session, f"the temperature is {session.temperature:g}")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        return Outcome(session, f"{text} is no temperature; write /temperature 0, which is greedy, or more, such as 1")
    return Outcome(replace(session, temperature=value), f"the temperature is {value:g}")


def _tokens(session: Session, text: str) -> Outcome:
    if not text:
        return Outcome(session, f"at most {session.max_new_tokens} tokens an answer")
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        return Outcome(session, f"{text} is no number of tokens; write /tokens 256")
    return Outcome(replace(session, max_new_tokens=int(text)), f"at most {int(text)} tokens an answer")


def _quit(session: Session, _: str) -> Outcome:
    return Outcome(session, "", over=True)


_COMMANDS: Mapping[str, Callable[[Session, str], Outcome]] = {
    "/help": _help,
    "/system": _system,
    "/reset": _reset,
    "/temperature": _temperature,
    "/tokens": _tokens,
    "/quit": _quit,
    "/exit": _quit,
}
