"""The ordered list of passes, and the choice of precision that steers it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.fx import GraphModule

from runtime.backends.backend import Backend, Pass
from runtime.config import Precision
from runtime.ops import embed_norm, gather
from runtime.passes.drop_casts import drop_casts
from runtime.passes.fold_constants import fold_constants
from runtime.passes.fuse_add_norm import fuse_add_norm
from runtime.passes.fuse_embed_norm import fuse_embed_norm
from runtime.passes.fuse_gated_act import fuse_gated_act
from runtime.passes.fuse_gather import fuse_gather
from runtime.passes.fuse_linear_act import fuse_linear_act
from runtime.passes.fuse_linear_add import fuse_linear_add
from runtime.passes.fuse_pool import fuse_pool
from runtime.passes.fuse_qkv import fuse_qkv
from runtime.passes.precision import lower_precision
from runtime.passes.quantize import quantize
from runtime.passes.quantize_fp8 import quantize_fp8
from runtime.passes.quantize_weights import quantize_weights
from runtime.passes.rewriting import infer_shapes
from runtime.quantization.scheme import Quantization

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHT_BITS: dict[Precision, int] = {"int8_weights": 8, "int4_weights": 4}

OnPass = Callable[[str, GraphModule], None]
"""Told the name of each pass and the graph after it; first `capture`."""


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    precision: Precision
    dtype: torch.dtype
    """Of activations; for int8, of those between its layers."""
    reason: str


def choose_precision(wanted: Precision, backend: Backend) -> PrecisionChoice:
    """What a target makes of a precision."""
    device = backend.device
    if wanted in ("fp32", "fp16"):
        return PrecisionChoice(wanted, DTYPES[wanted], "configured")
    if wanted == "int8" and backend.int8_dtype != torch.bfloat16:
        return PrecisionChoice(wanted, backend.int8_dtype, "configured")
    native = has_cuda_bf16(device) if device.type == "cuda" else has_cpu_bf16()
    reason = f"configured; this {device.type.upper()} {'has' if native else 'has no'} bf16 matrix instructions"
    return PrecisionChoice(wanted, torch.bfloat16, reason)


def list_candidates(backend: Backend) -> list[PrecisionChoice]:
    """What `auto` chooses among, the most exact first: 16-bit types only where there are instructions for them."""
    if backend.device.type == "cuda":
        if has_cuda_bf16(backend.device):
            return [choose_precision("bf16", backend)]
        # fp16 has not the range of fp32: where a model leaves it, trials show that.
        return [choose_precision("fp32", backend), choose_precision("fp16", backend)]
    names: list[Precision] = ["fp32", *(["bf16"] if has_cpu_bf16() else []), "int8"]  # type: ignore[list-item]
    return [choose_precision(name, backend) for name in names if name in backend.precisions]


def has_cpu_bf16() -> bool:
    """Whether this CPU has instructions that multiply matrices of bf16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def has_cuda_bf16(device: torch.device) -> bool:
    """The same of a CUDA device: from Ampere on. What torch calls supported may be emulated, and slower than fp32."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def list_passes(
    choice: PrecisionChoice, backend: Backend, quantization: Quantization | None = None
) -> list[tuple[str, Pass]]:
    """What makes a captured graph into one for `backend`, in order. `quantization`: a calibration of the model."""
    passes: list[tuple[str, Pass]] = [
        ("fold_constants", fold_constants),
        ("fuse_qkv", fuse_qkv),
        ("fuse_linear_act", fuse_linear_act),
        ("fuse_gated_act", fuse_gated_act),
    ]
    if embed_norm.OP in backend.kernels:
        passes += [("fuse_embed_norm", fuse_embed_norm), ("fuse_pool", fuse_pool)]
    passes.append(("fuse_add_norm", fuse_add_norm))
    passes += list_rounding(choice.precision, backend, quantization)
    passes.append(("fuse_linear_add", fuse_linear_add))
    if gather.OP in backend.kernels:
        passes.append(("fuse_gather", fuse_gather))
    if choice.dtype != torch.float32:
        lower = partial(lower_precision, dtype=choice.dtype, keep_linears=backend.keeps_linears)
        passes.append(("precision", lower))
    return [*passes, ("drop_casts", drop_casts), *backend.passes]


def list_rounding(precision: Precision, backend: Backend, quantization: Quantization | None) -> list[tuple[str, Pass]]:
    """What makes linear layers compute in fewer than 16 bits."""
    if precision == "int8":
        how = partial(
            quantize,
            quantization=quantization,
            overflow_free=backend.overflow_free,
            round_channels=backend.round_channels,
            hands_on_rows=backend.hands_on_rows,
        )
        return [("quantize", how)]
    if precision == "fp8":
        return [("quantize_fp8", quantize_fp8)]
    if precision in WEIGHT_BITS:
        return [("quantize_weights", partial(quantize_weights, bits=WEIGHT_BITS[precision]))]
    return []


def run_passes(graph_module: GraphModule, passes: list[tuple[str, Pass]], on_pass: OnPass) -> None:
    """Rewrite in place. After each pass the graph is checked, and shapes are inferred of what is new; at the end of
    everything."""
    on_pass("capture", graph_module)
    for name, rewrite in passes:
        rewrite(graph_module)
        graph_module.graph.eliminate_dead_code()
        graph_module.graph.lint()
        infer_shapes(graph_module, only_missing=True)
        on_pass(name, graph_module)
    infer_shapes(graph_module)
