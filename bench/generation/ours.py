"""Padless's decoding batcher and engine loop in this process, and what happened to each request it was given."""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np

from bench.generation.session import Task
from models.info import ModelInfo, read_info
from models.load import load_model
from runtime.build import build_engine
from runtime.config import EngineConfig
from runtime.engine import Engine
from runtime.limits import BatchLimits
from server.engine.batchers.batcher import StepLimits
from server.engine.batchers.decoding import DecodingBatcher, DecodingOptions, DecodingStep
from server.engine.cost_model import CostModel
from server.engine.engine_loop import EngineLoop
from server.engine.executor import DeviceThread, run_in_passing_thread
from server.metrics import Metrics
from server.processes.startup import spare_garbage_collector
from server.wire.generation import GenerationParams, read_news
from server.wire.job import Job, TokenSequence, write_inputs

TIMEOUT_S = 3600.0
BUDGET_MB = 4000.0
"""For weights, activations and the KV cache, which takes only what so many requests can fill."""


def make_parser(description: str | None, *, rounds: int | None) -> argparse.ArgumentParser:
    """With the options that all benchmarks of our own loop have; `rounds` None: without that one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    return parser


@dataclass(frozen=True)
class Ours:
    """A loop to be started and closed, and its batcher, which may be looked into."""

    loop: EngineLoop[DecodingStep]
    batcher: DecodingBatcher


@dataclass
class Reply:
    """An answer's tokens, and when the request was sent and each of them arrived. Mutable: grows as they arrive."""

    started_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    num_cached_tokens: int = 0

    @property
    def first_s(self) -> float:
        """From the request to the first token."""
        return self.times_s[0] - self.started_s


def build_ours(
    model: Path,
    *,
    threads: int,
    max_batch_requests: int,
    max_total_tokens: int,
    precision: str = "fp32",
    max_batch_tokens: int = 512,
    prefill_chunk_tokens: int = 128,
    has_prefix_cache: bool = False,
    num_drafts: int = 0,
) -> Ours:
    """As an engine process builds it, warmed up. `max_total_tokens`: or the model's context, if that is smaller."""
    info = read_info(model, task="generate")
    max_total_tokens = min(max_total_tokens, info.max_input_tokens)
    num_logits = min(max_batch_requests * (1 + num_drafts), max_batch_tokens)
    limits = BatchLimits(max_batch_tokens, max_batch_requests, max_total_tokens, num_logits)
    options = DecodingOptions(max_total_tokens, prefill_chunk_tokens, has_prefix_cache, num_drafts)
    return open_ours(model, info, limits, options, threads=threads, precision=precision)


def open_ours(
    model: Path, info: ModelInfo, limits: BatchLimits, options: DecodingOptions, *, threads: int, precision: str
) -> Ours:
    """Of any model that answers token by token."""
    config = EngineConfig.model_validate(
        {"precision": precision, "threads": threads, "kv_cache": {"budget_mb": BUDGET_MB}}
    )

    def build() -> Engine:
        engine = build_engine(load_model(model, info), config, limits, lambda *_: None)
        engine.warmup(lambda *_: None)
        return engine

    engine = run_in_passing_thread(build)
    spare_garbage_collector()

    def make_batcher(wake: Callable[[], None]) -> DecodingBatcher:
        return DecodingBatcher(
            StepLimits(engine.info.max_batch_tokens, limits.max_batch_requests, 0.0, engine.info.max_batch_logits),
            CostModel(),
            engine.info,
            options,
            vocab_size=info.output_dim,
            wake=wake,
        )

    loop = EngineLoop(make_batcher, DeviceThread(engine, "device"), Metrics(), model=model.name)
    return Ours(loop, loop.batcher)


async def ask(
    ours: Ours,
    task: Task,
    reply: Reply | None = None,
    stop_token_ids: tuple[int, ...] = (),
    temperature: float = 0.0,
) -> Reply:
    """Greedy unless told, past any other end token. Fills `reply`, so that others can watch it grow."""
    reply = reply or Reply()
    reply.started_s = monotonic()
    params = GenerationParams(task.num_tokens, temperature=temperature, stop_token_ids=stop_token_ids, seed=0)
    prompt = TokenSequence(np.array(task.input_ids, np.int32))
    async for result in ours.loop.submit(Job("generate", write_inputs([prompt]), TIMEOUT_S, params)):
        for news in read_news(result):
            reply.token_ids += news.token_ids
            reply.times_s += [monotonic()] * len(news.token_ids)
            reply.num_cached_tokens += news.num_cached_tokens
    return reply


async def ask_all(ours: Ours, tasks: Sequence[Task], max_concurrent: int, temperature: float = 0.0) -> list[Reply]:
    """In the order of the tasks; the next one is sent when one of `max_concurrent` has been answered."""
    places = asyncio.Semaphore(max_concurrent)

    async def ask_in_turn(task: Task) -> Reply:
        async with places:
            return await ask(ours, task, temperature=temperature)

    return await asyncio.gather(*(ask_in_turn(task) for task in tasks))
