"""Linear layers, norms, pooling and lookups against their references."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from runtime.backends.plain.linear_act import ACTIVATE, linear, linear_act
from runtime.backends.plain.runs import iter_runs
from runtime.backends.plain.table import embedding
from runtime.ops import add_norm as add_norm_op
from runtime.ops import linear_act as linear_act_op
from runtime.ops import pool as pool_op
from tests.kernels.kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    KERNEL_TOLERANCES,
    SEQLENS,
    borders,
    find_kernels,
    random_tensor,
    run_kernel,
)
from tests.tolerances import check_close

FP32, BF16 = torch.float32, torch.bfloat16
ROWS = [1, 7, 256, 257, 1027]
"""One, odd, a block, over a block, over every block."""
TYPES = [(FP32, FP32), (BF16, BF16), (BF16, FP32)]
"""(of x, of weight). The last where a CPU has no 16-bit GEMM."""


def check_linear_act(
    rows: int, sizes: tuple[int, int], types: tuple[torch.dtype, torch.dtype], act: str, bias: bool
) -> None:
    x = random_tensor(rows, sizes[0], dtype=types[0])
    weight = random_tensor(sizes[1], sizes[0], dtype=types[1], seed=1) / sizes[0] ** 0.5
    args = (x, weight, random_tensor(sizes[1], dtype=types[1]) if bias else None, act)
    actual = run_kernel(linear_act, (rows, sizes[1]), types[0], *args)
    check_close(actual, linear_act_op.OP(*args), tolerance=KERNEL_TOLERANCES[types[0]], what=f"linear_act {act}")


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_linear_act_over_rows(rows: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    check_linear_act(rows, (48, 33), types, "gelu", bias=True)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", linear_act_op.ACTIVATIONS)
def test_linear_act_with_every_activation(act: str, bias: bool, types: tuple[torch.dtype, torch.dtype]) -> None:
    check_linear_act(9, (24, 17), types, act, bias)


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 40), st.sampled_from(TYPES))
@settings(deadline=None, max_examples=50)
def test_linear_act_of_any_shape(
    rows: int, in_features: int, out_features: int, types: tuple[torch.dtype, torch.dtype]
) -> None:
    check_linear_act(rows, (in_features, out_features), types, "relu", bias=True)


def test_every_activation_has_a_kernel() -> None:
    assert ACTIVATE.keys() == linear_act_op.ACTIVATIONS.keys()


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_linear_act_reads_strided_rows_and_transposed_weights(types: tuple[torch.dtype, torch.dtype]) -> None:
    """A slice of fused columns, and a weight with its input features outermost."""
    x = random_tensor(600, 96, dtype=types[0])[:, 32:64]
    weight = random_tensor(16, 32, dtype=types[1]).t().contiguous().t()
    args = (x, weight, random_tensor(16, dtype=types[1]), "silu")
    actual = run_kernel(linear_act, (600, 16), types[0], *args)
    check_close(actual, linear_act_op.OP(*args), tolerance=KERNEL_TOLERANCES[types[0]])


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_linear_of_more_dimensions(types: tuple[torch.dtype, torch.dtype]) -> None:
    x, weight = random_tensor(5, 3, 8, dtype=types[0]), random_tensor(4, 8, dtype=types[1])
    actual = run_kernel(linear, (5, 3, 4), types[0], x, weight)
    check_close(actual, linear_act_op.OP(x, weight, None, "none"), tolerance=KERNEL_TOLERANCES[types[0]])


NORM_TYPES = [(FP32, FP32), (BF16, FP32), (BF16, BF16)]


def norm_args(rows: int, size: int, types: tuple[torch.dtype, torch.dtype]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual = (random_tensor(rows, size, dtype=types[0], seed=seed) for seed in (1, 2))
    weight, bias = (random_tensor(size, dtype=types[1], seed=seed) for seed in (3, 4))
    return x, residual, weight, bias


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("types", NORM_TYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_add_norm(implementation: str, rows: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    args = (*norm_args(rows, 48, types), 1e-12)
    actual = run_kernel(find_kernels(implementation)[add_norm_op.OP], (rows, 48), types[0], *args)
    check_close(actual, add_norm_op.OP(*args), tolerance=KERNEL_TOLERANCES[types[0]])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("types", NORM_TYPES, ids=str)
def test_add_norm_of_strided_rows(implementation: str, types: tuple[torch.dtype, torch.dtype]) -> None:
    x, residual, weight, bias = norm_args(300, 96, types)
    args = (x[:, 48:], residual[:, :48], weight[:48], bias[:48], 1e-5)
    actual = run_kernel(find_kernels(implementation)[add_norm_op.OP], (300, 48), types[0], *args)
    check_close(actual, add_norm_op.OP(*args), tolerance=KERNEL_TOLERANCES[types[0]])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_add_norm_of_a_large_mean(implementation: str) -> None:
    """The variance as E[x^2] - E[x]^2 would drown here (TurboTransformers' does)."""
    x, residual, weight, bias = norm_args(5, 64, (FP32, FP32))
    actual = run_kernel(
        find_kernels(implementation)[add_norm_op.OP], (5, 64), FP32, x + 3000, residual, weight, bias, 1e-5
    )
    exact = functional.layer_norm(
        ((x + 3000).double() + residual.double()), (64,), weight.double(), bias.double(), 1e-5
    )
    assert (actual - exact).abs().max() < 5e-3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("types", NORM_TYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(implementation: str, rows: int, types: tuple[torch.dtype, torch.dtype], affine: bool) -> None:
    x, _, weight, bias = norm_args(rows, 48, types)
    given_weights = (weight, bias) if affine else (None, None)
    actual = run_kernel(
        find_kernels(implementation)[torch.ops.aten.layer_norm.default],
        (rows, 48),
        types[0],
        x,
        (48,),
        *given_weights,
        1e-5,
    )
    wide = [None if value is None else value.float() for value in given_weights]
    expected = functional.layer_norm(x.float(), (48,), *wide, 1e-5).to(types[0])
    check_close(actual, expected, tolerance=KERNEL_TOLERANCES[types[0]])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["mean", "max", "cls", "last"])
@pytest.mark.parametrize("name", SEQLENS)
def test_pool(implementation: str, name: str, mode: str, dtype: torch.dtype) -> None:
    """Always fp32 out, and of every sequence, not of the first one alone (TurboTransformers' pooler)."""
    hidden_states, cu_seqlens = random_tensor(sum(SEQLENS[name]), 24, dtype=dtype), borders(SEQLENS[name])
    actual = run_kernel(
        find_kernels(implementation)[pool_op.OP], (len(SEQLENS[name]), 24), FP32, hidden_states, cu_seqlens, mode
    )
    check_close(actual, pool_op.OP(hidden_states, cu_seqlens, mode), tolerance=KERNEL_TOLERANCES[FP32], what=mode)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["mean", "max", "cls", "last"])
def test_pool_without_prompts(implementation: str, mode: str, normalize: bool, dtype: torch.dtype) -> None:
    """None of a sequence, some and all of it. What is left is pooled as if it were alone; all gone, it is 0 or cls."""
    seqlens, prompts = [5, 1, 30, 24, 3, 7], [2, 0, 29, 24, 5, 0]
    hidden_states, cu_seqlens = random_tensor(sum(seqlens), 33, dtype=dtype), borders(seqlens)
    args = (hidden_states, cu_seqlens, mode, normalize, torch.tensor(prompts, dtype=torch.int32))
    actual = run_kernel(find_kernels(implementation)[pool_op.OP], (len(seqlens), 33), FP32, *args)
    check_close(actual, pool_op.OP(*args), tolerance=KERNEL_TOLERANCES[FP32])
    for index, (rows, skipped) in enumerate(zip(hidden_states.split(seqlens), prompts, strict=True)):
        if skipped < len(rows):
            left = rows[skipped:]
            alone = pool_op.OP(left, borders([len(left)]), mode, normalize)
            check_close(actual[index], alone[0], tolerance=KERNEL_TOLERANCES[FP32], what=str(index))
        elif mode in ("mean", "max"):
            assert not actual[index].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", ["mean", "max", "cls", "last"])
def test_pool_of_strided_rows(implementation: str, mode: str) -> None:
    hidden_states, cu_seqlens = random_tensor(30, 48)[:, 10:20], borders([4, 4, 22])
    actual = run_kernel(find_kernels(implementation)[pool_op.OP], (3, 10), FP32, hidden_states, cu_seqlens, mode)
    check_close(actual, pool_op.OP(hidden_states, cu_seqlens, mode), tolerance=KERNEL_TOLERANCES[FP32])


def test_reference_pool_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="mean, max, cls, last"):
        pool_op.pool(torch.zeros(2, 2), borders([2]), "median")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (9,), (3, 5)])
def test_embedding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = random_tensor(11, 6, dtype=dtype)
    indices = torch.arange(torch.Size(shape).numel()).view(shape) * 7 % 11
    actual = run_kernel(embedding, (*shape, 6), dtype, weight, indices, 0, False, False)
    assert torch.equal(actual, functional.embedding(indices, weight))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 64))
@settings(deadline=None)
def test_runs_are_the_sequences_in_order_of_equal_length_and_bounded(seqlens: list[int], max_tokens: int) -> None:
    cu_seqlens = [0, *itertools.accumulate(seqlens)]
    runs = list(iter_runs(cu_seqlens, max_tokens))
    assert [run.seqlen for run in runs for _ in range(run.num_seqs)] == seqlens
    for run in runs:
        assert cu_seqlens[run.first_seq] == run.first_token == run.tokens.start
        assert cu_seqlens[run.seqs.stop] == run.tokens.stop
        assert run.num_seqs == 1 or run.num_seqs * run.seqlen <= max_tokens


def test_equal_neighbours_share_a_run() -> None:
    assert [run.num_seqs for run in iter_runs([0, 4, 8, 12, 13, 14, 18])] == [3, 2, 1]
