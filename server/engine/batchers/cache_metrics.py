"""What an engine that generates counts: its sequences, the blocks of its KV cache, and tokens by phase."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

from server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class CacheReport:
    """How things stand; the counts are since the start."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_used_blocks: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_drafted: int = 0
    num_accepted: int = 0


class CacheFamilies:
    """What all engines of a process count in, each with labels of its own; there can be one of each name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("model", "replica")

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"padless_{name}", text, labels, registry=registry, multiprocess_mode="livemostrecent")

        def counter(name: str, text: str) -> Counter:
            return Counter(f"padless_{name}", text, labels, registry=registry)

        self.running = gauge("running_requests", "Generations that hold blocks of the KV cache")
        self.waiting = gauge("waiting_requests", "Generations in the queue, those that were preempted included")
        self.blocks = gauge("kv_blocks", "Blocks of the KV cache")
        self.used_blocks = gauge(
            "kv_blocks_used", "Blocks that sequences hold; others may still be found by their prefix"
        )
        self.queries = counter("prefix_cache_queried_tokens", "Tokens of prompts looked up in the prefix cache")
        self.hits = counter("prefix_cache_hit_tokens", "Tokens of prompts found in the prefix cache")
        self.preemptions = counter("preemptions", "Generations that had to give up their blocks and be computed again")
        self.drafted = counter("speculative_drafted_tokens", "Tokens guessed ahead and checked")
        self.accepted = counter("speculative_accepted_tokens", "Tokens guessed ahead that were right")
        self.prefilled = counter("prefill_tokens", "Tokens of prompts computed, and computed again")
        self.decoded = counter("decode_tokens", "Tokens of answers computed, drafts included")


class CacheMetrics:
    """One engine's. Mutable: its last counts."""

    def __init__(self, metrics: Metrics, model: str, replica: int) -> None:
        """Inline engines share their process, and so what they count in."""
        labels, families = {"model": model, "replica": str(replica)}, metrics.share(CacheFamilies)
        self.running = families.running.labels(**labels)
        self.waiting = families.waiting.labels(**labels)
        self.blocks = families.blocks.labels(**labels)
        self.used_blocks = families.used_blocks.labels(**labels)
        self.queries = families.queries.labels(**labels)
        self.hits = families.hits.labels(**labels)
        self.preemptions = families.preemptions.labels(**labels)
        self.drafted = families.drafted.labels(**labels)
        self.accepted = families.accepted.labels(**labels)
        self.prefilled = families.prefilled.labels(**labels)
        self.decoded = families.decoded.labels(**labels)
        self.last = CacheReport()

    def observe_step(self, num_prefilled: int, num_decoded: int) -> None:
        self.prefilled.inc(num_prefilled)
        self.decoded.inc(num_decoded)

    def observe(self, report: CacheReport) -> None:
        """The gauges as they are; the counters by their growth."""
        self.running.set(report.num_running)
        self.waiting.set(report.num_waiting)
        self.blocks.set(report.num_blocks)
        self.used_blocks.set(report.num_used_blocks)
        last, self.last = self.last, report
        self.queries.inc(report.num_prompt_tokens - last.num_prompt_tokens)
        self.hits.inc(report.num_cached_tokens - last.num_cached_tokens)
        self.preemptions.inc(report.num_preemptions - last.num_preemptions)
        self.drafted.inc(report.num_drafted - last.num_drafted)
        self.accepted.inc(report.num_accepted - last.num_accepted)
