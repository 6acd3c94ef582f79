"""`python -m bench.http [--infinity COMMAND]`: what HTTP costs, and how we stand beside infinity-emb.

One text of 3 to 50 words per request, 64 connections, in turn: the engine alone on the same texts, in full batches, in
as many processes and threads as the server has; Padless over HTTP; and infinity-emb over HTTP, if the command is given
that starts it. Then p99 of both servers where texts arrive at rates that both may hold. In the command {model} stands
for the model directory and {port} for a port; it must serve /v1/embeddings and /v1/models.
"""

import argparse
import asyncio
import itertools
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bench.minilm import DIRECTORY, build_ours
from bench.report import write_results
from bench.traffic import pack_sorted
from loadtest.client import Client, fetch
from loadtest.closed_loop import Closed, measure_closed
from loadtest.measure import Traffic
from loadtest.open_loop import Step, measure_step
from loadtest.server_process import find_free_port, serve
from loadtest.workloads import build_bodies, build_texts, find_workload, load_workload
from server.config_file import load_config
from server.wire.job import TokenSequence

WORKLOAD = "short-words"
CONNECTIONS = 64
MAX_BATCH_TOKENS = 2048
"""As in configs/minilm.yaml."""
SECONDS = 8.0
ROUNDS = 4
RATES = (15.0, 30.0, 45.0)
"""Texts per second that arrive on their own, for latencies."""
LATENCY_ROUNDS = 2
MODEL = "all-MiniLM-L6-v2"


def run_engine_alone() -> None:
    """Texts per second in full batches; measures once for every line on standard input."""
    engine = build_ours(precision=sys.argv[3], threads=int(sys.argv[2]))
    batches = list(split_batches(tokenise()))
    print("ready", flush=True)
    for _ in sys.stdin:
        started_s, num_texts = time.perf_counter(), 0
        for batch in itertools.cycle(batches):
            if time.perf_counter() - started_s > SECONDS:
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


@contextmanager
def start_infinity(command: str, log: Path) -> Iterator[str]:
    port = find_free_port()
    words = shlex.split(command.format(model=DIRECTORY, port=port))
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT)
    try:
        until_s = time.monotonic() + 180
        while fetch(f"{url}/v1/models") is None:
            if process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(f"infinity-emb did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def measure_http(url: str, model: str) -> dict[str, float]:
    workload = load_workload(find_workload(WORKLOAD))
    plan = Closed(
        connections=CONNECTIONS, duration_s=SECONDS, warmup_s=1.0, num_requests=None, timeout_s=30.0, slo_ms=200.0
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


def measure_latency(url: str, model: str, rate: float) -> float:
    """p99 in ms where requests arrive at `rate` per second, whatever the server does; inf where it fell behind."""
    workload = load_workload(find_workload(WORKLOAD))

    async def run() -> float:
        client = Client(url)
        traffic = Traffic(WORKLOAD, [client.encode(body) for body in build_bodies(workload, model)], 1)
        result = await measure_step(client, traffic, Step(rate=rate, duration_s=SECONDS, timeout_s=30.0))
        await client.abort()
        return result.p99_ms if not result.errors and not result.rejected else float("inf")

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--infinity", metavar="COMMAND", help="how to start infinity-emb, with {model} and {port}")
    parser.add_argument("--config", default="configs/minilm.yaml")
    parser.add_argument("--processes", type=int, default=2, help="of the engine alone (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each of them (default: %(default)s)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {"padless": stack.enter_context(serve(arguments.config, log=folder / "padless.log"))}
        if arguments.infinity:
            urls["infinity-emb"] = stack.enter_context(start_infinity(arguments.infinity, folder / "infinity.log"))
        precision = load_config(Path(arguments.config)).models[0].engine.precision
        alone = [stack.enter_context(start_engine(arguments.threads, precision)) for _ in range(arguments.processes)]
        rounds = [run_round(alone, urls) for _ in range(ROUNDS + 1)][1:]  # the first warms everything up
        latencies = [
            {rate: {name: measure_latency(url, MODEL, rate) for name, url in urls.items()} for rate in RATES}
            for _ in range(LATENCY_ROUNDS)
        ]
    report(f"http-{precision}", rounds, latencies)


@contextmanager
def start_engine(threads: int, precision: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "bench.http", "engine", str(threads), precision]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while "ready" not in process.stdout.readline():
            pass
        yield process


def run_round(alone: list["subprocess.Popen[str]"], urls: dict[str, str]) -> dict[str, dict[str, float]]:
    for process in alone:
        print("go", file=process.stdin, flush=True)
    results = {"engine alone": {"rate": sum(float(process.stdout.readline()) for process in alone)}}
    for name, url in urls.items():
        results[name] = measure_http(url, MODEL)
    print({name: round(result["rate"], 1) for name, result in results.items()}, flush=True)
    return results


def report(
    name: str, rounds: list[dict[str, dict[str, float]]], latencies: list[dict[float, dict[str, float]]]
) -> None:
    table = [["what", "texts/s, median", "p50 ms", "p99 ms", "padless over it, median (min-max)"]]
    for what in rounds[0]:
        ratios = sorted(results["padless"]["rate"] / results[what]["rate"] for results in rounds)
        row = [f"{statistics.median(results[what]['rate'] for results in rounds):.0f}"]
        for key in ("p50_ms", "p99_ms"):
            values = [results[what][key] for results in rounds if key in results[what]]
            row.append(f"{statistics.median(values):.0f}" if values else "-")
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        table.append([what, *row, spread])
    for rate in RATES:
        for what in latencies[0][rate]:
            p99_ms = statistics.median(each[rate][what] for each in latencies)
            table.append([f"{what} at {rate:g} texts/s", "", "", f"{p99_ms:.0f}", ""])
    write_results(name, table, {"rounds": rounds, "p99_ms by rate": latencies})


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        run_engine_alone()
    else:
        main()
