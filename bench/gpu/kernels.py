"""Part `kernels`: how far each is from what bounds it, a large GEMM or a large copy measured in the same rounds.

torch's own stands beside ours: for attention its flash kernel, dense where texts are of one length and packed
(`torch.nn.attention.varlen`) where they are not. Launches follow one another in a CUDA graph, so that times are the
device's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.encoders import spread_lengths
from bench.gpu.part import Part
from bench.gpu.target import Run, Target
from bench.timing import Comparison, compare, format_ratio
from runtime.backends.cuda.ops import LINEAR_INT8_SUMMED
from runtime.kv_cache.blocks import BLOCK_SIZE
from runtime.kv_cache.layout import KVLayout
from runtime.ops import (
    add_norm,
    gated_act,
    linear_act,
    linear_fp8,
    linear_weight_only,
    paged_attention,
    varlen_attention,
)
from runtime.ops.quantized_rows import quantize_rows
from runtime.passes.quantize_weights import round_weight
from runtime.quantization.e4m3 import quantize_channels

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

HEADINGS = ["kernel", "shape", "median us", "rate", "of the bound (10-90 %)", "torch us", "torch's time by this"]
OURS, TORCH, BOUND = "ours", "torch", "bound"
NUM_LAUNCHES = 20
DTYPE = torch.float16


@dataclass(frozen=True)
class Case:
    """`runs`: ours, and torch's where it has the like. `work`: floating-point operations, int8's too, or bytes.
    `bound`: fp16, int8 or fp8, whose GEMM bounds it, or copy."""

    shape: str
    runs: dict[str, Run]
    work: float
    bound: str


def time_copy(target: Target) -> tuple[Run, float]:
    """A copy that fits no cache, and the bytes that it reads and writes."""
    source = torch.empty(target.pick(2**30, 2**16), dtype=torch.uint8, device=target.device)
    return target.repeat(partial(torch.empty_like(source).copy_, source), 1), 2.0 * source.nbytes


def time_gemm(target: Target, dtype: torch.dtype) -> tuple[Run, float]:
    size = target.pick(8192, 64)
    if dtype == linear_fp8.E4M3:
        a, b, one = *(torch.ones(2, size, size, device=target.device).to(dtype)), torch.ones((), device=target.device)
        run = partial(torch._scaled_mm, a, b.t(), one, one, out_dtype=torch.bfloat16)
    elif dtype == torch.int8:
        a, b = (torch.randint(-9, 9, (size, size), dtype=dtype, device=target.device) for _ in range(2))
        run = partial(torch._int_mm, a, b.t())
    else:
        a, b = (torch.randn(size, size, dtype=dtype, device=target.device) for _ in range(2))
        run = partial(torch.mm, a, b.t(), out=torch.empty_like(a))
    return target.repeat(run, 1), 2.0 * size**3


def list_bounds(target: Target) -> dict[str, tuple[Run, float]]:
    bounds = {"fp16": time_gemm(target, DTYPE), "int8": time_gemm(target, torch.int8), "copy": time_copy(target)}
    return bounds | ({"fp8": time_gemm(target, linear_fp8.E4M3)} if target.has_fp8 else {})


def call(target: Target, op: Any, args: tuple[Any, ...]) -> Run:
    """The target's kernel on memory that it is given; the op itself on a CPU that has none."""
    kernel = target.kernels.get(op)
    out = op(*(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args))
    return (
        partial(op, *args)
        if kernel is None
        else partial(kernel, *args, out=torch.empty_like(out, device=target.device))
    )


def make_linear(target: Target, in_features: int, out_features: int, act: str) -> Case:
    num_tokens = target.pick(16_384, 32)
    x, bias = (
        torch.randn(*size, dtype=DTYPE, device=target.device) for size in ((num_tokens, in_features), (out_features,))
    )
    weight = torch.randn(out_features, in_features, dtype=DTYPE, device=target.device) / in_features**0.5

    def run_torch() -> Tensor:
        result = functional.linear(x, weight, bias)
        return functional.gelu(result) if act == "gelu" else result

    runs: dict[str, Run] = {OURS: call(target, linear_act.OP, (x, weight, bias, act)), TORCH: run_torch}
    shape = f"{num_tokens} x {in_features} x {out_features}, {act}"
    return Case(shape, runs, 2.0 * num_tokens * in_features * out_features, "fp16")


def make_int8(target: Target, in_features: int, out_features: int, act: str) -> Case:
    num_tokens, device = target.pick(16_384, 32), target.device
    x = quantize_rows(torch.randn(num_tokens, in_features, device=device))
    weight = torch.randint(-127, 127, (out_features, in_features), dtype=torch.int8, device=device)
    scale, bias = torch.full((out_features,), 1e-3, device=device), torch.randn(out_features, device=device)
    sums = weight.sum(1, dtype=torch.int32)
    args = (x, weight, sums, scale, bias, act, None, None, 0.0, 0, DTYPE)
    signed = torch.randint(-127, 127, (num_tokens, in_features), dtype=torch.int8, device=device)
    runs: dict[str, Run] = {
        OURS: call(target, LINEAR_INT8_SUMMED.target, args),
        TORCH: partial(torch._int_mm, signed, weight.t()),  # sums alone
    }
    shape = f"{num_tokens} x {in_features} x {out_features}, {act}"
    return Case(shape, runs, 2.0 * num_tokens * in_features * out_features, "int8")


def make_fp8(target: Target, in_features: int, out_features: int, act: str) -> Case:
    """Rows come in 16 bits, and are rounded within; torch's come rounded, all by one scale."""
    num_tokens, device = target.pick(16_384, 32), target.device
    x = torch.randn(num_tokens, in_features, dtype=DTYPE, device=device)
    rounded = quantize_channels(torch.randn(out_features, in_features, device=device))
    bias = torch.randn(out_features, device=device)
    runs: dict[str, Run] = {OURS: call(target, linear_fp8.OP, (x, rounded.values, rounded.scale, bias, act))}
    if not target.is_dry:
        one = torch.ones((), device=device)
        other = x.to(linear_fp8.E4M3)
        runs[TORCH] = partial(torch._scaled_mm, other, rounded.values.t(), one, one, out_dtype=torch.bfloat16)
    shape = f"{num_tokens} x {in_features} x {out_features}, {act}"
    return Case(shape, runs, 2.0 * num_tokens * in_features * out_features, "fp8")


def make_weight_only(target: Target, bits: int, num_rows: int) -> Case:
    """As in decoding, of a weight that fits no cache; torch's is of 16 bits."""
    out_features, in_features = target.pick((28_672, 8192), (96, 128))
    x = torch.randn(num_rows, in_features, dtype=DTYPE, device=target.device)
    weight = torch.randn(out_features, in_features, dtype=DTYPE, device=target.device)
    parts = round_weight(weight, bits)
    runs: dict[str, Run] = {
        OURS: call(target, linear_weight_only.OP, (x, parts["weight"], parts["scale"], parts.get("zero"))),
        TORCH: partial(functional.linear, x, weight),
    }
    num_bytes = sum(part.nbytes for part in parts.values())
    return Case(f"{num_rows} x {in_features} x {out_features}, {bits} bits", runs, float(num_bytes), "copy")


def make_attention(target: Target, seqlens: list[int], num_heads: int, head_dim: int) -> Case:
    num_tokens, longest, count = sum(seqlens), max(seqlens), len(seqlens)
    q, k, v = torch.randn(num_tokens, 3, num_heads, head_dim, dtype=DTYPE, device=target.device).unbind(1)
    borders = torch.tensor([0, *seqlens]).cumsum(0).to(target.device, torch.int32)
    args = (q, k, v, borders, borders, longest, longest, head_dim**-0.5)
    runs: dict[str, Run] = {OURS: call(target, varlen_attention.OP, args)}
    if min(seqlens) == longest:
        dense = [each.unflatten(0, (count, longest)).transpose(1, 2).contiguous() for each in (q, k, v)]
        runs[TORCH] = partial(run_flash, target, *dense)
    elif varlen_attn is not None and not target.is_dry:
        whole = [each.contiguous() for each in (q, k, v)]
        runs[TORCH] = partial(varlen_attn, *whole, borders, borders, longest, longest)
    shape = f"{count} x {min(seqlens)}-{longest}, {num_heads} heads of {head_dim}"
    return Case(shape, runs, 4.0 * num_heads * head_dim * sum(seqlen**2 for seqlen in seqlens), "fp16")


def run_flash(target: Target, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if target.is_dry:
        return functional.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return functional.scaled_dot_product_attention(q, k, v)


def make_paged(target: Target, num_seqs: int, num_keys: int, num_heads: int, num_kv_heads: int, head_dim: int) -> Case:
    """A decode step: one query for each sequence. torch's has keys and values in one piece."""
    device, blocks_each = target.device, -(-num_keys // BLOCK_SIZE)
    layout = KVLayout(1, num_kv_heads, head_dim, DTYPE, "rows")
    cache = layout.allocate(num_seqs * blocks_each, device).normal_()
    table = torch.randperm(num_seqs * blocks_each).to(device, torch.int32).view(num_seqs, blocks_each)
    q = torch.randn(num_seqs, num_heads, head_dim, dtype=DTYPE, device=device)
    borders = torch.arange(num_seqs + 1, dtype=torch.int32, device=device)
    keys = torch.full((num_seqs,), num_keys, dtype=torch.int32, device=device)
    k, v = torch.randn(2, num_seqs, num_kv_heads, num_keys, head_dim, dtype=DTYPE, device=device).unbind(0)
    args = (q, cache, 0, table, borders, keys, 1, head_dim**-0.5)
    dense = partial(functional.scaled_dot_product_attention, q[:, :, None], k, v, enable_gqa=True)
    runs: dict[str, Run] = {OURS: call(target, paged_attention.OP, args), TORCH: dense}
    shape = f"{num_seqs} x {num_keys} keys, {num_heads}/{num_kv_heads} heads of {head_dim}"
    return Case(shape, runs, float(num_seqs * num_keys * layout.block_bytes / BLOCK_SIZE), "copy")


def make_norm(target: Target, width: int) -> Case:
    num_tokens = target.pick(65_536, 16)
    x, residual = torch.randn(2, num_tokens, width, dtype=DTYPE, device=target.device).unbind(0)
    weight, bias = torch.ones(width, device=target.device), torch.zeros(width, device=target.device)
    half = [each.to(DTYPE) for each in (weight, bias)]
    runs: dict[str, Run] = {
        OURS: call(target, add_norm.OP, (x, residual, weight, bias, 1e-12)),
        TORCH: lambda: functional.layer_norm(x + residual, (width,), *half, 1e-12),
    }
    return Case(f"{num_tokens} x {width}", runs, 3.0 * x.nbytes, "copy")


def make_gate(target: Target, width: int) -> Case:
    x = torch.randn(target.pick(32_768, 16), 2 * width, dtype=DTYPE, device=target.device)
    gate, other = x.chunk(2, 1)
    runs: dict[str, Run] = {
        OURS: call(target, gated_act.OP, (x, "silu")),
        TORCH: lambda: functional.silu(gate) * other,
    }
    return Case(f"{len(x)} x {width}, silu", runs, 1.5 * x.nbytes, "copy")


def list_cases(target: Target) -> dict[str, Callable[[], Case]]:
    """Made one at a time: together they would not fit smaller devices."""
    half = spread_lengths(32, 0, target.pick(384, 16))
    long = spread_lengths(16, target.pick(205, 4), target.pick(1024, 16))
    equal = target.pick([(64, 128), (16, 512), (8, 2048)], [(2, 16)])
    attention = {f"attention {count} x {seqlen}": [seqlen] * count for count, seqlen in equal}
    attention |= {"attention, half full": half, "attention, 0.6 full": long}
    shapes = {"up": (768, 3072, "gelu"), "qkv": (768, 2304, "none"), "down": (3072, 768, "none")}
    keys = target.pick([(256, 512, 9, 3, 64), (32, 1024, 9, 3, 64), (1, 4096, 32, 8, 128)], [(2, 16, 4, 2, 32)])
    cases: dict[str, Callable[[], Case]] = {}
    for name, seqlens in attention.items():
        cases[name] = partial(make_attention, target, seqlens, 12, 64)
    for sizes in keys:
        cases[f"paged attention {sizes[0]} x {sizes[1]}"] = partial(make_paged, target, *sizes)
    for name, sizes in shapes.items():
        cases[f"linear {name}"] = partial(make_linear, target, *sizes)
        cases[f"linear int8 {name}"] = partial(make_int8, target, *sizes)
        if target.has_fp8:
            cases[f"linear fp8 {name}"] = partial(make_fp8, target, *sizes)
    for bits, num_rows in ((4, 1), (4, 32), (8, 1), (8, 32)):
        cases[f"linear int{bits}_weights {num_rows}"] = partial(make_weight_only, target, bits, num_rows)
    return cases | {"add_norm": partial(make_norm, target, 768), "gated_act": partial(make_gate, target, 1536)}


def measure(
    part: Part, name: str, make: Callable[[], Case], bounds: dict[str, tuple[Run, float]]
) -> dict[str, list[float]]:
    case, target = make(), part.target
    times = {key: target.repeat(run, NUM_LAUNCHES) for key, run in case.runs.items()}
    bound, bound_work = bounds[case.bound]
    comparison = compare({**times, BOUND: bound}, rounds=target.pick(15, 2), title=name)
    launches = target.pick(NUM_LAUNCHES, 1)
    part.rows.append(make_row(name, case, comparison, launches, bound_work))
    return comparison.seconds


def make_row(name: str, case: Case, comparison: Comparison, launches: int, bound_work: float) -> list[str]:
    seconds = {key: np.array(values) / launches for key, values in comparison.seconds.items()}
    rates = case.work / seconds[OURS]
    low, middle, high = np.percentile(rates * np.array(comparison.seconds[BOUND]) / bound_work, [10, 50, 90])
    unit = "GB/s" if case.bound == "copy" else "TFLOP/s"
    rate = float(np.median(rates)) / (1e9 if case.bound == "copy" else 1e12)
    cells = [f"{np.median(seconds[OURS]) * 1e6:.1f}", f"{rate:.0f} {unit}", f"{middle:.0%} ({low:.0%}-{high:.0%})"]
    if TORCH not in seconds:
        return [name, case.shape, *cells, "-", "-"]
    torch_us = float(np.median(seconds[TORCH])) * 1e6
    return [name, case.shape, *cells, f"{torch_us:.1f}", format_ratio(comparison.ratio(TORCH, OURS))]


def time_kernels(part: Part) -> None:
    part.headings = HEADINGS
    with torch.inference_mode():
        bounds = list_bounds(part.target)
        rates = {name: work / min(timed(run) for _ in range(5)) for name, (run, work) in bounds.items()}
        gemms = ", ".join(f"{rate / 1e12:.0f} in {name}" for name, rate in rates.items() if name != "copy")
        part.note = (
            f"Bounds, at best: GEMM, TFLOP/s: {gemms}; copy {rates['copy'] / 1e9:.0f} GB/s, read and written.\n"
            "int8 and fp8 beside torch: its sums alone, without what follows. Weights alone beside torch: its fp16."
        )
        part.run_cases(
            {name: partial(measure, part, name, make, bounds) for name, make in list_cases(part.target).items()}
        )
    names = list(part.results)
    series = {OURS: (range(len(names)), [find_ratio(part.results[name]) for name in names])}
    part.plot(
        series,
        x=", ".join(f"{index} {name}" for index, name in enumerate(names)),
        y="torch's time by ours",
        title="Kernels",
    )


def timed(run: Run) -> float:
    seconds = compare({"run": run}, rounds=1, title="bounds").seconds["run"]
    return seconds[0]


def find_ratio(seconds: dict[str, list[float]]) -> float:
    """torch's time by ours; 0 where torch has nothing like it."""
    return float(np.median(seconds[TORCH]) / np.median(seconds[OURS])) if TORCH in seconds else 0.0
