"""Jobs of any length, and a clock that a test winds: nothing here waits."""

from dataclasses import dataclass, field
from itertools import count

import numpy as np

from runtime.batch import ArraySpec
from runtime.engine import EngineInfo
from runtime.engines.null import NullEngine
from server.engine.batchers.batcher import StepLimits, StepResult
from server.engine.batchers.encoding import EncoderStep, EncodingBatcher
from server.engine.batchers.packed import PackedBatcher
from server.engine.cost_model import CostModel
from server.tasks import embed
from server.tasks.embed import EmbedParams
from server.wire.job import Job, Result, TokenSequence, write_inputs
from server.wire.result_stream import ResultStream

OUTPUT_DIM = 4
OUTPUT = ArraySpec("embeddings", "float32", ("num_seqs", OUTPUT_DIM))
REDUCERS = {"embed": embed.TASK.reduce_rows}


def make_sequence(num_tokens: int, first_id: int = 1) -> TokenSequence:
    return TokenSequence(np.arange(first_id, first_id + num_tokens, dtype=np.int32))


def make_job(sequences: list[TokenSequence], *, timeout_s: float = 30.0, priority: int = 0) -> Job:
    return Job("embed", write_inputs(sequences), timeout_s, EmbedParams(), priority=priority)


@dataclass(eq=False)
class Call:
    """A client's job, and what it has been told. Mutable. `done_s`: by row."""

    number: int
    seqlens: list[int]
    arrival_s: float
    stream: ResultStream
    done_s: dict[int, float] = field(default_factory=dict)
    ended_s: float | None = None
    error: Exception | None = None
    is_cancelled: bool = False

    @property
    def last_done_s(self) -> float:
        assert len(self.done_s) == len(self.seqlens), "Not all of it is done."
        return max(self.done_s.values())


@dataclass
class FakeEngineRun:
    """A batcher, which is packed unless a test says another, and an engine whose steps take what it predicts.

    Mutable: the time, and who came out.

    Whatever comes out twice, or after its call has ended, is an error.
    """

    limits: StepLimits
    cost_model: CostModel = field(default_factory=lambda: CostModel(per_token_s=1e-4))
    another: EncodingBatcher | None = None
    now_s: float = 0.0
    steps: list[list[tuple[int, int]]] = field(default_factory=list)
    """(number of the call, row), in the order of the batch."""
    calls: dict[int, Call] = field(default_factory=dict)

    def __post_init__(self) -> None:
        packed = PackedBatcher(self.limits, self.cost_model, [OUTPUT], REDUCERS)
        self.batcher: EncodingBatcher = self.another or packed
        self.engine = NullEngine(EngineInfo("null", "none", "", "cpu", 1, (OUTPUT,)))
        self.numbers = count()

    def add(
        self, seqlens: list[int], *, timeout_s: float = 30.0, priority: int = 0, arrival_s: float | None = None
    ) -> Call:
        """`arrival_s`: now, unless it is said."""
        arrival_s = self.now_s if arrival_s is None else arrival_s
        job = make_job([make_sequence(seqlen) for seqlen in seqlens], timeout_s=timeout_s, priority=priority)
        stream = ResultStream(lambda rows: self.batcher.cancel(stream, rows))
        call = Call(next(self.numbers), seqlens, arrival_s, stream)
        self.batcher.add(job, stream, arrival_s)
        self.calls[id(stream)] = call
        stream.listen(lambda result: self.note(call, result), lambda error: self.note_error(call, error))
        return call

    def note(self, call: Call, result: Result) -> None:
        assert call.ended_s is None and not call.is_cancelled
        for row, embedding in zip(result.rows.tolist(), result.arrays["embeddings"].values, strict=True):
            assert row not in call.done_s
            assert embedding[0] == call.seqlens[row], "The null engine tells a sequence's length."
            call.done_s[row] = self.now_s
        if result.is_last:
            call.ended_s = self.now_s
            assert len(call.done_s) == len(call.seqlens)

    def note_error(self, call: Call, error: Exception) -> None:
        assert call.ended_s is None and not call.is_cancelled
        call.ended_s, call.error = self.now_s, error

    def cancel(self, call: Call) -> None:
        call.is_cancelled = call.ended_s is None
        call.stream.cancel()

    def form(self) -> EncoderStep | None:
        """The next step, which is noted and keeps the limits."""
        step = self.batcher.form(self.now_s)
        if step is not None:
            assert step.cost.num_tokens <= self.limits.max_batch_tokens
            assert step.batch.num_seqs <= self.limits.max_batch_requests
            self.steps.append([(self.calls[id(item.encoding.stream)].number, item.index) for item in step.inputs])
        return step

    def step(self) -> list[tuple[int, int]]:
        """One step, start to end. Returns what was in it."""
        step = self.form()
        if step is None:
            return []
        started_s, self.now_s = self.now_s, self.now_s + step.predicted_s
        result = StepResult(step, started_s, self.now_s, self.engine.run(step.batch), None)
        assert self.batcher.settle(result, self.now_s) == []
        assert not self.batcher.deliver()
        return self.steps[-1]

    def drain(self) -> None:
        while self.batcher.num_queued_tokens:
            self.step()
        assert self.batcher.queue.num_items == 0
        assert not self.batcher.encodings
        self.batcher.check_books()
