"""Requests of any length, and a clock that a test winds: nothing here waits."""

from dataclasses import dataclass, field
from itertools import count

import numpy as np

from server.engine.batchers.scheduler import Choice, Scheduler, SchedulerLimits
from server.engine.cost_model import CostModel
from server.wire.job import Request, TokenSequence

call_ids = count()


def make_sequence(num_tokens: int, first_id: int = 1) -> TokenSequence:
    return TokenSequence(np.arange(first_id, first_id + num_tokens, dtype=np.int32))


def make_call(seqlens: list[int], *, arrival_s: float = 0.0, timeout_s: float = 30.0) -> list[Request]:
    """One client call: its requests in its order."""
    call_id = next(call_ids)
    return [
        Request(index, call_id, make_sequence(seqlen), deadline_s=arrival_s + timeout_s, arrival_s=arrival_s)
        for index, seqlen in enumerate(seqlens)
    ]


@dataclass
class FakeEngineRun:
    """A scheduler and an engine whose steps take what the cost model says. Mutable: the time, and who came out when."""

    limits: SchedulerLimits
    cost_model: CostModel = field(default_factory=lambda: CostModel(per_token_s=1e-4))
    now_s: float = 0.0
    steps: list[Choice] = field(default_factory=list)
    done_s: dict[tuple[int, int], float] = field(default_factory=dict)
    expired_s: dict[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits, self.cost_model)

    def step(self) -> Choice:
        """One step, start to end; what it held is noted. Whatever comes out twice is an error."""
        choice = self.scheduler.next_step(self.now_s)
        assert choice.cost.num_tokens <= self.limits.max_batch_tokens
        assert len(choice.requests) <= self.limits.max_batch_requests
        self.steps.append(choice)
        for request in choice.expired:
            assert name_of(request) not in self.expired_s
            self.expired_s[name_of(request)] = self.now_s
        self.now_s += self.cost_model.predict(choice.cost)
        for request in choice.requests:
            assert name_of(request) not in self.done_s
            self.done_s[name_of(request)] = self.now_s
        return choice

    def drain(self) -> None:
        while self.scheduler.queue.heap:
            self.step()


def name_of(request: Request) -> tuple[int, int]:
    return request.call_id, request.request_id
