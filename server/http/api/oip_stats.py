"""Statistics as Triton's extension of the Open Inference Protocol tells them, out of what `/metrics` counts: of all
routes, all HTTP processes and all replicas, since the server was started."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

from typing_extensions import TypedDict

from server.metrics import Metrics

Sums = Mapping[str, float]
STAGES = {"queue": "queue_seconds", "compute_input": "tokenize_seconds", "compute_infer": "engine_seconds"}
"""Ours, by the protocol's names: tokenising is what happens to inputs."""


class Duration(TypedDict):
    count: int
    ns: int


class InferStats(TypedDict):
    """`success` has the time of all requests: it is counted of all together. Outputs come with what computes them, and
    no answer is taken from a cache: clients such as perf_analyzer want to read so."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStats(TypedDict):
    """`inference_count`: inputs answered. `execution_count`: steps of the engine, which are batches."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: InferStats


async def count_models(names: Sequence[str], metrics: Metrics) -> list[ModelStats]:
    # Some milliseconds with many processes: not on the event loop.
    sums = await asyncio.to_thread(sum_samples, metrics)
    return [describe_counts(name, sums[name]) for name in names]


def sum_samples(metrics: Metrics) -> Mapping[str, Sums]:
    """By model, then by the sample's name, with the outcome where it has one."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for metric in metrics.join().collect():
        for sample in metric.samples:
            if "model" in sample.labels and "le" not in sample.labels:
                outcome = sample.labels.get("outcome")
                name = sample.name.removeprefix("padless_")
                sums[sample.labels["model"]][name if outcome is None else f"{name}:{outcome == 'ok'}"] += sample.value
    return sums


def describe_counts(name: str, sums: Sums) -> ModelStats:
    def read(seconds: str) -> Duration:
        return {"count": int(sums[f"{seconds}_count"]), "ns": round(sums[f"{seconds}_sum"] * 1e9)}

    infer = read(STAGES["compute_infer"])
    return {
        "name": name,
        "version": "1",
        "inference_count": int(sums["inputs_total"]),
        "execution_count": int(sums["step_seconds_count"]),
        "inference_stats": {
            "success": {"count": int(sums["requests_total:True"]), "ns": read("request_seconds")["ns"]},
            "fail": {"count": int(sums["requests_total:False"]), "ns": 0},
            "queue": read(STAGES["queue"]),
            "compute_input": read(STAGES["compute_input"]),
            "compute_infer": infer,
            "compute_output": {"count": infer["count"], "ns": 0},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
    }
