"""`python -m bench.ops`: single ops on the shapes of MiniLM: GEMMs in fp32 and bf16, fused norms."""

import torch
from torch import Tensor
from torch.nn import functional

from bench.report import write_results
from bench.timing import compare, format_ratio
from runtime.kernels.eager.add_norm import add_norm
from runtime.kernels.eager.linear_act import linear_act

NUM_TOKENS = 3281
SHAPES = {"qkv": (384, 1152), "output": (384, 384), "up": (384, 1536), "down": (1536, 384)}
ROUNDS = 9


def measure_linear(in_features: int, out_features: int) -> dict[str, list[float]]:
    x, weight = torch.randn(NUM_TOKENS, in_features), torch.randn(out_features, in_features)
    bias, out = torch.randn(out_features), torch.empty(NUM_TOKENS, out_features)
    half = [tensor.bfloat16() for tensor in (x, weight, bias, out)]
    candidates = {
        "functional.linear": lambda: functional.linear(x, weight, bias),
        "out=": lambda: linear_act(x, weight, bias, "none", out=out),
        "bf16 torch": lambda: functional.linear(*half[:3]),
        "bf16 as ours without bf16 instructions": lambda: linear_act(half[0], weight, bias, "none", out=half[3]),
    }
    return compare(candidates, rounds=ROUNDS, title=f"linear {in_features}x{out_features}")


def measure_norm(rows: int) -> dict[str, list[float]]:
    x, residual, out = (torch.randn(rows, 384) for _ in range(3))
    weight, bias = torch.ones(384), torch.zeros(384)

    def unfused() -> Tensor:
        return functional.layer_norm(x + residual, (384,), weight, bias, 1e-12)

    candidates = {
        "add, then layer_norm": unfused,
        "add_norm": lambda: add_norm(x, residual, weight, bias, 1e-12, out=out),
    }
    return compare(candidates, rounds=ROUNDS * 4, title="add_norm")


def main() -> None:
    results = {}
    table = [["op", "variant", "median ms", "times the first (10-90 %)"]]
    with torch.inference_mode():
        comparisons = {f"linear {name}": measure_linear(*shape) for name, shape in SHAPES.items()}
        comparisons["norm"] = measure_norm(NUM_TOKENS)
    for name, comparison in comparisons.items():
        results[name] = comparison.seconds
        first = next(iter(comparison.seconds))
        for variant in comparison.seconds:
            ratio = format_ratio(comparison.ratio(variant, first))
            table.append([name, variant, f"{comparison.median_s(variant) * 1e3:.2f}", ratio])
    write_results("ops", table, results)


if __name__ == "__main__":
    main()
