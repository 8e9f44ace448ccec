"""A chat while it lasts: lines in, commands obeyed, prompts answered by all who take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from rich.console import Console
from rich.text import Text

from pipeline.chat.screen import board
from pipeline.chat.session import Session, is_command, obey, plain
from pipeline.chat.speakers import Speaker
from pipeline.errors import RunError
from pipeline.recorded import RecordedRun
from pipeline.rollout.protocol import SamplingSettings
from teachers.errors import TeacherError
from teachers.prices import FREE, money


@dataclass(eq=False)
class Talk:
    """A chat while it lasts. load: makes those who answer, called when there is something to answer."""

    run: RecordedRun
    console: Console
    tells: Console
    load: Callable[[], Sequence[Speaker]]
    person: bool
    dollars: Decimal = FREE

    def go(self, session: Session, lines: Iterator[str], *, commands: bool) -> None:
        speakers: Sequence[Speaker] | None = None
        for line in lines:
            if not line.strip():
                continue
            if commands and is_command(line):
                outcome = obey(line, session)
                session = outcome.session
                if outcome.said:
                    self.tells.print(Text(outcome.said, style="cyan"), soft_wrap=True)
                if outcome.over:
                    break
                continue
            if speakers is None:
                speakers = self.load()
                for note in filter(None, (speaker.note for speaker in speakers)):
                    self.tells.print(Text(note, style="yellow"), soft_wrap=True)
            session = self.asked(session, plain(line) if commands else line, speakers)
        if self.dollars:
            self.tells.print(Text(f"in all {money(self.dollars)}"), soft_wrap=True)

    def asked(self, session: Session, prompt: str, speakers: Sequence[Speaker]) -> Session:
        """One prompt, answered by each in turn. A failure of one is told, and the others go on; without a person it
        ends the command when all have answered. Ctrl-C takes the prompt back."""
        recipe = self.run.recipe
        settings = SamplingSettings(
            max_new_tokens=session.max_new_tokens,
            temperature=session.temperature,
            stop=recipe.rollout.stop,
            stop_token_ids=recipe.rollout.stop_token_ids,
        )
        answers: dict[str, str] = {}
        failed: list[str] = []
        try:
            with board(self.console, [speaker.name for speaker in speakers]) as shown:
                for speaker in speakers:
                    name = speaker.name
                    shown.begin(name)
                    try:
                        said = speaker.answer(
                            session.conversation(name, prompt),
                            settings,
                            session.asked,
                            lambda piece, name=name: shown.text(name, piece),  # type: ignore[misc]
                        )
                    except TeacherError as error:
                        failed.append(str(error))
                        if self.person or len(speakers) > 1:
                            shown.fail(name, str(error) if self.person else "(no answer)")
                        continue
                    shown.end(name, said)
                    answers[name] = said.text
                    self.dollars += said.dollars or FREE
        except KeyboardInterrupt:
            if not self.person:
                raise
            self.tells.print(Text("stopped; this prompt is not remembered", style="cyan"))
            return session
        if failed and not self.person:
            raise RunError("\n".join(failed))
        return session.after(prompt, answers)
