"""Who is compared: each peer with its pinned requirements, its worker, and the variants of it that are timed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
TORCH = ("torch==2.13.0", "transformers==5.23.0", "numpy==2.4.6")
"""What every peer needs that starts from Hugging Face's model; this torch is the CPU build where there is one."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Without these a CPU emulates bf16, several times slower than fp32, which tells nothing of an engine."""


@dataclass(frozen=True)
class Variant:
    """One row of the table. `options` is what the worker is told."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_bf16: bool = False
    min_threads: int = 1
    needs_avx512: bool = False


@dataclass(frozen=True)
class Peer:
    """`worker` is a file of `folder`. No requirements: it runs in the environment that the benchmark runs in."""

    name: str
    worker: str
    variants: tuple[Variant, ...]
    requirements: tuple[str, ...] = ()
    converts: bool = False
    """Whether the worker has a conversion to run once per model."""
    folder: Path = FOLDER
    converts_with: tuple[str, ...] = ("embedder.py", "headed.py")
    """Files beside the worker that its conversion depends on."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the worker."""

    def name_row(self, variant: Variant) -> str:
        return f"{self.name} {variant.name}"


PADLESS = Peer(
    "Padless",
    "worker_padless.py",
    tuple(
        Variant(precision, {"precision": precision}, needs_bf16=precision == "bf16")
        for precision in ("fp32", "bf16", "int8")
    ),
    environment={"PYTHONPATH": str(ROOT)},
)

CTRANSLATE2 = Peer(
    "CTranslate2",
    "worker_ctranslate2.py",
    (
        Variant("float32", {"compute_type": "float32", "has_worker_per_thread": False}),
        Variant("int8", {"compute_type": "int8_float32", "has_worker_per_thread": False}),
        Variant("int8, a worker per thread", {"compute_type": "int8_float32", "has_worker_per_thread": True}, False, 2),
    ),
    ("ctranslate2==4.8.5", *TORCH),
    converts=True,
)

OPENVINO = Peer(
    "OpenVINO",
    "worker_openvino.py",
    tuple(
        Variant(f"{precision}, {hint.lower()}", {"precision": precision, "hint": hint}, precision == "bf16")
        for precision in ("fp32", "bf16", "int8")
        for hint in ("LATENCY", "THROUGHPUT")
    ),
    ("openvino==2026.4.1", "nncf==3.4.0", *TORCH),
    converts=True,
)

ONNXRUNTIME = Peer(
    "ONNX Runtime",
    "worker_onnxruntime.py",
    (Variant("fp32", {"precision": "fp32"}), Variant("int8", {"precision": "int8"})),
    ("onnxruntime==1.31.1", "onnx==1.23.2", *TORCH),
    converts=True,
)

EXPORTED = Peer(
    "ONNX Runtime on our export",
    "worker_padless.py",
    tuple(Variant(precision, {"precision": precision, "kind": "onnxruntime"}) for precision in ("fp32", "int8")),
    environment={"PYTHONPATH": str(ROOT)},
)
"""The graph that Padless writes: packed but for attention."""

HUGGINGFACE = Peer(
    "Hugging Face",
    "worker_huggingface.py",
    (
        Variant("fp32", {"dtype": "float32", "compiler": None}),
        Variant("bf16", {"dtype": "bfloat16", "compiler": None}, needs_bf16=True),
    ),
    TORCH,
)

COMPILED = Peer(
    "torch.compile",
    "worker_huggingface.py",
    (Variant("fp32", {"dtype": "float32", "compiler": "inductor"}),),
    TORCH,
    environment={"TORCHINDUCTOR_FREEZING": "1"},  # weights laid out anew for the CPU where that helps
)

ZENTORCH = Peer(
    "zentorch",
    "worker_huggingface.py",
    (
        Variant("fp32", {"dtype": "float32", "compiler": "zentorch"}, needs_avx512=True),
        Variant("bf16", {"dtype": "bfloat16", "compiler": "zentorch"}, needs_bf16=True, needs_avx512=True),
    ),
    ("zentorch==2.13.0.2", *TORCH),
    environment={"TORCHINDUCTOR_FREEZING": "1"},
)
"""AMD's compiler for torch. Without AVX-512 it says that it optimises nothing, and leaves torch's own operations."""

LLAMACPP = Peer(
    "llama.cpp",
    "worker_llamacpp.py",
    (
        Variant("f16", {"file": "f16.gguf"}),
        Variant("q8_0", {"file": "q8_0.gguf"}),
    ),
    ("llama-cpp-python==0.3.16", "gguf==0.17.1", "numpy==2.4.6", "safetensors==0.8.0"),
    converts=True,
    converts_with=("../gguf_files.py",),
    environment={"PYTHONPATH": str(ROOT)},
)
"""For embedders that are language models."""

PEERS = {
    "padless": PADLESS,
    "ctranslate2": CTRANSLATE2,
    "openvino": OPENVINO,
    "onnxruntime": ONNXRUNTIME,
    "exported": EXPORTED,
    "huggingface": HUGGINGFACE,
    "compile": COMPILED,
    "zentorch": ZENTORCH,
    "llamacpp": LLAMACPP,
}
USUAL = tuple(key for key in PEERS if key not in ("llamacpp", "exported"))
"""Those that run encoders, and are not Padless in another way."""


def list_engines(peers: Mapping[str, Peer]) -> list[str]:
    """The names of all rows."""
    return [peer.name_row(variant) for peer in peers.values() for variant in peer.variants]


REFERENCE = "Hugging Face fp32"
"""The engine whose embeddings all others are compared with."""
