"""`padless::max_logits` against all logits at once, by every kernel."""

import pytest
import torch
from torch.nn import functional

from runtime.backends.cpu.layouts import pack_fp32, pad_bias
from runtime.backends.cpu.ops import MAX_LOGITS_PACKED
from runtime.ops import max_logits
from tests.kernels.emulated import COMPILED
from tests.kernels.kernel_cases import KERNEL_TOLERANCES, SEQLENS, borders, find_kernels, random_tensor, run_kernel
from tests.tolerances import check_close

SIZES = [(101, 16), (1000, 33), (777, 64)]
"""(tokens of the vocabulary, width): under and over a group of columns, whole panels and not."""


def expect(rows: torch.Tensor, table: torch.Tensor, bias: torch.Tensor, seqlens: list[int]) -> torch.Tensor:
    return torch.stack([part.amax(0) for part in functional.linear(rows, table, bias).split(seqlens)])


@pytest.mark.parametrize("seqlens", SEQLENS.values(), ids=SEQLENS)
@pytest.mark.parametrize(("vocab_size", "width"), SIZES)
@pytest.mark.parametrize("kernels", ["torch", *COMPILED])
def test_largest_logits(kernels: str, vocab_size: int, width: int, seqlens: list[int]) -> None:
    rows, table, bias = (random_tensor(*shape) for shape in ((sum(seqlens), width), (vocab_size, width), (vocab_size,)))
    shape = (len(seqlens), vocab_size)
    if kernels == "torch":
        kernel, inputs = find_kernels(kernels)[max_logits.OP], (rows, table, bias)
    else:
        kernel = find_kernels(kernels)[MAX_LOGITS_PACKED.target]
        inputs = (rows, pack_fp32(table), vocab_size, pad_bias(bias))  # type: ignore[assignment]
    found = run_kernel(kernel, shape, torch.float32, *inputs, borders(seqlens))
    check_close(found, expect(rows, table, bias, seqlens), tolerance=KERNEL_TOLERANCES[torch.float32])


@pytest.mark.parametrize("kernels", COMPILED)
def test_a_sequence_alone_and_nan(kernels: str) -> None:
    """Its logits do not depend on the others; a row that is not finite shows, and in its own sequence only."""
    seqlens, vocab_size = [5, 70, 1], 300
    rows, table, bias = random_tensor(76, 24), random_tensor(vocab_size, 24), random_tensor(vocab_size)
    kernel, packed = find_kernels(kernels)[MAX_LOGITS_PACKED.target], (pack_fp32(table), vocab_size, pad_bias(bias))
    together = run_kernel(kernel, (3, vocab_size), torch.float32, rows, *packed, borders(seqlens))
    alone = run_kernel(kernel, (1, vocab_size), torch.float32, rows[5:75].clone(), *packed, borders([70]))
    assert torch.equal(alone[0], together[1])
    rows[40, 3] = torch.nan
    spoilt = run_kernel(kernel, (3, vocab_size), torch.float32, rows, *packed, borders(seqlens))
    assert spoilt[1].isnan().all() and torch.equal(spoilt[[0, 2]], together[[0, 2]])


def test_the_reference_multiplies_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, table, bias = random_tensor(9, 8), random_tensor(50, 8), random_tensor(50)
    whole = max_logits.max_logits(rows, table, bias, borders([4, 5]))
    monkeypatch.setattr(max_logits, "PART_NUMBERS", 9 * 7)
    check_close(max_logits.max_logits(rows, table, bias, borders([4, 5])), whole)
