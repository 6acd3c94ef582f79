"""Turns answers into a `Result`: rates, percentiles, counts of failures, and how hard the client itself had to work.

Knows neither how the requests were scheduled nor how a result is shown.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from loadtest.client import Answer

REJECTED = 429


class Sample(NamedTuple):
    """One request. `start_s` is when it was to be sent (open loop) or was sent (closed loop), on the loop's clock."""

    start_s: float
    end_s: float
    answer: Answer

    @property
    def is_ok(self) -> bool:
        return 200 <= self.answer.status < 300

    @property
    def latency_ms(self) -> float:
        return (self.end_s - self.start_s) * 1000


class Window(NamedTuple):
    """The part of a run that counts: after the warm-up, before the end."""

    begin_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.begin_s


def whole_run(begin_s: float, samples: Sequence[Sample]) -> Window:
    """From the start to the last answer: for a run whose length was not known beforehand."""
    return Window(begin_s, max(sample.end_s for sample in samples))


@dataclass(frozen=True)
class Traffic:
    """What is sent: encoded requests, in turn, and what the report calls them."""

    workload: str
    requests: list[bytes]
    texts_per_request: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the report: one mode at one load. NaN where the mode has no such number."""

    mode: str
    workload: str
    offered_per_s: float = math.nan  # open loop
    connections: int = 0  # closed loop
    requests: int
    duration_s: float
    requests_per_s: float  # answered with success
    texts_per_s: float
    goodput_per_s: float = math.nan  # answered with success and within the SLO
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    errors: int  # no answer, or one that is neither success nor 429
    rejected: int  # 429
    retry_after: int = 0  # of the rejected: those told when to come back
    failures: str = ""
    max_in_flight: int = 0
    is_saturated: bool = False
    meets_slo: bool = False
    lag_p99_ms: float = math.nan
    lag_max_ms: float = math.nan
    client_cpu: float = math.nan  # cores

    def failed_share(self) -> float:
        return (self.errors + self.rejected) / self.requests if self.requests else 1.0


@dataclass
class LoopLag:
    """How late the event loop runs a timer, and the CPU time of this process, while it is entered.

    Late timers mean late sends and late reads: the client, not the server, would then be measured.
    """

    interval_s: float = 0.02
    lags_s: list[float] = field(default_factory=list)
    client_cpu: float = math.nan

    async def __aenter__(self) -> Self:
        self._began = time.perf_counter(), time.process_time()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        wall_s, cpu_s = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self.client_cpu = cpu_s / wall_s

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + self.interval_s
            await asyncio.sleep(self.interval_s)
            self.lags_s.append(max(0.0, clock() - due))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values: always a value that occurred. NaN of none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def measure(
    samples: Sequence[Sample], traffic: Traffic, window: Window, *, mode: str, slo_ms: float, lag: LoopLag
) -> Result:
    """The result of a run. Latencies are of successes only: a refusal is quick, and must not make a server look so."""
    started = [sample for sample in samples if window.begin_s <= sample.start_s < window.end_s]
    good = [sample for sample in started if sample.is_ok]
    bad = [sample.answer for sample in started if not sample.is_ok]
    rejected = [answer for answer in bad if answer.status == REJECTED]
    # By their end: the window then holds a steady flow, without the ramps of the first and the last requests.
    finished = [sample for sample in samples if sample.is_ok and window.begin_s <= sample.end_s <= window.end_s]
    latencies, lags_ms = sorted(sample.latency_ms for sample in good), sorted(lag_s * 1000 for lag_s in lag.lags_s)
    failures = Counter(answer.error or f"HTTP {answer.status}" for answer in bad)
    return Result(
        mode=mode,
        workload=traffic.workload,
        requests=len(started),
        duration_s=window.length_s,
        requests_per_s=len(finished) / window.length_s,
        texts_per_s=len(finished) * traffic.texts_per_request / window.length_s,
        goodput_per_s=sum(sample.latency_ms <= slo_ms for sample in finished) / window.length_s,
        p50_ms=percentile(latencies, 0.50),
        p95_ms=percentile(latencies, 0.95),
        p99_ms=percentile(latencies, 0.99),
        p999_ms=percentile(latencies, 0.999),
        errors=len(bad) - len(rejected),
        rejected=len(rejected),
        retry_after=sum(answer.has_retry_after for answer in rejected),
        failures="; ".join(f"{kind}: {count}" for kind, count in failures.most_common()),
        lag_p99_ms=percentile(lags_ms, 0.99),
        lag_max_ms=max(lags_ms, default=math.nan),
        client_cpu=lag.client_cpu,
    )
