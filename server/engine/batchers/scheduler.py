"""Chooses what one step computes. Knows lengths, deadlines, blocks and predicted cost; knows nothing of tensors. Pure.

Encoders and decoders share it. A step gives each chosen request up to as many tokens as it has known and not computed:
an input to be embedded has all of them computed in one step, a generation (`residents`) goes on for many.
"""

from dataclasses import dataclass, field

from server.engine.batchers.request_queue import RequestQueue
from server.engine.batchers.running_set import GenerationPlan, Residents, Room
from server.engine.batchers.sequences import Generation
from server.engine.cost_model import CostModel, StepCost
from server.wire.job import Request

MAX_LOOK_AHEAD = 64
"""Requests passed over in search of one that still fits the budget."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_batch_tokens: int
    max_batch_requests: int
    max_wait_s: float
    max_batch_logits: int = 0
    """Decoders: the most rows of logits of a step."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`requests` go into the step; `expired` missed their deadline and get told so; nobody waits for `cancelled`.

    `plan`: the parts of generations that go into it.
    """

    requests: list[Request]
    expired: list[Request]
    cancelled: list[Request] = field(default_factory=list)
    plan: GenerationPlan = field(default_factory=GenerationPlan)

    @property
    def cost(self) -> StepCost:
        return StepCost(
            sum(request.num_tokens for request in self.requests),
            sum(request.num_tokens**2 for request in self.requests),
        )


@dataclass(slots=True)
class Scheduler:
    """Mutable: the queue, the generations under way, and `oldest_arrival_s`, since when a request has waited for the
    next step."""

    limits: SchedulerLimits
    cost_model: CostModel
    residents: Residents | None = None
    queue: RequestQueue = field(default_factory=RequestQueue)
    oldest_arrival_s: float = 0.0

    def add(self, requests: list[Request]) -> None:
        """Queue one client call. No input may be longer than the budget: it would never run."""
        limit = self.limits.max_batch_tokens
        assert all(request.num_tokens <= limit for request in requests if not isinstance(request, Generation)), (
            "This is a bug."
        )
        if not self.queue.heap:
            self.oldest_arrival_s = requests[0].arrival_s
        self.queue.push_call(requests, tokens_per_s=self.cost_model.tokens_per_s(self.limits.max_batch_tokens))

    def wait_s(self, now_s: float) -> float | None:
        """How long a free engine should wait before it asks for a step: 0 to start, None where there is nothing to do.

        Hungry with max_wait_ms 0, and while generations are under way. Otherwise lazy: until the budget is full, the
        oldest has waited long enough, or the most urgent deadline is only two predicted steps away.
        """
        queue, limits = self.queue, self.limits
        if self.residents is not None and self.residents.generations:
            return 0.0
        if not queue.heap:
            return None
        is_full = queue.num_tokens >= limits.max_batch_tokens or len(queue) >= limits.max_batch_requests
        if is_full or limits.max_wait_s == 0:
            return 0.0
        step_s = self.cost_model.predict(StepCost(queue.num_tokens, 0))
        until_old = self.oldest_arrival_s + limits.max_wait_s - now_s
        until_urgent = queue.heap[0][1] - 2 * step_s - now_s
        return max(0.0, min(until_old, until_urgent))

    def next_step(self, now_s: float) -> Choice:
        """Generations under way first, then the queue in deadline order; an input that does not fit is passed over, and
        is first next time."""
        choice = Choice([], [])
        limits = self.limits
        room = Room(limits.max_batch_tokens, limits.max_batch_requests, limits.max_batch_logits)
        if self.residents is not None:
            self.go_on(self.residents, choice, room, now_s)
        passed_over: list[Request] = []
        # Where there are generations, a more urgent one may still take another's place.
        while self.queue.heap and room.num_tokens > 0 and (room.num_sequences > 0 or self.residents is not None):
            request = self.queue.pop()
            if request.is_cancelled:
                choice.cancelled.append(request)
                continue
            if request.deadline_s <= now_s:
                choice.expired.append(request)
            elif not self.take(request, choice, room):
                passed_over.append(request)
                # Smaller ones may pass a long input, but none a prompt that waits for blocks: it would wait for ever.
                if isinstance(request, Generation) or len(passed_over) == MAX_LOOK_AHEAD:
                    break
        for request in (*passed_over, *choice.plan.preempted):
            self.queue.push(request)
        if limits.max_wait_s > 0:  # only then does anybody ask, and it costs a look at the whole queue
            self.oldest_arrival_s = min((request.arrival_s for request in self.queue), default=now_s)
        return choice

    def go_on(self, residents: Residents, choice: Choice, room: Room, now_s: float) -> None:
        """Let go of those nobody waits for any more, and give the others their share of the step."""
        for generation in list(residents.generations):
            if generation.is_cancelled or generation.deadline_s <= now_s:
                residents.release(generation)
                (choice.cancelled if generation.is_cancelled else choice.expired).append(generation)
        room.num_sequences -= residents.num_sequences
        residents.advance(room, choice.plan)

    def take(self, request: Request, choice: Choice, room: Room) -> bool:
        """Put a queued request into the step, if there is room for it."""
        if isinstance(request, Generation):
            assert self.residents is not None, "An encoder generates nothing. This is a bug."
            # Blocks have just run out: who had to give way comes first.
            if choice.plan.preempted or not self.make_way(self.residents, request, choice, room):
                if not self.residents.generations and request.num_rows <= room.num_sequences:
                    choice.plan.starved.append(request)
                return request in choice.plan.starved
            room.num_sequences -= request.num_rows
            self.residents.prefill(request, room, choice.plan)
            return True
        if request.num_tokens > room.num_tokens:
            return False
        choice.requests.append(request)
        room.num_tokens -= request.num_tokens
        room.num_sequences -= 1
        return True

    def make_way(self, residents: Residents, generation: Generation, choice: Choice, room: Room) -> bool:
        """Take a generation in, in the place of less urgent ones if there is none otherwise."""
        while generation.num_rows > room.num_sequences or not residents.admit(generation):
            victim = residents.find_less_urgent(generation)
            if victim is None:
                return False
            residents.preempt(victim, choice.plan)
            room.num_sequences += victim.num_rows
        return True
