"""Everything Padless counts, under the prefix `padless_`. Knows prometheus; the callers know when to count.

With PROMETHEUS_MULTIPROC_DIR in the environment, prometheus_client keeps every process's values in files of that
folder, and any HTTP worker's `/metrics` adds them up. It must be set before this module is imported: the supervisor
sets it, then starts its children. Label values come from the configuration, never from clients.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from runtime.engine import MemoryStats

Part = TypeVar("Part")

# 0.1 ms to 66 s in steps of 1.5: a third of a decade everywhere, three buckets below the 0.5 ms that matter most.
SECONDS_BUCKETS = tuple(float(f"{1e-4 * 1.5**step:.3g}") for step in range(34))
TOKEN_BUCKETS = tuple(float(2**power) for power in range(18))
SEQUENCE_BUCKETS = tuple(float(2**power) for power in range(12))
RATIO_BUCKETS = (0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)

METRICS_DIR_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

UNKNOWN_MODEL = "unknown"
"""The label of calls that never got as far as a model of ours; clients' own words would be unbounded."""


@dataclass(slots=True)
class CallTimes:
    """One HTTP call's numbers, of all its jobs together. Mutable: filled in along the way; a stage it never reached
    stays None."""

    num_inputs: int = 0
    num_tokens: int = 0
    tokenize_s: float | None = None
    queue_s: float | None = None
    engine_s: float | None = None

    def note_tokens(self, num_inputs: int, num_tokens: int, tokenize_s: float) -> None:
        """Of one job: a call's jobs are tokenised one after the other."""
        self.num_inputs += num_inputs
        self.num_tokens += num_tokens
        self.tokenize_s = (self.tokenize_s or 0.0) + tokenize_s

    def note_engine(self, queue_s: float, engine_s: float) -> None:
        """Of one job: a call's jobs are computed side by side, and the longest counts."""
        self.queue_s = max(self.queue_s or 0.0, queue_s)
        self.engine_s = max(self.engine_s or 0.0, engine_s)


class CallMetrics:
    """The HTTP side's histograms with their labels bound: looking labels up costs more than observing."""

    def __init__(self, metrics: "Metrics", route: str, model: str) -> None:
        self._request_seconds = metrics.request_seconds.labels(route, model)
        self._tokenize_seconds = metrics.tokenize_seconds.labels(route, model)
        self._queue_seconds = metrics.queue_seconds.labels(route, model)
        self._engine_seconds = metrics.engine_seconds.labels(route, model)
        self._inputs = metrics.inputs.labels(route, model)
        self._tokens = metrics.tokens.labels(route, model)
        self._outcomes: dict[str, Counter] = {}
        self._requests = metrics.requests
        self._labels = (route, model)

    def observe(self, outcome: str, total_s: float, times: CallTimes) -> None:
        counter = self._outcomes.get(outcome)
        if counter is None:
            counter = self._outcomes[outcome] = self._requests.labels(*self._labels, outcome)
        counter.inc()
        self._request_seconds.observe(total_s)
        if times.tokenize_s is not None:
            self._tokenize_seconds.observe(times.tokenize_s)
        if outcome != "ok":
            return
        self._inputs.inc(times.num_inputs)
        self._tokens.inc(times.num_tokens)
        if times.queue_s is not None and times.engine_s is not None:
            self._queue_seconds.observe(times.queue_s)
            self._engine_seconds.observe(times.engine_s)


class TokenMetrics:
    """What is counted of generated tokens, with its labels bound."""

    def __init__(self, metrics: "Metrics", route: str, model: str) -> None:
        self._first = metrics.first_token_seconds.labels(route, model)
        self._gap = metrics.inter_token_seconds.labels(route, model)
        self._prompt_tokens = metrics.prompt_tokens.labels(route, model)
        self._generated_tokens = metrics.generated_tokens.labels(route, model)

    def observe_first(self, seconds: float) -> None:
        self._first.observe(seconds)

    def observe_gap(self, seconds: float, num_tokens: int) -> None:
        """Between tokens of one answer; `num_tokens` that came together share the time."""
        for _ in range(num_tokens):
            self._gap.observe(seconds)

    def observe_tokens(self, *, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """Of a call that got as far as the engine, whatever became of it."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._generated_tokens.inc(num_generated_tokens)


class StepMetrics:
    """What is counted of an engine's steps, with its labels bound."""

    def __init__(self, metrics: "Metrics", model: str, replica: str) -> None:
        self._seconds = metrics.step_seconds.labels(model, replica)
        self._wait = metrics.batch_wait.labels(model, replica)
        self._ratio = metrics.step_ratio.labels(model, replica)
        self._tokens = metrics.batch_tokens.labels(model, replica)
        self._sequences = metrics.batch_sequences.labels(model, replica)
        self._run_tokens = metrics.run_tokens.labels(model, replica)
        self._padded_tokens = metrics.padded_tokens.labels(model, replica)

    def observe(
        self,
        *,
        num_tokens: int,
        num_seqs: int,
        max_seqlen: int,
        predicted_s: float,
        actual_s: float,
        batch_wait_s: float | None,
        pads: bool = False,
    ) -> None:
        """One step. `predicted_s` 0: there was no prediction yet. `pads`: the engine has run all sequences as long as
        the longest."""
        self._seconds.observe(actual_s)
        if batch_wait_s is not None:
            self._wait.observe(batch_wait_s)
        self._tokens.observe(num_tokens)
        self._sequences.observe(num_seqs)
        self._run_tokens.inc(num_seqs * max_seqlen if pads else num_tokens)
        self._padded_tokens.inc(num_seqs * max_seqlen)
        if predicted_s > 0 and actual_s > 0:
            self._ratio.observe(predicted_s / actual_s)


class Metrics:
    """One per process. Mutable: the bound label sets, and each engine's last counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = CollectorRegistry() if registry is None else registry
        self._parts: dict[Callable[[CollectorRegistry], Any], Any] = {}
        call = ("route", "model")
        engine = ("model", "replica")

        def seconds(name: str, text: str, labels: tuple[str, ...]) -> Histogram:
            return Histogram(f"padless_{name}", text, labels, registry=registry, buckets=SECONDS_BUCKETS)

        def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
            # Every value is set by one process at a time, so the newest is the truth, also after a restart under a
            # new process id; "live": those of a process reported dead vanish.
            return Gauge(f"padless_{name}", text, labels, registry=registry, multiprocess_mode="livemostrecent")

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"padless_{name}", text, labels, registry=registry)

        self.requests = counter("requests", "HTTP calls by what became of them", (*call, "outcome"))
        self.key_requests = counter("key_requests", "HTTP calls by whose key they had", ("key", "outcome"))
        self.inputs = counter("inputs", "Inputs answered", call)
        self.tokens = counter("tokens", "Tokens answered, special tokens included, after truncation", call)
        self.request_seconds = seconds("request_seconds", "From the first byte to the answer", call)
        self.tokenize_seconds = seconds("tokenize_seconds", "Text to tokens, waiting for a thread included", call)
        self.queue_seconds = seconds("queue_seconds", "Wait for a batch; the slowest input of a call", call)
        self.engine_seconds = seconds("engine_seconds", "In the engine; the slowest input of a call", call)
        self.first_token_seconds = seconds(
            "time_to_first_token_seconds", "From the first byte of a call to an answer's first token", call
        )
        self.inter_token_seconds = seconds(
            "inter_token_seconds", "Between two tokens of an answer; those that come together share the time", call
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that got as far as the engine", call)
        self.generated_tokens = counter("generated_tokens", "Tokens generated, for whatever became of the call", call)
        self.event_loop_lag = seconds("event_loop_lag_seconds", "How late the event loop wakes a sleeper", ())
        self.admitted_inputs = gauge("admitted_inputs", "Inputs admitted and not answered, all workers", ("model",))
        self.admitted_tokens = gauge("admitted_tokens", "Tokens admitted and not answered, all workers", ("model",))

        self.step_seconds = seconds("step_seconds", "One step of the engine", engine)
        self.batch_wait = seconds("batch_wait_seconds", "Wait of a step's oldest input for the step to start", engine)
        self.step_ratio = Histogram(
            "padless_step_seconds_predicted_ratio",
            "Predicted over actual step time",
            engine,
            registry=registry,
            buckets=RATIO_BUCKETS,
        )
        self.batch_tokens = Histogram(
            "padless_batch_tokens",
            "Tokens in a step, without padding",
            engine,
            registry=registry,
            buckets=TOKEN_BUCKETS,
        )
        self.batch_sequences = Histogram(
            "padless_batch_sequences", "Sequences in a step", engine, registry=registry, buckets=SEQUENCE_BUCKETS
        )
        self.run_tokens = counter("run_tokens", "Tokens run, with padding where an engine pads", engine)
        self.padded_tokens = counter("padded_tokens", "Tokens the same steps would have run with padding", engine)
        self.queue_tokens = gauge("queue_tokens", "Tokens in the engine's queue", engine)
        self.weight_bytes = gauge("weight_bytes", "Bytes of weights", engine)
        self.kv_cache_bytes = gauge("kv_cache_bytes", "Bytes of the KV cache", engine)
        self.arena_reserved = gauge("arena_reserved_bytes", "Bytes the arena holds from the system", engine)
        self.arena_in_use = gauge("arena_in_use_bytes", "Bytes of the last step's plan", engine)
        self.planned_peak = gauge("arena_planned_peak_bytes", "Bytes planned for the largest batch", engine)
        self.arena_allocations = counter("arena_allocations", "Chunks the arena took from the system", engine)
        self.plan_hits = counter("plan_cache_hits", "Steps whose plan was known", engine)
        self.plan_misses = counter("plan_cache_misses", "Steps whose plan had to be made", engine)
        self.engine_restarts = counter("engine_restarts", "Engine processes started again", engine)
        self.engine_device = gauge("engine_device", "1: where an engine computes", (*engine, "device"))

        self._calls: dict[tuple[str, str], CallMetrics] = {}
        self._tokens: dict[tuple[str, str], TokenMetrics] = {}
        self._steps: dict[tuple[str, int], StepMetrics] = {}
        self._memory: dict[tuple[str, str], MemoryStats] = {}

    def observe_call(self, *, route: str, model: str, outcome: str, total_s: float, times: CallTimes) -> None:
        """One HTTP call, whatever became of it. `model` must be a configured name or UNKNOWN_MODEL."""
        calls = self._calls.get((route, model))
        if calls is None:
            calls = self._calls[route, model] = CallMetrics(self, route, model)
        calls.observe(outcome, total_s, times)

    def count_key(self, key: str, outcome: str) -> None:
        """One HTTP call. `key` must be a configured name, or the one for those who show none."""
        self.key_requests.labels(key, outcome).inc()

    def bind_tokens(self, *, route: str, model: str) -> TokenMetrics:
        """For one call that generates. `model` must be a configured name."""
        found = self._tokens.get((route, model))
        if found is None:
            found = self._tokens[route, model] = TokenMetrics(self, route, model)
        return found

    def observe_admitted(self, model: str, *, num_inputs: int, num_tokens: int) -> None:
        """Set when somebody looks: the count is kept by `server.http.admission`."""
        self.admitted_inputs.labels(model).set(num_inputs)
        self.admitted_tokens.labels(model).set(num_tokens)

    def bind_steps(self, model: str, replica: int) -> StepMetrics:
        """For an engine's steps."""
        found = self._steps.get((model, replica))
        if found is None:
            found = self._steps[model, replica] = StepMetrics(self, model, str(replica))
        return found

    def observe_engine(self, model: str, replica: int, memory: MemoryStats, queued_tokens: int) -> None:
        """What an engine holds. Its counts only grow, from 0 with each process: the growth is what is added."""
        labels = (model, str(replica))
        last = self._memory.get(labels, MemoryStats())
        self._memory[labels] = memory
        self.queue_tokens.labels(*labels).set(queued_tokens)
        self.weight_bytes.labels(*labels).set(memory.weight_bytes)
        self.kv_cache_bytes.labels(*labels).set(memory.kv_cache_bytes)
        self.arena_reserved.labels(*labels).set(memory.arena_reserved_bytes)
        self.arena_in_use.labels(*labels).set(memory.arena_in_use_bytes)
        self.planned_peak.labels(*labels).set(memory.planned_peak_bytes)
        for counter, now, before in (
            (self.arena_allocations, memory.num_arena_allocations, last.num_arena_allocations),
            (self.plan_hits, memory.plan_cache_hits, last.plan_cache_hits),
            (self.plan_misses, memory.plan_cache_misses, last.plan_cache_misses),
        ):
            counter.labels(*labels).inc(now - before if now >= before else now)

    def tell_device(self, model: str, replica: int, device: str) -> None:
        """Where an engine computes, once it is there. `device`: as `EngineInfo` has it."""
        self.engine_device.labels(model, str(replica), device).set(1)

    def count_engine_restart(self, model: str, replica: int) -> None:
        self.engine_restarts.labels(model, str(replica)).inc()

    def share(self, kind: Callable[[CollectorRegistry], Part]) -> Part:
        """What a part of the server counts in besides, made once: a registry has one metric of each name."""
        if kind not in self._parts:
            self._parts[kind] = kind(self.registry)
        part: Part = self._parts[kind]
        return part

    def join(self) -> CollectorRegistry:
        """Of all processes where there are several, else of this one."""
        if not os.environ.get(METRICS_DIR_VARIABLE):
            return self.registry
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return together

    def render(self) -> bytes:
        """The text Prometheus scrapes."""
        return generate_latest(self.join())


def forget_process(pid: int) -> None:
    """For the supervisor, once a child has died: its gauges go, its counts stay. Several processes only."""
    if os.environ.get(METRICS_DIR_VARIABLE):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
