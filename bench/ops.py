"""`python -m bench.ops`: each op on the shapes of MiniLM, one thread, and how far it is from what bounds it.

GEMMs and attention are held against what the CPU's instructions allow at the clock it runs at (`peaks`), which is
measured in every round, and against their own innermost loop on data in the first-level cache; norms against a plain
copy of as many bytes. torch's own op stands beside ours.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from bench.peaks import macs_per_cycle
from bench.report import write_results
from bench.timing import Comparison, compare, format_ratio
from bench.traffic import sample_lengths
from runtime.backends.cpu.build import OVERFLOW_FREE, read_cpu_flags
from runtime.backends.cpu.layouts import pack_bf16, pack_fp32, pack_int8, pad_bias
from runtime.backends.cpu.library import CpuLibrary, load_library
from runtime.backends.cpu.ops import LINEAR_ACT_PACKED, LINEAR_INT8_PACKED
from runtime.backends.plain import add_norm as torch_norm
from runtime.backends.plain import varlen_attention as torch_attention
from runtime.config import UnusableConfig
from runtime.ops import add_norm, varlen_attention
from runtime.ops.quantized_rows import row_bytes
from runtime.quantization.weights import quantize_weight

SHAPES = {"qkv": (384, 1152), "output": (384, 384), "up": (384, 1536), "down": (1536, 384)}
ROUNDS = 15
PEAK_REPEATS = 60_000
CYCLES = 16_000_000
NUM_HEADS, HEAD_DIM = 12, 32
HEADINGS = ["op", "variant", "median ms", "rate", "of the CPU's peak", "of our loop, or a copy", "torch's time by this"]

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One op: what runs it, ours first; multiply-adds or bytes it cannot do without; and the type it multiplies in, by
    variant, fp32 unless said. `copies`: it multiplies nothing to speak of."""

    runs: dict[str, Run]
    work: dict[str, float]
    dtypes: dict[str, str] = field(default_factory=dict)
    copies: bool = False

    def bound(self, variant: str) -> str:
        return "copy" if self.copies else f"loop {self.dtypes.get(variant, 'fp32')}"


def time_linear(library: CpuLibrary, num_tokens: int, name: str) -> Case:
    in_features, out_features = SHAPES[name]
    x, bias = torch.randn(num_tokens, in_features), torch.randn(out_features)
    weight, out = torch.randn(out_features, in_features) / in_features**0.5, torch.empty(num_tokens, out_features)
    quantized = quantize_weight(weight, scheme=None, overflow_free=library.isa in OVERFLOW_FREE)
    packed, packed_bf16 = pack_fp32(weight), pack_bf16(weight)
    packed_int8 = pack_int8(quantized.values, quantized.scale)
    is_up = name == "up"
    act, half, padded = "gelu" if is_up else "none", x.bfloat16(), pad_bias(bias)
    out_half, dtype = out.bfloat16(), torch.uint8 if is_up else torch.bfloat16
    out_int8 = torch.empty(num_tokens, row_bytes(out_features) if is_up else out_features, dtype=dtype)
    options = (padded, act, None, None, 0.0, 0, dtype)
    linear, linear_int8 = (library.kernels[op.target] for op in (LINEAR_ACT_PACKED, LINEAR_INT8_PACKED))
    transposed = weight.t()

    def run_torch() -> None:
        torch.addmm(bias, x, transposed, out=out)
        if is_up:
            torch.ops.aten.gelu.out(out, out=out)

    runs: dict[str, Run] = {
        "fp32": lambda: linear(x, packed, out_features, padded, act, out=out),
        "bf16": lambda: linear(half, packed_bf16, out_features, padded, act, out=out_half),
        "int8": lambda: linear_int8(half, packed_int8, out_features, in_features, *options, out=out_int8),
        "torch fp32": run_torch,
    }
    products = float(num_tokens * in_features * out_features)
    return Case(runs, dict.fromkeys(runs, products), {"bf16": "bf16", "int8": "int8"})


def time_attention(library: CpuLibrary, seqlens: np.ndarray) -> Case:
    num_tokens, cu_seqlens = int(seqlens.sum()), torch.tensor([0, *seqlens.tolist()]).cumsum(0).to(torch.int32)
    kernel, runs = library.kernels[varlen_attention.SPEC.target], dict[str, Run]()
    for name, dtype in (("fp32", torch.float32), ("bf16 rows", torch.bfloat16)):
        fused = torch.randn(num_tokens, 3, NUM_HEADS, HEAD_DIM).to(dtype)
        longest, out = int(seqlens.max()), torch.empty(num_tokens, NUM_HEADS, HEAD_DIM, dtype=dtype)
        args = (*fused.unbind(1), cu_seqlens, cu_seqlens, longest, longest, HEAD_DIM**-0.5)
        runs[name] = partial(kernel, *args, out=out)
        if dtype == torch.float32:
            runs["torch fp32"] = partial(torch_attention.varlen_attention, *args, out=out)
    products = float((seqlens.astype(np.int64) ** 2).sum() * 2 * NUM_HEADS * HEAD_DIM)
    return Case(runs, dict.fromkeys(runs, products))


def time_norm(library: CpuLibrary, num_tokens: int) -> Case:
    x, residual, out = (torch.randn(num_tokens, 384) for _ in range(3))
    halves = [tensor.bfloat16() for tensor in (x, residual, out)]
    weight, bias = torch.ones(384), torch.zeros(384)
    kernel = library.kernels[add_norm.SPEC.target]
    runs: dict[str, Run] = {
        "fp32": lambda: kernel(x, residual, weight, bias, 1e-12, out=out),
        "bf16 rows": lambda: kernel(halves[0], halves[1], weight, bias, 1e-12, out=halves[2]),
        "torch fp32": lambda: torch_norm.add_norm(x, residual, weight, bias, 1e-12, out=out),
        "torch fp32, allocating": lambda: functional.layer_norm(x + residual, (384,), weight, bias, 1e-12),
    }
    num_bytes = dict.fromkeys(runs, 3.0 * num_tokens * 384 * 4) | {"bf16 rows": 3.0 * num_tokens * 384 * 2}
    return Case(runs, num_bytes, copies=True)


def time_bounds(library: CpuLibrary, num_tokens: int) -> Case:
    """Copies, loops in cache, and the clock, whose work is its cycles."""
    source, target = torch.randn(num_tokens * 3, 384), torch.empty(num_tokens * 3, 384)
    runs: dict[str, Run] = {"copy": lambda: target.copy_(source), "clock": lambda: library.wait_cycles(CYCLES)}
    work = {"copy": 2.0 * source.nbytes, "clock": float(CYCLES)}
    for dtype, peak in library.peaks.items():
        runs[f"loop {dtype}"] = partial(peak, PEAK_REPEATS)
        work[f"loop {dtype}"] = float(peak(1)) * PEAK_REPEATS
    return Case(runs, work)


def measure(isa: str, name: str, case: Case, bounds: Case) -> tuple[Comparison, list[list[str]]]:
    """The op's variants and the bounds they are held to, in turn."""
    needed = {bound: bounds.runs[bound] for bound in ("clock", *dict.fromkeys(map(case.bound, case.runs)))}
    comparison = compare({**case.runs, **needed}, rounds=ROUNDS, title=name)
    seconds = {key: np.array(values) for key, values in comparison.seconds.items()}
    rows = []
    for variant in case.runs:
        bound, rates = case.bound(variant), case.work[variant] / seconds[variant]
        peak = macs_per_cycle(isa, case.dtypes.get(variant, "fp32")) * bounds.work["clock"] / seconds["clock"]
        cells = [
            f"{np.median(rates) / 1e9:.0f} {'GB/s' if case.copies else 'GMAC/s'}",
            "-" if case.copies else format_share(rates / peak),
            format_share(rates / (bounds.work[bound] / seconds[bound])),
            format_ratio(comparison.ratio("torch fp32", variant)),
        ]
        rows.append([name, variant, f"{comparison.median_s(variant) * 1e3:.2f}", *cells])
    return comparison, rows


def format_share(shares: np.ndarray) -> str:
    low, middle, high = np.percentile(shares, [10, 50, 90])
    return f"{middle:.0%} ({low:.0%}-{high:.0%})"


def describe_clock(comparisons: dict[str, Comparison], isa: str) -> str:
    """What the shares are of, and how calm the machine was: the clock of a core that others use seems slower."""
    ghz = CYCLES / np.concatenate([comparison.seconds["clock"] for comparison in comparisons.values()]) / 1e9
    low, middle, high = np.percentile(ghz, [10, 50, 90])
    peaks = ", ".join(f"{dtype} {macs_per_cycle(isa, dtype):.1f}" for dtype in ("fp32", "bf16", "int8"))
    flags = " ".join(sorted(flag for flag in read_cpu_flags() if flag.startswith(("avx", "amx", "fma"))))
    return (
        f"Kernels for {isa}; the CPU has {flags}.\nMultiply-adds per cycle at its peak: {peaks}.\n"
        f"Clock over all rounds: {middle:.2f} GHz ({low:.2f}-{high:.2f}: 10th and 90th percentile, as in the table). "
        f"Others waited or ran: {max(os.getloadavg()[0] - 1, 0):.1f} on {os.cpu_count()} cores."
    )


def main() -> None:
    torch.set_num_threads(1)
    library = load_library("auto", lambda *_: None)
    if library is None:
        raise UnusableConfig("bench.ops measures the compiled CPU kernels, and there are none on this machine")
    seqlens = sample_lengths("lognormal", 64, np.random.default_rng(0))
    num_tokens = int(seqlens.sum())
    cases = {f"linear {name}": time_linear(library, num_tokens, name) for name in SHAPES}
    cases |= {"attention, log-normal": time_attention(library, seqlens)}
    cases |= {"attention, 1 x 512": time_attention(library, np.array([512]))}
    cases |= {"add_norm": time_norm(library, num_tokens)}
    bounds = time_bounds(library, num_tokens)
    comparisons, table = dict[str, Comparison](), [HEADINGS]
    with torch.inference_mode():
        for name, case in cases.items():
            comparisons[name], rows = measure(library.isa, name, case, bounds)
            table += rows
    results = {name: comparison.seconds for name, comparison in comparisons.items()}
    results_and_shapes = {"isa": library.isa, "num_tokens": num_tokens, "seconds": results}
    write_results("ops", table, results_and_shapes, note=describe_clock(comparisons, library.isa))


if __name__ == "__main__":
    main()
