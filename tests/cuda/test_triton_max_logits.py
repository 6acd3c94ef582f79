"""The largest logits of words by Triton: against the reference, and compiled."""

import pytest
import torch

from runtime.backends.cuda.max_logits import max_logits
from runtime.ops.max_logits import OP
from tests.cuda.cuda_cases import check_compiled, check_kernel, every_capability, run_on
from tests.kernels.kernel_cases import borders, random_tensor


@pytest.mark.parametrize("seqlens", [[1], [3, 40, 1]], ids=str)
@pytest.mark.parametrize(("vocab_size", "width"), [(101, 16), (300, 33)])
def test_largest_logits(vocab_size: int, width: int, seqlens: list[int], device: torch.device) -> None:
    rows, table, bias = (random_tensor(*shape) for shape in ((sum(seqlens), width), (vocab_size, width), (vocab_size,)))
    check_kernel(device, max_logits, OP, rows, table, bias, borders(seqlens))


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's word on what the interpreter asks of it
def test_nan_stays_in_its_sequence(device: torch.device) -> None:
    rows, table, bias = random_tensor(46, 24), random_tensor(100, 24), random_tensor(100)
    rows[40, 3] = torch.nan
    found = run_on(device, max_logits, (3, 100), torch.float32, rows, table, bias, borders([5, 40, 1]))
    assert found[1].isnan().all() and not found[[0, 2]].isnan().any()


@pytest.mark.slow
@every_capability
@pytest.mark.parametrize("width", [384, 768, 100])
def test_compiles(width: int, capability: int) -> None:
    rows, table, bias = random_tensor(4, width), random_tensor(100, width), random_tensor(100)
    check_compiled(capability, max_logits, OP, rows, table, bias, borders([1, 3]))
