"""Several engines of one model as one: each job goes where it is done soonest, cut over several where that gains.

What an engine cannot finish, because it died, hangs or fails, a sibling computes, once, from its beginning, as long as
the client has not been told any of it. An engine that fails again and again gets no work for a while (Nygard, 2007:
circuit breaker).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

import numpy as np
import numpy.typing as npt

from server.errors import EngineFailure, EngineUnavailable
from server.wire.client import SocketClient
from server.wire.job import EngineStatus, Job, Result
from server.wire.result_stream import ResultStream

SPLIT_GAIN_S = 0.002
"""A job is cut where it is predicted to end this much earlier: a second step and message cost about half of it."""
FAILURES_TO_OPEN = 3
"""In a row."""
FIRST_OPEN_S, LONGEST_OPEN_S = 1.0, 30.0


@dataclass(slots=True)
class Breaker:
    """Whether an engine should get work, by what became of the last. Mutable."""

    num_failures: int = 0
    open_until_s: float = 0.0

    def is_open(self, now_s: float) -> bool:
        return now_s < self.open_until_s

    def note_success(self) -> None:
        self.num_failures, self.open_until_s = 0, 0.0

    def note_failure(self, now_s: float) -> None:
        self.num_failures += 1
        if self.num_failures >= FAILURES_TO_OPEN:
            longer = min(self.num_failures - FAILURES_TO_OPEN, 10)
            self.open_until_s = now_s + min(FIRST_OPEN_S * 2**longer, LONGEST_OPEN_S)


@dataclass(slots=True, eq=False)
class Replica:
    """Mutable: its breaker."""

    engine: SocketClient
    breaker: Breaker = field(default_factory=Breaker)

    @property
    def status(self) -> EngineStatus:
        return self.engine.status

    @property
    def backlog_s(self) -> float:
        """What is sent there already takes so long; tokens, as if one took a second, where no rate is known."""
        return self.engine.pending_tokens / (self.status.tokens_per_s or 1.0)


class ReplicaSet:
    """An EngineClient."""

    def __init__(self, engines: Sequence[SocketClient]) -> None:
        self.replicas = [Replica(engine) for engine in engines]

    def statuses(self) -> tuple[EngineStatus, ...]:
        return tuple([replica.status for replica in self.replicas])

    def submit(self, job: Job) -> ResultStream:
        """See EngineClient."""
        return SplitJob(self, job, share_out(job, self.list_usable())).stream

    def list_usable(self, *, but: Replica | None = None) -> list[Replica]:
        """Those that may be sent work, the one with the least to do first. Raises EngineUnavailable."""
        now_s = monotonic()
        ready = [replica for replica in self.replicas if replica.status.is_ready and replica is not but]
        if not ready:
            reasons = "; ".join(dict.fromkeys(replica.status.reason for replica in self.replicas))
            raise EngineUnavailable(f"no replica is ready: {reasons}")
        closed = [replica for replica in ready if not replica.breaker.is_open(now_s)]
        return sorted(closed or ready, key=lambda replica: replica.backlog_s)

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.engine.close()


class SplitJob:
    """One job over one or several replicas, and one stream of all their results. Mutable: the parts not over."""

    def __init__(self, replicas: ReplicaSet, job: Job, shares: Sequence[tuple[Replica, int, int]]) -> None:
        self.replicas = replicas
        self.deadline_s = monotonic() + job.timeout_s
        self.stream = ResultStream(self.cancel)
        self.parts = [Part(self, job.cut(first, last), first * job.rows_per_input) for _, first, last in shares]
        for part, (replica, _, _) in zip(self.parts, shares, strict=True):
            if not self.stream.is_over:  # an earlier part may have failed at once
                part.start(replica)

    def put(self, result: Result) -> None:
        if result.is_last:
            self.parts = [part for part in self.parts if not part.is_over]
            if self.parts:
                result = replace(result, is_last=False)
        self.stream.put(result)

    def fail(self, error: Exception) -> None:
        """One part's failure is the job's."""
        self.stream.fail(error)
        self.cancel(())

    def cancel(self, rows: Sequence[int]) -> None:
        for part in self.parts:
            part.cancel(rows)
        self.parts = [part for part in self.parts if not part.is_over]


class Part:
    """What one replica does of a job; `first_row` of the job is its row 0. Mutable: where it runs, how far it is."""

    def __init__(self, whole: SplitJob, job: Job, first_row: int) -> None:
        self.whole, self.job, self.first_row = whole, job, first_row
        self.is_over = self.has_results = False
        self.replica: Replica | None = None
        self.moved_from: Replica | None = None
        self.stream: ResultStream | None = None

    def start(self, replica: Replica) -> None:
        self.replica = replica
        try:
            self.stream = replica.engine.submit(self.job)
        except EngineUnavailable as error:
            self.on_error(error)
            return
        self.stream.listen(self.on_result, self.on_error)

    def on_result(self, result: Result) -> None:
        assert self.replica is not None
        self.has_results = True
        if result.is_last:
            self.is_over = True
            self.replica.breaker.note_success()
            if self.moved_from is not None:
                self.moved_from.breaker.note_failure(monotonic())
        self.whole.put(replace(result, rows=result.rows + self.first_row) if self.first_row else result)

    def on_error(self, error: Exception) -> None:
        assert self.replica is not None
        is_idempotent = self.moved_from is None and not self.whole.stream.told.intersection(self.rows.tolist())
        is_engines = isinstance(error, EngineFailure | EngineUnavailable)
        if is_idempotent and is_engines and self.move():
            return
        if is_engines and self.moved_from is None:
            self.replica.breaker.note_failure(monotonic())  # whose fault it was, nobody else can show any more
        self.is_over = True
        self.whole.fail(error)

    def move(self) -> bool:
        """To a sibling. Whether there is one. Only if that one succeeds was it the first one's fault."""
        try:
            sibling = self.whole.replicas.list_usable(but=self.replica)[0]
        except EngineUnavailable:
            return False
        if self.has_results:
            self.whole.stream.restart(self.rows)
        self.moved_from = self.replica
        self.job = replace(self.job, timeout_s=self.whole.deadline_s - monotonic())
        self.start(sibling)
        return True

    @property
    def rows(self) -> npt.NDArray[np.int32]:
        """Of the whole job."""
        num_rows = self.job.num_inputs * self.job.rows_per_input
        return np.arange(self.first_row, self.first_row + num_rows, dtype=np.int32)

    def cancel(self, rows: Sequence[int]) -> None:
        if self.is_over or self.stream is None:
            return
        num_rows = self.job.num_inputs * self.job.rows_per_input
        own = [row - self.first_row for row in rows if 0 <= row - self.first_row < num_rows]
        if own or not rows:
            self.is_over = not rows
            self.stream.cancel(own)


def share_out(job: Job, replicas: Sequence[Replica]) -> list[tuple[Replica, int, int]]:
    """(replica, first input, last input) by which the job ends soonest; `replicas` as `list_usable` gives them.

    As many replicas as it pays to use are filled up to one level of time, as water fills a vessel's basins.
    """
    whole = [(replicas[0], 0, job.num_inputs)]
    if job.num_inputs == 1 or len(replicas) == 1 or not all(replica.status.tokens_per_s for replica in replicas):
        return whole
    rates = [replica.status.tokens_per_s for replica in replicas]
    backlogs = [float(replica.engine.pending_tokens) for replica in replicas]
    best, best_s = 1, (backlogs[0] + job.load_tokens) / rates[0]
    for count in range(2, min(len(replicas), job.num_inputs) + 1):
        level_s = (sum(backlogs[:count]) + job.load_tokens) / sum(rates[:count])
        if level_s + SPLIT_GAIN_S < best_s and level_s > backlogs[count - 1] / rates[count - 1]:
            best, best_s = count, level_s
    if best == 1:
        return whole
    shares = [best_s * rate - backlog for rate, backlog in zip(rates[:best], backlogs[:best], strict=True)]
    loads = job.input_ids.lengths + job.num_answer_tokens
    middles = np.cumsum(loads) - loads / 2  # whoever has most of an input's share gets it
    ends = np.searchsorted(middles, np.cumsum(shares[:-1])).tolist()
    borders = [0, *ends, job.num_inputs]
    parts = zip(replicas, borders[:-1], borders[1:], strict=False)
    return [(replica, first, last) for replica, first, last in parts if last > first]
