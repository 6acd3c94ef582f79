"""Generations over the process boundary: news in order, stops and cancels that arrive, failures that are told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from runtime.engine import EngineInfo
from runtime.engines.null_decoder import NullDecoder
from server.engine.batchers.batcher import StepLimits
from server.engine.batchers.cache_metrics import CacheMetrics
from server.engine.batchers.decoding import DecodingBatcher, DecodingOptions, DecodingStep
from server.engine.cost_model import CostModel
from server.engine.engine_loop import EngineLoop
from server.engine.engine_server import EngineServer
from server.engine.executor import DeviceThread
from server.errors import DeadlineExceeded, EngineFailure, EngineUnavailable, Unservable
from server.metrics import Metrics
from server.wire.client import SocketClient
from server.wire.generation import GenerationParams, read_news
from server.wire.replica_set import ReplicaSet
from server.wire.result_stream import ResultStream
from tests.generation.continuous import LOGITS, VOCAB_SIZE, expected_answer, make_job

POISON = 5_000
PATIENCE_S = 20.0


@dataclass
class Setup:
    """A replica set of one engine, and what is behind its socket."""

    replicas: ReplicaSet
    client: SocketClient
    loop: EngineLoop[DecodingStep]
    batcher: DecodingBatcher
    metrics: Metrics

    def start(self, *prompts: list[int], timeout_s: float = 60.0, **params: Any) -> ResultStream:
        settings = {"max_tokens": 12, "temperature": 0.0} | params
        return self.replicas.submit(make_job(prompts, GenerationParams(**settings), timeout_s=timeout_s))

    @property
    def is_idle(self) -> bool:
        return not self.batcher.decodings and not self.client.pending


@asynccontextmanager
async def make_engine(folder: Path, *, step_ms: float = 0.0) -> AsyncIterator[Setup]:
    info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, max_batch_tokens=64, num_blocks=40, max_batch_logits=64)
    metrics = Metrics(CollectorRegistry())

    def make_batcher(wake: Callable[[], None]) -> DecodingBatcher:
        return DecodingBatcher(
            StepLimits(64, 16, 0.0, 64),
            CostModel(),
            info,
            DecodingOptions(200, prefill_chunk_tokens=16),
            vocab_size=VOCAB_SIZE,
            wake=wake,
            metrics=CacheMetrics(metrics, "m", 0),
        )

    executor: DeviceThread[DecodingStep] = DeviceThread(
        NullDecoder(info, step_ms=step_ms, fail_token_id=POISON), "device"
    )
    loop = EngineLoop(make_batcher, executor, metrics, model="m")
    await loop.start()
    server = EngineServer(loop, folder / "engine.sock", {"generate": GenerationParams})
    await server.start()
    client = SocketClient(folder / "engine.sock")
    await client.start()
    await until(lambda: client.status.is_ready)
    replicas = ReplicaSet([client])
    assert isinstance(loop.batcher, DecodingBatcher)
    yield Setup(replicas, client, loop, loop.batcher, metrics)
    await replicas.close()
    await server.close()
    await loop.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def read(stream: ResultStream) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = {}
    async with asyncio.timeout(PATIENCE_S):
        async for result in stream:
            for news in read_news(result):
                answers.setdefault(news.row, []).extend(news.token_ids)
    return answers


def run(body: Any) -> None:
    asyncio.run(body)


def test_answers_arrive_whole_and_in_order(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path) as setup:
            answers = await asyncio.gather(*(read(setup.start([number, 3])) for number in range(20)))
            assert answers == [{0: expected_answer([number, 3], 12)} for number in range(20)]
            await until(lambda: setup.is_idle)
            assert setup.client.pending_tokens == 0
            assert setup.batcher.running.allocator.num_used_blocks == 0

    run(body())


def test_several_prompts_of_one_job_are_its_rows(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path) as setup:
            answers = await read(setup.start([4, 3], [5], [6, 7, 8], num_sequences=2))
            prompts = ([4, 3], [5], [6, 7, 8])
            assert answers == {row: expected_answer(prompts[row // 2], 12) for row in range(6)}

    run(body())


def test_cancel_frees_blocks(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=2) as setup:
            stream = setup.start([1], max_tokens=190)
            async for _ in stream:
                break
            stream.cancel()
            await until(lambda: setup.is_idle)
            assert setup.batcher.running.allocator.num_used_blocks == 0

    run(body())


def test_stopped_answers_end_and_the_others_are_whole(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=1) as setup:
            stream = setup.start([1], [2], max_tokens=100, num_sequences=2)
            answers: dict[int, list[int]] = {}
            has_stopped = False
            async for result in stream:
                for news in read_news(result):
                    answers.setdefault(news.row, []).extend(news.token_ids)
                if not has_stopped and len(answers) == 4:
                    stream.cancel([0, 2, 3])
                    has_stopped = True
            assert answers[1] == expected_answer([1], 100)
            assert all(len(answers[row]) < 100 for row in (0, 2, 3))
            await until(lambda: setup.is_idle)

    run(body())


def test_job_of_which_every_answer_was_stopped_is_over(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=1) as setup:
            stream = setup.start([1], max_tokens=150, num_sequences=2, temperature=1.0)
            async for _ in stream:
                stream.cancel([0])
                stream.cancel([1])
                break
            await until(lambda: not setup.batcher.decodings)
            stream.cancel()
            await until(lambda: setup.is_idle)

    run(body())


def test_failures_are_told_and_others_go_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=1) as setup:
            good = asyncio.create_task(read(setup.start([4], max_tokens=40)))
            with pytest.raises(EngineFailure, match="asked to fail"):
                await read(setup.start([POISON]))
            with pytest.raises(Unservable, match="which is 16; ask for fewer"):
                await read(setup.start([1], max_tokens=10_000, num_sequences=17))
            with pytest.raises(DeadlineExceeded):
                await read(setup.start([1], timeout_s=0.02, max_tokens=190))
            assert await good == {0: expected_answer([4], 40)}

    run(body())


def test_engine_that_goes_away_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path, step_ms=5) as setup:
            reading = asyncio.create_task(read(setup.start([1], max_tokens=190)))
            await until(lambda: setup.batcher.decodings)
            setup.client.disconnect("gone")
            with pytest.raises(EngineUnavailable, match="gone"):
                await reading
            assert setup.client.pending_tokens == 0
            # The engine's side hears of the closed connection, and stops too.
            await until(lambda: not setup.batcher.decodings)

    run(body())


def test_metrics_of_the_cache(tmp_path: Path) -> None:
    async def body() -> None:
        async with make_engine(tmp_path) as setup:
            prompt = list(range(40))
            for _ in range(2):
                await read(setup.start(prompt))
            await until(lambda: not setup.loop.under_way)
            setup.batcher.publish(setup.metrics)
            text = setup.metrics.render().decode()
            assert 'padless_prefix_cache_queried_tokens_total{model="m",replica="0"} 80.0' in text
            assert 'padless_prefix_cache_hit_tokens_total{model="m",replica="0"} 32.0' in text
            assert 'padless_prefill_tokens_total{model="m",replica="0"} 48.0' in text
            assert 'padless_decode_tokens_total{model="m",replica="0"} 22.0' in text
            assert 'padless_kv_blocks_used{model="m",replica="0"} 0.0' in text

    run(body())
