"""Closed-loop load: N connections, each sending its next request as soon as its answer is back.

It finds the throughput of a busy server. Its latencies say little of what users would see: a slow server is asked less.
"""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from loadtest.client import Answer, Client
from loadtest.measure import LoopLag, Result, Sample, Traffic, Window, measure, whole_run
from loadtest.slo import TokenSlo

PAUSE_AFTER_NO_ANSWER_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Closed:
    """How many connections, and for how long: `duration_s` after the warm-up or, if given, `num_requests` in all."""

    connections: int = 64
    duration_s: float = 10.0
    warmup_s: float = 1.0
    num_requests: int | None = None  # the warm-up is then not left out
    timeout_s: float = 10.0
    slo_ms: float = 200.0
    token_slo: TokenSlo | None = None  # of generation; it decides there


class Loop:
    """The N senders. Mutable: how many are still busy, whether new requests are sent, the samples so far."""

    def __init__(self, client: Client, requests: Iterator[bytes]) -> None:
        self._client, self._requests = client, requests
        self._loop = asyncio.get_running_loop()
        self._busy = 0
        self._is_open = True
        self._stopped = asyncio.Event()
        self.samples: list[Sample] = []

    def start(self, connections: int) -> None:
        self._busy = connections
        for _ in range(connections):
            self._next()

    def _next(self) -> None:
        request = next(self._requests, None) if self._is_open else None
        if request is None:
            self._busy -= 1
            if not self._busy:
                self._stopped.set()
            return
        start_s = self._loop.time()
        self._client.send(request, lambda answer: self._land(start_s, answer))

    def _land(self, start_s: float, answer: Answer) -> None:
        self.samples.append(Sample(start_s, self._loop.time(), answer))
        if answer.status:
            self._next()
        else:
            # A refused connection fails in microseconds: without a pause the client would only spin.
            self._loop.call_later(PAUSE_AFTER_NO_ANSWER_S, self._next)

    async def wait(self, timeout_s: float | None) -> bool:
        """Waits until every sender has stopped; whether they did in time."""
        try:
            await asyncio.wait_for(self._stopped.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def wait_for_all(self, timeout_s: float) -> None:
        """Waits until the requests are used up, or no answer has come for `timeout_s`."""
        num_answered = -1
        while num_answered < len(self.samples):
            num_answered = len(self.samples)
            if await self.wait(timeout_s):
                return

    async def stop(self, timeout_s: float) -> None:
        """Sends no more; what has no answer by the timeout is closed, and counts as an error."""
        self._is_open = False
        if not await self.wait(timeout_s):
            await self._client.abort("Timeout")
            await self.wait(None)


async def run_closed(client: Client, requests: Iterator[bytes], plan: Closed) -> tuple[list[Sample], Window]:
    """The samples of one closed-loop run, and which part of it counts."""
    is_counted = plan.num_requests is not None
    loop = Loop(client, itertools.islice(requests, plan.num_requests))
    start_s = asyncio.get_running_loop().time()
    loop.start(plan.connections)
    if is_counted:
        await loop.wait_for_all(plan.timeout_s)
    else:
        await loop.wait(plan.warmup_s + plan.duration_s)
    await loop.stop(plan.timeout_s)
    begin_s = start_s + plan.warmup_s
    window = whole_run(start_s, loop.samples) if is_counted else Window(begin_s, begin_s + plan.duration_s)
    return loop.samples, window


async def measure_closed(client: Client, traffic: Traffic, plan: Closed) -> Result:
    """A closed-loop run as a row of the report."""
    async with LoopLag() as lag:
        samples, window = await run_closed(client, traffic.turns, plan)
    result = measure(samples, traffic, window, mode="closed", slo_ms=plan.slo_ms, token_slo=plan.token_slo, lag=lag)
    return replace(result, connections=plan.connections, max_in_flight=plan.connections)
