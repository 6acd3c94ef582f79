"""The ordered list of passes, and the choice of precision that steers it."""

import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from runtime.config import Precision
from runtime.passes.fuse_add_norm import fuse_add_norm
from runtime.passes.fuse_linear_act import fuse_linear_act
from runtime.passes.fuse_qkv import fuse_qkv
from runtime.passes.precision import lower_precision
from runtime.passes.prepack_onednn import prepack_onednn
from runtime.passes.rewriting import infer_shapes

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Pass = Callable[[GraphModule], None]
OnPass = Callable[[str, GraphModule], None]
"""Told the name of each pass and the graph after it; first `capture`."""


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    precision: Precision
    has_native_gemm: bool
    """Whether the device multiplies in this type; if not, linear layers run in fp32."""
    reason: str


def choose_precision(wanted: str, device: torch.device) -> PrecisionChoice:
    """Resolve `auto`, and say what the device makes of the type."""
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_cpu_bf16()
    has_it = f"this {device.type.upper()} {'has' if native else 'has no'} bf16 matrix instructions"
    if wanted == "auto":
        return PrecisionChoice("bf16" if native else "fp32", True, f"auto: {has_it}")
    if wanted == "bf16":
        how = "" if native else ", so linear layers multiply in fp32"
        return PrecisionChoice("bf16", native, f"configured; {has_it}{how}")
    return PrecisionChoice("fp16" if wanted == "fp16" else "fp32", True, "configured")


def has_cpu_bf16() -> bool:
    """Whether bf16 matrices are multiplied by instructions made for it. oneDNN alone would say yes on any AVX512."""
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if platform.machine() not in ("x86_64", "AMD64"):
        has_instructions = True  # there oneDNN's own answer is about instructions
    return has_instructions and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def list_passes(choice: PrecisionChoice, device: torch.device) -> list[tuple[str, Pass]]:
    passes: list[tuple[str, Pass]] = [
        ("fuse_qkv", fuse_qkv),
        ("fuse_linear_act", fuse_linear_act),
        ("fuse_add_norm", fuse_add_norm),
    ]
    if choice.precision != "fp32":
        dtype, native = DTYPES[choice.precision], choice.has_native_gemm
        passes.append(("precision", lambda graph: lower_precision(graph, dtype, has_native_gemm=native)))
    if device.type == "cpu" and choice.precision == "bf16" and choice.has_native_gemm:
        passes.append(("prepack_onednn", prepack_onednn))
    return passes


def run_passes(graph_module: GraphModule, passes: list[tuple[str, Pass]], on_pass: OnPass) -> None:
    """Rewrite in place. After each pass the graph is checked and its shapes are inferred anew."""
    on_pass("capture", graph_module)
    for name, rewrite in passes:
        rewrite(graph_module)
        graph_module.graph.eliminate_dead_code()
        graph_module.graph.lint()
        if name != "prepack_onednn":
            infer_shapes(graph_module)
        on_pass(name, graph_module)
