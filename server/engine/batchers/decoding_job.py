"""A job that generates, in its batcher: its prompts' generations, and which answers are still open."""

import secrets
from dataclasses import dataclass, field, replace

from server.engine.batchers.job_queue import Waiting
from server.engine.batchers.sequences import Generation
from server.engine.batchers.sources import Source
from server.wire.generation import AnswerNews, GenerationParams
from server.wire.job import Job
from server.wire.result_stream import ResultStream

Outbox = list[tuple[ResultStream, list[AnswerNews], bool]]
"""News that a step has brought, for whom, and whether they are the last."""


@dataclass(slots=True, eq=False)
class DecodingJob:
    """Mutable: its generations, one for each prompt, None once they have ended; and the rows that have not."""

    job: Job
    stream: ResultStream
    waiting: Waiting[Generation]
    outbox: Outbox
    generations: list[Generation | None] = field(default_factory=list)
    open_rows: set[int] = field(default_factory=set)

    @property
    def params(self) -> GenerationParams:
        params: GenerationParams = self.job.params
        return params

    @property
    def num_open(self) -> int:
        """Generations."""
        return sum(generation is not None for generation in self.generations)

    def add_prompt(self, prompt: list[int], source: Source | None, max_total_tokens: int) -> Generation:
        index, params = len(self.generations), self.params
        first = index * params.num_sequences
        generation = Generation(
            prompt,
            params,
            (*self.waiting.place, index),
            self.waiting.deadline_s,
            max_total_tokens,
            secrets.randbits(63) if params.seed is None else params.seed,
            self.job.salt,
            lambda news: self.tell(first, news),
            source,
        )
        self.generations.append(generation)
        self.open_rows |= set(range(first, first + params.num_sequences))
        return generation

    def tell(self, first: int, news: list[AnswerNews]) -> None:
        """News of the answers to one prompt, whose first is row `first`."""
        moved = [replace(item, row=first + item.row) for item in news] if first else news
        self.open_rows -= {item.row for item in moved if item.finish_reason}
        self.outbox.append((self.stream, moved, not self.open_rows))
