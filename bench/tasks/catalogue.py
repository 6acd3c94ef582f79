"""Who is compared: Padless, and peers with heads. ONNX Runtime and OpenVINO are `bench.peers`' own."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.peers.catalogue import ONNXRUNTIME, OPENVINO, ROOT, TORCH, Peer, Variant

FOLDER = Path(__file__).parent
REFERENCE, OURS = "Padless fp32", "Padless int8"
"""Whose rows those of the others are compared with, and whose time."""
make_peer = partial(Peer, folder=FOLDER, environment={"PYTHONPATH": str(ROOT)})


def choose_task(task: str) -> Peer:
    """Padless for a task; `auto` is what the model's directory is made for."""
    variants = tuple(Variant(precision, {"precision": precision, "task": task}) for precision in ("int8", "fp32"))
    return make_peer("Padless", "worker_padless.py", variants)


PADLESS = choose_task("auto")
PADLESS_SPARSE = choose_task("sparse")
CROSS_ENCODER = make_peer(
    "CrossEncoder", "worker_sentence_transformers.py", (Variant("fp32", {"kind": "CrossEncoder"}),)
)
SPARSE_ENCODER = make_peer(
    "SparseEncoder", "worker_sentence_transformers.py", (Variant("fp32", {"kind": "SparseEncoder"}),)
)
"""sentence-transformers in the environment that the benchmark runs in, where the tests have it too."""
PIPELINE = make_peer("transformers pipeline", "worker_pipeline.py", (Variant("fp32"),), TORCH)
ONNXRUNTIME_INT8 = replace(ONNXRUNTIME, variants=(Variant("int8", {"precision": "int8"}),))
OPENVINO_INT8 = replace(
    OPENVINO,
    variants=(
        Variant("int8, latency", {"precision": "int8", "hint": "LATENCY"}),
        Variant("int8, throughput", {"precision": "int8", "hint": "THROUGHPUT"}, min_threads=2),
    ),
)
