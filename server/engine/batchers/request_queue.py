"""Requests waiting for a step, in the order they should run. Pure.

Lowest priority number first; of equal ones the earliest deadline, with two twists. A deadline further away than
HORIZON_S counts as that far: a patient request must not wait behind every impatient one that comes later. And the
inputs of a client call of many are put off, each by the time its call's earlier inputs take at half of the engine's
rate: a call of 2,048 inputs so queues up as if they came in one after the other, and leaves the other half of the
engine to whoever comes meanwhile. A request's place never changes once it is queued, and nothing of its priority that
comes HORIZON_S later gets before it, so nothing starves but what asked to come last.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from server.wire.job import Request

HORIZON_S = 30.0
FAIR_SHARE = 0.5
"""The part of the engine's rate at which one call's inputs queue up."""


@dataclass(slots=True)
class RequestQueue:
    """Mutable. `num_tokens` counts who still waits; `len()` counts cancelled requests too, until they are dropped."""

    heap: list[tuple[int, float, int, Request]] = field(default_factory=list)
    num_tokens: int = 0
    count: int = 0

    def __len__(self) -> int:
        return len(self.heap)

    def push_call(self, requests: list[Request], *, tokens_per_s: float) -> None:
        """Queue the requests of one client call, in its order. `tokens_per_s` 0: not known yet, no spreading."""
        ahead_tokens = 0
        for request in requests:
            spread_s = ahead_tokens / (tokens_per_s * FAIR_SHARE) if tokens_per_s > 0 else 0.0
            request.virtual_deadline_s = min(request.deadline_s, request.arrival_s + HORIZON_S) + spread_s
            ahead_tokens += request.num_tokens
            self.push(request)

    def push(self, request: Request) -> None:
        """Queue one request at the place its virtual deadline gives it, or back at the place it had."""
        if request.queue_number == 0:
            self.count += 1
            request.queue_number = self.count
        heapq.heappush(self.heap, (request.priority, request.virtual_deadline_s, request.queue_number, request))
        request.is_queued = True
        self.num_tokens += request.num_tokens

    def pop(self) -> Request:
        request = heapq.heappop(self.heap)[3]
        if request.is_queued:
            self.num_tokens -= request.num_tokens
            request.is_queued = False
        return request

    def cancel(self, requests: list[Request]) -> None:
        """Nobody waits for these any more, queued or not; queued ones are dropped when they come up."""
        for request in requests:
            request.is_cancelled = True
            if request.is_queued:
                self.num_tokens -= request.num_tokens
                request.is_queued = False

    def __iter__(self) -> Iterator[Request]:
        """In no particular order."""
        return (request for *_, request in self.heap)
