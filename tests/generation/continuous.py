"""A DecodingBatcher over a decoder that remembers all it is told, step by step without a loop, a thread or a clock."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np

from runtime.batch import ArraySpec, Batch, Output, Paging
from runtime.engine import Engine, EngineInfo
from runtime.engines.null_decoder import NullDecoder, choose_token
from server.engine import executor
from server.engine.batchers.batcher import StepLimits, StepResult
from server.engine.batchers.decoding import DecodingBatcher, DecodingOptions, DecodingStep
from server.engine.batchers.matcher import MakeMatcher, refuse_grammar
from server.engine.cost_model import CostModel
from server.engine.executor import DeviceThread
from server.wire.generation import AnswerNews, GenerationParams, read_news
from server.wire.job import Job, Result, TokenSequence, join_rows, write_inputs
from server.wire.result_stream import ResultStream

VOCAB_SIZE = 97
LOGITS = (ArraySpec("logits", "float32", ("num_logits", VOCAB_SIZE)),)
MAX_TOTAL_TOKENS = 200


@dataclass
class Heard:
    """What a client has been told of a job. Mutable. `answers` and `reasons` by row."""

    stream: ResultStream
    answers: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    news: list[AnswerNews] = field(default_factory=list)
    error: Exception | None = None
    has_ended: bool = False

    def __post_init__(self) -> None:
        self.stream.listen(self.hear, self.hear_error)

    def hear(self, result: Result) -> None:
        self.has_ended = result.is_last
        for item in read_news(result):
            assert item.row not in self.reasons, "An answer has ended, and went on."
            self.news.append(item)
            self.answers.setdefault(item.row, []).extend(item.token_ids)
            if item.finish_reason:
                self.reasons[item.row] = item.finish_reason

    def hear_error(self, error: Exception) -> None:
        self.error = error


def count_vocab(engine: Engine) -> int:
    return int(engine.info.outputs[0].dims[-1])


def make_job(
    prompts: Sequence[Sequence[int]],
    params: GenerationParams,
    *,
    sources: Sequence[Sequence[int]] = (),
    timeout_s: float = 1e9,
    **options: Any,
) -> Job:
    """`sources`: of each prompt, of encoder-decoders."""
    inputs = write_inputs([TokenSequence(np.array(prompt, np.int32)) for prompt in prompts])
    if sources:
        inputs["source_ids"] = join_rows([np.array(source, np.int32) for source in sources])
    return Job("generate", inputs, timeout_s, params, rows_per_input=params.num_sequences, **options)


class Visited:
    """An engine that calls `on_visit` while it computes the batches `visits`, counted from 1. Mutable: the count."""

    def __init__(self, engine: Engine, visits: Collection[int], on_visit: Callable[[], None]) -> None:
        self.engine, self.visits, self.on_visit = engine, visits, on_visit
        self.num_batches = 0

    def run(self, batch: Batch) -> Output:
        self.num_batches += 1
        if self.num_batches in self.visits:
            self.on_visit()
        return self.engine.run(batch)


class Continuous:
    """`start` generations, then `step` until all is said. Time stands still unless a test moves `now_s`.

    `step_s`: what the batcher believes that a step takes; 0: it does not know. `visits`: while these batches are
    computed, counted from 1, somebody comes who wants a step.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_batch_tokens: int = 64,
        max_batch_requests: int = 16,
        max_batch_logits: int = 64,
        prefill_chunk_tokens: int = 0,
        has_prefix_cache: bool = True,
        num_drafts: int = 0,
        engine: Engine | None = None,
        make_matcher: MakeMatcher = refuse_grammar,
        max_total_tokens: int = MAX_TOTAL_TOKENS,
        step_s: float = 0.0,
        visits: Collection[int] = (),
    ) -> None:
        engine_info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=num_blocks)
        self.engine = NullDecoder(engine_info) if engine is None else engine
        # Of an engine's blocks a test may use fewer, so that they run out.
        mine = self.engine.info
        counts = {"num_drafts": mine.num_drafts, "num_counters": mine.num_counters}
        info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=num_blocks, **counts)
        self.batcher = DecodingBatcher(
            StepLimits(max_batch_tokens, max_batch_requests, 0.0, max_batch_logits),
            CostModel(fixed_s=step_s),
            info,
            DecodingOptions(max_total_tokens, prefill_chunk_tokens, has_prefix_cache, num_drafts, make_matcher),
            vocab_size=count_vocab(self.engine),
            wake=lambda: None,
        )
        self.allocator = self.batcher.running.allocator
        visited = Visited(self.engine, visits, lambda: self.device.interrupt())
        self.device: DeviceThread[DecodingStep] = DeviceThread(visited, "null")
        self.now_s = 0.0
        self.batch_sizes: list[int] = []
        self.source_sizes: list[int] = []
        """Tokens of the sources that were encoded in each step."""
        self.following_sizes: list[int] = []
        """Of the batches that followed on steps."""

    def start(self, prompt: Sequence[int], params: GenerationParams, **options: Any) -> Heard:
        return self.start_job(make_job([prompt], params, **options))

    def start_job(self, job: Job) -> Heard:
        stream = ResultStream(lambda rows: self.batcher.cancel(stream, rows))
        self.batcher.add(job, stream, self.now_s)
        return Heard(stream)

    def step(self) -> bool:
        """Whether there was anything to do."""
        step = self.batcher.form(self.now_s)
        if step is not None:
            self.compute(step)
        self.batcher.deliver()
        return self.batcher.wait_s(self.now_s) is not None

    def compute(self, step: DecodingStep) -> None:
        """The step, and what has to be tried again of it."""
        steps = [step]
        while steps:
            step = steps.pop(0)
            assert step.batch.num_tokens <= self.batcher.limits.max_batch_tokens
            assert step.batch.num_logits <= self.batcher.limits.max_batch_logits
            self.batch_sizes.append(step.batch.num_tokens)
            assert step.batch.paging is not None
            self.source_sizes.append(count_sources(step.batch.paging))
            result = self.run_engine(step)
            self.following_sizes += [run.batch.num_tokens for run in result.following]
            steps += self.batcher.settle(result, self.now_s)

    def run_engine(self, step: DecodingStep) -> StepResult[DecodingStep]:
        self.device.is_interrupted = False
        with patch.object(executor, "monotonic", lambda: self.now_s):
            return self.device.run(step)

    def run(self, max_steps: int = 100_000) -> None:
        """Until nothing is left to do. Afterwards every block is free, and nothing is left of any job."""
        for _ in range(max_steps):
            if not self.step():
                break
        else:
            raise AssertionError("It does not end.")
        self.allocator.check()
        assert self.allocator.num_used_blocks == 0
        assert not self.batcher.decodings and not self.batcher.owners
        assert (self.batcher.queue.num_items, self.batcher.num_queued_tokens) == (0, 0)


def count_sources(paging: Paging) -> int:
    return 0 if paging.sources is None or paging.sources.batch is None else paging.sources.batch.num_tokens


def expected_answer(prompt: Sequence[int], num_tokens: int, stop: Sequence[int] = ()) -> list[int]:
    """What the null decoder says greedily when nothing goes wrong."""
    past = list(prompt)
    for _ in range(num_tokens):
        past.append(choose_token(np.array(past), 0, VOCAB_SIZE))
        if past[-1] in stop:
            break
    return past[len(prompt) :]
