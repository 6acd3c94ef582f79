"""`python -m bench.tasks.rerank_http`: a cross-encoder over HTTP, Padless INT8's /v1/rerank against infinity-emb's.

Queries with 100 passages of log-normal length each (median 40 tokens), 8 connections, MiniLM's shape; the servers take
turns, a fixed number of queries each. infinity-emb is fp32 with batches of 8, as it is fastest on two cores.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.http_peers import MODEL, start
from bench.peers.environments import find_cache
from bench.report import format_table, write_results
from bench.tasks.directories import find_model
from bench.tasks.traffic import sample_questions
from loadtest.client import Client
from loadtest.closed_loop import Closed, measure_closed
from loadtest.measure import Traffic
from loadtest.server_process import serve

CONNECTIONS = 8
PATH = "/v1/rerank"
PEER = "infinity-emb fp32, batch 8"
TIMEOUT_S = 300.0

Round = dict[str, dict[str, float]]


def write_config(path: Path, model: Path) -> Path:
    """YAML is a superset of JSON. Limits as in configs/minilm-int8.yaml."""
    served = {
        "name": MODEL,
        "source": {"path": str(model)},
        "engine": {"precision": "int8", "replicas": 2},
        "limits": {"max_batch_tokens": 2048, "max_wait_ms": 0},
    }
    path.write_text(json.dumps({"server": {"default_timeout_ms": TIMEOUT_S * 1000}, "models": [served]}))
    return path


def build_bodies(model: Path, num_queries: int, num_passages: int) -> list[bytes]:
    questions = sample_questions(model, num_queries, num_passages)
    fields = {"model": MODEL, "return_documents": False}
    return [json.dumps({**fields, "query": query, "documents": passages}).encode() for query, passages in questions]


def measure(url: str, bodies: list[bytes]) -> dict[str, float]:
    """All queries once. Raises SystemExit where one fails."""
    plan = Closed(connections=CONNECTIONS, num_requests=len(bodies), warmup_s=0.0, timeout_s=TIMEOUT_S)

    async def run() -> dict[str, float]:
        client = Client(url, PATH)
        result = await measure_closed(client, Traffic("rerank", [client.encode(body) for body in bodies], 1), plan)
        await client.abort()
        if result.errors or result.rejected:
            raise SystemExit(f"{url}: {result.errors} errors, {result.rejected} rejected: {result.failures}")
        return {"rate": result.requests_per_s, "p50_ms": result.p50_ms, "p99_ms": result.p99_ms}

    return asyncio.run(run())


def run_round(urls: dict[str, str], bodies: list[bytes]) -> Round:
    found = {name: measure(url, bodies) for name, url in urls.items()}
    print(found, flush=True)
    return found


def build_table(rounds: list[Round]) -> list[list[str]]:
    table = [["server", "queries/s", "p50 ms", "p99 ms", "Padless over it (min-max)", "its p99 by Padless' (min-max)"]]
    for name in rounds[0]:
        medians = [statistics.median(each[name][key] for each in rounds) for key in ("rate", "p50_ms", "p99_ms")]
        rates = [each["Padless int8"]["rate"] / each[name]["rate"] for each in rounds]
        waits = [each[name]["p99_ms"] / each["Padless int8"]["p99_ms"] for each in rounds]
        cells = [f"{medians[0]:.2f}", f"{medians[1]:.0f}", f"{medians[2]:.0f}"]
        table.append([name, *cells, describe(rates), describe(waits)])
    return table


def describe(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=16, help="of a round, for each server (default: %(default)s)")
    parser.add_argument("--passages", type=int, default=100, help="of a query (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of 8 queries with 8 passages; prints only")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.queries, arguments.passages, arguments.rounds = 8, 8, 1
    model = find_model("rerank", find_cache())
    bodies = build_bodies(model, arguments.queries, arguments.passages)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = serve(str(write_config(folder / "config.json", model)), log=folder / "padless.log")
        urls = {"Padless int8": stack.enter_context(ours)}
        urls[PEER] = stack.enter_context(start(PEER, folder / "peer.log", model))
        for url in urls.values():
            measure(url, bodies[:2])  # warms up
        rounds = [run_round(urls, bodies) for _ in range(arguments.rounds)]
    if arguments.quick:
        print(format_table(build_table(rounds)))
    else:
        write_results("tasks-rerank-http", build_table(rounds), {"rounds": rounds})


if __name__ == "__main__":
    main()
