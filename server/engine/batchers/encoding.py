"""Work whose inputs go through the model once and come out as rows: what every batcher of it has in common.

The queue, what becomes of a step's result, and who is told what. Which inputs share a step, and what that costs, says
the batcher for each kind of engine: `packed`, `padded`.
"""

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

import numpy as np

from runtime.batch import ArraySpec
from runtime.engine import EngineError
from server.engine.batchers.batcher import CANARY, Step, StepLimits, StepResult
from server.engine.batchers.job_queue import JobQueue, Waiting
from server.engine.batchers.packing import pack, pack_sequences, sort_by_length
from server.engine.batchers.token_cap import TokenCap
from server.engine.cost_model import StepCost
from server.errors import DeadlineExceeded, EngineFailure, Unservable
from server.metrics import Metrics
from server.wire.job import Array, Job, Ragged, Result
from server.wire.result_stream import ResultStream

Reduce = Callable[[dict[str, Ragged], Job, Sequence[int]], dict[str, Ragged]]
"""What a step has computed of these inputs of a job to what crosses the wire."""

logger = logging.getLogger("padless.engine")

MAX_LOOK_AHEAD = 64
"""Inputs passed over in search of one that still fits the budget."""
TURN_NUMBERS = 1 << 20
"""So many numbers are reduced, or twice as many, before others get the thread: logits over words take 3 ns each."""


@dataclass(slots=True, eq=False)
class Encoding:
    """A job under way. Mutable: how many of its inputs have not been answered."""

    job: Job
    stream: ResultStream
    waiting: Waiting["EncoderInput"]
    num_missing: int


@dataclass(frozen=True, slots=True)
class EncoderInput:
    encoding: Encoding
    index: int
    num_tokens: int
    num_logits: int = 1
    """Rows of logits that a model over words gives of it."""

    def count_rows(self, spec: ArraySpec) -> int:
        """Of such an output."""
        return {"num_tokens": self.num_tokens, "num_logits": self.num_logits}.get(str(spec.dims[0]), 1)


@dataclass(frozen=True, slots=True)
class EncoderStep(Step):
    """Sequence i of the batch is `inputs[i]`."""

    inputs: list[EncoderInput] = field(default_factory=list)


class Computed(NamedTuple):
    """What a step has made of inputs of one job, which are at these places of its batch."""

    encoding: Encoding
    places: list[int]
    result: StepResult[EncoderStep]


@dataclass(slots=True)
class Room:
    """What is left of a budget. Mutable. A step has room for as many rows of logits as for inputs."""

    num_tokens: int
    num_requests: int
    num_logits: int

    @property
    def is_full(self) -> bool:
        return self.num_tokens == 0 or self.num_requests == 0

    def take(self, item: EncoderInput) -> bool:
        """Whether it fits; then it is in."""
        if item.num_tokens > self.num_tokens or item.num_logits > self.num_logits or self.num_requests == 0:
            return False
        self.num_tokens -= item.num_tokens
        self.num_logits -= item.num_logits
        self.num_requests -= 1
        return True


class EncodingBatcher(ABC):
    """A Batcher. Mutable: the queue, the jobs that are not answered, and what was computed and is not handed out.

    `outputs`: what the graph computes; `reducers`: by task.
    """

    max_steps_under_way = 2
    """One runs and one is ready behind it."""

    def __init__(self, limits: StepLimits, outputs: Sequence[ArraySpec], reducers: Mapping[str, Reduce]) -> None:
        self.limits = limits
        self.cap = TokenCap(limits.max_batch_tokens)
        self.longest_input = 0
        self.outputs = {spec.name: spec for spec in outputs}
        self.reducers = reducers
        self.queue: JobQueue[EncoderInput] = JobQueue()
        self.encodings: dict[ResultStream, Encoding] = {}
        self.computed: deque[Computed] = deque()

    @abstractmethod
    def choose(self) -> list[EncoderInput]:
        """What goes into the next step, and no longer waits."""

    @abstractmethod
    def price(self, lengths: Sequence[int]) -> tuple[StepCost, float]:
        """Of a step of sequences of these lengths, ascending: what it consists of, and the seconds it should take."""

    @abstractmethod
    def predict_queue(self) -> float:
        """Seconds to compute all that waits in the queue; 0 where nothing was measured yet."""

    @abstractmethod
    def tokens_per_s(self) -> float:
        """See Batcher."""

    @abstractmethod
    def observe(self, result: StepResult[EncoderStep]) -> None:
        """See Batcher."""

    @property
    def num_queued_tokens(self) -> int:
        return self.queue.num_tokens

    @property
    def max_step_tokens(self) -> int:
        """No less than the longest input: whether there is memory for that one, it is told when it runs alone."""
        return max(self.cap.num_tokens, self.longest_input)

    def add(self, job: Job, stream: ResultStream, now_s: float) -> None:
        """See Batcher. No input may be longer than the budget: it would never run."""
        lengths, logits = job.input_ids.lengths.tolist(), count_logits(job)
        if max(logits) > self.limits.max_batch_requests:
            raise EngineFailure(
                f"an input of {max(logits)} rows of logits is over the budget of a step. This is a bug."
            )
        if max(lengths) > self.limits.max_batch_tokens:
            raise EngineFailure(f"an input of {max(lengths)} tokens is over the budget of a step. This is a bug.")
        if unknown := set(job.outputs.values()) - self.outputs.keys():
            raise Unservable(f"what is served of this model does not compute {', '.join(sorted(unknown))}")
        self.longest_input = max(self.longest_input, *lengths)
        waiting = self.queue.enter(priority=job.priority, deadline_s=now_s + job.timeout_s, arrival_s=now_s)
        encoding = self.encodings[stream] = Encoding(job, stream, waiting, job.num_inputs)
        for index, (num_tokens, num_logits) in enumerate(zip(lengths, logits, strict=True)):
            self.queue.push(waiting, index, EncoderInput(encoding, index, num_tokens, num_logits))

    def cancel(self, stream: ResultStream, rows: Sequence[int]) -> None:
        """Single rows cost no more than to forget them would."""
        if not rows:
            self.forget(stream)

    def forget(self, stream: ResultStream) -> Encoding | None:
        encoding = self.encodings.pop(stream, None)
        if encoding is not None:
            self.queue.drop(encoding.waiting)
        return encoding

    def wait_s(self, now_s: float) -> float | None:
        """Hungry with max_wait_s 0. Otherwise lazy: until the budget is full, the oldest has waited long enough, or the
        most urgent deadline is only two predicted steps away. Nothing more is computed while there is something to hand
        out: it may be as large as the vocabulary."""
        queue, limits = self.queue, self.limits
        if not queue.order or self.computed:
            return None
        is_full = queue.num_tokens >= self.max_step_tokens or queue.num_items >= limits.max_batch_requests
        if is_full or limits.max_wait_s == 0:
            return 0.0
        until_old = min(waiting.arrival_s for waiting in queue.order) + limits.max_wait_s - now_s
        until_urgent = min(waiting.deadline_s for waiting in queue.order) - 2 * self.predict_queue() - now_s
        return max(0.0, min(until_old, until_urgent))

    def form(self, now_s: float) -> EncoderStep | None:
        for stream in self.list_late(now_s):
            self.fail(stream, DeadlineExceeded("the deadline passed before the answer was complete"))
        chosen = self.choose()
        return self.pack_step(chosen) if chosen else None

    def list_late(self, now_s: float) -> list[ResultStream]:
        """Whose deadline has passed while some of its inputs wait."""
        return [next(iter(waiting.items.values())).encoding.stream for waiting in self.queue.list_late(now_s)]

    def make_room(self) -> Room:
        """For a whole step."""
        return Room(self.max_step_tokens, self.limits.max_batch_requests, self.limits.max_batch_requests)

    def fill(self, room: Room) -> list[EncoderInput]:
        """Take what fits from the queue, shared out fairly. An input that does not fit is passed over, and is there
        next time."""
        chosen: list[EncoderInput] = []
        num_passed_over = 0
        for waiting, index, item in self.queue.share_out(room.num_tokens, room.num_requests):
            if room.take(item):
                chosen.append(self.queue.take(waiting, index))
            else:
                num_passed_over += 1
            if room.is_full or num_passed_over == MAX_LOOK_AHEAD:
                break
        return chosen

    def pack_step(self, inputs: Sequence[EncoderInput]) -> EncoderStep:
        order = sort_by_length([item.num_tokens for item in inputs])
        ordered = [inputs[place] for place in order]
        cost, predicted_s = self.price([item.num_tokens for item in ordered])
        batch = pack([(item.encoding.job, item.index) for item in ordered])
        return EncoderStep(
            replace(batch, outputs=list_outputs([item.encoding.job for item in ordered])),
            cost,
            predicted_s,
            min(item.encoding.waiting.arrival_s for item in ordered),
            ordered,
        )

    def form_canary(self) -> EncoderStep:
        return EncoderStep(pack_sequences([CANARY]), *self.price([1]))

    def settle(self, result: StepResult[EncoderStep], now_s: float) -> list[EncoderStep]:
        if result.output is None:
            return self.retry_or_fail(result.step, result.error or EngineError("the engine gave no reason"), now_s)
        by_job: dict[ResultStream, list[int]] = {}
        for place, item in enumerate(result.step.inputs):
            by_job.setdefault(item.encoding.stream, []).append(place)
        for stream, places in by_job.items():
            if stream in self.encodings:
                parts = self.cut(places, result)
                self.computed += [Computed(self.encodings[stream], part, result) for part in parts]
        return []

    def cut(self, places: list[int], result: StepResult[EncoderStep]) -> Iterator[list[int]]:
        """Of a large step's: parts of up to TURN_NUMBERS, or of one input."""
        assert result.output is not None
        arrays = result.output.arrays
        if sum(values.size for values in arrays.values()) <= TURN_NUMBERS:
            yield places
            return
        widths = [(self.outputs[name], prod(values.shape[1:])) for name, values in arrays.items()]
        part, num_numbers = list[int](), 0
        for place in places:
            num_added = sum(result.step.inputs[place].count_rows(spec) * width for spec, width in widths)
            if part and num_numbers + num_added > TURN_NUMBERS:
                yield part
                part, num_numbers = [], 0
            part.append(place)
            num_numbers += num_added
        yield part

    def deliver(self) -> bool:
        """As much as a turn of the loop should take: another step is running already."""
        num_numbers = 0
        while self.computed and num_numbers < TURN_NUMBERS:
            encoding, places, result = self.computed.popleft()
            if encoding.stream not in self.encodings:
                continue
            try:
                num_numbers += self.answer(encoding, places, result)
            except Exception as error:  # a bug of ours; the job must hear of it
                logger.exception("what a step has computed could not be handed out")
                self.fail(encoding.stream, EngineFailure(f"{type(error).__name__}: {error}"))
        return bool(self.computed)

    def answer(self, encoding: Encoding, places: list[int], result: StepResult[EncoderStep]) -> int:
        """Give a job the rows of its inputs, which are at these places of the batch. Returns the numbers in them."""
        assert result.output is not None
        indices = np.array([result.step.inputs[place].index for place in places], np.int32)
        found = result.output.arrays
        arrays = {
            name: self.pick(self.outputs[output], found[output], result.step, places)
            for name, output in (encoding.job.outputs or {name: name for name in self.outputs}).items()
        }
        reduced = self.reducers[encoding.job.task](arrays, encoding.job, indices.tolist())
        encoding.num_missing -= len(places)
        is_last = encoding.num_missing == 0
        queue_s = result.started_s - encoding.waiting.arrival_s
        encoding.stream.put(Result(indices, reduced, is_last, queue_s, result.ended_s - result.started_s))
        if is_last:
            del self.encodings[encoding.stream]
        return sum(rows.values.size for rows in arrays.values())

    def pick(self, spec: ArraySpec, values: Array, step: EncoderStep, places: list[int]) -> Ragged:
        """The rows of some sequences of the batch: one each, or one for each of their tokens, or of those guessed."""
        if spec.dims[0] == "num_tokens":
            return Ragged(values, step.batch.cu_seqlens).pick(places)
        if spec.dims[0] == "num_logits":
            splits = np.searchsorted(step.batch.arrays["logit_rows"], step.batch.cu_seqlens).astype(np.int32)
            return Ragged(values, splits).pick(places)
        return Ragged(values[places])

    def retry_or_fail(self, step: EncoderStep, error: Exception, now_s: float) -> list[EncoderStep]:
        """Halve a failed step until the culprit is alone: the others of its batch must not fail with it."""
        self.cap.learn(step.cost.num_tokens, error)
        for item in step.inputs:
            if item.encoding.waiting.deadline_s <= now_s:
                late = DeadlineExceeded("the deadline passed while a failed step was tried again")
                self.fail(item.encoding.stream, late)
        waiting = [item for item in step.inputs if item.encoding.stream in self.encodings]
        if len(step.inputs) > 1:
            middle = len(waiting) // 2
            return [self.pack_step(half) for half in (waiting[:middle], waiting[middle:]) if half]
        for item in waiting:
            self.fail(item.encoding.stream, EngineFailure(str(error)))
        return []

    def fail(self, stream: ResultStream, error: Exception) -> None:
        """A whole job."""
        if self.forget(stream) is not None:
            stream.fail(error)

    def fail_step(self, step: EncoderStep, error: Exception) -> None:
        for item in step.inputs:
            self.fail(item.encoding.stream, error)

    def fail_all(self, error: Exception) -> None:
        for stream in list(self.encodings):
            self.fail(stream, error)

    def publish(self, metrics: Metrics) -> None:  # noqa: B027, it is whole
        """There is nothing but what the loop publishes."""

    def check_books(self) -> None:
        assert self.encodings or (self.queue.num_items, self.queue.num_tokens) == (0, 0), "Inputs wait for nobody."


def list_outputs(jobs: Iterable[Job]) -> frozenset[str] | None:
    """What any of them wants of the graph; None: all."""
    wanted: set[str] = set()
    for job in jobs:
        if not job.outputs:
            return None
        wanted.update(job.outputs.values())
    return frozenset(wanted)


def count_logits(job: Job) -> list[int]:
    """Rows of logits of each input: one where the job does not say."""
    rows = job.inputs.get("logit_rows")
    return [1] * job.num_inputs if rows is None else rows.lengths.tolist()
