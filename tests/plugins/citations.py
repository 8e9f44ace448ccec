"""Every sentence should cite a source that the prompt has, such as [2]; the score is the share of those that do."""

import re

from teachers.types import Answer, Chat, Judgment, SignalKind, TeacherFailure


class Citations:
    signals = frozenset({SignalKind.JUDGMENT})

    def __init__(self, name, options, tools):
        self.name = name
        self.mark = re.compile(options.get("mark", r"\[(\d+)\]"))

    async def score(self, request, deadline):
        asked = request.conversation
        prompt = "\n".join(m.content for m in asked.messages) if isinstance(asked, Chat) else asked.text
        sources = set(self.mark.findall(prompt))
        if not sources:
            return TeacherFailure(self.name, "no_sources", retryable=False)
        sentences = [text for text in re.split(r"(?<=[.!?])\s+", request.completion) if text.strip()]
        bare = [text for text in sentences if not sources & set(self.mark.findall(text))]
        score = (len(sentences) - len(bare)) / max(1, len(sentences))
        return Answer(Judgment(score, feedback="\n".join(f"No source for: {text}" for text in bare) or None))
