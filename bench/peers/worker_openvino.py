"""Worker: OpenVINO, fp32, bf16 or quantised by NNCF after training, one request at a time or many in flight."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from protocol import Embed, Rows, Sequences, pad, serve

NUM_CALIBRATION_SEQS = 300
"""NNCF's own default."""


def convert(model: Path, out: Path) -> None:
    """Writes fp32.xml and int8.xml."""
    import nncf
    import torch
    from headed import load_module

    example = torch.full((2, 16), 1000), torch.ones(2, 16, dtype=torch.long)
    with torch.inference_mode():
        graph = openvino.convert_model(load_module(model), example_input=example, input=[[-1, -1], [-1, -1]])
    openvino.save_model(graph, out / "fp32.xml", compress_to_fp16=False)
    quantised = nncf.quantize(
        graph,
        nncf.Dataset(sample_inputs()),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=NUM_CALIBRATION_SEQS,
    )
    openvino.save_model(quantised, out / "int8.xml", compress_to_fp16=False)


def sample_inputs() -> list[tuple[np.ndarray, ...]]:
    """Random tokens and lengths like those of the workloads, but others."""
    rng = np.random.default_rng(1000)
    lengths = np.clip(np.exp(rng.normal(np.log(40), 0.7, NUM_CALIBRATION_SEQS)), 8, 256).astype(int)
    return [pad([rng.integers(1000, 30_000, length)]) for length in lengths]


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    # Threads that are tied to a core stand still when something else runs there; the other engines' threads may move.
    settings = {"PERFORMANCE_HINT": options["hint"], "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    if options["precision"] != "int8":
        settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[options["precision"]]
    path = converted / ("int8.xml" if options["precision"] == "int8" else "fp32.xml")
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return run_many(compiled) if options["hint"] == "THROUGHPUT" else run_one_by_one(compiled)


def run_one_by_one(compiled: openvino.CompiledModel) -> Embed:
    request = compiled.create_infer_request()
    return lambda batches: [np.array(request.infer(pad(batch))[0]) for batch in batches]


def run_many(compiled: openvino.CompiledModel) -> Embed:
    """As many requests in flight as OpenVINO thinks best, the longest batches first."""
    queue = openvino.AsyncInferQueue(compiled)
    results: dict[int, Rows] = {}

    def keep(request: openvino.InferRequest, index: int) -> None:
        results[index] = np.array(request.get_output_tensor().data)

    def embed(batches: Sequence[Sequences]) -> list[Rows]:
        results.clear()
        for index in reversed(range(len(batches))):
            queue.start_async(pad(batches[index]), index)
        queue.wait_all()
        return [results[index] for index in range(len(batches))]

    queue.set_callback(keep)
    return embed


if __name__ == "__main__":
    serve(load, convert)
