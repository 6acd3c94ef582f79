"""The compiled kernels that torch has no like of: packed and int8 linears, quantised rows, embeddings with norm."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.backends.cpu.layouts import pack_fp32, pack_int8, pad_bias
from runtime.backends.cpu.ops import LINEAR_ACT_PACKED, LINEAR_INT8_PACKED
from runtime.backends.plain.linear_int8 import linear_int8 as torch_linear_int8
from runtime.ops import add_norm, embed_norm, linear_act, linear_int8, pool, varlen_attention
from runtime.ops.linear_act import ACTIVATIONS
from runtime.ops.quantized_rows import dequantize_rows, quantize_rows, row_bytes, split_rows
from runtime.quantization.weights import quantize_weight
from tests.kernels.emulated import COMPILED, needs_overflow_free
from tests.kernels.kernel_cases import DTYPES, KERNEL_TOLERANCES, borders, find_kernels, random_tensor, run_kernel
from tests.tolerances import Tolerance, check_close

FP32, BF16, UINT8 = torch.float32, torch.bfloat16, torch.uint8
pytestmark = pytest.mark.skipif(not COMPILED, reason="a CPU without AVX2")
ROWS = [1, 3, 4, 47, 48, 49, 200, 1027]
"""Fewer than a tile, a tile, around a block, several blocks, and enough of them to be cut by rows."""
SIZES = [(1, 1), (33, 17), (64, 16), (70, 400), (384, 48), (1600, 100)]
"""(in, out): less than a panel, not a multiple of one, a group and a bit, deeper than one pass over k."""
ROUNDED_TWICE = Tolerance(norm=5e-3, bound=2e-1)
"""Where one sum that falls the other way moves a quantised value by a step."""


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check_packed(
    isa: str, rows: int, sizes: tuple[int, int], dtype: torch.dtype, act: str, with_residual: bool
) -> None:
    x = random_tensor(rows, sizes[0], dtype=dtype)
    weight, bias = random_tensor(sizes[1], sizes[0], seed=1) / sizes[0] ** 0.5, random_tensor(sizes[1], seed=2)
    residual = random_tensor(rows, sizes[1], dtype=dtype, seed=3) if with_residual else None
    packed = (x, pack_fp32(weight), sizes[1], pad_bias(bias), act, residual)
    actual = run_kernel(find_kernels(isa)[LINEAR_ACT_PACKED.target], (rows, sizes[1]), dtype, *packed)
    expected = linear_act.OP(x, weight, bias, act, residual)
    check_close(actual, expected, tolerance=KERNEL_TOLERANCES[dtype], what="packed linear")


class TestLinearAct:
    @pytest.mark.parametrize("isa", COMPILED)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    @pytest.mark.parametrize("rows", ROWS)
    def test_every_shape(self, rows: int, sizes: tuple[int, int], dtype: torch.dtype, isa: str, threads: int) -> None:
        check_packed(isa, rows, sizes, dtype, "none", with_residual=False)

    @pytest.mark.parametrize("isa", COMPILED)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("act", ACTIVATIONS)
    def test_every_activation_with_residual(self, act: str, dtype: torch.dtype, isa: str) -> None:
        check_packed(isa, 50, (40, 33), dtype, act, with_residual=True)

    @pytest.mark.parametrize("isa", COMPILED)
    @pytest.mark.parametrize("act", ACTIVATIONS)
    def test_activations_far_from_zero(self, act: str, isa: str) -> None:
        x = torch.tensor([0.0, -0.0, 1e-30, 5.59, -5.59, 5.61, -5.61, 30.0, -30.0, 90.0, -90.0, 1e4, -1e4])[:, None]
        args = (x, pack_fp32(torch.ones(1, 1)), 1, None, act)
        actual = run_kernel(find_kernels(isa)[LINEAR_ACT_PACKED.target], (len(x), 1), FP32, *args)
        torch.testing.assert_close(actual, ACTIVATIONS[act](x), rtol=2e-6, atol=2e-6)

    @pytest.mark.parametrize("isa", COMPILED)
    def test_nan_stays_in_its_row(self, isa: str) -> None:
        x = random_tensor(9, 32)
        x[4, 7] = torch.nan
        args = (x, pack_fp32(random_tensor(20, 32)), 20, None, "gelu")
        actual = run_kernel(find_kernels(isa)[LINEAR_ACT_PACKED.target], (9, 20), FP32, *args)
        assert actual.isnan().any(1).tolist() == [row == 4 for row in range(9)]

    @pytest.mark.parametrize("isa", COMPILED)
    @pytest.mark.parametrize("width", [1, 16, 21])
    def test_every_nan_stays_one_in_bf16(self, width: int, isa: str) -> None:
        """Whatever its payload: rounded like a number, one of all ones would wrap around to 0."""
        bits = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000, 0x7FFF8000], dtype=torch.int32)
        residual = bits.view(FP32)[:, None].expand(-1, width).contiguous()
        args = (torch.zeros(5, 1), pack_fp32(torch.zeros(width, 1)), width, None, "none", residual)
        assert run_kernel(find_kernels(isa)[LINEAR_ACT_PACKED.target], (5, width), BF16, *args).isnan().all()


def int8_options(bias: Tensor | None = None, act: str = "none", **options: object) -> list[object]:
    names = ["residual", "inverse_smooth", "x_scale", "x_zero", "dtype", "out_inverse_smooth", "out_scale", "out_zero"]
    defaults: dict[str, object] = dict.fromkeys(names) | {
        "x_scale": 0.0, "x_zero": 0, "dtype": FP32, "out_scale": 0.0, "out_zero": 0
    }  # fmt: skip
    assert options.keys() <= defaults.keys()
    return [bias, act, *(defaults | options).values()]


def check_int8(isa: str, x: Tensor, sizes: tuple[int, int], act: str = "none", **options: object) -> Tensor:
    """Against the reference, which sums in fp64; for quantised results, what they stand for."""
    weight = random_tensor(sizes[1], sizes[0], seed=1) / sizes[0] ** 0.5
    quantized = quantize_weight(weight, scheme=None, overflow_free=needs_overflow_free(isa))
    bias = random_tensor(sizes[1], seed=2)
    dtype = options.get("dtype", FP32)
    assert isinstance(dtype, torch.dtype)
    expected = linear_int8.OP(x, quantized.values, quantized.scale, *int8_options(bias, act, **options))
    packed = pack_int8(quantized.values, quantized.scale)
    args = (x, packed, sizes[1], sizes[0], *int8_options(pad_bias(bias), act, **options))
    if dtype == UINT8:
        actual = torch.full((x.shape[0], row_bytes(sizes[1])), 77, dtype=UINT8)
        find_kernels(isa)[LINEAR_INT8_PACKED.target](*args, out=actual)
        actual, expected = (dequantize_rows(rows, sizes[1]) for rows in (actual, expected))
        check_close(actual, expected, tolerance=ROUNDED_TWICE, what="quantised rows")
    else:
        actual = run_kernel(find_kernels(isa)[LINEAR_INT8_PACKED.target], (x.shape[0], sizes[1]), dtype, *args)
        tolerance = KERNEL_TOLERANCES[dtype] if x.dtype == UINT8 else ROUNDED_TWICE
        check_close(actual, expected, tolerance=tolerance, what="linear_int8")
    return actual


class TestLinearInt8:
    @pytest.mark.parametrize("isa", COMPILED)
    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    @pytest.mark.parametrize("rows", ROWS)
    def test_exact_over_quantised_rows(self, rows: int, sizes: tuple[int, int], isa: str, threads: int) -> None:
        check_int8(isa, quantize_rows(random_tensor(rows, sizes[0])), sizes)

    @pytest.mark.parametrize("isa", COMPILED)
    @pytest.mark.parametrize("dtype", [FP32, BF16, UINT8], ids=str)
    @pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("rows", [1, 50, 600])
    def test_quantises_its_rows(
        self, rows: int, x_dtype: torch.dtype, dtype: torch.dtype, isa: str, threads: int
    ) -> None:
        check_int8(isa, random_tensor(rows, 70, dtype=x_dtype), (70, 33), "gelu", dtype=dtype)

    @pytest.mark.parametrize("isa", COMPILED)
    @pytest.mark.parametrize("act", ACTIVATIONS)
    def test_every_activation_with_residual(self, act: str, isa: str) -> None:
        check_int8(isa, random_tensor(9, 64), (64, 40), act, residual=random_tensor(9, 40, seed=5))

    @pytest.mark.parametrize("isa", COMPILED)
    def test_smoothing_and_fixed_scales(self, isa: str) -> None:
        smooth = {"inverse_smooth": random_tensor(64).abs(), "out_inverse_smooth": random_tensor(40).abs()}
        check_int8(isa, random_tensor(9, 64), (64, 40), **smooth, dtype=UINT8)
        fixed = {"x_scale": 0.05, "x_zero": 120, "out_scale": 0.1, "out_zero": 100}
        check_int8(isa, random_tensor(9, 64), (64, 40), **fixed, dtype=UINT8)

    @pytest.mark.parametrize("isa", COMPILED)
    def test_largest_bytes_do_not_overflow(self, isa: str) -> None:
        """All activations 255 and each group of weights at its bound: the worst that 16-bit sums can meet."""
        rows = quantize_rows(torch.ones(5, 64))
        values = torch.tensor(
            [64, 64, 64, 64, 0, 0, 0, 0] * 8 if needs_overflow_free(isa) else [127] * 64, dtype=torch.int8
        )
        values = torch.stack([values, -values])
        args = (rows, pack_int8(values, torch.ones(2)), 2, 64, *int8_options())
        actual = run_kernel(find_kernels(isa)[LINEAR_INT8_PACKED.target], (5, 2), FP32, *args)
        check_close(actual, values.float().sum(1).expand(5, 2))

    @pytest.mark.parametrize("isa", COMPILED)
    def test_outlier_column_costs_only_its_row(self, isa: str) -> None:
        x = random_tensor(6, 64)
        x[2, 5] = 1000.0
        alone = check_int8(isa, x[:2].contiguous(), (64, 40))
        assert torch.equal(check_int8(isa, x, (64, 40))[:2], alone)

    @pytest.mark.parametrize("isa", COMPILED)
    @given(rows=st.integers(1, 130), in_features=st.integers(1, 200), out_features=st.integers(1, 70))
    @settings(deadline=None, max_examples=60)
    def test_any_shape(self, isa: str, rows: int, in_features: int, out_features: int) -> None:
        check_int8(isa, quantize_rows(random_tensor(rows, in_features)), (in_features, out_features), "relu")

    def test_torch_path_is_the_reference(self) -> None:
        x, weight = random_tensor(600, 70), random_tensor(33, 70, seed=1)
        quantized = quantize_weight(weight, scheme=None, overflow_free=False)
        args = (x, quantized.values, quantized.scale, *int8_options(random_tensor(33), "gelu"))
        actual = run_kernel(torch_linear_int8, (600, 33), FP32, *args)
        check_close(actual, linear_int8.OP(*args), tolerance=KERNEL_TOLERANCES[FP32])


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_rms", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 33), (9, 384), (700, 72)])
def test_add_norm_forms(
    rows: int, width: int, with_residual: bool, is_rms: bool, dtype: torch.dtype, isa: str, threads: int
) -> None:
    x = random_tensor(rows, width, dtype=dtype)
    residual = random_tensor(rows, width, dtype=dtype, seed=1) if with_residual else None
    bias = None if is_rms else random_tensor(width, seed=3)
    args = (x, residual, random_tensor(width, seed=2), bias, 1e-5, is_rms)
    kernel = find_kernels(isa)[add_norm.OP]
    expected = add_norm.OP(*args)
    check_close(run_kernel(kernel, (rows, width), dtype, *args), expected, tolerance=KERNEL_TOLERANCES[dtype])
    quantised = torch.full((rows, row_bytes(width)), 77, dtype=UINT8)
    kernel(*args, UINT8, random_tensor(width, seed=4).abs(), out=quantised)
    wanted = add_norm.OP(*args, UINT8, random_tensor(width, seed=4).abs())
    check_close(dequantize_rows(quantised, width), dequantize_rows(wanted, width), tolerance=ROUNDED_TWICE)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_rms", [False, True])
@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("form", ["dense", "slice", "copied"])
def test_add_norm_of_heads(form: str, num_heads: int, is_rms: bool, dtype: torch.dtype, isa: str, threads: int) -> None:
    """As of q and k in Qwen3: of each head alone, and read from where a fused projection has put them."""
    x = random_tensor(50, 7 + num_heads * 20 + 4, dtype=dtype)[:, 7:-4].view(50, num_heads, 20)
    x = {"dense": x.contiguous(), "slice": x, "copied": x.transpose(1, 2).contiguous().transpose(1, 2)}[form]
    residual = random_tensor(50, num_heads, 20, dtype=dtype, seed=1)
    bias = None if is_rms else random_tensor(20, seed=3)
    for added in (None, residual):
        args = (x, added, random_tensor(20, seed=2), bias, 1e-5, is_rms)
        actual = run_kernel(find_kernels(isa)[add_norm.OP], (50, num_heads, 20), dtype, *args)
        check_close(actual, add_norm.OP(*args), tolerance=KERNEL_TOLERANCES[dtype])


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tables", [1, 3])
def test_embed_norm(num_tables: int, dtype: torch.dtype, isa: str, threads: int) -> None:
    tables = [random_tensor(11 + table, 33, dtype=dtype) for table in range(num_tables)]
    indices = [torch.arange(600) * (table + 3) % 11 for table in range(num_tables)]
    args = (tables, indices, random_tensor(33, seed=1), random_tensor(33, seed=2), 1e-12)
    actual = run_kernel(find_kernels(isa)[embed_norm.OP], (600, 33), dtype, *args)
    check_close(actual, embed_norm.OP(*args), tolerance=KERNEL_TOLERANCES[dtype])


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("wrong", [-1, 11, 1 << 40])
def test_embed_norm_refuses_what_is_not_in_the_table(wrong: int, isa: str) -> None:
    indices = torch.tensor([0, wrong, 3])
    with pytest.raises(IndexError, match="1 of the batch's ids"):
        find_kernels(isa)[embed_norm.OP](
            [torch.zeros(11, 8)], [indices], torch.ones(8), torch.zeros(8), 1e-5, out=torch.empty(3, 8)
        )


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("mode", pool.POOLINGS)
def test_pool_normalised(mode: str, isa: str, threads: int) -> None:
    hidden_states, cu_seqlens = random_tensor(60, 33), borders([5, 1, 30, 24])
    hidden_states[5] = 0
    actual = run_kernel(find_kernels(isa)[pool.OP], (4, 33), FP32, hidden_states, cu_seqlens, mode, True)
    check_close(actual, pool.OP(hidden_states, cu_seqlens, mode, True), tolerance=KERNEL_TOLERANCES[FP32])


@given(st.integers(1, 90), st.integers(1, 150))
@settings(deadline=None, max_examples=50)
def test_quantised_rows_come_back_within_half_a_step(rows: int, width: int) -> None:
    x = random_tensor(rows, width) * 3
    quantised = quantize_rows(x)
    _, scales, _ = split_rows(quantised, width)
    assert ((dequantize_rows(quantised, width) - x).abs() <= 0.51 * scales).all()


@pytest.mark.parametrize("isa", COMPILED)
class TestDeterminism:
    """Bit for bit: whatever the number of threads, and whoever else is in the batch."""

    def test_linears(self, isa: str) -> None:
        x, weight = random_tensor(1027, 70), random_tensor(90, 70, seed=1)
        quantized = quantize_weight(weight, scheme=None, overflow_free=needs_overflow_free(isa))
        packed = pack_int8(quantized.values, quantized.scale)
        for op, args in (
            (LINEAR_ACT_PACKED.target, (pack_fp32(weight), 90, None, "gelu")),
            (LINEAR_INT8_PACKED.target, (packed, 90, 70, *int8_options(act="gelu"))),
        ):
            whole = run_kernel(find_kernels(isa)[op], (1027, 90), FP32, x, *args)
            for rows in (slice(0, 1), slice(13, 60), slice(500, 1027)):
                part = run_kernel(find_kernels(isa)[op], (rows.stop - rows.start, 90), FP32, x[rows], *args)
                assert torch.equal(part, whole[rows])
            torch.set_num_threads(2)
            assert torch.equal(run_kernel(find_kernels(isa)[op], (1027, 90), FP32, x, *args), whole)
            torch.set_num_threads(1)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_attention(self, isa: str, dtype: torch.dtype) -> None:
        seqlens = [5, 300, 17, 1, 130]
        q, k, v = random_tensor(sum(seqlens), 3 * 2 * 32, dtype=dtype).view(-1, 3, 2, 32).unbind(1)
        starts = borders(seqlens).tolist()
        args = (borders(seqlens), borders(seqlens), 300, 300, 0.2)
        kernel = find_kernels(isa)[varlen_attention.OP]
        whole = run_kernel(kernel, tuple(q.shape), dtype, q, k, v, *args)
        for index, seqlen in enumerate(seqlens):
            rows = slice(starts[index], starts[index + 1])
            alone = (q[rows], k[rows], v[rows], borders([seqlen]), borders([seqlen]), seqlen, seqlen, 0.2)
            assert torch.equal(run_kernel(kernel, (seqlen, 2, 32), dtype, *alone), whole[rows])
        torch.set_num_threads(2)
        assert torch.equal(run_kernel(kernel, tuple(q.shape), dtype, q, k, v, *args), whole)
        torch.set_num_threads(1)
