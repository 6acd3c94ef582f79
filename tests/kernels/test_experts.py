"""Experts against their reference, and that against the formula, by every kernel."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.backends.cpu.layouts import pack_bf16, pack_experts, pack_fp32, pack_int8
from runtime.backends.cpu.ops import EXPERTS_PACKED
from runtime.ops.experts import OP
from runtime.quantization.weights import quantize_weight
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import IMPLEMENTATIONS, find_kernels, random_tensor, run_kernel
from tests.tolerances import Tolerance, check_close

PRECISIONS = {
    "fp32": Tolerance(norm=2e-6, bound=5e-5),
    # Where the CPU multiplies pairs of bf16, what stands between an expert's layers is rounded once more.
    "bf16": Tolerance(norm=6e-3, bound=2e-1),
    # A number on the border between two steps falls the other way.
    "int8": Tolerance(norm=5e-3, bound=1e-1),
}
ROUTES = {
    "usual": (9, 2),
    "one of one": (1, 1),
    "all": (4, 4),
    "one": (5, 1),
}
"""(experts, experts of a token)"""


def make_weights(num_experts: int, hidden_size: int, width: int, is_gated: bool) -> tuple[Tensor, Tensor, Tensor]:
    up = random_tensor(num_experts, width * (2 if is_gated else 1), hidden_size) / hidden_size**0.5
    return random_tensor(num_experts, hidden_size), up, random_tensor(num_experts, hidden_size, width) / width**0.5


def quantize_all(weight: Tensor) -> tuple[Tensor, Tensor]:
    # Weights that every CPU's kernel can take.
    each = [quantize_weight(matrix, scheme=None, overflow_free=True) for matrix in weight]
    return torch.stack([one.values for one in each]), torch.stack([one.scale for one in each])


def list_inputs(x: Tensor, weights: tuple[Tensor, ...], precision: str, *options: object) -> tuple[object, ...]:
    """The op's arguments."""
    router, up, down = weights
    if precision == "bf16":
        up, down = up.bfloat16(), down.bfloat16()
    if precision != "int8":
        return x, router, up, down, *options
    (up, up_scale), (down, down_scale) = quantize_all(up), quantize_all(down)
    return x, router, up, down, *options, up_scale, down_scale


def run_experts(implementation: str, precision: str, inputs: tuple[object, ...]) -> Tensor:
    """`inputs`: those of `list_inputs`."""
    x, router, up, down, *options = inputs
    assert isinstance(x, Tensor) and isinstance(router, Tensor) and isinstance(up, Tensor) and isinstance(down, Tensor)
    if implementation == "torch":
        return run_kernel(find_kernels(implementation)[OP], tuple(x.shape), x.dtype, *inputs)
    pack = {"fp32": pack_fp32, "bf16": pack_bf16, "int8": pack_int8}[precision]
    up_scale, down_scale = options[4:] if precision == "int8" else (None, None)
    assert not isinstance(up_scale, str) and not isinstance(down_scale, str)
    packed = (pack_fp32(router), pack_experts(up, up_scale, pack), pack_experts(down, down_scale, pack))  # type: ignore[arg-type]
    sizes = (len(router), down.shape[2])
    kernel = find_kernels(implementation)[EXPERTS_PACKED.target]
    return run_kernel(kernel, tuple(x.shape), x.dtype, x, *packed, *sizes, *options[:4])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("rows", "hidden_size", "width"), [(1, 24, 33), (130, 33, 20)])
def test_against_reference(
    rows: int, hidden_size: int, width: int, route: str, precision: str, implementation: str
) -> None:
    num_experts, top_k = ROUTES[route]
    is_gated = route != "all"
    weights = make_weights(num_experts, hidden_size, width, is_gated)
    x = random_tensor(rows, hidden_size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    inputs = list_inputs(x, weights, precision, top_k, "silu" if is_gated else "gelu", is_gated, route == "usual")
    found = run_experts(implementation, precision, inputs)
    check_close(found, OP(*inputs), tolerance=PRECISIONS[precision], what=route)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_expert_has_all_tokens_and_others_none(implementation: str) -> None:
    """More of them than are taken at a time."""
    router, up, down = make_weights(6, 16, 8, True)
    x = random_tensor(2500, 16)
    x[:, 0] = 9
    router[:, 0] = torch.tensor([-9.0, -9, 30, -9, -9, -9])
    inputs = list_inputs(x, (router, up, down), "fp32", 1, "silu", True, False)
    found = run_experts(implementation, "fp32", inputs)
    gate, other = functional.linear(x, up[2]).chunk(2, 1)
    expected = functional.linear(functional.silu(gate) * other, down[2])
    check_close(found, expected, tolerance=PRECISIONS["fp32"])


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_token_does_not_depend_on_the_others(precision: str, implementation: str) -> None:
    x = random_tensor(2100, 40, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    weights = make_weights(5, 40, 24, True)
    together = run_experts(implementation, precision, list_inputs(x, weights, precision, 2, "silu", True, True))
    for part in (slice(0, 1), slice(2040, 2060)):
        inputs = list_inputs(x[part].clone(), weights, precision, 2, "silu", True, True)
        assert torch.equal(run_experts(implementation, precision, inputs), together[part])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equal_scores_take_the_first_and_nan_stays(implementation: str) -> None:
    _, up, down = make_weights(4, 16, 8, True)
    x = random_tensor(3, 16)
    x[1, 5] = torch.nan
    inputs = list_inputs(x, (torch.zeros(4, 16), up, down), "fp32", 2, "silu", True, False)
    found = run_experts(implementation, "fp32", inputs)
    assert found[1].isnan().all()
    first = list_inputs(x[::2], (torch.zeros(2, 16), up[:2], down[:2]), "fp32", 2, "silu", True, True)
    check_close(found[::2] * 2, OP(*first), tolerance=PRECISIONS["fp32"])


@pytest.mark.parametrize("renormalize", [False, True])
def test_reference_is_the_published_formula(renormalize: bool) -> None:
    """Token by token (Mixtral, Jiang et al., 2024: equations 1 and 2)."""
    router, up, down = make_weights(5, 12, 7, True)
    x = random_tensor(6, 12)
    expected = torch.zeros(6, 12)
    for token, row in enumerate(x):
        probabilities = (router @ row).softmax(0)
        chosen = probabilities.topk(3).indices
        total = probabilities[chosen].sum() if renormalize else 1
        for expert in chosen:
            gate, other = (up[expert] @ row).chunk(2)
            expected[token] += probabilities[expert] / total * (down[expert] @ (functional.silu(gate) * other))
    check_close(OP(x, router, up, down, 3, "silu", True, renormalize), expected)
