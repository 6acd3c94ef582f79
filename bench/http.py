"""`python -m bench.http [--peers ...]`: what HTTP costs, and how we stand beside other servers.

One text of 3 to 50 words per request, 64 connections, in turn: the engine alone on the same texts, in full batches, in
as many processes and threads as the server has; Padless over HTTP; and each peer over HTTP (infinity-emb; OpenVINO
behind a small FastAPI route), in an environment of its own, which is made on the first run. Then p99 of all servers
where texts arrive at rates that they may hold. The cosine is that of a few texts with our fp32, where it is lowest.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bench.http_peers import MODEL, PEERS, start
from bench.minilm import DIRECTORY, build_ours
from bench.peers.measuring import find_lowest_cosine
from bench.report import write_results
from bench.traffic import pack_sorted
from loadtest.client import Client
from loadtest.closed_loop import Closed, measure_closed
from loadtest.measure import Traffic
from loadtest.open_loop import Step, measure_step
from loadtest.server_process import serve
from loadtest.workloads import build_bodies, build_texts, find_workload, load_workload
from server.engine.batchers.packing import pack_sequences
from server.wire.job import TokenSequence

WORKLOAD = "short-words"
CONNECTIONS = 64
MAX_BATCH_TOKENS = 2048
"""As in configs/minilm.yaml."""
COSINE_TEXTS = 16
RATES = (15.0, 30.0, 45.0)
"""Texts per second that arrive on their own, for latencies."""


def run_engine_alone() -> None:
    """Texts per second in full batches; measures once for every line on standard input."""
    seconds = float(sys.argv[4])
    engine = build_ours(precision=sys.argv[3], threads=int(sys.argv[2]))
    batches = list(split_batches(tokenise()))
    print("ready", flush=True)
    for _ in sys.stdin:
        started_s, num_texts = time.perf_counter(), 0
        for batch in itertools.cycle(batches):
            if time.perf_counter() - started_s > seconds:
                break
            engine.run(pack_sorted(batch))
            num_texts += len(batch)
        print(num_texts / (time.perf_counter() - started_s), flush=True)


def tokenise() -> list[TokenSequence]:
    tokenizer = Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = [text for request in build_texts(load_workload(find_workload(WORKLOAD))) for text in request]
    return [TokenSequence(np.array(tokenizer.encode(text).ids, np.int32)) for text in texts]


def split_batches(sequences: list[TokenSequence]) -> Iterator[list[TokenSequence]]:
    batch: list[TokenSequence] = []
    room = MAX_BATCH_TOKENS
    for sequence in sequences:
        if sequence.num_tokens > room:
            yield batch
            batch, room = [], MAX_BATCH_TOKENS
        batch.append(sequence)
        room -= sequence.num_tokens
    yield batch


def measure_http(url: str, model: str, seconds: float) -> dict[str, float]:
    workload = load_workload(find_workload(WORKLOAD))
    plan = Closed(
        connections=CONNECTIONS, duration_s=seconds, warmup_s=1.0, num_requests=None, timeout_s=30.0, slo_ms=200.0
    )

    async def run() -> dict[str, float]:
        client = Client(url)
        traffic = Traffic(WORKLOAD, [client.encode(body) for body in build_bodies(workload, model)], 1)
        result = await measure_closed(client, traffic, plan)
        await client.abort()
        if result.errors or result.rejected:
            raise SystemExit(f"{url}: {result.errors} errors, {result.rejected} rejected: {result.failures}")
        return {"rate": result.texts_per_s, "p50_ms": result.p50_ms, "p99_ms": result.p99_ms}

    return asyncio.run(run())


def measure_latency(url: str, model: str, rate: float, seconds: float) -> float:
    """p99 in ms where requests arrive at `rate` per second, whatever the server does; inf where it fell behind."""
    workload = load_workload(find_workload(WORKLOAD))

    async def run() -> float:
        client = Client(url)
        traffic = Traffic(WORKLOAD, [client.encode(body) for body in build_bodies(workload, model)], 1)
        result = await measure_step(client, traffic, Step(rate=rate, duration_s=seconds, timeout_s=30.0))
        await client.abort()
        return result.p99_ms if not result.errors and not result.rejected else float("inf")

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=tuple(PEERS), help="default: all")
    parser.add_argument("--config", default="configs/minilm.yaml")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "int8"), default="int8", help="ours (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2, help="of the engine alone (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each of them (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--latency-rounds", type=int, default=2, help="at each rate (default: %(default)s)")
    parser.add_argument("--name", help="of the files in bench/results (default: http-PRECISION)")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = serve(arguments.config, log=folder / "padless.log", settings=[f"engine.precision={arguments.precision}"])
        urls = {"padless": stack.enter_context(ours)}
        for name in arguments.peers:
            urls[name] = stack.enter_context(start(name, folder / "peer.log"))
        cosines = {name: measure_cosine(url) for name, url in urls.items()}
        start_alone = partial(start_engine, arguments.threads, arguments.precision, seconds)
        alone = [stack.enter_context(start_alone()) for _ in range(arguments.processes)]
        rounds = [run_round(alone, urls, seconds) for _ in range(arguments.rounds + 1)][1:]  # the first warms up
        latencies = [
            {rate: {name: measure_latency(url, MODEL, rate, seconds) for name, url in urls.items()} for rate in RATES}
            for _ in range(arguments.latency_rounds)
        ]
    report(arguments.name or f"http-{arguments.precision}", rounds, latencies, cosines)


def measure_cosine(url: str) -> float:
    """With our engine's fp32, of the text where it is lowest."""
    texts = [text for request in build_texts(load_workload(find_workload(WORKLOAD))) for text in request]
    chosen = texts[:COSINE_TEXTS]
    rows = np.array([ask(url, text) for text in chosen])
    reference = build_ours(threads=1).run(pack_sequences(tokenise()[:COSINE_TEXTS])).arrays["embeddings"]
    return find_lowest_cosine(rows / np.linalg.norm(rows, axis=1, keepdims=True), reference)


def ask(url: str, text: str) -> list[float]:
    body = json.dumps({"model": MODEL, "input": text, "encoding_format": "float"}).encode()
    request = urllib.request.Request(f"{url}/v1/embeddings", body, {"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return list(json.load(answer)["data"][0]["embedding"])


@contextmanager
def start_engine(threads: int, precision: str, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "bench.http", "engine", str(threads), precision, str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while "ready" not in process.stdout.readline():
            pass
        yield process


def run_round(
    alone: list["subprocess.Popen[str]"], urls: dict[str, str], seconds: float
) -> dict[str, dict[str, float]]:
    for process in alone:
        print("go", file=process.stdin, flush=True)
    rates = [float(process.stdout.readline()) for process in alone]
    results = {"engine alone": {"rate": sum(rates)}} if alone else {}
    for name, url in urls.items():
        results[name] = measure_http(url, MODEL, seconds)
    print({name: round(result["rate"], 1) for name, result in results.items()}, flush=True)
    return results


def report(
    name: str,
    rounds: list[dict[str, dict[str, float]]],
    latencies: list[dict[float, dict[str, float]]],
    cosines: dict[str, float],
) -> None:
    table = [["what", "texts/s, median", "p50 ms", "p99 ms", "padless over it, median (min-max)", "lowest cosine"]]
    for what in rounds[0]:
        ratios = sorted(results["padless"]["rate"] / results[what]["rate"] for results in rounds)
        row = [f"{statistics.median(results[what]['rate'] for results in rounds):.0f}"]
        for key in ("p50_ms", "p99_ms"):
            values = [results[what][key] for results in rounds if key in results[what]]
            row.append(f"{statistics.median(values):.0f}" if values else "-")
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        table.append([what, *row, spread, f"{cosines[what]:.4f}" if what in cosines else "-"])
    for rate in RATES:
        for what in latencies[0][rate] if latencies else ():
            p99_ms = statistics.median(each[rate][what] for each in latencies)
            table.append([f"{what} at {rate:g} texts/s", "", "", f"{p99_ms:.0f}", "", ""])
    write_results(name, table, {"rounds": rounds, "p99_ms by rate": latencies, "cosines": cosines})


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        run_engine_alone()
    else:
        main()
