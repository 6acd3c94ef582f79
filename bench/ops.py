"""`python -m bench.ops`: each op on the shapes of MiniLM, one thread, and how far it is from what bounds it.

GEMMs and attention are held against the micro-kernel on data in the first-level cache, norms against a plain copy of as
many bytes, all timed in turn in the same run. torch's own op stands beside ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from bench.report import write_results
from bench.timing import Comparison, compare, format_ratio
from bench.traffic import sample_lengths
from runtime.backends.cpu.library import CpuLibrary, load_library, pack_bf16, pack_fp32, pack_int8, pad_bias
from runtime.backends.cpu.native import CpuKernels
from runtime.backends.plain import add_norm as torch_norm
from runtime.backends.plain import varlen_attention as torch_attention
from runtime.config import UnusableConfig
from runtime.ops.quantized_rows import row_bytes
from runtime.quantization.weights import quantize_weight

SHAPES = {"qkv": (384, 1152), "output": (384, 384), "up": (384, 1536), "down": (1536, 384)}
ROUNDS = 15
PEAK_REPEATS = 60_000
NUM_HEADS, HEAD_DIM = 12, 32

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One op: what runs it, ours first; multiply-adds or bytes it cannot do without; and the bound they are held to."""

    runs: dict[str, Run]
    work: dict[str, float]
    bound: dict[str, str]


def time_linear(kernels: CpuKernels, isa: str, num_tokens: int, name: str) -> Case:
    in_features, out_features = SHAPES[name]
    x, bias = torch.randn(num_tokens, in_features), torch.randn(out_features)
    weight, out = torch.randn(out_features, in_features) / in_features**0.5, torch.empty(num_tokens, out_features)
    quantized = quantize_weight(weight, scheme=None, overflow_free=isa == "avx2")
    packed, packed_bf16 = pack_fp32(weight), pack_bf16(weight)
    packed_int8 = pack_int8(quantized.values, quantized.scale)
    is_up = name == "up"
    act, half = "gelu" if is_up else "none", x.bfloat16()
    out_half, dtype = out.bfloat16(), torch.uint8 if is_up else torch.bfloat16
    out_int8 = torch.empty(num_tokens, row_bytes(out_features) if is_up else out_features, dtype=dtype)
    options = (pad_bias(bias), act, None, None, 0.0, 0, dtype, None, 0.0, 0)
    transposed = weight.t()

    def run_torch() -> None:
        torch.addmm(bias, x, transposed, out=out)
        if is_up:
            torch.ops.aten.gelu.out(out, out=out)

    runs: dict[str, Run] = {
        "fp32": lambda: kernels.linear_act(x, packed, out_features, pad_bias(bias), act, out=out).run(),
        "bf16": lambda: kernels.linear_act(half, packed_bf16, out_features, pad_bias(bias), act, out=out_half).run(),
        "int8": lambda: kernels.linear_int8(half, packed_int8, out_features, in_features, *options, out=out_int8).run(),
        "torch fp32": run_torch,
    }
    products = float(num_tokens * in_features * out_features)
    # Over the peak of fp32 where a CPU multiplies bf16.
    return Case(runs, dict.fromkeys(runs, products), dict.fromkeys(runs, "peak fp32") | {"int8": "peak int8"})


def time_attention(kernels: CpuKernels, seqlens: np.ndarray) -> Case:
    num_tokens, cu_seqlens = int(seqlens.sum()), torch.tensor([0, *seqlens.tolist()]).cumsum(0).to(torch.int32)
    runs: dict[str, Run] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16 rows", torch.bfloat16)):
        fused = torch.randn(num_tokens, 3, NUM_HEADS, HEAD_DIM).to(dtype)
        longest, out = int(seqlens.max()), torch.empty(num_tokens, NUM_HEADS, HEAD_DIM, dtype=dtype)
        args = (*fused.unbind(1), cu_seqlens, cu_seqlens, longest, longest, HEAD_DIM**-0.5)
        runs[name] = lambda args=args, out=out: kernels.varlen_attention(*args, out=out).run()
        if dtype == torch.float32:
            runs["torch fp32"] = lambda args=args, out=out: torch_attention.varlen_attention(*args, out=out)
    products = float((seqlens.astype(np.int64) ** 2).sum() * 2 * NUM_HEADS * HEAD_DIM)
    return Case(runs, dict.fromkeys(runs, products), dict.fromkeys(runs, "peak fp32"))


def time_norm(kernels: CpuKernels, num_tokens: int) -> Case:
    x, residual, out = (torch.randn(num_tokens, 384) for _ in range(3))
    halves = [tensor.bfloat16() for tensor in (x, residual, out)]
    weight, bias = torch.ones(384), torch.zeros(384)
    runs: dict[str, Run] = {
        "fp32": lambda: kernels.add_norm(x, residual, weight, bias, 1e-12, out=out).run(),
        "bf16 rows": lambda: kernels.add_norm(halves[0], halves[1], weight, bias, 1e-12, out=halves[2]).run(),
        "torch fp32": lambda: torch_norm.add_norm(x, residual, weight, bias, 1e-12, out=out),
        "torch fp32, allocating": lambda: functional.layer_norm(x + residual, (384,), weight, bias, 1e-12),
    }
    num_bytes = dict.fromkeys(runs, 3.0 * num_tokens * 384 * 4) | {"bf16 rows": 3.0 * num_tokens * 384 * 2}
    return Case(runs, num_bytes, dict.fromkeys(runs, "copy"))


def time_bounds(library: CpuLibrary, num_tokens: int) -> Case:
    source, target = torch.randn(num_tokens * 3, 384), torch.empty(num_tokens * 3, 384)
    runs: dict[str, Run] = {
        "peak fp32": lambda: library.peak_fp32(PEAK_REPEATS),
        "peak int8": lambda: library.peak_int8(PEAK_REPEATS),
        "copy": lambda: target.copy_(source),
    }
    work = {
        "peak fp32": float(library.peak_fp32(1)) * PEAK_REPEATS,
        "peak int8": float(library.peak_int8(1)) * PEAK_REPEATS,
    }
    return Case(runs, work | {"copy": 2.0 * source.nbytes}, {})


def measure(name: str, case: Case, bounds: Case) -> tuple[Comparison, list[list[str]]]:
    """The op's variants and the bounds they are held to, in turn."""
    needed = {bound: bounds.runs[bound] for bound in dict.fromkeys(case.bound.values())}
    comparison = compare({**case.runs, **needed}, rounds=ROUNDS, title=name)
    rows = []
    for variant in case.runs:
        bound = case.bound[variant]
        rate = case.work[variant] / comparison.median_s(variant) / 1e9
        limit, unit = bounds.work[bound] / 1e9, "GB/s" if bound == "copy" else "GMAC/s"
        of_bound = [
            case.work[variant] / 1e9 / own / (limit / peak)
            for own, peak in zip(comparison.seconds[variant], comparison.seconds[bound], strict=True)
        ]
        low, middle, high = np.percentile(of_bound, [10, 50, 90])
        ratio = format_ratio(comparison.ratio("torch fp32", variant))
        share = f"{middle:.0%} ({low:.0%}-{high:.0%}) of {bound}"
        rows.append([name, variant, f"{comparison.median_s(variant) * 1e3:.2f}", f"{rate:.0f} {unit}", share, ratio])
    return comparison, rows


def main() -> None:
    torch.set_num_threads(1)
    library = load_library("auto", lambda *_: None)
    if library is None:
        raise UnusableConfig("bench.ops measures the compiled CPU kernels, and there are none on this machine")
    kernels = CpuKernels(library)
    seqlens = sample_lengths("lognormal", 64, np.random.default_rng(0))
    num_tokens = int(seqlens.sum())
    cases = {f"linear {name}": time_linear(kernels, library.isa, num_tokens, name) for name in SHAPES}
    cases |= {"attention, log-normal": time_attention(kernels, seqlens)}
    cases |= {"attention, 1 x 512": time_attention(kernels, np.array([512]))}
    cases |= {"add_norm": time_norm(kernels, num_tokens)}
    bounds = time_bounds(library, num_tokens)
    results, table = {}, [["op", "variant", "median ms", "rate", "share of the bound", "torch's time by this"]]
    with torch.inference_mode():
        for name, case in cases.items():
            comparison, rows = measure(name, case, bounds)
            results[name] = comparison.seconds
            table += rows
    write_results("ops", table, {"isa": library.isa, "num_tokens": num_tokens, "seconds": results})


if __name__ == "__main__":
    main()
