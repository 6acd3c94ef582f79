"""`python -m bench.waits`: how long a short text waits over HTTP, alone and behind somebody's 2,048.

Alone: one text after the other on one connection, in turn with the engine's own step for the same tokens. Behind
others: short texts arrive five times a second while calls of 2,048 texts come one after another; the longest wait is
held against a step of the largest batch, of which one may be running and one be ready when a text arrives.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bench.minilm import DIRECTORY, build_ours
from bench.report import write_results
from loadtest.client import Answer, Client
from loadtest.server_process import serve
from loadtest.workloads import build_texts, find_workload, load_workload
from runtime.engine import Engine
from server.config_file import load_config
from server.engine.batchers.packing import pack_sequences
from server.wire.job import TokenSequence

CONFIG = "configs/minilm-int8.yaml"
SHORT = "a short text that people might well send, of seventeen tokens or so, alone"
NUM_ALONE, ROUNDS = 200, 5
NUM_OTHERS, OTHERS_S, PERIOD_S = 2048, 20.0, 0.2


def encode(inputs: object) -> bytes:
    return json.dumps({"model": "all-MiniLM-L6-v2", "input": inputs, "encoding_format": "base64"}).encode()


async def time_one(client: Client, body: bytes) -> float:
    """Seconds to the whole answer."""
    done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    started_s = time.perf_counter()
    client.send(client.encode(body), done.set_result)
    answer = await done
    if not answer.is_success:
        raise SystemExit(f"a request failed: {answer}")
    return time.perf_counter() - started_s


async def measure_alone(url: str) -> list[float]:
    client = Client(url)
    seconds = [await time_one(client, encode(SHORT)) for _ in range(NUM_ALONE)]
    await client.abort()
    return seconds


async def measure_behind(url: str) -> list[float]:
    client = Client(url)
    texts = [text for request in build_texts(load_workload(find_workload("short-words"))) for text in request]
    others = encode([texts[index % len(texts)] for index in range(NUM_OTHERS)])
    until_s = time.perf_counter() + OTHERS_S

    async def send_others() -> None:
        while time.perf_counter() < until_s:
            await time_one(client, others)

    running = asyncio.create_task(send_others())
    waiting = []
    while time.perf_counter() < until_s:
        waiting.append(asyncio.create_task(time_one(client, encode(SHORT))))
        await asyncio.sleep(PERIOD_S)
    seconds = await asyncio.gather(*waiting)
    await running
    await client.abort()
    return list(seconds)


def time_steps(engine: Engine, lengths: list[int], num_steps: int) -> float:
    """Median seconds of a step of such sequences."""
    batch = pack_sequences([TokenSequence(np.full(length, 2000, np.int32)) for length in lengths])
    seconds = []
    for _ in range(num_steps):
        started_s = time.perf_counter()
        engine.run(batch)
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = load_config(Path(CONFIG)).models[0]
    tokenizer = Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))
    tokenizer.no_padding()
    num_tokens = len(tokenizer.encode(SHORT).ids)
    engine = build_ours(precision=model.engine.precision, threads=1)
    alone, own = [], []
    with tempfile.TemporaryDirectory() as folder, serve(CONFIG, log=Path(folder) / "log") as url:
        asyncio.run(measure_alone(url))
        for _ in range(ROUNDS):
            own.append(1000 * time_steps(engine, [num_tokens], NUM_ALONE))
            alone.append(1000 * statistics.median(asyncio.run(measure_alone(url))))
        behind = sorted(1000 * seconds for seconds in asyncio.run(measure_behind(url)))
    largest_ms = 1000 * time_steps(engine, [16] * (model.limits.max_batch_tokens // 16), 5)
    extra = [over - step for over, step in zip(alone, own, strict=True)]
    table = [
        ["what", "ms"],
        [f"the engine's step for {num_tokens} tokens, median of {ROUNDS} rounds", f"{statistics.median(own):.2f}"],
        ["over HTTP, alone", f"{statistics.median(alone):.2f}"],
        ["the difference", f"{statistics.median(extra):.2f} ({min(extra):.2f}-{max(extra):.2f})"],
        [f"behind calls of {NUM_OTHERS} texts: p50", f"{statistics.median(behind):.0f}"],
        ["p99", f"{behind[int(0.99 * (len(behind) - 1))]:.0f}"],
        ["the longest", f"{behind[-1]:.0f}"],
        ["two of the largest steps", f"{2 * largest_ms:.0f}"],
    ]
    write_results(
        "waits", table, {"alone_ms": alone, "own_ms": own, "behind_ms": behind, "largest_step_ms": largest_ms}
    )


if __name__ == "__main__":
    main()
