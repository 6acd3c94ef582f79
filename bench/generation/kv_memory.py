"""`python -m bench.generation.kv_memory`: bytes of KV cache held for each token that is in it, sampled every step.

- paged: the blocks that sequences hold, shared ones once.
- contiguous, own length: what every running request would hold if it had its prompt and its whole answer set aside.
- contiguous, maximum length: the same with room for the longest sequence that is served, as servers without pages do.

Requests of mixed lengths, once each with a prompt of its own and once with a common beginning.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from bench.generation.ours import Ours, ask_all, build_ours, make_parser
from bench.generation.session import Task
from bench.generation.workload import MODELS, find_model, load_tokenizer, sample_prompt, sample_tasks
from bench.report import RESULTS, write_results
from runtime.kv_cache.blocks import BLOCK_SIZE
from server.engine.batchers.batcher import StepResult
from server.engine.batchers.decoding import DecodingStep
from server.engine.batchers.running_set import RunningSet

MODEL = "smollm2-135m-instruct"
MAX_TOTAL_TOKENS = 2048
"""The longest sequence that is served."""
PREFIX_TOKENS = 256
COUNTS = ("live tokens", "paged", "contiguous, own length", "contiguous, maximum length")


@dataclass
class Samples:
    """Tokens after every step of a run: those with keys and values in the cache, and room for so many by three ways
    of managing it. Mutable: grows."""

    counts: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in COUNTS})

    def add(self, running_set: RunningSet) -> None:
        running = running_set.generations
        if not running:
            return
        live = sum(sequence.num_computed_tokens for each in running for sequence in each.live)
        own = sum(each.num_prompt_tokens + each.max_new_tokens for each in running)
        held = running_set.allocator.num_used_blocks * BLOCK_SIZE
        for name, count in zip(COUNTS, (live, held, own, len(running) * MAX_TOTAL_TOKENS), strict=True):
            self.counts[name].append(count)

    def per_live_token(self, name: str) -> float:
        """Over the whole run."""
        return sum(self.counts[name]) / sum(self.counts["live tokens"])


def watch(ours: Ours) -> Samples:
    """Sample after every step from now on, before the next one is formed."""
    samples = Samples()
    settle = ours.batcher.settle

    def settle_and_sample(result: StepResult[DecodingStep], now_s: float) -> list[DecodingStep]:
        again = settle(result, now_s)
        samples.add(ours.batcher.running)
        return again

    ours.batcher.settle = settle_and_sample  # type: ignore[method-assign]
    return samples


def sample_workloads(num_requests: int) -> dict[str, list[Task]]:
    model = find_model(MODEL)
    tasks = sample_tasks(model, MODELS[MODEL], num_requests)
    prefix = sample_prompt(load_tokenizer(model), PREFIX_TOKENS, np.random.default_rng(1))
    shared = [Task(prefix + task.input_ids, task.num_tokens) for task in tasks]
    return {"own prompts": tasks, f"{PREFIX_TOKENS} tokens in common": shared}


async def measure(ours: Ours, tasks: Sequence[Task], max_concurrent: int) -> Samples:
    """The first request is answered before the others come: only then is a beginning there to be shared."""
    await ask_all(ours, tasks[:1], 1)
    samples = watch(ours)
    await ask_all(ours, tasks, max_concurrent)
    del ours.batcher.settle  # the method again
    return samples


async def measure_all(ours: Ours, max_concurrent: int, num_requests: int) -> dict[str, Samples]:
    await ours.loop.start()
    workloads = sample_workloads(num_requests)
    found = {name: await measure(ours, tasks, max_concurrent) for name, tasks in workloads.items()}
    await ours.loop.close()
    return found


def build_table(found: dict[str, Samples], token_bytes: float) -> list[list[str]]:
    table = [["prompts", "cache", "KB per live token", "times what is needed", "peak MB"]]
    for workload, samples in found.items():
        for name in COUNTS[1:]:
            ratio, peak = samples.per_live_token(name), max(samples.counts[name]) * token_bytes / 2**20
            table.append([workload, name, f"{ratio * token_bytes / 1024:.1f}", f"{ratio:.2f}", f"{peak:.1f}"])
    return table


def plot(found: dict[str, Samples], token_bytes: float) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (workload, samples) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for name, counts in samples.counts.items():
            axes.plot(np.array(counts) * token_bytes / 2**20, label=name, linewidth=2.0 if name == "paged" else 1.0)
        axes.set(xlabel="step", ylabel="MB", yscale="log", title=workload)
        axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "generation-kv-memory.png", dpi=100)


def main() -> None:
    parser = make_parser(__doc__, rounds=None)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--concurrency", type=int, default=16)
    arguments = parser.parse_args()
    ours = build_ours(
        find_model(MODEL),
        threads=arguments.threads,
        max_batch_requests=arguments.concurrency,
        max_total_tokens=MAX_TOTAL_TOKENS,
        has_prefix_cache=True,
    )
    info = ours.loop.executor.info
    token_bytes = info.kv_cache_bytes / info.num_blocks / BLOCK_SIZE
    found = asyncio.run(measure_all(ours, arguments.concurrency, arguments.requests))
    results = {workload: samples.counts for workload, samples in found.items()}
    write_results(
        "generation-kv-memory", build_table(found, token_bytes), {"bytes_per_token": token_bytes, "tokens": results}
    )
    plot(found, token_bytes)


if __name__ == "__main__":
    main()
