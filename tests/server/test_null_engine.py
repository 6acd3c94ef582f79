"""The whole way in one process: HTTP, admission, scheduler and the null engine, with nothing faked in between."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import CLS, EMBED_DIM, SEP, VOCAB, MakeServer, RawCall, Server, wait_until

from runtime.batch import ArraySpec, Batch, Output
from runtime.engine import EngineInfo
from runtime.engines.null import NullEngine
from server.engine.batchers.batcher import StepLimits
from server.engine.batchers.packed import PackedBatcher
from server.engine.cost_model import CostModel
from server.engine.engine_loop import EngineLoop
from server.engine.executor import DeviceThread
from server.tasks import embed

pytestmark = pytest.mark.anyio

POISON = VOCAB.index("word59")


class GatedEngine(NullEngine):
    """Every step waits at the gate, which is open unless a test closes it."""

    def __init__(self, info: EngineInfo) -> None:
        super().__init__(info, fail_token_id=POISON)
        self.gate = threading.Event()
        self.gate.set()

    def run(self, batch: Batch) -> Output:
        assert self.gate.wait(20)
        return super().run(batch)


class Stack:
    """The server, and the loop and the engine behind its `embedder`."""

    def __init__(self, server: Server) -> None:
        info = EngineInfo(
            "null",
            "fp32",
            "it computes nothing",
            "cpu",
            1,
            (ArraySpec("embeddings", "float32", ("num_seqs", EMBED_DIM)),),
        )
        self.server = server
        self.engine = GatedEngine(info)
        reducers = {"embed": embed.TASK.reduce_rows}
        self.batcher = PackedBatcher(StepLimits(64, 8, 0.0), CostModel(), info.outputs, reducers)
        self.loop = EngineLoop(
            lambda wake: self.batcher,
            DeviceThread(self.engine, "engine"),
            server.state.metrics,
            model="embedder",
        )
        server.state.models["embedder"] = replace(server.state.models["embedder"], engine=self.loop)
        self.admission = server.state.models["embedder"].admission

    async def start(self) -> None:
        await self.loop.start()
        await wait_until(lambda: self.loop.statuses()[0].is_ready)

    async def close(self) -> None:
        self.engine.gate.set()
        await self.loop.close()


@pytest.fixture
async def stack(make_server: MakeServer) -> AsyncIterator[Stack]:
    running = Stack(make_server(max_concurrent_requests=32, max_client_batch_size=32))
    await running.start()
    yield running
    await running.close()


def expected(words: str) -> list[float]:
    """What null_rows makes of a text."""
    ids = [CLS, *(VOCAB.index(word) for word in words.split()), SEP]
    return [len(ids), ids[0], ids[-1], sum(ids)] * 2


def rows(response: Any) -> list[list[float]]:
    assert response.status_code == 200, response.text
    return [item["embedding"] for item in response.json()["data"]]


async def test_a_batch_over_several_steps_comes_back_in_order(stack: Stack) -> None:
    texts = [" ".join(["word1"] * (1 + index % 5)) + f" word{index}" for index in range(32)]
    together = rows(await stack.server.embed_text(texts))
    assert together == [expected(text) for text in texts]
    alone = [rows(await stack.server.embed_text(text))[0] for text in texts]
    assert alone == together


async def test_calls_at_the_same_time_get_their_own_answers(stack: Stack) -> None:
    calls = [stack.server.embed_text([f"word{index}", f"word{index} word2"]) for index in range(16)]
    for index, response in enumerate(await asyncio.gather(*calls)):
        assert rows(response) == [expected(f"word{index}"), expected(f"word{index} word2")]


async def test_one_that_fails_takes_nobody_with_it(stack: Stack) -> None:
    stack.engine.gate.clear()
    calls = [asyncio.create_task(stack.server.embed_text(f"word{index}")) for index in (1, 2, 59, 3)]
    await wait_until(lambda: stack.admission.num_inputs == 4)
    stack.engine.gate.set()
    answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    assert answers[2].json()["error"]["code"] == "engine_failure"


async def test_overload_while_the_engine_is_busy(stack: Stack) -> None:
    stack.engine.gate.clear()
    accepted = [asyncio.create_task(stack.server.embed_text([f"word{index}"] * 8)) for index in range(4)]
    await wait_until(lambda: stack.admission.num_inputs == 32)
    refused = await stack.server.embed_text("word1")
    assert refused.status_code == 429 and "retry-after-ms" in refused.headers
    assert not any(task.done() for task in accepted)
    stack.engine.gate.set()
    for index, response in enumerate(await asyncio.gather(*accepted)):
        assert rows(response) == [expected(f"word{index}")] * 8
    assert stack.admission.num_tokens == 0


async def test_a_client_that_goes_away_frees_place_and_queue(stack: Stack) -> None:
    stack.engine.gate.clear()
    body = b'{"model": "embedder", "input": "word1 word2"}'
    calls = [RawCall(stack.server.app, "/v1/embeddings", body) for _ in range(20)]
    await wait_until(lambda: stack.admission.num_inputs == 20)
    for call in calls[10:]:
        call.disconnect()
    await asyncio.gather(*(call.task for call in calls[10:]))
    assert stack.admission.num_inputs == 10
    stack.engine.gate.set()
    await asyncio.gather(*(call.task for call in calls[:10]))
    assert [call.status for call in calls[:10]] == [200] * 10
    assert stack.server.count(outcome="cancelled") == 10
    await wait_until(lambda: stack.batcher.num_queued_tokens == 0)


async def test_a_deadline_passes_in_the_queue(stack: Stack) -> None:
    stack.engine.gate.clear()
    busy = asyncio.create_task(stack.server.embed_text("word1"))
    await wait_until(lambda: stack.admission.num_inputs == 1)
    late = await stack.server.embed_text("word2", headers={"x-request-timeout-ms": "30"})
    assert late.status_code in (429, 504), "known beforehand or found out"
    stack.engine.gate.set()
    assert (await busy).status_code == 200
    assert stack.admission.num_inputs == 0


async def test_draining_loses_nothing(stack: Stack) -> None:
    stack.engine.gate.clear()
    accepted = [asyncio.create_task(stack.server.embed_text(f"word{index}")) for index in range(12)]
    await wait_until(lambda: stack.admission.num_inputs == 12)
    stack.server.state.is_draining = True
    assert (await stack.server.embed_text("word1")).status_code == 503
    stack.engine.gate.set()
    assert [rows(await task)[0] for task in accepted] == [expected(f"word{index}") for index in range(12)]


async def test_tokens_answered_are_tokens_run(stack: Stack) -> None:
    for size in (1, 7, 16):
        await stack.server.embed_text(["word1", "word2 word3 word4"] * size)
    total = stack.server.sum_samples
    assert total("padless_tokens_total") == total("padless_run_tokens_total") == 24 * (3 + 5)
    assert total("padless_padded_tokens_total") >= total("padless_run_tokens_total")
    assert total("padless_batch_sequences_sum") == total("padless_inputs_total") == 48


async def test_the_stages_of_a_call_are_part_of_its_time(stack: Stack) -> None:
    for index in range(5):
        await stack.server.embed_text(f"word{index}")
    total = stack.server.sum_samples
    stages = sum(total(f"padless_{stage}_seconds_sum") for stage in ("tokenize", "queue", "engine"))
    assert 0 < stages <= total("padless_request_seconds_sum")
