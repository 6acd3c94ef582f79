"""Chooses the requests of one step. Knows lengths, deadlines and predicted cost; knows nothing of tensors. Pure."""

from dataclasses import dataclass, field

from server.cost_model import CostModel, StepCost
from server.request import Request
from server.request_queue import RequestQueue

MAX_LOOK_AHEAD = 64
"""Requests passed over in search of one that still fits the budget."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_batch_tokens: int
    max_batch_requests: int
    max_wait_s: float


@dataclass(frozen=True, slots=True)
class Choice:
    """`requests` go into the step; `expired` missed their deadline and get told so. Cancelled ones are in neither."""

    requests: list[Request]
    expired: list[Request]

    @property
    def cost(self) -> StepCost:
        return StepCost(
            sum(request.num_tokens for request in self.requests),
            sum(request.num_tokens**2 for request in self.requests),
        )


@dataclass(slots=True)
class Scheduler:
    """Mutable: the queue, and `oldest_arrival_s`, since when a request has waited for the next step."""

    limits: SchedulerLimits
    cost_model: CostModel
    queue: RequestQueue = field(default_factory=RequestQueue)
    oldest_arrival_s: float = 0.0

    def add(self, requests: list[Request]) -> None:
        """Queue one client call. No request may be longer than the budget: it would never run."""
        assert all(request.num_tokens <= self.limits.max_batch_tokens for request in requests), "This is a bug."
        if not self.queue.heap:
            self.oldest_arrival_s = requests[0].arrival_s
        self.queue.push_call(requests, tokens_per_s=self.cost_model.tokens_per_s(self.limits.max_batch_tokens))

    def wait_s(self, now_s: float) -> float | None:
        """How long a free engine should wait before it asks for a step: 0 to start, None where nothing is queued.

        Hungry with max_wait_ms 0. Otherwise lazy: until the budget is full, the oldest has waited long enough, or the
        most urgent deadline is only two predicted steps away.
        """
        queue, limits = self.queue, self.limits
        if not queue.heap:
            return None
        is_full = queue.num_tokens >= limits.max_batch_tokens or len(queue) >= limits.max_batch_requests
        if is_full or limits.max_wait_s == 0:
            return 0.0
        step_s = self.cost_model.predict(StepCost(queue.num_tokens, 0))
        until_old = self.oldest_arrival_s + limits.max_wait_s - now_s
        until_urgent = queue.heap[0][0] - 2 * step_s - now_s
        return max(0.0, min(until_old, until_urgent))

    def next_step(self, now_s: float) -> Choice:
        """Fill the budget in deadline order; a request that does not fit is passed over, and is first next time."""
        limits, queue = self.limits, self.queue
        chosen: list[Request] = []
        expired: list[Request] = []
        passed_over: list[Request] = []
        room = limits.max_batch_tokens
        while queue.heap and len(chosen) < limits.max_batch_requests and room > 0:
            request = queue.pop()
            if request.is_cancelled:
                continue
            if request.deadline_s <= now_s:
                expired.append(request)
            elif request.num_tokens <= room:
                chosen.append(request)
                room -= request.num_tokens
            else:
                passed_over.append(request)
                if len(passed_over) == MAX_LOOK_AHEAD:
                    break
        for request in passed_over:
            queue.push(request)
        if limits.max_wait_s > 0:  # only then does anybody ask, and it costs a look at the whole queue
            self.oldest_arrival_s = min((request.arrival_s for request in queue), default=now_s)
        return Choice(chosen, expired)
