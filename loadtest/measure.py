"""Turns answers into a `Result`: rates, percentiles, counts of failures, and how hard the client itself had to work.

Knows neither how the requests were scheduled nor how a result is shown.
"""

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Self

from loadtest.client import Answer
from loadtest.slo import TokenSlo
from loadtest.token_stream import Tokens

REJECTED = 429


class Sample(NamedTuple):
    """One request. `start_s` is when it was to be sent (open loop) or was sent (closed loop), on the loop's clock."""

    start_s: float
    end_s: float
    answer: Answer

    @property
    def is_ok(self) -> bool:
        return self.answer.is_success

    @property
    def latency_ms(self) -> float:
        return (self.end_s - self.start_s) * 1000

    @property
    def tokens(self) -> Tokens:
        if self.answer.tokens is None:
            raise RuntimeError("a generated answer has no tokens. This is a bug.")
        return self.answer.tokens

    @property
    def ttft_ms(self) -> float:
        """Time to first token, from when the request was to be sent."""
        return (self.tokens.first_s - self.start_s) * 1000

    def keeps(self, slo: TokenSlo) -> bool:
        """Whether the answer is a good one; a request that failed is not."""
        return self.is_ok and slo.allows(self.ttft_ms, self.tokens.mean_gap_s * 1000)


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

    @cached_property
    def turns(self) -> Iterator[bytes]:
        """The requests without end. A run goes on where the one before ended: a server that keeps what it computed of
        a prompt must not meet the same ones at each rate."""
        return itertools.cycle(self.requests)


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
    # Of generation only; inter-token latencies are of all tokens but each answer's first.
    tokens_per_s: float = math.nan  # of answers with success
    good_share: float = math.nan  # of all requests: within the SLO for tokens
    ttft_p50_ms: float = math.nan
    ttft_p95_ms: float = math.nan
    ttft_p99_ms: float = math.nan
    itl_p50_ms: float = math.nan
    itl_p95_ms: float = math.nan
    itl_p99_ms: float = math.nan
    itl_max_ms: float = math.nan  # the longest pause within an answer

    @property
    def is_generation(self) -> bool:
        return not math.isnan(self.tokens_per_s)

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
    samples: Sequence[Sample],
    traffic: Traffic,
    window: Window,
    *,
    mode: str,
    slo_ms: float,
    token_slo: TokenSlo | None = None,
    lag: LoopLag,
) -> Result:
    """The result of a run. Latencies are of successes only: a refusal is quick, and must not make a server look so."""
    started = [sample for sample in samples if window.begin_s <= sample.start_s < window.end_s]
    good = [sample for sample in started if sample.is_ok]
    bad = [sample.answer for sample in started if not sample.is_ok]
    rejected = [answer for answer in bad if answer.status == REJECTED]
    # By their end: the window then holds a steady flow, without the ramps of the first and the last requests.
    finished = [sample for sample in samples if sample.is_ok and window.begin_s <= sample.end_s <= window.end_s]
    latencies, lags_ms = sorted(sample.latency_ms for sample in good), sorted(lag_s * 1000 for lag_s in lag.lags_s)
    result = Result(
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
        failures=describe_failures(bad),
        lag_p99_ms=percentile(lags_ms, 0.99),
        lag_max_ms=max(lags_ms, default=math.nan),
        client_cpu=lag.client_cpu,
    )
    return result if token_slo is None else add_tokens(result, started, finished, token_slo)


def describe_failures(answers: Sequence[Answer]) -> str:
    failures = Counter(answer.error or f"HTTP {answer.status}" for answer in answers)
    return "; ".join(f"{kind}: {count}" for kind, count in failures.most_common())


def add_tokens(result: Result, started: Sequence[Sample], finished: Sequence[Sample], slo: TokenSlo) -> Result:
    """What generation has besides: the requests started in the window give latencies, those finished in it rates."""
    good = [sample for sample in started if sample.is_ok]
    ttfts = sorted(sample.ttft_ms for sample in good)
    gaps = sorted(gap_s * 1000 for sample in good for gap_s in sample.tokens.gaps_s)
    return replace(
        result,
        goodput_per_s=sum(sample.keeps(slo) for sample in finished) / result.duration_s,
        tokens_per_s=sum(sample.tokens.num_tokens for sample in finished) / result.duration_s,
        good_share=sum(sample.keeps(slo) for sample in started) / len(started) if started else 0.0,
        ttft_p50_ms=percentile(ttfts, 0.50),
        ttft_p95_ms=percentile(ttfts, 0.95),
        ttft_p99_ms=percentile(ttfts, 0.99),
        itl_p50_ms=percentile(gaps, 0.50),
        itl_p95_ms=percentile(gaps, 0.95),
        itl_p99_ms=percentile(gaps, 0.99),
        itl_max_ms=max((sample.tokens.worst_gap_s * 1000 for sample in good), default=math.nan),
    )
