"""`python -m bench.tasks.oip`: the Open Inference Protocol's binary tensors against JSON, bytes and processor time.

Token ids and mask [32, 128], a quarter of it padding, embeddings [32, 384] back; the null engine, so that what is left
is the protocol. One HTTP process, 8 connections of wrk, the ways in turn; the processor time is the HTTP process's.
"""

import argparse
import json
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.null_server import CONFIG, ROOT, Server, run_load, show_spread, start_server
from bench.report import format_table, write_results
from bench.traffic import FIRST_TOKEN, LAST_TOKEN

NUM_SEQS, WIDTH = 32, 128
CONNECTIONS = 8
PATH = "/v2/models/null/infer"
HEADER = "Inference-Header-Content-Length"
DATATYPES = {"INT64": "<i8", "INT32": "<i4"}


@dataclass(frozen=True)
class Way:
    """One way to ask the same."""

    name: str
    body: bytes
    headers: Mapping[str, str]


def sample_inputs() -> dict[str, npt.NDArray[np.int64]]:
    """The lengths are 64 to 128 tokens, evenly spread: a quarter of the mask is 0."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(WIDTH // 2, WIDTH, NUM_SEQS).astype(np.int64)
    mask = (np.arange(WIDTH) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(FIRST_TOKEN, LAST_TOKEN, (NUM_SEQS, WIDTH)) * mask, "attention_mask": mask}


def build_json(inputs: Mapping[str, npt.NDArray[np.int64]]) -> Way:
    tensors = [
        {"name": name, "datatype": "INT64", "shape": list(rows.shape), "data": rows.ravel().tolist()}
        for name, rows in inputs.items()
    ]
    body = json.dumps({"inputs": tensors}, separators=(",", ":")).encode()
    return Way("JSON", body, {"content-type": "application/json"})


def build_binary(inputs: Mapping[str, npt.NDArray[np.int64]], datatype: str) -> Way:
    """The answer is binary too."""
    blobs = [rows.astype(DATATYPES[datatype]).tobytes() for rows in inputs.values()]
    tensors: list[dict[str, Any]] = [
        {"name": name, "datatype": datatype, "shape": list(rows.shape), "parameters": {"binary_data_size": len(blob)}}
        for (name, rows), blob in zip(inputs.items(), blobs, strict=True)
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"content-type": "application/octet-stream", HEADER: str(len(head))}
    return Way(f"binary {datatype}", head + b"".join(blobs), headers)


def write_script(folder: Path, way: Way) -> Path:
    """For wrk, which reads the body from a file of its own."""
    body, script = folder / f"{way.name}.body", folder / f"{way.name}.lua"
    body.write_bytes(way.body)
    lines = ['wrk.method = "POST"', f'wrk.body = io.open({json.dumps(str(body))}, "rb"):read("*a")']
    lines += [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in way.headers.items()]
    script.write_text("\n".join(lines))
    return script


def ask(server: Server, way: Way) -> bytes:
    """The answer, head and body. Raises HTTPError where it is none."""
    request = urllib.request.Request(server.url + PATH, way.body, dict(way.headers))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return bytes(answer.read())


def measure(ways: list[Way], rounds: int, seconds: int) -> tuple[dict[str, int], dict[str, list[tuple[float, float]]]]:
    """Bytes of each answer; rate and milliseconds of processor time of each round."""
    with tempfile.TemporaryDirectory() as name, start_server(ROOT, Path(name), CONFIG) as server:
        answers = {way.name: len(ask(server, way)) for way in ways}
        scripts = {way.name: write_script(Path(name), way) for way in ways}
        results: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
        for round_number in range(rounds + 1):
            for which, script in scripts.items():
                found = run_load(server, script, seconds, path=PATH, connections=CONNECTIONS)
                if round_number:  # the first warms up
                    results[which].append(found)
    return answers, results


def build_table(
    ways: list[Way], answers: Mapping[str, int], results: Mapping[str, list[tuple[float, float]]]
) -> list[list[str]]:
    table = [
        ["way", "request bytes", "answer bytes", "requests/s", "ms of processor time each", "JSON's by it, in turn"]
    ]
    for way in ways:
        rates, costs = zip(*results[way.name], strict=True)
        ratios = [json_cost / cost for (_, json_cost), cost in zip(results["JSON"], costs, strict=True)]
        sizes = [str(len(way.body)), str(answers[way.name])]
        table.append(
            [way.name, *sizes, *(show_spread(*each) for each in ((rates, ".0f"), (costs, ".2f"), (ratios, ".2f")))]
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="of each way in each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of a second; prints only")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; Debian has it as a package")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1
    inputs = sample_inputs()
    ways = [build_json(inputs), *(build_binary(inputs, datatype) for datatype in DATATYPES)]
    answers, results = measure(ways, arguments.rounds, arguments.seconds)
    table = build_table(ways, answers, results)
    if arguments.quick:
        print(format_table(table))
    else:
        write_results("tasks-oip", table, {"answer_bytes": answers, "rounds": results})


if __name__ == "__main__":
    main()
