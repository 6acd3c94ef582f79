"""A scheduler over a decoder that remembers all it is told, run step by step without a loop, a thread or a clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from server.engine.batchers.scheduler import Scheduler, SchedulerLimits
from server.wire.event_stream import EventStream

from runtime.batch import ArraySpec
from runtime.engine import Engine, EngineInfo
from runtime.engines.null_decoder import NullDecoder, choose_token
from runtime.kv_cache.blocks import BlockAllocator
from server.engine.batchers.decoding import Generating, MakeMatcher
from server.engine.batchers.running_set import Residents
from server.engine.cost_model import CostModel
from server.engine.engine_loop import refuse_grammar
from server.engine.executor import StepResult
from server.wire.job import GenerationEvent, GenerationParams

VOCAB_SIZE = 97
LOGITS = (ArraySpec("logits", "float32", ("num_logits", VOCAB_SIZE)),)
MAX_TOTAL_TOKENS = 200


@dataclass
class Heard:
    """What a client has been told. Mutable."""

    stream: EventStream
    answers: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    events: list[GenerationEvent] = field(default_factory=list)
    error: Exception | None = None

    @property
    def is_over(self) -> bool:
        return self.error is not None or not self.stream.open


def count_vocab(engine: Engine) -> int:
    return int(engine.info.outputs[0].dims[-1])


class Continuous:
    """`start` generations, then `step` until all is said. Time stands still unless a test moves `now_s`."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_batch_tokens: int = 64,
        max_batch_requests: int = 16,
        max_batch_logits: int = 64,
        prefill_chunk_tokens: int = 0,
        has_prefix_cache: bool = True,
        num_drafts: int = 0,
        engine: Engine | None = None,
        make_matcher: MakeMatcher = refuse_grammar,
        max_total_tokens: int = MAX_TOTAL_TOKENS,
    ) -> None:
        info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=num_blocks)
        self.engine = NullDecoder(info) if engine is None else engine
        self.allocator = BlockAllocator(num_blocks, has_prefix_cache=has_prefix_cache)
        limits = SchedulerLimits(max_batch_tokens, max_batch_requests, 0.0, max_batch_logits)
        residents = Residents(self.allocator, prefill_chunk_tokens, self.engine.info.num_drafts)
        self.scheduler = Scheduler(limits, CostModel(), residents)
        self.generating = Generating(
            self.scheduler,
            vocab_size=count_vocab(self.engine),
            max_total_tokens=max_total_tokens,
            wake=lambda: None,
            make_matcher=make_matcher,
            num_drafts=num_drafts,
        )
        self.heard: list[Heard] = []
        self.now_s = 0.0
        self.batch_sizes: list[int] = []

    def start(self, prompt: Sequence[int], params: GenerationParams, deadline_s: float = 1e9) -> Heard:
        heard = Heard(self.generating.start(np.array(prompt, np.int32), params, deadline_s))
        self.heard.append(heard)
        return heard

    def step(self) -> bool:
        """Whether there was anything to do."""
        choice = self.scheduler.next_step(self.now_s)
        for request in choice.expired:
            self.generating.fail(request, TimeoutError("late"))
        for request in choice.cancelled:
            self.generating.forget_cancelled(request)
        step = self.generating.form(choice)
        steps = [] if step is None else [step]
        while steps:
            step = steps.pop(0)
            assert step.batch.num_tokens <= self.scheduler.limits.max_batch_tokens
            assert step.batch.num_logits <= self.scheduler.limits.max_batch_logits
            self.batch_sizes.append(step.batch.num_tokens)
            try:
                result = StepResult(step, 0.0, 1.0, self.engine.run(step.batch), None)
            except Exception as error:
                result = StepResult(step, 0.0, 1.0, None, error)
            steps += self.generating.hand_out(result)
        self.listen()
        return self.scheduler.wait_s(self.now_s) is not None

    def listen(self) -> None:
        for heard in self.heard:
            while not heard.stream.waiting.empty():
                found = heard.stream.waiting.get_nowait()
                if isinstance(found, Exception):
                    heard.error = found
                    continue
                heard.events += found
                for event in found:
                    heard.answers.setdefault(event.index, []).extend(event.token_ids)
                    if event.finish_reason:
                        heard.reasons[event.index] = event.finish_reason
                        heard.stream.open.discard(event.index)

    def run(self, each_step: Callable[[], None] = lambda: None, max_steps: int = 100_000) -> None:
        """Until nothing is left to do. Afterwards every block is free."""
        for _ in range(max_steps):
            each_step()
            if not self.step():
                break
        else:
            raise AssertionError("It does not end.")
        self.allocator.check()
        assert self.allocator.num_used_blocks == 0


def expected_answer(prompt: Sequence[int], num_tokens: int, stop: Sequence[int] = ()) -> list[int]:
    """What the null decoder says greedily when nothing goes wrong."""
    past = list(prompt)
    for _ in range(num_tokens):
        past.append(choose_token(np.array(past), 0, VOCAB_SIZE))
        if past[-1] in stop:
            break
    return past[len(prompt) :]
