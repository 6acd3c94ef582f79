"""Who generates: each peer with its pinned requirements, its worker, and the variants of it that are timed."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.catalogue import ROOT, TORCH, Peer, Variant

FOLDER = Path(__file__).parent
make_peer = partial(Peer, folder=FOLDER, environment={"PYTHONPATH": str(ROOT)})
"""Workers share `bench.generation.session`."""
BATCH_SIZES = (1, 4, 8, 16, 32)

PADLESS = make_peer(
    "Padless",
    "worker_padless.py",
    tuple(Variant(precision, {"precision": precision, "batch": "all"}) for precision in ("fp32", "int8")),
)

HUGGINGFACE = make_peer(
    "Hugging Face",
    "worker_huggingface.py",
    (
        Variant("one by one", {"mode": "padded", "batch": "one"}),
        Variant("padded", {"mode": "padded", "batch": "search"}),
        Variant("continuous", {"mode": "continuous", "batch": "all"}),
    ),
    TORCH,
)

CTRANSLATE2 = make_peer(
    "CTranslate2",
    "worker_ctranslate2.py",
    (
        Variant("float32", {"compute_type": "float32", "batch": "search", "has_worker_per_thread": False}),
        Variant("int8", {"compute_type": "int8_float32", "batch": "search", "has_worker_per_thread": False}),
        Variant(
            "int8, a worker per thread",
            {"compute_type": "int8_float32", "batch": "search", "has_worker_per_thread": True},
            min_threads=2,
        ),
    ),
    ("ctranslate2==4.8.5", *TORCH),
    converts=True,
    converts_with=(),
)

LLAMACPP = make_peer(
    "llama.cpp",
    "worker_llamacpp.py",
    (
        Variant("f32", {"file": "f32.gguf", "batch": "all"}),
        Variant("q8_0", {"file": "q8_0.gguf", "batch": "all"}),
    ),
    ("llama-cpp-python==0.3.16", "gguf==0.17.1", "numpy==2.4.6", "safetensors==0.8.0"),
    converts=True,
    converts_with=("../gguf_files.py",),
)

PEERS = {"padless": PADLESS, "huggingface": HUGGINGFACE, "ctranslate2": CTRANSLATE2, "llamacpp": LLAMACPP}
REFERENCE = "Hugging Face one by one"
"""The engine whose answers all others are compared with."""


def find_options(engine: str) -> Mapping[str, Any]:
    """Of the variant that a row is named after."""
    return next(
        variant.options for peer in PEERS.values() for variant in peer.variants if engine == peer.name_row(variant)
    )


def list_batch_sizes(engine: str, concurrency: int) -> list[int]:
    """How many requests an engine may take at a time. Engines that batch continuously take all there are."""
    kind = find_options(engine)["batch"]
    if kind == "all":
        return [concurrency]
    if kind == "one":
        return [1]
    return sorted({*(size for size in BATCH_SIZES if size < concurrency), concurrency})
