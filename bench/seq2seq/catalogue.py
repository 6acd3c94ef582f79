"""Who answers: each peer with its pinned requirements, its worker, and the variants of it that are timed."""

from functools import partial
from pathlib import Path

from bench.peers.catalogue import ROOT, TORCH, Peer, Variant

FOLDER = Path(__file__).parent
make_peer = partial(Peer, folder=FOLDER, environment={"PYTHONPATH": str(ROOT)})
"""Workers share `bench.seq2seq.session`."""
BATCH_SIZES = (1, 4, 8, 16, 32, 64)

PADLESS = make_peer(
    "Padless",
    "worker_padless.py",
    tuple(Variant(precision, {"precision": precision}) for precision in ("fp32", "int8")),
)
HUGGINGFACE = make_peer("Hugging Face", "worker_huggingface.py", (Variant("fp32"),), TORCH)
CTRANSLATE2 = make_peer(
    "CTranslate2",
    "worker_ctranslate2.py",
    tuple(
        Variant(name, {"compute_type": compute_type, "has_worker_per_thread": is_shared}, min_threads=1 + is_shared)
        for name, compute_type, is_shared in (
            ("float32", "float32", False),
            ("float32, a worker per thread", "float32", True),
            ("int8", "int8_float32", False),
            ("int8, a worker per thread", "int8_float32", True),
        )
    ),
    ("ctranslate2==4.8.5", *TORCH),
    converts=True,
    converts_with=(),
)

PEERS = {"padless": PADLESS, "huggingface": HUGGINGFACE, "ctranslate2": CTRANSLATE2}
REFERENCE = "Hugging Face fp32"
"""The engine whose answers all others are compared with."""


def list_batch_sizes(engine: str, concurrency: int) -> list[int]:
    """How many sources an engine may take at a time. Ours batches continuously and takes all there are."""
    if engine.startswith(PADLESS.name):
        return [concurrency]
    return sorted({*(size for size in BATCH_SIZES if size < concurrency), concurrency})
