"""Open-loop load: requests arrive by a Poisson process, whatever the server does, and a sweep finds what it can take.

Latency runs from the INTENDED time of sending. A stall then shows in every request that was due while it lasted, not in
the few that happened to be on their way (coordinated omission).
"""

import asyncio
import random
import resource
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from loadtest.client import Answer, Client
from loadtest.measure import LoopLag, Result, Sample, Traffic, Window, measure, whole_run
from loadtest.saturation import Backlog, max_in_flight
from loadtest.search import Trial, best_rate, next_rate
from loadtest.slo import MIN_GOOD_SHARE, TokenSlo

MAX_FAILED_SHARE = 0.001


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rate, held for `warmup_s` that are not counted and `duration_s` that are."""

    rate: float
    duration_s: float
    warmup_s: float = 1.0
    slo_ms: float = 200.0  # for p99; of generation what an answer may take in all, which only bounds what is in flight
    token_slo: TokenSlo | None = None  # of generation; it decides there
    timeout_s: float = 10.0  # after the last send, for what is still in flight
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search for the highest rate that meets the SLO: `step` at the rates of `search`, starting at its own."""

    step: Step
    precision: float = 0.05
    max_rates: int = 12
    repeats: int = 1  # per rate; the majority decides


def poisson_arrivals(rate: float, duration_s: float, seed: int) -> Iterator[float]:
    """Arrival times in seconds from the start: the gaps are exponential, so arrivals come in bursts as users do."""
    rng = random.Random(seed)
    now = rng.expovariate(rate)
    while now < duration_s:
        yield now
        now += rng.expovariate(rate)


def connection_limit() -> int:
    """Half the file descriptors of this process: a server started from the same shell has the same limit."""
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class Flight:
    """The requests of one step. Mutable: how many are in flight, the samples of those that ended, the backlog."""

    def __init__(self, client: Client, backlog: Backlog) -> None:
        self.backlog = backlog
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._in_flight = 0
        self._landed = asyncio.Event()
        self.start_s = self._loop.time()
        self.samples: list[Sample] = []
        self.is_saturated = False

    async def fly(self, arrivals: Iterable[float], requests: Iterable[bytes]) -> None:
        """Sends each request at its arrival, answers or no answers, until saturated."""
        start_s = self.start_s = self._loop.time()
        for arrival_s, request in zip(arrivals, requests, strict=False):
            # Even when late: the loop must get its turn to read answers.
            await asyncio.sleep(max(0.0, start_s + arrival_s - self._loop.time()))
            self._send(start_s + arrival_s, request)
            self.is_saturated = self.backlog.observe(arrival_s, self._in_flight)
            if self.is_saturated:
                break

    def _send(self, intended_s: float, request: bytes) -> None:
        self._in_flight += 1
        self._client.send(request, lambda answer: self._land(intended_s, answer))

    def _land(self, intended_s: float, answer: Answer) -> None:
        self._in_flight -= 1
        self.samples.append(Sample(intended_s, self._loop.time(), answer))
        if not self._in_flight:
            self._landed.set()

    async def drain(self, timeout_s: float) -> None:
        """Waits for what is in flight; what has not ended by the timeout is closed, and counts as an error."""
        self._landed.clear()
        if not self._in_flight:
            return
        try:
            await asyncio.wait_for(self._landed.wait(), timeout_s)
        except TimeoutError:
            await self._client.abort("Timeout")
            await self._landed.wait()


async def run_step(client: Client, requests: Iterator[bytes], step: Step) -> Flight:
    """Runs one step until every request has ended."""
    slo_s = step.slo_ms / 1000
    limit = max_in_flight(step.rate, slo_s, connection_limit())
    flight = Flight(client, Backlog(limit=limit, window_s=max(0.25, slo_s)))
    arrivals = poisson_arrivals(step.rate, step.warmup_s + step.duration_s, step.seed)
    await flight.fly(arrivals, requests)
    await flight.drain(step.timeout_s)
    return flight


def choose_window(flight: Flight, step: Step) -> Window:
    """A step that was stopped early is judged by all of it: the queue of its warm-up is part of what went wrong."""
    if flight.is_saturated:
        return whole_run(flight.start_s, flight.samples)
    begin_s = flight.start_s + step.warmup_s
    return Window(begin_s, begin_s + step.duration_s)


async def measure_step(client: Client, traffic: Traffic, step: Step) -> Result:
    """One step as a row of the report."""
    async with LoopLag() as lag:
        flight = await run_step(client, traffic.turns, step)
    window = choose_window(flight, step)
    result = measure(
        flight.samples, traffic, window, mode="sweep", slo_ms=step.slo_ms, token_slo=step.token_slo, lag=lag
    )
    return replace(
        result,
        offered_per_s=step.rate,
        max_in_flight=flight.backlog.peak,
        is_saturated=flight.is_saturated,
        meets_slo=not flight.is_saturated and meets_slo(result, step),
    )


def meets_slo(result: Result, step: Step) -> bool:
    """Of generation most requests must be good, and one that failed is not; of embeddings p99 must be, and hardly any
    may fail."""
    if step.token_slo is not None:
        return result.good_share >= MIN_GOOD_SHARE
    return result.p99_ms <= step.slo_ms and result.failed_share() <= MAX_FAILED_SHARE


def judge(results: Sequence[Result]) -> list[Trial]:
    """One trial per rate, in the order they were tried: it passes if most of its runs did."""
    votes: dict[float, list[bool]] = {}
    for result in results:
        votes.setdefault(result.offered_per_s, []).append(result.meets_slo)
    return [Trial(rate, 2 * sum(passed) > len(passed)) for rate, passed in votes.items()]


def find_best(results: Sequence[Result]) -> Result | None:
    """The row of the highest rate that meets the SLO."""
    steps = [row for row in results if row.mode == "sweep"]
    rate = best_rate(judge(steps))
    return next((row for row in steps if row.offered_per_s == rate and row.meets_slo), None)


async def run_sweep(measure_at: Callable[[Step], Awaitable[Result]], sweep: Sweep) -> list[Result]:
    """Measures rate after rate until the capacity is known well enough or `max_rates` were tried."""
    results: list[Result] = []
    for _ in range(sweep.max_rates):
        rate = next_rate(judge(results), sweep.step.rate, sweep.precision)
        if rate is None:
            break
        for repeat in range(sweep.repeats):
            results.append(await measure_at(replace(sweep.step, rate=rate, seed=sweep.step.seed + repeat)))
    return results
