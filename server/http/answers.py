"""Whole answers, gathered from their news. Knows no protocol."""

from contextlib import aclosing
from dataclasses import dataclass, field

from server.http.text_generation import TextGeneration
from server.text.text_stream import Delta, TokenNews
from server.wire.generation import FinishReason


@dataclass(slots=True)
class Answer:
    """One whole answer. Mutable: grows until it has a finish_reason."""

    texts: list[str] = field(default_factory=list)
    tokens: list[TokenNews] = field(default_factory=list)
    finish_reason: FinishReason = ""
    score: float | None = None
    """See `AnswerNews`."""

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.tokens.extend(delta.tokens)
        self.finish_reason = delta.finish_reason
        self.score = delta.score

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def mean_logprob(self) -> float:
        """By which the best of several are chosen."""
        found = [token.logprob.logprob for token in self.tokens if token.logprob is not None]
        return sum(found) / len(found) if found else 0.0


async def collect_answers(generation: TextGeneration) -> list[Answer]:
    """All answers to all prompts, in the engine's order."""
    answers = [Answer() for _ in range(len(generation.prompts) * generation.num_per_prompt)]
    async with aclosing(generation.read()) as news:
        async for deltas in news:
            for delta in deltas:
                if delta.is_first:
                    answers[delta.index] = Answer()
                answers[delta.index].add(delta)
    return answers
