"""Full queues, deadlines, clients that go away, draining: nothing hangs, nothing keeps its place."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CLASSIFIER, MAX_TOKENS, MakeServer, RawCall, Server, build_tokenizer, wait_until

from server.wire.job import EngineStatus

pytestmark = pytest.mark.anyio

BODY = json.dumps({"model": "embedder", "input": ["word1", "word2 word3"]}).encode()
FOR_THE_POOL = "word1 " * 200
"""Too long to be tokenised on the event loop."""


def check_is_empty(server: Server) -> None:
    for model in server.state.models.values():
        assert (model.admission.num_inputs, model.admission.num_tokens) == (0, 0)
    assert server.embed.num_running == 0


async def test_a_full_queue_is_429_while_the_engine_is_still_busy(make_server: MakeServer) -> None:
    server = make_server(max_concurrent_requests=4, max_client_batch_size=4)
    server.embed.gate = gate = asyncio.Event()
    accepted = [asyncio.create_task(server.embed_text(["word1", "word2"])) for _ in range(2)]
    await wait_until(lambda: server.embed.num_running == 2)
    refused = await server.embed_text("word3")
    assert server.embed.num_running == 2, "the refusal must not wait for the engine"
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) >= 1
    gate.set()
    assert [(await task).status_code for task in accepted] == [200, 200]
    assert (await server.embed_text("word3")).status_code == 200
    check_is_empty(server)
    assert server.count(outcome="ok") == 3 and server.count(outcome="rejected") == 1


async def test_inputs_are_counted_and_not_calls(make_server: MakeServer) -> None:
    server = make_server(max_concurrent_requests=4, max_client_batch_size=4)
    server.embed.gate = gate = asyncio.Event()
    first = asyncio.create_task(server.embed_text(["word1"] * 3))
    await wait_until(lambda: server.embed.num_running == 1)
    assert (await server.embed_text(["word1"] * 2)).status_code == 429
    second = asyncio.create_task(server.embed_text(["word1"]))
    await wait_until(lambda: server.embed.num_running == 2)
    gate.set()
    assert [(await first).status_code, (await second).status_code] == [200, 200]


async def test_windows_of_a_long_text_are_counted(make_server: MakeServer) -> None:
    """No more of them are computed at once than inputs may be, and who is refused keeps nothing."""
    tagger = replace(CLASSIFIER, task="token_classify")
    server = make_server(max_concurrent_requests=4, max_client_batch_size=4, others={"tagger": tagger})
    engine, admission = server.engines["tagger"], server.state.models["tagger"].admission
    engine.gate = gate = asyncio.Event()
    long = {"inputs": "word1 " * (2 * MAX_TOKENS), "parameters": {"stride": 0}}
    first = asyncio.create_task(server.client.post("/models/tagger", json=long))
    await wait_until(lambda: engine.num_running == 1)
    assert admission.num_inputs == 3
    refused = await server.client.post("/models/tagger", json=long)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert "3 of 4 inputs are waiting and the texts of this request make 3 windows" in refused.json()["error"]
    assert admission.num_inputs == 3 and len(engine.jobs) == 1
    gate.set()
    assert (await first).status_code == 200
    assert (await server.client.post("/models/tagger", json=long)).status_code == 200
    check_is_empty(server)


async def test_models_have_a_queue_each(make_server: MakeServer) -> None:
    server = make_server(max_concurrent_requests=1, max_client_batch_size=1)
    server.embed.gate = gate = asyncio.Event()
    blocked = asyncio.create_task(server.embed_text("word1"))
    await wait_until(lambda: server.embed.num_running == 1)
    assert (await server.client.post("/predict", json={"inputs": "word1"})).status_code == 200
    gate.set()
    await blocked


async def test_predict_is_refused_in_its_own_shape(make_server: MakeServer) -> None:
    server = make_server(max_concurrent_requests=1, max_client_batch_size=1)
    server.classify.gate = gate = asyncio.Event()
    blocked = asyncio.create_task(server.client.post("/predict", json={"inputs": "word1"}))
    await wait_until(lambda: server.classify.num_running == 1)
    response = await server.client.post("/predict", json={"inputs": "word1"})
    assert response.status_code == 429
    assert response.json()["error_type"] == "Overloaded" and "retry-after-ms" in response.headers
    gate.set()
    await blocked


async def test_refusal_comes_before_tokenising(make_server: MakeServer) -> None:
    server = make_server(max_concurrent_requests=1, max_client_batch_size=1)
    server.embed.gate = gate = asyncio.Event()
    blocked = asyncio.create_task(server.embed_text("word1"))
    await wait_until(lambda: server.embed.num_running == 1)
    # Tokenising would find that this one is too long.
    assert (await server.embed_text("word1 " * (MAX_TOKENS + 1))).status_code == 429
    gate.set()
    await blocked


async def test_retry_after_follows_from_waiting_tokens_and_rate(make_server: MakeServer) -> None:
    server = make_server(max_concurrent_requests=2, max_client_batch_size=2)
    server.embed.reported = (EngineStatus(is_ready=True, reason="ready", tokens_per_s=2.0),)
    server.embed.gate = gate = asyncio.Event()
    blocked = asyncio.create_task(server.embed_text([[1] * 10, [2] * 10]))
    await wait_until(lambda: server.embed.num_running == 1)
    refused = await server.embed_text("word1")
    assert 5_000 <= int(refused.headers["retry-after-ms"]) <= 10_000
    assert 5 <= int(refused.headers["retry-after"]) <= 10
    gate.set()
    await blocked


async def test_a_deadline_out_of_reach_is_refused_at_once(server: Server) -> None:
    server.embed.reported = (EngineStatus(is_ready=True, reason="ready", tokens_per_s=2.0),)
    server.embed.gate = gate = asyncio.Event()
    blocked = asyncio.create_task(server.embed_text([[1] * 10, [2] * 10]))
    await wait_until(lambda: server.embed.num_running == 1)
    refused = await server.embed_text("word1", headers={"x-request-timeout-ms": "5000"})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "deadline_unreachable"
    patient = asyncio.create_task(server.embed_text("word1", headers={"x-request-timeout-ms": "60000"}))
    await wait_until(lambda: server.embed.num_running == 2)
    gate.set()
    assert (await patient).status_code == (await blocked).status_code == 200


async def test_a_missed_deadline_is_504_and_frees_its_place(server: Server) -> None:
    server.embed.gate = asyncio.Event()
    response = await server.embed_text("word1", headers={"x-request-timeout-ms": "20"})
    assert response.status_code == 504
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["code"] == "deadline_exceeded"
    await wait_until(lambda: server.embed.num_cancelled == 1)
    check_is_empty(server)
    assert server.count(outcome="deadline") == 1


async def test_the_default_deadline(make_server: MakeServer) -> None:
    server = make_server(http={"default_timeout_ms": 20.0})
    server.embed.gate = asyncio.Event()
    assert (await server.embed_text("word1")).status_code == 504


async def test_a_body_that_never_ends_meets_the_deadline(make_server: MakeServer) -> None:
    server = make_server(http={"default_timeout_ms": 20.0})
    call = RawCall(server.app, "/v1/embeddings", BODY[:10], is_complete=False)
    await call.task
    assert call.status == 504


async def test_a_deadline_passed_while_tokenising(
    make_server: MakeServer, model_directory: Path, stuck_pool: ThreadPoolExecutor
) -> None:
    server = make_server(tokenizer=build_tokenizer(model_directory, stuck_pool), truncation="right")
    response = await server.embed_text(FOR_THE_POOL, headers={"x-request-timeout-ms": "20"})
    assert response.status_code == 504
    assert server.embed.calls == []
    check_is_empty(server)


@pytest.fixture
def stuck_pool() -> object:
    """One thread, busy until the test is over."""
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(release.wait)
        yield pool
        release.set()


async def test_disconnect_while_the_body_is_read(server: Server) -> None:
    call = RawCall(server.app, "/v1/embeddings", BODY[:10], is_complete=False)
    call.disconnect()
    await call.task
    assert server.embed.calls == []
    assert server.count(outcome="cancelled") == 1
    check_is_empty(server)


async def test_disconnect_while_tokenising(
    make_server: MakeServer, model_directory: Path, stuck_pool: ThreadPoolExecutor
) -> None:
    server = make_server(tokenizer=build_tokenizer(model_directory, stuck_pool), truncation="right")
    call = RawCall(server.app, "/v1/embeddings", json.dumps({"model": "embedder", "input": FOR_THE_POOL}).encode())
    admission = server.state.models["embedder"].admission
    await wait_until(lambda: admission.num_inputs == 1)
    call.disconnect()
    await call.task
    assert server.embed.calls == []
    assert server.count(outcome="cancelled") == 1
    check_is_empty(server)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/predict"])
async def test_disconnect_while_the_engine_has_it(server: Server, path: str) -> None:
    engine = server.embed if path == "/v1/embeddings" else server.classify
    engine.gate = asyncio.Event()
    call = RawCall(server.app, path, BODY if engine is server.embed else b'{"inputs": "word1"}')
    await wait_until(lambda: engine.num_running == 1)
    call.disconnect()
    await call.task
    assert engine.num_cancelled == 1
    assert server.count(outcome="cancelled") == 1
    check_is_empty(server)
    engine.gate.set()
    assert (await server.embed_text("word1")).status_code == 200


async def test_disconnect_at_the_moment_of_the_answer(server: Server) -> None:
    server.embed.gate = gate = asyncio.Event()
    call = RawCall(server.app, "/v1/embeddings", BODY)
    await wait_until(lambda: server.embed.num_running == 1)
    call.disconnect()
    gate.set()
    await call.task
    assert server.count() == 1
    check_is_empty(server)


async def test_the_server_stopping_is_not_taken_for_the_client(server: Server) -> None:
    server.embed.gate = asyncio.Event()
    call = RawCall(server.app, "/v1/embeddings", BODY)
    await wait_until(lambda: server.embed.num_running == 1)
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task
    assert call.sent == []
    check_is_empty(server)


async def test_draining_finishes_what_was_accepted_and_takes_no_more(server: Server) -> None:
    server.embed.gate = gate = asyncio.Event()
    accepted = [asyncio.create_task(server.embed_text(f"word{index}")) for index in range(5)]
    await wait_until(lambda: server.embed.num_running == 5)
    assert (await server.client.get("/ready")).status_code == 200
    server.state.is_draining = True
    ready = await server.client.get("/ready")
    assert ready.status_code == 503 and "shutting down" in ready.json()["error"]["message"]
    assert (await server.client.get("/health")).status_code == 200
    for path, body in (("/v1/embeddings", {"model": "embedder", "input": "word1"}), ("/predict", {"inputs": "word1"})):
        refused = await server.client.post(path, json=body)
        assert refused.status_code == 503 and "retry-after" in refused.headers
    gate.set()
    assert [(await task).status_code for task in accepted] == [200] * 5
    check_is_empty(server)


async def test_a_mixed_crowd_is_counted_to_the_last_call(make_server: MakeServer) -> None:
    server = make_server(max_concurrent_requests=10, max_client_batch_size=10)
    server.embed.gate = gate = asyncio.Event()
    calls = [asyncio.create_task(server.embed_text(f"word{index}")) for index in range(25)]
    gone = [RawCall(server.app, "/v1/embeddings", BODY[:5], is_complete=False) for _ in range(3)]
    late = asyncio.create_task(server.embed_text("word1", headers={"x-request-timeout-ms": "1e9"}))
    for call in gone:
        call.disconnect()
    await asyncio.gather(*(call.task for call in gone), late)
    await wait_until(lambda: server.embed.num_running == 10)
    gate.set()
    statuses = [(await call).status_code for call in calls]
    assert (statuses.count(200), statuses.count(429)) == (10, 15)
    assert server.count(outcome="ok") == 10
    assert server.count(outcome="cancelled") == 3
    assert server.count(outcome="rejected") == 15
    assert server.count(outcome="invalid") == 1
    assert server.count() == 29
    check_is_empty(server)
