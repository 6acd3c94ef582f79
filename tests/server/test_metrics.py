"""What is counted, in one process and over several."""

import asyncio
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import MakeServer, Server, wait_until
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from runtime.engine import MemoryStats
from server.engine.batchers.cache_metrics import CacheMetrics, CacheReport
from server.metrics import SECONDS_BUCKETS, Metrics

ROOT = Path(__file__).parents[2]


def parse(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def find(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    return samples[f"padless_{name}", tuple(sorted(labels.items()))]


def test_the_buckets_resolve_what_matters() -> None:
    assert SECONDS_BUCKETS[0] < 0.0005 and SECONDS_BUCKETS[-1] >= 60
    assert all(1.4 < after / before < 1.6 for before, after in pairwise(SECONDS_BUCKETS))


def test_steps_of_an_engine() -> None:
    metrics = Metrics(CollectorRegistry())
    step = {"num_tokens": 100, "num_seqs": 4, "max_seqlen": 40, "actual_s": 0.01, "batch_wait_s": 0.001}
    metrics.bind_steps("m", 1).observe(**step, predicted_s=0.0)
    metrics.bind_steps("m", 1).observe(**step, predicted_s=0.005)
    samples = parse(metrics.render().decode())
    labels = {"model": "m", "replica": "1"}
    assert find(samples, "run_tokens_total", **labels) == 200
    assert find(samples, "padded_tokens_total", **labels) == 320
    assert find(samples, "step_seconds_count", **labels) == 2
    assert find(samples, "step_seconds_predicted_ratio_count", **labels) == 1, "no prediction, no ratio"
    assert find(samples, "step_seconds_predicted_ratio_sum", **labels) == 0.5
    assert find(samples, "batch_tokens_sum", **labels) == 200
    assert find(samples, "batch_sequences_sum", **labels) == 8


def test_steps_of_an_engine_that_pads() -> None:
    """It has run its padding, which is in no input."""
    metrics = Metrics(CollectorRegistry())
    step = {"num_tokens": 100, "num_seqs": 4, "max_seqlen": 40, "actual_s": 0.01, "batch_wait_s": 0.001}
    metrics.bind_steps("m", 1).observe(**step, predicted_s=0.0, pads=True)
    samples = parse(metrics.render().decode())
    labels = {"model": "m", "replica": "1"}
    assert find(samples, "run_tokens_total", **labels) == find(samples, "padded_tokens_total", **labels) == 160
    assert find(samples, "batch_tokens_sum", **labels) == 100


def test_memory_of_an_engine() -> None:
    metrics = Metrics(CollectorRegistry())
    labels = {"model": "m", "replica": "0"}
    metrics.observe_engine("m", 0, MemoryStats(1, 2, 3, 4, 0, 5, 6, 7), 8)
    metrics.observe_engine("m", 0, MemoryStats(1, 20, 30, 40, 0, 5, 16, 7), 80)
    metrics.count_engine_restart("m", 0)
    metrics.tell_device("m", 0, "cuda:1")
    samples = parse(metrics.render().decode())
    assert find(samples, "arena_reserved_bytes", **labels) == 20
    assert find(samples, "arena_in_use_bytes", **labels) == 30
    assert find(samples, "arena_planned_peak_bytes", **labels) == 40
    assert find(samples, "arena_allocations_total", **labels) == 5
    assert find(samples, "plan_cache_hits_total", **labels) == 16
    assert find(samples, "plan_cache_misses_total", **labels) == 7
    assert find(samples, "queue_tokens", **labels) == 80
    assert find(samples, "engine_restarts_total", **labels) == 1
    assert find(samples, "engine_device", **labels, device="cuda:1") == 1


def test_an_engine_that_counts_from_zero_again_only_adds() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.observe_engine("m", 0, MemoryStats(plan_cache_hits=10), 0)
    metrics.observe_engine("m", 0, MemoryStats(plan_cache_hits=3), 0)
    assert find(parse(metrics.render().decode()), "plan_cache_hits_total", model="m", replica="0") == 13


def test_two_of_them_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.count_engine_restart("m", 0)
    assert b"padless_engine_restarts_total{" not in second.render()


@pytest.mark.anyio
async def test_calls_over_http(server: Server) -> None:
    await server.embed_text(["word1", "word2 word3"])
    await server.client.post("/predict", json={"inputs": "word1"})
    response = await server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = parse(response.text)
    embed = {"route": "/v1/embeddings", "model": "embedder"}
    assert find(samples, "requests_total", **embed, outcome="ok") == 1
    assert find(samples, "inputs_total", **embed) == 2
    assert find(samples, "tokens_total", **embed) == 7
    for stage in ("request", "tokenize", "queue", "engine"):
        assert find(samples, f"{stage}_seconds_count", **embed) == 1
    assert find(samples, "queue_seconds_sum", **embed) == pytest.approx(0.001)
    assert find(samples, "engine_seconds_sum", **embed) == pytest.approx(0.002)
    assert find(samples, "requests_total", route="/predict", model="classifier", outcome="ok") == 1
    assert find(samples, "admitted_inputs", model="embedder") == 0
    assert find(samples, "admitted_tokens", model="classifier") == 0


@pytest.mark.anyio
async def test_every_call_is_counted_once_and_once_only(make_server: MakeServer) -> None:
    server = make_server()
    sent = [
        await server.embed_text("word1"),
        await server.embed_text(""),
        await server.embed_text("word1", headers={"x-request-timeout-ms": "x"}),
        await server.client.post("/v1/embeddings", content=b"{"),
        await server.client.post("/v1/embeddings", json={"model": "nobody", "input": "word1"}),
        await server.client.post("/predict", json={"inputs": "word1"}),
        await server.client.post("/tokenize", json={"inputs": "word1", "model": "embedder"}),
    ]
    by_status = [response.status_code for response in sent]
    assert server.count() == len(sent)
    assert server.count(outcome="ok") == by_status.count(200) == 3
    assert server.count(outcome="invalid") == 4
    assert server.sum_samples("padless_request_seconds_count") == len(sent)


@pytest.mark.anyio
async def test_clients_cannot_make_labels(server: Server) -> None:
    for index in range(20):
        await server.client.post("/v1/embeddings", json={"model": f"made up {index}", "input": "word1"})
        await server.client.get(f"/made/up/{index}")
        await server.client.post("/predict", json={"model": f"made up {index}", "inputs": "word1"})
    text = (await server.client.get("/metrics")).text
    assert "made up" not in text and "made/up" not in text
    assert server.count(model="unknown", outcome="invalid") == 60


@pytest.mark.anyio
async def test_event_loop_lag_is_measured_while_the_application_runs(server: Server) -> None:
    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    messages.put_nowait({"type": "lifespan.startup"})
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    lifespan = asyncio.create_task(server.app({"type": "lifespan"}, messages.get, send))
    await wait_until(lambda: sent == ["lifespan.startup.complete"])
    assert (await server.client.get("/health")).status_code == 200
    await wait_until(lambda: server.sum_samples("padless_event_loop_lag_seconds_count") > 0)
    messages.put_nowait({"type": "lifespan.shutdown"})
    await lifespan
    assert sent[-1] == "lifespan.shutdown.complete"
    samples = parse((await server.client.get("/metrics")).text)
    assert ("padless_event_loop_lag_seconds_count", ()) in samples


CHILD = """
import sys
from runtime.engine import MemoryStats
from server.metrics import CallTimes, Metrics
metrics = Metrics()
metrics.observe_call(route="/r", model="m", outcome="ok", total_s=0.01, times=CallTimes(2, 20, 0.001, 0.002, 0.003))
metrics.observe_engine("m", int(sys.argv[1]), MemoryStats(arena_reserved_bytes=int(sys.argv[2]), plan_cache_hits=5), 7)
metrics.observe_admitted("m", num_inputs=int(sys.argv[2]), num_tokens=1)
sys.stdout.buffer.write(metrics.render())
"""


def run_child(directory: Path, replica: int, size: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    command = [sys.executable, "-c", CHILD, str(replica), str(size)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return parse(done.stdout)


def test_processes_are_added_up(tmp_path: Path) -> None:
    run_child(tmp_path, 0, 100)
    run_child(tmp_path, 1, 200)
    samples = run_child(tmp_path, 0, 300)
    assert find(samples, "requests_total", route="/r", model="m", outcome="ok") == 3
    assert find(samples, "request_seconds_count", route="/r", model="m") == 3
    assert find(samples, "plan_cache_hits_total", model="m", replica="0") == 10
    assert find(samples, "arena_reserved_bytes", model="m", replica="0") == 300, "the newest of a replica, not a sum"
    assert find(samples, "arena_reserved_bytes", model="m", replica="1") == 200
    assert find(samples, "admitted_inputs", model="m") == 300, "all workers see the same count"


FORGET = """
import sys
from pathlib import Path
from server.metrics import Metrics, forget_process
for path in Path(sys.argv[1]).glob("gauge_*.db"):
    forget_process(int(path.stem.rsplit("_", 1)[1]))
sys.stdout.buffer.write(Metrics().render())
"""


def test_a_dead_process_leaves_its_counts_and_takes_its_gauges(tmp_path: Path) -> None:
    run_child(tmp_path, 0, 100)
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", FORGET, str(tmp_path)]
    samples = parse(
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    )
    assert find(samples, "requests_total", route="/r", model="m", outcome="ok") == 1
    assert not any(name == "padless_arena_reserved_bytes" for name, _ in samples)


@pytest.mark.anyio
async def test_info(server: Server) -> None:
    response = await server.client.get("/info")
    assert isinstance(response, httpx.Response) and response.status_code == 200
    body = response.json()
    assert [model["name"] for model in body["models"]] == ["embedder", "classifier"]
    assert body["models"][1]["id2label"] == {"0": "negative", "1": "neutral", "2": "positive"}
    replica = body["models"][0]["replicas"][0]
    assert replica["is_ready"] is True and sorted(replica) == ["info", "is_ready", "reason", "tokens_per_s"]
    assert body["config"]["models"][0]["limits"]["max_client_batch_size"] == 2048
    assert body["is_draining"] is False


def test_two_generators_in_one_process_count_apart() -> None:
    """As inline engines do, which share its registry."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for count, model in enumerate(("writer", "translator"), start=1):
        CacheMetrics(metrics, model, 0).observe(CacheReport(num_running=count))
    values = [
        registry.get_sample_value("padless_running_requests", {"model": model, "replica": "0"})
        for model in ("writer", "translator")
    ]
    assert values == [1, 2]
