"""Generations over the process boundary: events in order, stops and cancels that arrive, failures that are told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from server.engine.batchers.scheduler import SchedulerLimits

from runtime.engine import EngineInfo
from runtime.engines.null_decoder import NullDecoder
from server.engine.cost_model import CostModel
from server.engine.engine_loop import EngineLoop, GenerationOptions
from server.engine.engine_server import EngineServer
from server.metrics import Metrics
from server.wire.client import ReplicaSet, SocketEngine
from server.wire.job import (
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    GenerationParams,
    GenerationStream,
    Unservable,
)
from tests.generation.continuous import LOGITS, expected_answer

POISON = 5_000
PATIENCE_S = 20.0


@asynccontextmanager
async def make_engine(folder: Path, *, step_ms: float = 0.0) -> AsyncIterator[tuple[ReplicaSet, EngineLoop]]:
    info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, max_batch_tokens=64, num_blocks=40, max_batch_logits=64)
    loop = EngineLoop(
        NullDecoder(info, step_ms=step_ms, fail_token_id=POISON),
        SchedulerLimits(64, 16, 0.0, 64),
        CostModel(),
        Metrics(CollectorRegistry()),
        model="m",
        generation=GenerationOptions(200, prefill_chunk_tokens=16),
    )
    await loop.start()
    server = EngineServer(loop, folder / "engine.sock")
    await server.start()
    client = ReplicaSet([SocketEngine(folder / "engine.sock")])
    await client.engines[0].start()
    await until(lambda: client.status()[0].is_ready)
    yield client, loop
    await client.close()
    await server.close()
    await loop.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def read(stream: GenerationStream) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = {}
    async with asyncio.timeout(PATIENCE_S):
        async for events in stream:
            for event in events:
                answers.setdefault(event.index, []).extend(event.token_ids)
    return answers


def start(client: ReplicaSet, prompt: list[int], timeout_s: float = 60.0, **params: object) -> GenerationStream:
    settings = {"max_tokens": 12, "temperature": 0.0} | params
    return client.generate(np.array(prompt, np.int32), GenerationParams(**settings), monotonic() + timeout_s)  # type: ignore[arg-type]


def run(body: object) -> None:
    asyncio.run(body)  # type: ignore[arg-type]


def test_answers_arrive_whole_and_in_order(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path) as (client, loop):
            answers = await asyncio.gather(*(read(start(client, [number, 3])) for number in range(20)))
            assert answers == [{0: expected_answer([number, 3], 12)} for number in range(20)]
            await until(lambda: not loop.generating.streams and not client.engines[0].streams)
            assert client.engines[0].pending_tokens == 0
            assert loop.generating.residents.allocator.num_used_blocks == 0

    run(body())


def test_cancel_frees_blocks(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=2) as (client, loop):
            stream = start(client, [1], max_tokens=190)
            async for _ in stream:
                break
            stream.cancel()
            await until(lambda: not loop.generating.streams)
            assert loop.generating.residents.allocator.num_used_blocks == 0
            assert not client.engines[0].streams

    run(body())


def test_stopped_answer_ends_the_stream_when_it_is_the_last(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=1) as (client, loop):
            stream = start(client, [1], max_tokens=150, num_sequences=2, temperature=1.0)
            async for events in stream:
                for event in events:
                    stream.stop(event.index)
            await until(lambda: not loop.generating.streams and not client.engines[0].streams)

    run(body())


def test_failures_are_told_and_others_go_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=1) as (client, _):
            good = asyncio.create_task(read(start(client, [4], max_tokens=40)))
            with pytest.raises(EngineFailure, match="asked to fail"):
                await read(start(client, [POISON]))
            with pytest.raises(Unservable, match=r"raise limits\.max_batch_requests"):
                await read(start(client, [1], max_tokens=10_000, num_sequences=17))
            with pytest.raises(DeadlineExceeded):
                await read(start(client, [1], timeout_s=0.02, max_tokens=190))
            assert await good == {0: expected_answer([4], 40)}

    run(body())


def test_engine_that_goes_away_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=5) as (client, loop):
            reading = asyncio.create_task(read(start(client, [1], max_tokens=190)))
            await until(lambda: loop.generating.streams)
            client.engines[0].disconnect("gone")
            with pytest.raises(EngineUnavailable, match="gone"):
                await reading
            assert client.engines[0].pending_tokens == 0
            # The engine's side hears of the closed connection, and stops too.
            await until(lambda: not loop.generating.streams)

    run(body())


def test_metrics_of_the_cache(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path) as (client, loop):
            prompt = list(range(40))
            for _ in range(2):
                await read(start(client, prompt))
            loop.cache_metrics.observe(loop.generating.describe_cache())
            text = loop.metrics.render().decode()
            assert 'padless_prefix_cache_queried_tokens_total{model="m",replica="0"} 80.0' in text
            assert 'padless_prefix_cache_hit_tokens_total{model="m",replica="0"} 32.0' in text
            assert 'padless_prefill_tokens_total{model="m",replica="0"} 48.0' in text
            assert 'padless_decode_tokens_total{model="m",replica="0"} 22.0' in text
            assert 'padless_kv_blocks_used{model="m",replica="0"} 0.0' in text

    run(body())
