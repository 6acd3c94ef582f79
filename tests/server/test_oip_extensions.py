"""Triton's extensions of the Open Inference Protocol over REST: configuration, statistics, repository, schedule."""

import asyncio
from typing import Any

import pytest
from conftest import EMBEDDER, LABELS, MakeServer, Server, wait_until
from fake_generator import GenerationServer

from server.errors import EngineFailure
from server.wire.job import EngineStatus

pytestmark = pytest.mark.anyio

TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["word1"]}


async def infer(server: Server, **parameters: Any) -> Any:
    body = {"inputs": [TEXT], "parameters": parameters}
    return await server.client.post("/v2/models/embedder/infer", json=body)


async def test_the_server_tells_of_them(server: Server) -> None:
    extensions = (await server.client.get("/v2")).json()["extensions"]
    assert extensions == [
        *("binary_tensor_data", "model_configuration", "model_repository", "schedule_policy", "statistics")
    ]


@pytest.mark.parametrize("path", ["/v2/models/classifier/config", "/v2/models/classifier/versions/1/config"])
async def test_configuration(make_server: MakeServer, path: str) -> None:
    server = make_server(max_client_batch_size=7)
    config = (await server.client.get(path)).json()
    assert config["name"] == "classifier" and config["max_batch_size"] == 7
    assert config["input"][0] == {"name": "text", "data_type": "TYPE_STRING", "dims": [1], "optional": True}
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [len(LABELS)]}]


async def test_configuration_of_what_cannot_be_asked(generator: GenerationServer) -> None:
    response = await generator.client.get("/v2/models/writer/config")
    assert response.status_code == 400 and "its task is generate" in response.json()["error"]


async def test_statistics(server: Server) -> None:
    await infer(server)
    await server.embed_text(["word1", "word2"])
    server.embed.error = EngineFailure("no")
    await infer(server)
    server.state.metrics.bind_steps("embedder", 0).observe(
        num_tokens=3,
        num_seqs=1,
        max_seqlen=3,
        predicted_s=0.0,
        actual_s=0.1,
        batch_wait_s=None,
    )
    for path in ("/v2/models/embedder/stats", "/v2/models/embedder/versions/1/stats"):
        (stats,) = (await server.client.get(path)).json()["model_stats"]
        assert (stats["name"], stats["version"]) == ("embedder", "1")
        assert (stats["inference_count"], stats["execution_count"]) == (3, 1)
        times = stats["inference_stats"]
        assert times["success"]["count"] == 2 and times["success"]["ns"] > 0 and times["fail"]["count"] == 1
        assert times["queue"] == {"count": 2, "ns": 2_000_000} and times["compute_infer"] == {
            "count": 2,
            "ns": 4_000_000,
        }
        # perf_analyzer reads these whatever the server counts.
        assert times["compute_output"] == {"count": 2, "ns": 0}
        assert times["cache_hit"] == times["cache_miss"] == {"count": 0, "ns": 0}
    both = (await server.client.get("/v2/models/stats")).json()["model_stats"]
    assert [each["name"] for each in both] == ["embedder", "classifier"] and both[1]["inference_count"] == 0
    assert (await server.client.get("/v2/models/other/stats")).status_code == 404


async def test_the_repositorys_index(server: Server) -> None:
    server.classify.reported = (EngineStatus(is_ready=False, reason="it is starting"),)
    ready = {"name": "embedder", "version": "1", "state": "READY", "reason": ""}
    lost = {"name": "classifier", "version": "1", "state": "UNAVAILABLE", "reason": "replica 0: it is starting"}
    for body in (b"", b"{}"):
        assert (await server.client.post("/v2/repository/index", content=body)).json() == [ready, lost]
    assert (await server.client.post("/v2/repository/index", json={"ready": True})).json() == [ready]
    response = await server.client.post("/v2/repository/index", json={"ready": 3})
    assert response.status_code == 400 and "ready: should be a valid boolean" in response.json()["error"]


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_models_are_not_loaded(server: Server, verb: str) -> None:
    response = await server.client.post(f"/v2/repository/models/embedder/{verb}", json={})
    assert response.status_code == 400 and "cannot be loaded or unloaded here" in response.json()["error"]


async def test_a_model_may_be_called_stats(make_server: MakeServer) -> None:
    server = make_server(others={"stats": EMBEDDER})
    response = await server.client.post("/v2/models/stats/infer", json={"inputs": [TEXT]})
    assert response.status_code == 200


async def test_the_timeout_is_in_microseconds_and_only_shortens(server: Server) -> None:
    await infer(server, timeout=2_000_000)
    await infer(server, timeout=60_000_000)
    await infer(server, timeout=0)
    assert [round(job.timeout_s) for job in server.embed.jobs] == [2, 30, 30]


async def test_past_the_timeout_the_work_is_cancelled(server: Server) -> None:
    server.embed.gate = asyncio.Event()
    response = await infer(server, timeout=50_000)
    assert response.status_code == 504 and "within 50 ms" in response.json()["error"]
    await wait_until(lambda: server.embed.num_cancelled == 1)


async def test_one_is_the_most_urgent(make_server: MakeServer) -> None:
    server = make_server(http={"allow_priority": True})
    for priority in (1, 2, 1_000_000, 0):
        assert (await infer(server, priority=priority)).status_code == 200
    priorities = [job.priority for job in server.embed.jobs]
    assert priorities == sorted(set(priorities)) and priorities[-1] == 0
    assert all(priority >= -(2**31) for priority in priorities)


async def test_priority_needs_the_right_to_it(server: Server) -> None:
    assert (await infer(server, priority=0)).status_code == 200
    assert (await infer(server, priority=1)).status_code == 403


@pytest.mark.parametrize(
    "parameters", [{"timeout": -1}, {"timeout": "1"}, {"timeout": True}, {"timeout": 1.5}, {"priority": 1_000_001}]
)
async def test_bad_parameters(server: Server, parameters: dict[str, Any]) -> None:
    response = await infer(server, **parameters)
    assert response.status_code == 400
    assert f"parameters: {next(iter(parameters))} must be a whole number" in response.json()["error"]
